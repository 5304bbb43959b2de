//! The values in a manifest that have a form of their own. Each is checked as it is read, so that whoever reads it can
//! say where it stands.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use berth_engine::size;
use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};

use crate::api::framework::check_role;
use crate::resources::Kind;

/// The longest name.
const NAME_LENGTH: usize = 40;
/// The longest text.
const TEXT_LENGTH: usize = 64 << 10;
/// The most CPUs of a task.
const MOST_CPUS: f64 = 100_000.0;
/// The longest time: a year.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// A text that passed a check, cheap to copy.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        $(#[$doc])*
        pub struct $name(Arc<str>);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<$name, String> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(&text)?;
                Ok($name(text.into()))
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> String {
                text.to_string()
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text! {
    /// The name of a job, of its tasks or of a port: lower-case letters, digits and dashes
    #[schemars(extend("pattern" = r"^[a-z0-9][a-z0-9-]{0,39}$"))]
    Name, |text| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let right = text.starts_with(plain) && text.chars().all(|c| plain(c) || c == '-') && text.len() <= NAME_LENGTH;
        let wrong = || format!("a name has 1 to {NAME_LENGTH} lower-case letters, digits and dashes, no dash first");
        if right { Ok(()) } else { Err(wrong()) }
    }
}
text! {
    /// The name of a role
    RoleName, |text| check_role(text, "role").map_err(|wrong| wrong.to_string())
}
text! {
    /// The name of an image
    ImageName, |text| {
        let right = !text.is_empty() && text.len() <= 512 && !text.starts_with('-');
        let right = right && !text.contains(|c: char| c.is_whitespace() || c.is_control());
        if right { Ok(()) } else { Err("this is no name of an image".to_owned()) }
    }
}
text! {
    /// The name of a variable
    #[schemars(extend("pattern" = r"^[^=\x00]+$"))]
    Variable, |text| {
        let right = !text.is_empty() && text.len() <= 256 && !text.contains(['=', '\0']);
        if right { Ok(()) } else { Err("the name of a variable has 1 to 256 bytes and no `=`".to_owned()) }
    }
}
text! {
    /// A text
    Text, |text| {
        let right = text.len() <= TEXT_LENGTH && !text.contains('\0');
        if right { Ok(()) } else { Err(format!("a text has at most {TEXT_LENGTH} bytes, none of which is 0")) }
    }
}

impl Default for RoleName {
    fn default() -> RoleName {
        RoleName("*".into())
    }
}

/// Reads a whole number within a range.
pub(super) fn whole<'de, D, const MIN: u32, const MAX: u32>(value: D) -> Result<u32, D::Error>
where
    D: Deserializer<'de>,
{
    struct Whole<const MIN: u32, const MAX: u32>;

    impl<const MIN: u32, const MAX: u32> Visitor<'_> for Whole<MIN, MAX> {
        type Value = u32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a whole number from {MIN} to {MAX}")
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<u32, E> {
            let known = u32::try_from(number).ok().filter(|known| (MIN..=MAX).contains(known));
            known.ok_or_else(|| E::custom(format!("is {number}, and has to be a whole number from {MIN} to {MAX}")))
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<u32, E> {
            self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
        }
    }
    value.deserialize_any(Whole::<MIN, MAX>)
}

/// The same, where there may be none.
pub(super) fn whole_or_none<'de, D, const MIN: u32, const MAX: u32>(value: D) -> Result<Option<u32>, D::Error>
where
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct One<const MIN: u32, const MAX: u32>(#[serde(deserialize_with = "whole::<_, MIN, MAX>")] u32);

    Ok(Option::<One<MIN, MAX>>::deserialize(value)?.map(|One(number)| number))
}

/// Between 0 and 100
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(into = "u8")]
#[schemars(extend("maximum" = 100))]
pub struct Percent(u8);

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Percent, D::Error> {
        whole::<_, 0, 100>(value).map(|number| Percent(u8::try_from(number).expect("it is at most 100")))
    }
}

impl From<Percent> for u8 {
    fn from(percent: Percent) -> u8 {
        percent.0
    }
}

impl Default for Percent {
    fn default() -> Percent {
        Percent(50)
    }
}

/// A count of CPUs, such as 0.5
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(into = "f64")]
#[schemars(extend("minimum" = 0.001, "maximum" = 100_000))]
pub struct Cpus(u64);

impl Cpus {
    /// In the unit CPUs are counted in.
    pub const fn from_thousandths(thousandths: u64) -> Cpus {
        Cpus(thousandths)
    }

    /// The same.
    pub const fn thousandths(self) -> u64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Cpus, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Cpus;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number between 0.001 and {MOST_CPUS}")
            }

            fn visit_f64<E: Error>(self, cpus: f64) -> Result<Cpus, E> {
                // Also false for what is no number.
                if (0.001..=MOST_CPUS).contains(&cpus) {
                    Ok(Cpus((cpus * 1000.0).round() as u64))
                } else {
                    Err(E::custom(format!("a task has between 0.001 and {MOST_CPUS} CPUs")))
                }
            }

            #[expect(clippy::cast_precision_loss, reason = "what is so large is too large")]
            fn visit_i64<E: Error>(self, cpus: i64) -> Result<Cpus, E> {
                self.visit_f64(cpus as f64)
            }

            #[expect(clippy::cast_precision_loss, reason = "what is so large is too large")]
            fn visit_u64<E: Error>(self, cpus: u64) -> Result<Cpus, E> {
                self.visit_f64(cpus as f64)
            }
        }
        value.deserialize_any(Number)
    }
}

impl From<Cpus> for f64 {
    #[expect(clippy::cast_precision_loss, reason = "what tasks have is far below 2⁵³")]
    fn from(cpus: Cpus) -> f64 {
        cpus.0 as f64 / 1000.0
    }
}

/// A size in bytes, such as 64m
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = r"^[0-9.]+([bB]|[kKmMgGtT]([iI]?[bB])?)?$"))]
pub struct Size(u64);

impl Size {
    /// So many bytes.
    pub const fn from_bytes(bytes: u64) -> Size {
        Size(bytes)
    }

    /// How many bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Size, String> {
        match size::some_bytes(&text)? {
            bytes if bytes <= Kind::Memory.cluster_limit() => Ok(Size(bytes)),
            _ => Err("this is more than a cluster may have".to_owned()),
        }
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.0.to_string()
    }
}

/// A time, such as 500ms, 10s or 1h30m
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("examples" = ["500ms", "10s", "1h30m"]))]
pub struct Span(Duration);

impl Span {
    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }

    /// As programs count it.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Span, String> {
        let span = text.parse::<SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
        let span = span.ok_or_else(|| "this is no time; write for example 500ms, 10s or 1h30m".to_owned())?;
        if span <= LONGEST { Ok(Span(span)) } else { Err("this is more than a year".to_owned()) }
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        format!("{:#}", SignedDuration::try_from(span.0).unwrap_or(SignedDuration::MAX))
    }
}
