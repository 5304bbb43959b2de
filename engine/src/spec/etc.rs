//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use crate::options::{Network, Options};

/// Which servers know names, and what `systemd-resolved(8)` keeps for those who cannot ask it on the host's loopback.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Bounds what is taken over of a file of the host, bytes.
const MAX_FILE: u64 = 1 << 20;

const LOCAL_HOSTS: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::\tip6-localnet\n\
    ff00::\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\n\
    ff02::2\tip6-allrouters\n";

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} '{}': {source}", path.display())]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Writes `hosts`, `hostname` and `resolv.conf` into the container's directory.
///
/// With the host's network the host's own `/etc/hosts` is taken over, else only the container is in it. The resolvers are
/// always the host's, whether or not they can be reached.
pub fn write(dir: &Path, options: &Options, id: &str) -> Result<(), Error> {
    let hostname = if options.uts_host {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    } else {
        options.hostname.clone().unwrap_or_else(|| id.chars().take(12).collect())
    };
    let base = match options.network {
        Network::Host => host_file(Path::new("/etc/hosts"))?,
        Network::None | Network::Joined(_) => String::new(),
    };
    let owner = options.userns.range().map(|ids| ids.first);
    put(dir, "hosts", &hosts(options, &hostname, &base), owner)?;
    put(dir, "hostname", &format!("{hostname}\n"), owner)?;
    let [resolvers, behind] = RESOLVERS;
    let resolvers = host_file(Path::new(resolvers))?;
    let behind = match options.network {
        Network::Joined(_) if all_on_loopback(&resolvers) => host_file(Path::new(behind))?,
        _ => String::new(),
    };
    put(dir, "resolv.conf", if behind.is_empty() { &resolvers } else { &behind }, owner)
}

/// Whether all servers that a `resolv.conf(5)` names are on the loopback of whoever reads it.
fn all_on_loopback(resolvers: &str) -> bool {
    let servers = resolvers.lines().filter_map(|line| line.trim_start().strip_prefix("nameserver"));
    servers.map(|it| it.trim().parse::<IpAddr>()).all(|address| address.is_ok_and(|address| address.is_loopback()))
}

/// The contents of `/etc/hosts`; `base` is the host's file, used with the host's network.
///
/// A container of its own network finds its own name too, which docker leaves out: Java and sudo look it up.
pub fn hosts(options: &Options, hostname: &str, base: &str) -> String {
    let mut hosts = match options.network {
        Network::Host if base.is_empty() || base.ends_with('\n') => base.to_owned(),
        Network::Host => format!("{base}\n"),
        Network::None | Network::Joined(_) => format!("{LOCAL_HOSTS}127.0.1.1\t{hostname}\n"),
    };
    hosts.extend(options.add_hosts.iter().map(|(name, address)| {
        format!(
            "{address}	{name}
"
        )
    }));
    hosts
}

/// A file of the host, empty where there is none.
fn host_file(path: &Path) -> Result<String, Error> {
    let failed = |source| Error { action: "read", path: path.to_owned(), source };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(failed(error)),
        Ok(meta) if meta.len() > MAX_FILE => Err(failed(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(failed),
    }
}

/// Writes one file; `owner` is who the container's root is on the host, if it is somebody else.
fn put(dir: &Path, name: &str, text: &str, owner: Option<u32>) -> Result<(), Error> {
    let path = dir.join(name);
    let owned = |()| if owner.is_some() { chown(&path, owner, owner) } else { Ok(()) };
    fs::write(&path, text).and_then(owned).map_err(|source| Error { action: "write", path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_hosts(network: Network) -> Options {
        let add_hosts =
            vec![(String::from("db"), String::from("10.0.0.7")), (String::from("six"), String::from("fd00::1"))];
        Options { network, add_hosts, ..Options::default() }
    }

    #[test]
    fn own_network_names_itself_and_added_hosts() {
        let hosts = hosts(&with_hosts(Network::None), "box", "10.9.9.9\tleak\n");
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost"));
        assert!(hosts.ends_with("127.0.1.1\tbox\n10.0.0.7\tdb\nfd00::1\tsix\n"), "{hosts}");
        assert!(!hosts.contains("leak"));
    }

    #[test]
    fn hosts_network_takes_over_the_hosts_file() {
        let hosts = hosts(&with_hosts(Network::Host), "box", "10.9.9.9\tneighbour");
        assert_eq!(hosts, "10.9.9.9\tneighbour\n10.0.0.7\tdb\nfd00::1\tsix\n");
    }

    #[test]
    fn resolvers_on_loopback_are_told_from_others() {
        assert!(all_on_loopback("# by systemd-resolved\nnameserver 127.0.0.53\nnameserver\t::1\noptions edns0\n"));
        assert!(all_on_loopback("search example.org\n"), "the default is 127.0.0.1");
        assert!(!all_on_loopback("nameserver 127.0.0.53\nnameserver 192.0.2.7\n"));
        assert!(!all_on_loopback("nameserver fe80::1%eth0\n"));
    }

    #[test]
    fn three_files_are_written() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &Options::default(), "0123456789abcdef").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("hostname")).unwrap(), "0123456789ab\n");
        assert!(fs::read_to_string(dir.path().join("hosts")).unwrap().contains("127.0.1.1\t0123456789ab\n"));
        assert!(dir.path().join("resolv.conf").exists());
        write(dir.path(), &Options { hostname: Some("web".into()), ..Options::default() }, "0").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("hostname")).unwrap(), "web\n");
        assert!(write(Path::new("/nonexistent/dir"), &Options::default(), "0").is_err());
    }
}
