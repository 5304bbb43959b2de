//! Flags that say how far the container is kept apart: namespaces, capabilities, seccomp, devices.

use std::path::Path;

use berth_engine::options::{Device, IdRange, Network, Seccomp, UserNamespace};
use berth_engine::spec;
use clap::ValueEnum;

/// One `--security-opt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecurityOpt {
    /// `no-new-privileges[=true|false]`
    NoNewPrivileges(bool),
    /// `seccomp=FILE|unconfined`
    Seccomp(Seccomp),
    /// Asks for nothing that berth would do.
    Nothing,
}

/// `--security-opt`; docker takes `:` for `=` too.
pub fn security_opt(text: &str) -> Result<SecurityOpt, String> {
    let (key, value) = match text.find(['=', ':']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    match (key, value) {
        ("no-new-privileges", None | Some("true")) => Ok(SecurityOpt::NoNewPrivileges(true)),
        ("no-new-privileges", Some("false")) => Ok(SecurityOpt::NoNewPrivileges(false)),
        ("no-new-privileges", Some(_)) => Err(String::from("it is true or false, for example no-new-privileges=false")),
        ("seccomp", Some("unconfined")) => Ok(SecurityOpt::Seccomp(Seccomp::Unconfined)),
        ("seccomp", Some("default" | "builtin")) => Ok(SecurityOpt::Seccomp(Seccomp::Default)),
        ("seccomp", Some(path)) if !path.is_empty() => std::path::absolute(Path::new(path))
            .map(|path| SecurityOpt::Seccomp(Seccomp::File(path)))
            .map_err(|error| error.to_string()),
        ("apparmor", Some("unconfined")) | ("label", Some("disable")) => Ok(SecurityOpt::Nothing),
        ("apparmor" | "label", _) => Err(format!(
            "berth sets no {key} profiles; leave it out, or use seccomp=FILE, for example seccomp=profile.json"
        )),
        _ => Err(String::from(
            "known are no-new-privileges[=false] and seccomp=FILE|unconfined, for example seccomp=profile.json",
        )),
    }
}

/// `--cap-add`, `--cap-drop`
pub fn capability(text: &str) -> Result<String, String> {
    spec::check_capability(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// `--device HOST[:CONTAINER][:PERMISSIONS]`
pub fn device(text: &str) -> Result<Device, String> {
    let example = "give HOST[:CONTAINER][:rwm], for example /dev/fuse or /dev/sdb:/dev/disk:r";
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, permissions) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, permissions] if is_permissions(permissions) => (host, host, permissions),
        [host, container] => (host, container, "rwm"),
        [host, container, permissions] if is_permissions(permissions) => (host, container, permissions),
        [_, _, permissions] => {
            return Err(format!("'{permissions}' are not some of r, w, m; {example}"));
        }
        _ => return Err(format!("too many ':'; {example}")),
    };
    if !host.starts_with('/') {
        return Err(format!("'{host}' is not absolute; {example}"));
    }
    let container = spec::clean_target(container).map_err(|_| {
        format!("'{container}' is no place in the container: it must be absolute and not '/'; {example}")
    })?;
    Ok(Device { host: host.into(), container, permissions: permissions.to_owned() })
}

/// One to three of `r`, `w`, `m`, none twice.
fn is_permissions(text: &str) -> bool {
    let known = text.chars().all(|c| "rwm".contains(c));
    let once = |c| text.matches(c).count() <= 1;
    !text.is_empty() && known && once('r') && once('w') && once('m')
}

/// `--network none|host|ns:PATH`
pub fn network(text: &str) -> Result<Network, String> {
    match text {
        "none" => Ok(Network::None),
        "host" => Ok(Network::Host),
        "bridge" | "default" => {
            Err(String::from("bridge networks come in a later version; use none or host, for example --network host"))
        }
        _ => match text.strip_prefix("ns:") {
            Some(path) if path.starts_with('/') && !path.contains('\0') => Ok(Network::Joined(path.into())),
            Some(_) => Err(String::from("give an absolute path, for example --network ns:/run/netns/blue")),
            None => Err(String::from("known are none, host and ns:PATH, for example --network host")),
        },
    }
}

/// `--pid`, `--ipc`, `--uts`, `--cgroupns`: whose namespace is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Namespace {
    /// The host's
    Host,
    /// One of the container's own
    Private,
}

/// `--userns host|auto|FIRST:COUNT`
pub fn user_namespace(text: &str) -> Result<UserNamespace, String> {
    match text {
        "host" => return Ok(UserNamespace::Host),
        "auto" => return Ok(UserNamespace::Auto),
        _ => {}
    }
    text.split_once(':')
        .and_then(|(first, count)| Some((first.parse::<u32>().ok()?, count.parse::<u32>().ok()?)))
        // The last id, -1, stands for none.
        .filter(|(first, count)| *first > 0 && *count > 0 && first.checked_add(*count).is_some())
        .map(|(first, count)| UserNamespace::Range(IdRange { first, count }))
        .ok_or_else(|| {
            String::from("give host, auto, or the first host id and the number of ids, for example 100000:65536")
        })
}
