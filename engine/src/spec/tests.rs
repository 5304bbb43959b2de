//! What each option changes in the OCI configuration.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Capability, LinuxDeviceType, Mount, PosixRlimitType};
use serde_json::json;

use super::*;
use crate::options::{IdRange, Limits, Ulimit};
use crate::volumes::ResolvedSource;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Everything a test may change before it builds.
struct Case {
    options: Options,
    image: serde_json::Value,
    mounts: Vec<ResolvedMount>,
    host: Host,
    volatile: bool,
}

impl Case {
    fn new(options: Options) -> Self {
        let host = Host { capabilities: capabilities::from_bits(u64::MAX), cpus: 4, kernel: (6, 1), ..Host::default() };
        let image = json!({ "Cmd": ["sh"], "Env": ["LANG=C"] });
        Self { options, image, mounts: Vec::new(), host, volatile: false }
    }

    fn build(&self) -> Result<Spec, Error> {
        let image = json!({
            "architecture": "amd64", "os": "linux", "config": self.image,
            "rootfs": { "type": "layers", "diff_ids": [] },
        });
        build(&Inputs {
            id: ID,
            options: &self.options,
            image: &serde_json::from_value(image).unwrap(),
            lower_dirs: &[PathBuf::from("/data/layers/top/fs"), PathBuf::from("/data/layers/base/fs")],
            base: Path::new("/data/base"),
            dir: Path::new("/data/containers/x"),
            live_dir: Path::new("/state/containers/x"),
            mounts: &self.mounts,
            host: &self.host,
            volatile: self.volatile,
        })
    }
}

fn spec(options: Options) -> Spec {
    Case::new(options).build().unwrap()
}

fn process(options: Options) -> oci_spec::runtime::Process {
    spec(options).process().clone().unwrap()
}

fn linux(options: Options) -> Linux {
    spec(options).linux().clone().unwrap()
}

fn mount_at(spec: &Spec, target: &str) -> Mount {
    let mounts = spec.mounts().as_ref().unwrap();
    let found: Vec<_> = mounts.iter().filter(|mount| mount.destination() == Path::new(target)).collect();
    assert_eq!(found.len(), 1, "mounts at {target}");
    found[0].clone()
}

fn mount_options(mount: &Mount) -> Vec<&str> {
    mount.options().iter().flatten().map(String::as_str).collect()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn none() -> Options {
    Options::default()
}

#[test]
fn first_mount_is_the_layers_topmost_first() {
    let spec = spec(none());
    let first = &spec.mounts().as_ref().unwrap()[0];
    assert_eq!(first.destination(), Path::new("/"));
    assert_eq!(first.typ().as_deref(), Some("overlay"));
    assert_eq!(
        mount_options(first),
        [
            "lowerdir+=/data/layers/top/fs",
            "lowerdir+=/data/layers/base/fs",
            "lowerdir+=/data/base",
            "upperdir=/data/containers/x/upper",
            "workdir=/data/containers/x/work"
        ]
    );
    assert_eq!(spec.root().as_ref().unwrap().path(), Path::new("/data/base"));
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(false));
}

#[test]
fn read_only_and_volatile_reach_the_root() {
    let mut case = Case::new(Options { read_only: true, ..none() });
    case.volatile = true;
    let spec = case.build().unwrap();
    let first = &spec.mounts().as_ref().unwrap()[0];
    assert_eq!(mount_options(first)[5..], ["volatile"]);
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
}

#[test]
fn the_kernels_file_systems_come_in_order() {
    let spec = spec(none());
    let targets: Vec<_> = spec.mounts().iter().flatten().map(|mount| mount.destination().to_str().unwrap()).collect();
    let expected = [
        "/",
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/sys",
        "/sys/fs/cgroup",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
    ];
    assert_eq!(targets, expected);
    assert_eq!(mount_options(&mount_at(&spec, "/dev")), ["nosuid", "strictatime", "mode=755", "size=65536k"]);
    assert!(mount_options(&mount_at(&spec, "/dev/shm")).contains(&"size=67108864"));
    assert!(mount_options(&mount_at(&spec, "/dev/pts")).contains(&"gid=5"));
    for target in ["/sys", "/sys/fs/cgroup"] {
        assert!(mount_options(&mount_at(&spec, target)).contains(&"ro"));
    }
    assert_eq!(mount_at(&spec, "/etc/hosts").source().as_deref(), Some(Path::new("/state/containers/x/hosts")));
}

#[test]
fn shm_size_and_ipc_host() {
    let size = spec(Options { shm_size: Some(4096), ..none() });
    assert!(mount_options(&mount_at(&size, "/dev/shm")).contains(&"size=4096"));
    let host = spec(Options { ipc_host: true, ..none() });
    let mount = mount_at(&host, "/dev/shm");
    assert_eq!(mount.typ().as_deref(), Some("bind"));
    assert_eq!(mount.source().as_deref(), Some(Path::new("/dev/shm")));
    assert_eq!(mount_at(&host, "/dev/mqueue").typ().as_deref(), Some("mqueue"));
}

#[test]
fn the_persons_mounts_come_last_parents_first() {
    let bind = |target: &str, read_only, propagation: Option<&str>| ResolvedMount {
        target: target.into(),
        source: ResolvedSource::Path { path: "/src".into(), propagation: propagation.map(str::to_owned), idmap: false },
        read_only,
    };
    let mut case = Case::new(none());
    case.mounts = vec![
        bind("/a/b/c", false, None),
        bind("/a-b", false, Some("rslave")),
        bind("/a", true, None),
        ResolvedMount {
            target: "/a/b".into(),
            source: ResolvedSource::Tmpfs { options: words(&["size=4096", "exec"]) },
            read_only: true,
        },
    ];
    let spec = case.build().unwrap();
    let mounts = spec.mounts().as_ref().unwrap();
    let targets: Vec<_> = mounts[8..12].iter().map(|mount| mount.destination().to_str().unwrap()).collect();
    assert_eq!(targets, ["/a", "/a/b", "/a/b/c", "/a-b"]);
    assert_eq!(mount_options(&mount_at(&spec, "/a")), ["rbind", "rro", "rprivate"]);
    assert_eq!(mount_options(&mount_at(&spec, "/a/b/c")), ["rbind", "rw", "rprivate"]);
    assert_eq!(mount_options(&mount_at(&spec, "/a-b")), ["rbind", "rw", "rslave"]);
    assert_eq!(mount_options(&mount_at(&spec, "/a/b")), ["nosuid", "nodev", "size=4096", "exec", "ro"]);
    assert_eq!(spec.linux().as_ref().unwrap().rootfs_propagation().as_deref(), Some("rslave"));
    case.mounts.push(bind("/z", false, Some("rshared")));
    assert_eq!(case.build().unwrap().linux().as_ref().unwrap().rootfs_propagation().as_deref(), Some("shared"));
}

#[test]
fn a_persons_mount_takes_the_place_of_berths_own() {
    let mut case = Case::new(none());
    let path = ResolvedSource::Path { path: "/src".into(), propagation: None, idmap: false };
    case.mounts = vec![ResolvedMount { target: "/dev/shm/".into(), source: path.clone(), read_only: false }];
    assert_eq!(mount_at(&case.build().unwrap(), "/dev/shm").source().as_deref(), Some(Path::new("/src")));
    case.mounts.push(ResolvedMount { target: "/dev/./shm".into(), source: path.clone(), read_only: false });
    assert!(matches!(case.build(), Err(Error::DuplicateMount { target }) if target == "/dev/shm"));
    for target in ["", "/", "x", "/..", "/a/../.."] {
        case.mounts = vec![ResolvedMount { target: target.into(), source: path.clone(), read_only: false }];
        assert!(matches!(case.build(), Err(Error::MountTarget { .. })), "{target}");
    }
}

#[test]
fn a_persons_directory_is_not_covered_by_berths_own_mounts() {
    let at = |target: &str| ResolvedMount {
        target: target.into(),
        source: ResolvedSource::Path { path: "/src".into(), propagation: None, idmap: false },
        read_only: false,
    };
    let mut case = Case::new(none());
    case.mounts = vec![at("/dev"), at("/etc"), at("/etc/hosts")];
    let spec = case.build().unwrap();
    let targets: Vec<_> = spec.mounts().iter().flatten().map(|mount| mount.destination().to_str().unwrap()).collect();
    let expected =
        ["/", "/proc", "/sys", "/sys/fs/cgroup", "/dev", "/etc", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
    assert_eq!(targets, expected);
    assert_eq!(mount_at(&spec, "/etc/hosts").source().as_deref(), Some(Path::new("/src")));
}

#[test]
fn command_follows_dockers_rules() {
    let image = json!({ "Entrypoint": ["/entry"], "Cmd": ["serve"] });
    let args = |options: Options, image: &serde_json::Value| {
        let mut case = Case::new(options);
        case.image = image.clone();
        case.build().map(|spec| spec.process().as_ref().unwrap().args().clone().unwrap())
    };
    let command = || words(&["x", "y"]);
    assert_eq!(args(none(), &image).unwrap(), ["/entry", "serve"]);
    assert_eq!(args(Options { command: command(), ..none() }, &image).unwrap(), ["/entry", "x", "y"]);
    let entry = Options { entrypoint: Some("/other".into()), ..none() };
    assert_eq!(args(entry.clone(), &image).unwrap(), ["/other"]);
    assert_eq!(args(Options { command: command(), ..entry }, &image).unwrap(), ["/other", "x", "y"]);
    let cleared = Options { entrypoint: Some(String::new()), ..none() };
    assert_eq!(args(Options { command: command(), ..cleared.clone() }, &image).unwrap(), ["x", "y"]);
    for (options, image) in [(cleared, &image), (none(), &json!({})), (none(), &json!({ "Cmd": [""] }))] {
        assert!(matches!(args(options, image), Err(Error::NoCommand)));
    }
}

#[test]
fn environment_is_ordered_and_later_wins_in_place() {
    let mut case = Case::new(Options { env: words(&["B=2", "LANG=de", "EMPTY="]), tty: true, ..none() });
    case.image = json!({ "Cmd": ["sh"], "Env": ["LANG=C", "B=1", "C=3"] });
    let env = |case: &Case| case.build().unwrap().process().as_ref().unwrap().env().clone().unwrap();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(env(&case), [path, "LANG=de", "B=2", "C=3", "HOSTNAME=0123456789ab", "TERM=xterm", "EMPTY="]);
    case.options.tty = false;
    case.options.env = words(&["HOSTNAME=mine"]);
    case.image = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] });
    assert_eq!(env(&case), ["PATH=/bin", "HOSTNAME=mine"]);
}

#[test]
fn terminal_directory_and_hostname() {
    assert_eq!(process(none()).terminal(), Some(false));
    assert_eq!(process(Options { tty: true, ..none() }).terminal(), Some(true));
    assert_eq!(process(none()).cwd(), Path::new("/"));
    assert_eq!(process(Options { workdir: Some("/srv".into()), ..none() }).cwd(), Path::new("/srv"));
    let mut case = Case::new(none());
    case.image = json!({ "Cmd": ["sh"], "WorkingDir": "app" });
    assert_eq!(case.build().unwrap().process().as_ref().unwrap().cwd(), Path::new("/app"));
    case.options.workdir = Some("srv".into());
    assert!(matches!(case.build(), Err(Error::WorkingDir { .. })));
    assert_eq!(spec(none()).hostname().as_deref(), Some("0123456789ab"));
    assert_eq!(spec(Options { hostname: Some("web".into()), ..none() }).hostname().as_deref(), Some("web"));
    assert_eq!(*spec(Options { uts_host: true, ..none() }).hostname(), None);
}

#[test]
fn user_is_looked_up_inside_and_numbers_are_told_to_other_runtimes() {
    let mut case = Case::new(none());
    let user = |case: &Case| {
        let spec = case.build().unwrap();
        let numbers = spec.process().as_ref().unwrap().user().clone();
        (spec.annotations().as_ref().unwrap()[annotations::USER].clone(), numbers.uid(), numbers.gid())
    };
    assert_eq!(user(&case), (String::from("0"), 0, 0));
    case.image = json!({ "Cmd": ["sh"], "User": "app" });
    assert_eq!(user(&case), (String::from("app"), 0, 0));
    case.options.user = Some(String::from("1000:2000"));
    assert_eq!(user(&case), (String::from("1000:2000"), 1000, 2000));
    case.options.group_add = words(&["audio", "44"]);
    let spec = case.build().unwrap();
    assert_eq!(spec.annotations().as_ref().unwrap()[annotations::GROUPS], "audio,44");
    assert_eq!(spec.process().as_ref().unwrap().user().additional_gids().as_deref(), Some(&[44][..]));
}

#[test]
fn annotations_are_passed_on_and_berths_own_cannot_be_forged() {
    let forged = [(annotations::USER, "evil"), (annotations::INIT, "true"), (annotations::GROUPS, "0"), ("a", "1")];
    let forged = forged.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let set = spec(Options { annotations: forged, ..none() }).annotations().clone().unwrap();
    assert_eq!(set["a"], "1");
    assert_eq!(set[annotations::USER], "0");
    assert_eq!(set[annotations::ISOLATION], "container");
    assert!(!set.contains_key(annotations::INIT) && !set.contains_key(annotations::GROUPS));
    let set = spec(Options { init: true, ..none() }).annotations().clone().unwrap();
    assert_eq!(set[annotations::INIT], "true");
}

#[test]
fn namespaces_are_the_containers_own_unless_shared() {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};
    let kinds = |options| linux(options).namespaces().iter().flatten().map(LinuxNamespace::typ).collect::<Vec<_>>();
    let all = [Mount, Pid, Network, Uts, Ipc, Cgroup];
    assert_eq!(kinds(none()), all);
    let without = |kind| all.into_iter().filter(|other| *other != kind).collect::<Vec<_>>();
    assert_eq!(kinds(Options { pid_host: true, ..none() }), without(Pid));
    assert_eq!(kinds(Options { network: super::Network::Host, ..none() }), without(Network));
    assert_eq!(kinds(Options { uts_host: true, ..none() }), without(Uts));
    assert_eq!(kinds(Options { ipc_host: true, ..none() }), without(Ipc));
    assert_eq!(kinds(Options { cgroup_host: true, ..none() }), without(Cgroup));
    assert_eq!(kinds(Options { userns: UserNamespace::Auto, ..none() }).last(), Some(&User));
}

#[test]
fn user_namespace_maps_ids_and_layers() {
    let range = IdRange { first: 100_000, count: 3 };
    let mut case = Case::new(Options { userns: UserNamespace::Range(range), ..none() });
    let at = |target: &str, idmap| ResolvedMount {
        target: target.into(),
        source: ResolvedSource::Path { path: "/src".into(), propagation: None, idmap },
        read_only: false,
    };
    case.mounts = vec![at("/volume", true), at("/bind", false)];
    let spec = case.build().unwrap();
    for (target, mapped) in [("/", true), ("/etc/hosts", false), ("/volume", true), ("/bind", false), ("/dev", false)] {
        assert_eq!(mount_options(&mount_at(&spec, target)).contains(&"idmap"), mapped, "{target}");
    }
    let linux = spec.linux().as_ref().unwrap();
    for mappings in [linux.uid_mappings(), linux.gid_mappings()] {
        let [mapping] = mappings.as_deref().unwrap() else { panic!("{mappings:?}") };
        assert_eq!((mapping.container_id(), mapping.host_id(), mapping.size()), (0, 100_000, 3));
    }
    // Group 5 is not mapped, so devpts would refuse it.
    assert!(!mount_options(&mount_at(&spec, "/dev/pts")).contains(&"gid=5"));
}

#[test]
fn capabilities_are_bounding_permitted_and_effective() {
    let options = Options { cap_add: words(&["NET_ADMIN"]), cap_drop: words(&["ALL"]), ..none() };
    let process = process(options);
    let sets = process.capabilities().as_ref().unwrap();
    let only = Some(Capabilities::from([Capability::NetAdmin]));
    assert_eq!((sets.bounding(), sets.permitted(), sets.effective()), (&only, &only, &only));
    assert_eq!((sets.inheritable(), sets.ambient()), (&None, &None));
}

#[test]
fn no_new_privileges_is_on_unless_told_otherwise() {
    let set = |no_new_privileges, privileged| {
        process(Options { privileged, no_new_privileges, ..none() }).no_new_privileges()
    };
    assert_eq!(set(None, false), Some(true));
    assert_eq!(set(Some(false), false), Some(false));
    assert_eq!(set(None, true), Some(false));
    assert_eq!(set(Some(true), true), Some(true));
}

#[test]
fn privileged_opens_everything() {
    let linux = linux(Options { privileged: true, ..none() });
    assert_eq!((linux.masked_paths(), linux.readonly_paths(), linux.seccomp()), (&None, &None, &None));
    let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
    assert!(rules.len() == 1 && rules[0].allow() && rules[0].typ().is_none());
    let spec = spec(Options { privileged: true, ..none() });
    assert_eq!(
        spec.process().as_ref().unwrap().capabilities().as_ref().unwrap().bounding().as_ref().unwrap().len(),
        41
    );
    assert!(!mount_options(&mount_at(&spec, "/sys")).contains(&"ro"));
    assert!(!mount_options(&mount_at(&spec, "/sys/fs/cgroup")).contains(&"ro"));
}

#[test]
fn paths_of_the_host_are_masked() {
    let linux = linux(none());
    assert!(linux.masked_paths().as_ref().unwrap().contains(&String::from("/proc/kcore")));
    assert!(linux.readonly_paths().as_ref().unwrap().contains(&String::from("/proc/sys")));
}

#[test]
fn devices_are_denied_but_for_those_given() {
    let mut case = Case::new(none());
    let rules = |case: &Case| {
        case.build().unwrap().linux().clone().unwrap().resources().clone().unwrap().devices().clone().unwrap()
    };
    let denied = rules(&case);
    assert!(denied.len() == 1 && !denied[0].allow());
    case.host.devices = vec![DeviceNode {
        path: "/dev/fuse".into(),
        kind: LinuxDeviceType::C,
        major: 10,
        minor: 229,
        mode: 0o666,
        uid: 0,
        gid: 7,
        permissions: "rw".into(),
    }];
    let rules = rules(&case);
    assert_eq!(rules[1].to_string(), "c 10:229 rw");
    assert!(!rules[0].allow() && rules[1].allow());
    let linux = case.build().unwrap().linux().clone().unwrap();
    let device = &linux.devices().as_ref().unwrap()[0];
    assert_eq!((device.path().as_path(), device.major(), device.minor()), (Path::new("/dev/fuse"), 10, 229));
    assert_eq!((device.file_mode(), device.gid()), (Some(0o666), Some(7)));
}

#[test]
fn limits_sysctls_ulimits_and_oom_score() {
    let limits = Limits { memory: Some(64 << 20), ..Limits::default() };
    let ulimit = |soft| Ulimit { name: "nofile".into(), soft, hard: 9 };
    let options = Options {
        limits,
        sysctls: [(String::from("net.ipv4.ip_forward"), String::from("1"))].into(),
        ulimits: vec![ulimit(1), ulimit(2)],
        oom_score_adj: Some(-5),
        ..none()
    };
    let linux = linux(options.clone());
    assert_eq!(linux.resources().as_ref().unwrap().memory().unwrap().limit(), Some(64 << 20));
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/berth").join(ID).as_path()));
    assert_eq!(linux.sysctl().as_ref().unwrap()["net.ipv4.ip_forward"], "1");
    let process = process(options);
    assert_eq!(process.oom_score_adj(), Some(-5));
    let [limit] = process.rlimits().as_deref().unwrap() else { panic!("{:?}", process.rlimits()) };
    assert_eq!((limit.typ(), limit.soft(), limit.hard()), (PosixRlimitType::RlimitNofile, 2, 9));
    let unset = spec(none()).process().clone().unwrap();
    assert_eq!((unset.rlimits(), unset.oom_score_adj()), (&None, None));
}

#[test]
fn seccomp_is_the_default_a_file_or_nothing() {
    let default = linux(none()).seccomp().clone().unwrap();
    assert_eq!(
        default,
        berth_runtime::seccomp::default_profile(
            &capabilities::compute(&[], &[], false, &capabilities::from_bits(u64::MAX)).unwrap()
        )
    );
    assert_eq!(*linux(Options { seccomp: Seccomp::Unconfined, ..none() }).seccomp(), None);
    let mut case = Case::new(Options { seccomp: Seccomp::File("/p.json".into()), ..none() });
    case.host.seccomp_profile = Some(String::from(r#"{"defaultAction":"SCMP_ACT_LOG"}"#));
    let profile = case.build().unwrap().linux().clone().unwrap().seccomp().clone().unwrap();
    assert_eq!(profile.default_action().to_string(), "SCMP_ACT_LOG");
    case.host.seccomp_profile = Some(String::from("{"));
    let error = case.build().unwrap_err().to_string();
    assert!(error.contains("/p.json"), "{error}");
}

#[test]
fn the_configuration_survives_its_file() {
    let spec = spec(Options { limits: Limits { memory: Some(1 << 30), ..Limits::default() }, ..none() });
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
}

#[test]
fn what_the_flags_would_have_refused_is_refused_here_too() {
    let sysctls = [(String::from("kernel.panic"), String::from("1"))].into();
    for options in [
        Options { sysctls, ..none() },
        Options { limits: Limits { cpus: Some(5.0), ..Limits::default() }, ..none() },
        Options { limits: Limits { memory: Some(1), ..Limits::default() }, ..none() },
        Options { cap_add: words(&["NOPE"]), ..none() },
        Options { ulimits: vec![Ulimit { name: "nope".into(), soft: 0, hard: 0 }], ..none() },
    ] {
        Case::new(options.clone()).build().expect_err(&format!("{options:?}"));
    }
}
