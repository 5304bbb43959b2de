//! Namespaces: a container's own, or the host's where a flag says so.

use std::fs;

use berth_tests::home::Home;

/// The host's namespace of a kind, as `pid:[4026531836]`.
fn host(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

fn inside(home: &Home, flags: &str, kind: &str) -> String {
    home.prints(flags, &format!("readlink /proc/self/ns/{kind}"))
}

#[test]
fn all_namespaces_are_the_containers_own() {
    let home = Home::new();
    for kind in ["mnt", "pid", "net", "uts", "ipc", "cgroup"] {
        assert_ne!(inside(&home, "", kind), host(kind), "{kind}");
    }
}

#[test]
fn host_namespaces_on_request() {
    let home = Home::new();
    for (flags, kind) in [
        ("--network host", "net"),
        ("--pid host", "pid"),
        ("--ipc host", "ipc"),
        ("--uts host", "uts"),
        ("--network=host", "net"),
    ] {
        assert_eq!(inside(&home, flags, kind), host(kind), "{flags}");
    }
    home.shell("--network nonsense", "true").run().code(125).fails_with("nonsense");
    home.shell("--pid nonsense", "true").run().code(125).fails_with("nonsense");
}

#[test]
fn network_none_has_a_loopback_that_works() {
    let home = Home::new();
    for flags in ["", "--network none"] {
        assert_eq!(home.prints(flags, "ls /sys/class/net"), "lo");
        let talk = "nc -l -p 7 127.0.0.1 > /heard & until echo ahoy | nc 127.0.0.1 7; do :; done; wait; cat /heard";
        assert_eq!(home.prints(flags, talk), "ahoy");
    }
    // Links come and go with other tests; the namespace does not.
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(home.prints("--network host", "readlink /proc/self/ns/net"), host.to_string_lossy());
}

#[test]
fn host_processes_are_visible_with_pid_host_alone() {
    let home = Home::new();
    let me = std::process::id();
    assert_eq!(home.prints("--pid host", &format!("[ -d /proc/{me} ] && echo seen")), "seen");
    assert_eq!(home.prints("", "ps -o pid > /seen; wc -l < /seen"), "3", "a heading, the shell and ps");
}

#[test]
fn hostname_is_the_given_one_or_the_id() {
    let home = Home::new();
    assert_eq!(
        home.prints("--hostname boat", "hostname; echo $(cat /etc/hostname); grep -c boat /etc/hosts"),
        "boat\nboat\n1"
    );
    let id = home.detached("", "hostname");
    let _ = home.berth("wait").arg(&id).ok();
    assert_eq!(home.berth("logs").arg(&id).ok().trimmed(), id[..12]);
    let real = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(home.prints("--uts host", "hostname"), real.trim());
}

#[test]
fn the_cgroup_namespace_hides_the_path() {
    let home = Home::new();
    let lines = home.prints("", "cut -d: -f3 /proc/self/cgroup | sort -u");
    assert_eq!(lines, "/");
}

#[test]
fn add_host_adds_a_name() {
    let home = Home::new();
    let script = "grep -c '^10.1.2.3[[:space:]]*island' /etc/hosts || true";
    assert_eq!(home.prints("--add-host island:10.1.2.3", script), "1");
    assert_eq!(home.prints("", script), "0");
    home.shell("--add-host island:nowhere", "true").run().code(125).fails_with("nowhere");
}

#[test]
fn cgroupns_host_shows_the_path() {
    let home = Home::new();
    assert_eq!(inside(&home, "--cgroupns host", "cgroup"), host("cgroup"));
}
