//! Points in time as people write them: `--since` and `--until`.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, Result};

/// The time a text means: RFC 3339 (`2026-01-31T12:00:00Z`), the same without a zone in local time, a date, seconds
/// since 1970 with or without a fraction, or how long before `now` (`10m`, `1h30m`).
pub fn parse(text: &str, now: Timestamp) -> Result<Timestamp> {
    let refuse = || {
        Error::Invalid(format!(
            "`{text}` is no time; write 2026-01-31T12:00:00Z, seconds since 1970, or how long ago, as 10m"
        ))
    };
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return unix(text).ok_or_else(refuse);
    }
    if let Ok(local) = text.parse::<DateTime>() {
        return TimeZone::system().to_timestamp(local).map_err(|_| refuse());
    }
    let ago: SignedDuration = text.parse().map_err(|_| refuse())?;
    now.checked_sub(ago).map_err(|_| refuse())
}

/// `SECONDS[.FRACTION]`
fn unix(text: &str) -> Option<Timestamp> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanoseconds: i32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Timestamp::new(seconds.parse().ok()?, nanoseconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_many_ways() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("2026-01-31T11:50:00Z", "2026-01-31T11:50:00Z"),
            ("2026-01-31T12:50:00+01:00", "2026-01-31T11:50:00Z"),
            ("10m", "2026-01-31T11:50:00Z"),
            ("1h30m", "2026-01-31T10:30:00Z"),
            ("1769860200", "2026-01-31T11:50:00Z"),
            ("1769860200.25", "2026-01-31T11:50:00.25Z"),
        ] {
            assert_eq!(parse(text, now).unwrap(), expected.parse().unwrap(), "{text}");
        }
        assert!(parse("2026-01-31", now).is_ok());
        for bad in ["", "yesterday", "1.2.3", "99999999999999999999"] {
            assert!(parse(bad, now).is_err(), "{bad}");
        }
    }
}
