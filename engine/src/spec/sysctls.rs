//! `--sysctl`: only what belongs to a namespace of the container may be set, anything else would change the host.

use crate::options::{Network, Options};

use super::Error;

/// Refuses every sysctl that the container's own namespaces do not hold, see namespaces(7).
pub fn check(options: &Options) -> Result<(), Error> {
    for (key, value) in &options.sysctls {
        // Both spellings reach the same file: net.ipv4.ip_forward and net/ipv4/ip_forward.
        let dotted = key.replace('/', ".");
        if dotted.split('.').any(str::is_empty) || key.contains('\0') {
            return Err(refuse(key, "not a sysctl name; give one such as net.ipv4.ip_forward=1"));
        }
        if value.contains('\0') {
            return Err(refuse(key, "the value holds a NUL byte"));
        }
        if dotted.starts_with("net.") {
            match options.network {
                Network::None => {}
                Network::Host => {
                    let reason = "with --network host it would change the host's network; use --network none";
                    return Err(refuse(key, reason));
                }
                Network::Joined(_) => {
                    let reason =
                        "with --network ns:PATH it would change a network that others have too; use --network none";
                    return Err(refuse(key, reason));
                }
            }
        } else if is_ipc(&dotted) {
            if options.ipc_host {
                return Err(refuse(key, "with --ipc host it would change the host; leave out --ipc host"));
            }
        } else if matches!(dotted.as_str(), "kernel.domainname" | "kernel.hostname") {
            return Err(refuse(key, "the name of the container is set with --hostname"));
        } else {
            return Err(refuse(
                key,
                "it belongs to no namespace, so it would change the host; set it on the host with sysctl(8)",
            ));
        }
    }
    Ok(())
}

fn is_ipc(key: &str) -> bool {
    key.starts_with("kernel.shm")
        || key.starts_with("kernel.msg")
        || key == "kernel.sem"
        || key.starts_with("fs.mqueue.")
}

fn refuse(key: &str, reason: &'static str) -> Error {
    Error::Sysctl { key: key.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(key: &str) -> Options {
        Options { sysctls: [(key.to_owned(), String::from("1"))].into(), ..Options::default() }
    }

    #[test]
    fn namespaced_ones_pass() {
        for key in [
            "net.ipv4.ip_forward",
            "net/ipv4/conf/all/forwarding",
            "kernel.shmmax",
            "kernel.msgmni",
            "kernel.sem",
            "fs.mqueue.msg_max",
        ] {
            check(&with(key)).unwrap();
        }
    }

    #[test]
    fn host_wide_ones_are_refused() {
        for key in [
            "kernel.panic",
            "vm.swappiness",
            "fs.file-max",
            "kernel.semx",
            "",
            ".",
            "net.",
            "net..a",
            "kernel.hostname",
            "../../proc/x",
        ] {
            assert!(matches!(check(&with(key)), Err(Error::Sysctl { .. })), "{key}");
        }
    }

    #[test]
    fn a_shared_namespace_is_the_hosts() {
        for network in [Network::Host, Network::Joined("/ns".into())] {
            check(&Options { network, ..with("net.ipv4.ip_forward") }).unwrap_err();
        }
        check(&Options { ipc_host: true, ..with("kernel.shmmax") }).unwrap_err();
        check(&Options { ipc_host: true, ..with("net.ipv4.ip_forward") }).unwrap();
    }
}
