//! What is wrong with a manifest, in words for whoever wrote it: in which line, with which field, and what would be right.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_path_to_error::Track;
use serde_saphyr::{Error, Location, Options, Spanned};

use super::LONGEST;
use crate::api::Invalid;

/// The most that aliases add to a manifest: keys, values, and the brackets around them.
const MOST_REPEATED: usize = 10_000;
/// How deep a manifest is at most; none has reason to be half as deep.
const DEEPEST: usize = 32;
/// The most bytes of text once aliases are replaced by what they stand for.
pub(super) const LONGEST_EXPANDED: usize = 4 * LONGEST;

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    line: Option<u64>,
    /// Its path, as in `tasks.front.image`; empty for the manifest as a whole.
    field: String,
    what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.what)
    }
}

impl Problem {
    /// A problem with a field of this text, which was read.
    pub fn of(text: &str, Invalid { field, problem }: Invalid) -> Problem {
        let path: Vec<&str> = field.split(['.', '[', ']']).filter(|step| !step.is_empty()).collect();
        // A value that is left out stands nowhere; what it would be part of does.
        let line = (1..=path.len()).rev().find_map(|depth| locate(text, &path[..depth])).map(|place| place.line());
        Problem { line, field, what: problem }
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEEPEST,
            max_total_scalar_bytes: LONGEST_EXPANDED,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MOST_REPEATED },
        reject_unsupported_tags: true,
        reject_tagged_field_names: true,
        // Whoever takes numbers says which.
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    }
}

/// Reads a document.
pub fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, Problem> {
    let mut field = String::new();
    let read = serde_saphyr::with_deserializer_from_str_with_options(text, options(), |document| {
        let mut track = Track::new();
        let read = T::deserialize(serde_path_to_error::Deserializer::new(document, &mut track));
        read.inspect_err(|_| field = track.path().to_string())
    });
    read.map_err(|error| Problem {
        line: error.location().map(|place| place.line()).filter(|line| *line > 0),
        // Where not even a key was read, the path ends in `?`, or is `.`.
        field: field.trim_end_matches('?').trim_end_matches('.').to_owned(),
        what: tell(&error),
    })
}

/// What an error of the reader means to whoever wrote the text.
fn tell(error: &Error) -> String {
    match error.without_snippet() {
        Error::Message { msg, .. } => msg.clone(),
        Error::AliasError { error, .. } => tell(error),
        Error::ExternalMessage { msg, .. } => format!("this is no YAML: {msg}"),
        Error::Eof { .. } => "something is missing: the text ends too early".to_owned(),
        Error::MultipleDocuments { .. } => "there is a second document; submit every job by itself".to_owned(),
        Error::Unexpected { expected, .. } => match *expected {
            "mapping start" => "has to be a mapping: `key: value`, one a line".to_owned(),
            "sequence start" => "has to be a list: `[one, another]`".to_owned(),
            "string scalar" | "scalar" => "has to be a text".to_owned(),
            _ => "something else has to be here".to_owned(),
        },
        Error::NullIntoString { .. } => "is empty; write '' where an empty text is meant".to_owned(),
        Error::InvalidScalar { ty, .. } if ty.starts_with("bool") => "has to be true or false".to_owned(),
        Error::InvalidBooleanStrict { .. } => "has to be true or false".to_owned(),
        Error::InvalidScalar { .. } => "has to be a number".to_owned(),
        Error::SerdeInvalidType { unexpected, expected, .. }
        | Error::SerdeInvalidValue { unexpected, expected, .. } => {
            format!("is {}, and has to be {expected}", unexpected.replacen("string", "the text", 1))
        }
        Error::SerdeUnknownField { expected, .. } => format!("is not known here; there are {}", names(expected)),
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            format!("`{variant}` is not known; there are {}", names(expected))
        }
        Error::SerdeMissingField { field, .. } => format!("`{field}` is missing"),
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("`{key}` is there twice"),
        Error::DuplicateMappingKey { key: None, .. } => "a key is there twice".to_owned(),
        Error::UnsupportedTag { tag, .. } | Error::TaggedStructFieldName { tag, .. } => {
            format!("the tag `{tag}` means nothing here; leave it out")
        }
        Error::TaggedScalarCannotDeserializeIntoString { .. } => "has a tag of another type; leave it out".to_owned(),
        Error::UnknownAnchor { .. } => "there is an alias (`*name`), but no anchor (`&name`) before it".to_owned(),
        Error::RecursiveReferencesRequireWeakTypes { .. } => "what an alias stands for contains itself".to_owned(),
        Error::Budget { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => too_large(),
        _ => "this cannot be read as YAML".to_owned(),
    }
}

/// What is said of manifests that are more than a job framework keeps.
pub(super) fn too_large() -> String {
    format!(
        "too deep or too large: with its aliases replaced a manifest has at most {LONGEST_EXPANDED} bytes, \
         {MOST_REPEATED} values through aliases, and {DEEPEST} levels"
    )
}

fn names(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Where the value at this path stands, if it is there.
fn locate(text: &str, path: &[&str]) -> Option<Location> {
    let options = options();
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |document| Seek(path).deserialize(document))
        .ok()
}

/// Looks for the value at a path.
struct Seek<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = Location;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<Location, D::Error> {
        if self.0.is_empty() {
            return Ok(Spanned::<IgnoredAny>::deserialize(value)?.referenced);
        }
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = Location;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what has parts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Location, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == self.0[0] {
                found = Some(map.next_value_seed(Seek(&self.0[1..]))?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        found.ok_or_else(|| A::Error::custom("it is not there"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Location, A::Error> {
        let index: usize = self.0[0].parse().map_err(A::Error::custom)?;
        for _ in 0..index {
            list.next_element::<IgnoredAny>()?;
        }
        let found = list.next_element_seed(Seek(&self.0[1..]))?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        found.ok_or_else(|| A::Error::custom("it is not there"))
    }
}
