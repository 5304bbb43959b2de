//! Signals as people write them.

use std::str::FromStr as _;

use nix::sys::signal::Signal;

use crate::error::{Error, Result};

/// The signal a name (`TERM`, `SIGTERM`, `rtmin+3`) or a number means.
pub fn parse(text: &str) -> Result<i32> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let found = if let Ok(number) = name.parse::<i32>() {
        Some(number)
    } else if let Some(offset) = name.strip_prefix("RTMIN") {
        real_time(libc::SIGRTMIN(), offset)
    } else if let Some(offset) = name.strip_prefix("RTMAX") {
        real_time(libc::SIGRTMAX(), offset)
    } else {
        Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32)
    };
    found.filter(|signal| (1..=libc::SIGRTMAX()).contains(signal)).ok_or_else(|| {
        Error::Invalid(format!("`{text}` is no signal; use a name as TERM or a number from 1 to {}", libc::SIGRTMAX()))
    })
}

/// `+3` or `-3` from a base; nothing is the base itself.
fn real_time(base: i32, offset: &str) -> Option<i32> {
    if offset.is_empty() {
        return Some(base);
    }
    let number = base.checked_add(offset.parse().ok()?)?;
    (offset.starts_with(['+', '-']) && (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("TERM", 15), ("sigterm", 15), ("9", 9), ("SIGUSR1", 10), ("RTMIN+1", 35), ("RTMAX", 64)]
        {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for bad in ["", "0", "65", "-1", "NOSUCH", "RTMIN+99", "RTMIN3", "RTMAX+1", "99999999999"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
