//! What a container may do, and the flags that give more or take away: capabilities, seccomp, devices, limits of
//! processes, kernel parameters.

use std::fs;

use berth_tests::home::Home;

/// Docker's 14: `CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE
/// SYS_CHROOT KILL AUDIT_WRITE`.
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
const CAP_CHOWN: u64 = 1 << 0;
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_TIME: u64 = 1 << 25;

/// A set of capabilities, as in `/proc/self/status`, of a shell run with `flags`.
fn capabilities(home: &Home, flags: &str, set: &str) -> u64 {
    let text = home.prints(flags, &format!("grep ^{set}: /proc/self/status | cut -f2"));
    u64::from_str_radix(&text, 16).unwrap()
}

fn status(home: &Home, flags: &str, field: &str) -> String {
    home.prints(flags, &format!("grep ^{field}: /proc/self/status | cut -f2"))
}

#[test]
fn capabilities_are_dockers() {
    let home = Home::new();
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert_eq!(capabilities(&home, "", set), DEFAULT_CAPABILITIES, "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(capabilities(&home, "", set), 0, "{set}");
    }
}

#[test]
fn cap_add_and_cap_drop() {
    let home = Home::new();
    let with = |flags: &str| capabilities(&home, flags, "CapEff");
    assert_eq!(with("--cap-add NET_ADMIN"), DEFAULT_CAPABILITIES | CAP_NET_ADMIN);
    assert_eq!(with("--cap-add cap_net_admin --cap-add SYS_TIME"), DEFAULT_CAPABILITIES | CAP_NET_ADMIN | CAP_SYS_TIME);
    assert_eq!(with("--cap-drop CHOWN"), DEFAULT_CAPABILITIES & !CAP_CHOWN);
    assert_eq!(with("--cap-drop ALL"), 0);
    assert_eq!(with("--cap-drop all --cap-add CHOWN"), CAP_CHOWN);
    assert_eq!(capabilities(&home, "--cap-drop ALL", "CapBnd"), 0);
    home.shell("--cap-add NONSENSE", "true").run().code(125).fails_with("NONSENSE");
    home.shell("--cap-drop CHOWN", "chown 1 /tmp").run().fails_with("not permitted");
}

#[test]
fn cap_add_all_is_everything_the_host_has() {
    let home = Home::new();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    let bounding = u64::from_str_radix(bounding, 16).unwrap();
    assert_eq!(capabilities(&home, "--cap-add ALL", "CapEff"), bounding);
}

#[test]
fn privileged_opens_the_host() {
    let home = Home::new();
    assert_ne!(capabilities(&home, "--privileged", "CapEff") & (1 << 21), 0, "CAP_SYS_ADMIN");
    assert_eq!(status(&home, "--privileged", "Seccomp"), "0");
    let _ = home
        .shell("--privileged", "mount -t tmpfs none /mnt 2>/dev/null || { mkdir /m && mount -t tmpfs none /m; }")
        .ok();
    let devices = |flags: &str| home.prints(flags, "ls /dev | wc -l").parse::<u32>().unwrap();
    assert!(devices("--privileged") > devices(""), "the host's devices are there");
    let writable = "grep ' /proc/sys ' /proc/mounts | cut -d' ' -f4 | grep -c '^ro' || true";
    assert_eq!((home.prints("", writable), home.prints("--privileged", writable)), ("1".into(), "0".into()));
}

#[test]
fn no_new_privileges_is_on_unless_refused() {
    let home = Home::new();
    assert_eq!(status(&home, "", "NoNewPrivs"), "1");
    assert_eq!(status(&home, "--security-opt no-new-privileges", "NoNewPrivs"), "1");
    assert_eq!(status(&home, "--security-opt no-new-privileges=false", "NoNewPrivs"), "0");
}

#[test]
fn seccomp_filters_unless_unconfined() {
    let home = Home::new();
    assert_eq!(status(&home, "", "Seccomp"), "2");
    assert_eq!(status(&home, "--security-opt seccomp=unconfined", "Seccomp"), "0");
    let unshare = "unshare -U true";
    home.shell("", unshare).run().fails_with("not permitted");
    let _ = home.shell("--security-opt seccomp=unconfined", unshare).ok();
}

#[test]
fn seccomp_takes_a_profile_from_a_file() {
    let home = Home::new();
    let file = home.scratch().join("profile.json");
    let profile = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 39 }],
    });
    fs::write(&file, profile.to_string()).unwrap();
    let flags = format!("--security-opt seccomp={}", file.display());
    let _ = home.shell("", "mkdir /new").ok();
    home.shell(&flags, "mkdir /new").run().fails_with("directory not empty");
    let _ = home.shell(&flags, "touch /new").ok();

    fs::write(&file, "{ not json").unwrap();
    home.shell(&flags, "true").run().code(125).fails_with("profile.json");
    home.shell("--security-opt seccomp=/no/such/file", "true").run().code(125).fails_with("/no/such/file");
    home.shell("--security-opt nonsense", "true").run().code(125).fails_with("nonsense");
}

#[test]
fn device_is_there_and_allowed() {
    let home = Home::new();
    // A container may make the node, but the device cgroup does not let it be opened.
    let by_hand = "mknod /fuse c 10 229 && exec 3<>/fuse";
    home.shell("", by_hand).run().fails_with("not permitted");
    let _ = home.shell("--device /dev/fuse", "exec 3<>/dev/fuse").ok();
    let _ = home.shell("--device /dev/fuse:/dev/other", "exec 3<>/dev/other").ok();
    home.shell("--device /dev/fuse:/dev/fuse:r", "exec 3<>/dev/fuse").run().fails_with("not permitted");
    let _ = home.shell("--device /dev/fuse:/dev/fuse:r", "exec 3</dev/fuse").ok();
    home.shell("--device /dev/no-such", "true").run().code(125).fails_with("/dev/no-such");
    home.shell("--device /dev/fuse:/dev/fuse:x", "true").run().code(125).fails_with("x");
}

#[test]
fn ulimit_sets_soft_and_hard() {
    let home = Home::new();
    let flags = "--ulimit nofile=100:200 --ulimit core=0 --ulimit stack=1048576";
    assert_eq!(home.prints(flags, "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Ss"), "100\n200\n0\n1024");
    home.shell("--ulimit nofile=200:100", "true").run().code(125).fails_with("nofile");
    home.shell("--ulimit nonsense=1", "true").run().code(125).fails_with("nonsense");
}

#[test]
fn sysctl_sets_what_belongs_to_the_container() {
    let home = Home::new();
    let flags = "--sysctl net.ipv4.ip_forward=1 --sysctl kernel.msgmax=12345";
    let read = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax";
    assert_eq!(home.prints(flags, read), "1\n12345");
    assert_ne!(home.prints("", read), "1\n12345");
    home.shell("--sysctl kernel.panic=5", "true").run().fails_with("kernel.panic");
    home.shell("--network host --sysctl net.ipv4.ip_forward=1", "true").run().fails_with("net.ipv4.ip_forward");
}
