//! Flags about the container's process: its limits, signals, restarts, names.

use std::net::IpAddr;
use std::time::Duration;

use berth_engine::options::{Pull, Ulimit};
use berth_engine::{names, signal, spec};
use berth_runtime::monitor::RestartPolicy;
use clap::ValueEnum;

/// `--ulimit NAME=SOFT[:HARD]`
pub fn ulimit(text: &str) -> Result<Ulimit, String> {
    let example = "give NAME=SOFT[:HARD], for example nofile=1024:4096; -1 or unlimited is no limit";
    let (name, values) = text.split_once('=').ok_or(example)?;
    spec::ulimit_kind(name).map_err(|error| format!("{error}; {example}"))?;
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        text => text.parse().map_err(|_| format!("'{text}' is no limit; {example}")),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err(format!("the soft limit is above the hard one; {example}"));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

/// `--restart`
pub fn restart(text: &str) -> Result<RestartPolicy, String> {
    match text.split_once(':') {
        None => match text {
            "no" => Ok(RestartPolicy::No),
            "on-failure" => Ok(RestartPolicy::OnFailure { max_retries: None }),
            "always" => Ok(RestartPolicy::Always),
            "unless-stopped" => Ok(RestartPolicy::UnlessStopped),
            _ => Err(String::from("one of no, on-failure[:N], always, unless-stopped, for example on-failure:3")),
        },
        Some(("on-failure", count)) => match count.parse() {
            // As in docker, no retries at all means that they are not counted.
            Ok(0) => Ok(RestartPolicy::OnFailure { max_retries: None }),
            Ok(count) => Ok(RestartPolicy::OnFailure { max_retries: Some(count) }),
            Err(_) => Err(format!("'{count}' is no number of retries, for example on-failure:3")),
        },
        Some(_) => Err(String::from("only on-failure counts retries, for example on-failure:3")),
    }
}

/// `--pull`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    /// Before every run
    Always,
    /// Where the image is not here
    Missing,
    /// Never
    Never,
}

impl From<PullPolicy> for Pull {
    fn from(policy: PullPolicy) -> Self {
        match policy {
            PullPolicy::Always => Self::Always,
            PullPolicy::Missing => Self::Missing,
            PullPolicy::Never => Self::Never,
        }
    }
}

/// `--name`
pub fn name(text: &str) -> Result<String, String> {
    names::check(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// `--stop-signal`
pub fn stop_signal(text: &str) -> Result<String, String> {
    signal::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// `--stop-timeout`, seconds; -1 waits for ever.
pub fn stop_timeout(text: &str) -> Result<Duration, String> {
    match text.parse::<i64>() {
        Ok(-1) => Ok(Duration::MAX),
        Ok(seconds) if seconds >= 0 => Ok(Duration::from_secs(seconds.unsigned_abs())),
        _ => Err(String::from("give seconds, for example 30, or -1 to wait for ever")),
    }
}

/// `--oom-score-adj`, see `proc_pid_oom_score_adj(5)`.
pub fn oom_score_adj(text: &str) -> Result<i32, String> {
    match text.parse() {
        Ok(score) if (-1000..=1000).contains(&score) => Ok(score),
        _ => Err(String::from("give -1000 (never chosen) to 1000 (chosen first), for example 500")),
    }
}

/// `--hostname`: what sethostname(2) and the rules for names in hosts(5) take.
pub fn hostname(text: &str) -> Result<String, String> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if text.len() <= 64 && text.split('.').all(is_label) {
        Ok(text.to_owned())
    } else {
        Err(String::from("give at most 64 letters, digits and '-', in parts joined by '.', for example web-1.example"))
    }
}

/// `--add-host NAME:ADDRESS`; `NAME=ADDRESS` and an address in brackets are taken too.
pub fn add_host(text: &str) -> Result<(String, String), String> {
    let example = "give NAME:ADDRESS, for example db:10.0.0.7";
    let at = text.find(['=', ':']).ok_or(example)?;
    let (name, address) = (&text[..at], &text[at + 1..]);
    let name = hostname(name).map_err(|_| format!("'{name}' is no host name; {example}"))?;
    let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    match bare.parse::<IpAddr>() {
        Ok(address) => Ok((name, address.to_string())),
        Err(_) if bare == "host-gateway" => {
            Err(format!("host-gateway needs a bridge network, which comes in a later version; {example}"))
        }
        Err(_) => Err(format!("'{address}' is no IP address; {example}")),
    }
}

/// `--user NAME|UID[:GROUP|GID]`; names are looked up in the image. An empty one, as an unset variable of a script gives, is
/// the image's.
pub fn user(text: &str) -> Result<String, String> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    if text.is_empty() || is_account(user) && group.is_none_or(is_account) {
        Ok(text.to_owned())
    } else {
        Err(String::from(
            "give a name or number of the image's users, and a group if wanted, for example www-data or 1000:1000",
        ))
    }
}

/// `--group-add`
pub fn group(text: &str) -> Result<String, String> {
    if is_account(text) {
        Ok(text.to_owned())
    } else {
        Err(String::from("give a name or number of the image's groups, for example audio"))
    }
}

/// A number that fits, or a name without what separates fields in passwd(5) and lists.
fn is_account(text: &str) -> bool {
    let number = text.bytes().all(|byte| byte.is_ascii_digit());
    if number {
        // The last id, -1, stands for none.
        text.parse::<u32>().is_ok_and(|id| id < u32::MAX)
    } else {
        text.len() <= 256 && !text.contains(|c: char| c == ':' || c == ',' || c.is_whitespace() || c.is_control())
    }
}

/// `--workdir`; an empty one is the image's.
pub fn workdir(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err(String::from("it must be absolute, for example /srv"))
    }
}

/// `--platform OS[/ARCHITECTURE[/VARIANT]]`
pub fn platform(text: &str) -> Result<String, String> {
    let is_part = |part: &str| {
        (1..=64).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let parts = text.split('/').count();
    if parts <= 3 && text.split('/').all(is_part) {
        Ok(text.to_owned())
    } else {
        Err(String::from("give OS/ARCHITECTURE[/VARIANT], for example linux/amd64"))
    }
}
