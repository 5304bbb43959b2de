//! Each flag of `berth run` and the option it sets, and what is said of bad values.

use std::time::Duration;

use berth_engine::options::{IdRange, Pull};
use clap::{CommandFactory, Parser};

use super::*;

#[derive(Debug, Parser)]
struct Run {
    #[command(flatten)]
    flags: RunFlags,
}

fn parse(args: &[&str]) -> Result<Options, String> {
    Run::try_parse_from(std::iter::once(&"run").chain(args))
        .map_err(|error| error.to_string())
        .and_then(|run| run.flags.into_options().map_err(|error| format!("{error:#}")))
}

/// The options that `args` set for the image `busybox`.
fn options(args: &[&str]) -> Options {
    parse(&[args, &["busybox"]].concat()).unwrap()
}

fn none() -> Options {
    Options { image: String::from("busybox"), ..Options::default() }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn the_command_line_is_consistent() {
    Run::command().debug_assert();
}

#[test]
fn nothing_given_is_the_default() {
    assert_eq!(options(&[]), none());
}

#[test]
fn each_flag_sets_its_option() {
    let device = Device { host: "/dev/null".into(), container: "/dev/x".into(), permissions: "rw".into() };
    let cases: Vec<(&[&str], Options)> = vec![
        (&["-i"], Options { interactive: true, ..none() }),
        (&["-t"], Options { tty: true, ..none() }),
        (&["-it"], Options { interactive: true, tty: true, ..none() }),
        (&["--interactive", "--tty"], Options { interactive: true, tty: true, ..none() }),
        (&["-d"], none()),
        (&["--rm"], Options { remove: true, ..none() }),
        (&["--name", "web"], Options { name: Some("web".into()), ..none() }),
        (&["--hostname", "h"], Options { hostname: Some("h".into()), ..none() }),
        (&["-h", "h.example"], Options { hostname: Some("h.example".into()), ..none() }),
        (&["-e", "A=1", "--env", "B=x=y", "-eC="], Options { env: words(&["A=1", "B=x=y", "C="]), ..none() }),
        (&["-e", "BERTH_TEST_UNSET"], none()),
        (&["-w", "", "-u", "", "--shm-size", "0"], none()),
        (&["-w", "/srv"], Options { workdir: Some("/srv".into()), ..none() }),
        (&["-u", "app:1000"], Options { user: Some("app:1000".into()), ..none() }),
        (&["--group-add", "audio", "--group-add", "7"], Options { group_add: words(&["audio", "7"]), ..none() }),
        (&["--entrypoint", "/bin/sh"], Options { entrypoint: Some("/bin/sh".into()), ..none() }),
        (&["--entrypoint", ""], Options { entrypoint: Some(String::new()), ..none() }),
        (&["--read-only"], Options { read_only: true, ..none() }),
        (
            &["--cap-add", "NET_ADMIN", "--cap-drop=ALL"],
            Options { cap_add: words(&["NET_ADMIN"]), cap_drop: words(&["ALL"]), ..none() },
        ),
        (&["--privileged"], Options { privileged: true, ..none() }),
        (&["--security-opt", "no-new-privileges"], Options { no_new_privileges: Some(true), ..none() }),
        (&["--security-opt", "no-new-privileges:true"], Options { no_new_privileges: Some(true), ..none() }),
        (&["--security-opt", "no-new-privileges=false"], Options { no_new_privileges: Some(false), ..none() }),
        (&["--security-opt", "seccomp=unconfined"], Options { seccomp: Seccomp::Unconfined, ..none() }),
        (&["--security-opt", "seccomp=/p.json"], Options { seccomp: Seccomp::File("/p.json".into()), ..none() }),
        (&["--security-opt", "apparmor=unconfined"], none()),
        (&["--device", "/dev/null:/dev/x:rw"], Options { devices: vec![device], ..none() }),
        (&["--sysctl", "net.ipv4.ip_forward=1"], Options { sysctls: pairs(&[("net.ipv4.ip_forward", "1")]), ..none() }),
        (&["--shm-size", "1m"], Options { shm_size: Some(1 << 20), ..none() }),
        (&["--network", "none"], none()),
        (&["--network", "host"], Options { network: Network::Host, ..none() }),
        (&["--net=host"], Options { network: Network::Host, ..none() }),
        (&["--network", "ns:/run/netns/a:b"], Options { network: Network::Joined("/run/netns/a:b".into()), ..none() }),
        (&["--pid", "host"], Options { pid_host: true, ..none() }),
        (&["--ipc", "host"], Options { ipc_host: true, ..none() }),
        (&["--uts", "host"], Options { uts_host: true, ..none() }),
        (&["--cgroupns", "host"], Options { cgroup_host: true, ..none() }),
        (&["--cgroupns", "private"], none()),
        (&["--userns", "host"], none()),
        (&["--userns", "auto"], Options { userns: UserNamespace::Auto, ..none() }),
        (&["--userns", "1:2"], Options { userns: UserNamespace::Range(IdRange { first: 1, count: 2 }), ..none() }),
        (&["--init"], Options { init: true, ..none() }),
        (&["--stop-signal", "SIGINT"], Options { stop_signal: Some("SIGINT".into()), ..none() }),
        (&["--stop-timeout", "3"], Options { stop_timeout: Some(Duration::from_secs(3)), ..none() }),
        (&["--stop-timeout", "-1"], Options { stop_timeout: Some(Duration::MAX), ..none() }),
        (&["--restart", "no"], none()),
        (&["--restart", "always"], Options { restart: RestartPolicy::Always, ..none() }),
        (&["--restart", "unless-stopped"], Options { restart: RestartPolicy::UnlessStopped, ..none() }),
        (&["--restart", "on-failure"], Options { restart: RestartPolicy::OnFailure { max_retries: None }, ..none() }),
        (
            &["--restart", "on-failure:3"],
            Options { restart: RestartPolicy::OnFailure { max_retries: Some(3) }, ..none() },
        ),
        (&["-l", "a=1", "--label", "b"], Options { labels: pairs(&[("a", "1"), ("b", "")]), ..none() }),
        (&["--annotation", "a=1"], Options { annotations: pairs(&[("a", "1")]), ..none() }),
        (&["--cidfile", "/c"], Options { cidfile: Some("/c".into()), ..none() }),
        (&["--pull", "always"], Options { pull: Pull::Always, ..none() }),
        (&["--pull", "missing"], none()),
        (&["--pull", "never"], Options { pull: Pull::Never, ..none() }),
        (
            &["--add-host", "db:10.0.0.7", "--add-host", "six=[fd00::1]"],
            Options { add_hosts: vec![("db".into(), "10.0.0.7".into()), ("six".into(), "fd00::1".into())], ..none() },
        ),
        (&["--oom-score-adj", "-500"], Options { oom_score_adj: Some(-500), ..none() }),
        (&["--platform", "linux/arm64/v8"], Options { platform: Some("linux/arm64/v8".into()), ..none() }),
        (&["--isolation", "container"], none()),
        (&["--isolation", "microvm"], Options { isolation: Isolation::Microvm, ..none() }),
        (&["--guest", "process"], Options { guest: Guest::Process, ..none() }),
        (&["--kernel", "/boot/vmlinux"], Options { kernel: Some("/boot/vmlinux".into()), ..none() }),
        (
            &["-m", "64m"],
            Options {
                limits: berth_engine::options::Limits { memory: Some(64 << 20), ..Default::default() },
                ..none()
            },
        ),
    ];
    for (args, expected) in cases {
        assert_eq!(options(args), expected, "{args:?}");
    }
}

#[test]
fn ulimits_take_one_number_or_two_and_unlimited() {
    let limit = |name: &str, soft, hard| Ulimit { name: name.to_owned(), soft, hard };
    let set = options(&[
        "--ulimit",
        "nofile=1024:2048",
        "--ulimit",
        "core=0",
        "--ulimit=nproc=-1",
        "--ulimit",
        "cpu=1:unlimited",
    ]);
    let expected = [
        limit("nofile", 1024, 2048),
        limit("core", 0, 0),
        limit("nproc", u64::MAX, u64::MAX),
        limit("cpu", 1, u64::MAX),
    ];
    assert_eq!(set.ulimits, expected);
}

#[test]
fn all_three_kinds_of_mounts_are_taken() {
    let set = options(&["--tmpfs", "/t", "--mount", "target=/m", "-v", "/s:/v:ro"]);
    let targets: Vec<&str> = set.mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/v", "/m", "/t"]);
    assert!(set.mounts[0].read_only);
}

#[test]
fn a_bare_variable_takes_the_callers_value() {
    let path = std::env::var("PATH").unwrap();
    assert_eq!(options(&["-e", "PATH"]).env, [format!("PATH={path}")]);
}

#[test]
fn what_follows_the_image_is_left_alone() {
    for command in [
        &["sh", "-c", "echo $X"][..],
        &["--rm", "-it", "--name"],
        &["-x"],
        &["echo", "--", "x"],
        &["--", "x"],
        &["--help"],
        &["-h"],
        &["", "a b", "é"],
    ] {
        let set = parse(&[&["--init", "busybox"], command].concat()).unwrap();
        assert_eq!(set, Options { init: true, command: words(command), ..none() }, "{command:?}");
    }
    assert_eq!(
        parse(&["--init", "--", "busybox", "--x"]).unwrap(),
        Options { init: true, command: words(&["--x"]), ..none() }
    );
}

#[test]
fn bad_values_name_flag_value_and_what_to_give() {
    let long = "x".repeat(5000);
    for (flag, values) in [("--name", ["", "-a", "a b"]), ("--stop-signal", ["", "NOSUCH", "99"])] {
        for value in values {
            let error = parse(&[&format!("{flag}={value}"), "busybox"]).unwrap_err();
            assert!(error.contains(flag) && error.contains(value), "{flag}={value}: {error}");
        }
    }
    let cases: Vec<(&str, Vec<&str>, &str)> = vec![
        ("--hostname", vec!["", "-a", "a-", "a..b", "a b", "é", &long], "for example"),
        ("--env", vec!["", "=x"], "for example"),
        ("--workdir", vec!["srv", "."], "for example"),
        ("--user", vec![":", ":g", "a:", "a:b:c", "a b", "4294967295", "99999999999"], "for example"),
        ("--group-add", vec!["", "a,b", "a:b", "4294967295"], "for example"),
        ("--cap-add", vec!["NET_ADMN", "", "CAP_"], "NET_ADMIN"),
        ("--cap-drop", vec!["EVERYTHING"], "for example"),
        (
            "--security-opt",
            vec!["", "huh", "no-new-privileges=x", "seccomp", "seccomp=", "apparmor=mine"],
            "for example",
        ),
        (
            "--device",
            vec!["", "null", "/dev/null:rwx:x:y", "/dev/null:/x:q", "/dev/null:x", "/dev/null:/dev/x:rr"],
            "for example",
        ),
        (
            "--ulimit",
            vec!["", "nofile", "nofile=", "huh=1", "nofile=2:1", "nofile=-2", "nofile=1:2:3", "RLIMIT_NOFILE=1"],
            "for example",
        ),
        ("--sysctl", vec!["", "net.x", "=1"], "for example"),
        ("--shm-size", vec!["", "x", "-1"], "for example"),
        ("--network", vec!["bridge", "", "mine", "ns:", "ns:run/netns/a"], "for example"),
        ("--pid", vec!["", "container:x"], "host"),
        ("--userns", vec!["", "x", "1", "0:1", "1:0", "4294967295:1", "-1:5", "1:2:3"], "for example"),
        ("--stop-timeout", vec!["", "x", "-2", "1.5", "9223372036854775808"], "for example"),
        ("--restart", vec!["", "sometimes", "always:3", "on-failure:", "on-failure:-1", "on-failure:x"], "for example"),
        ("--label", vec!["", "=x"], "for example"),
        ("--annotation", vec!["a", "=x", ""], "for example"),
        ("--pull", vec!["", "sometimes"], "always"),
        ("--add-host", vec!["", "db", "db:", "db:x", ":1.2.3.4", "db:1.2.3", "db:host-gateway"], "for example"),
        ("--oom-score-adj", vec!["", "1001", "-1001", "x"], "for example"),
        ("--platform", vec!["", "/", "a/b/c/d", "linux/"], "for example"),
        ("--isolation", vec!["vm", ""], "container"),
        ("--volume", vec!["", "data", "a:b"], "for example"),
        ("--mount", vec!["", "type=bind"], "for example"),
        ("--tmpfs", vec!["", "run"], "for example"),
        ("--memory", vec!["1m", "5999k"], "6m"),
    ];
    for (flag, values, part) in cases {
        for value in values {
            let error = parse(&[&format!("{flag}={value}"), "busybox"]).unwrap_err();
            assert!(error.contains(flag) && error.contains(value) && error.contains(part), "{flag}={value}: {error}");
        }
    }
}

#[test]
fn unknown_flags_and_missing_image_are_errors() {
    assert!(parse(&["--bogus", "busybox"]).unwrap_err().contains("--bogus"));
    assert!(parse(&["-X", "busybox"]).unwrap_err().contains("-X"));
    assert!(parse(&[]).unwrap_err().contains("IMAGE"));
    assert!(parse(&[""]).unwrap_err().contains("image is empty"));
    let bytes = std::os::unix::ffi::OsStrExt::from_bytes(&b"\xff\xfe"[..]);
    for args in
        [[std::ffi::OsStr::new("run"), bytes, bytes], [std::ffi::OsStr::new("run"), std::ffi::OsStr::new("-e"), bytes]]
    {
        assert!(Run::try_parse_from(args).unwrap_err().to_string().contains("UTF-8"));
    }
}

#[test]
fn flags_that_exclude_each_other_are_errors_that_name_both() {
    for (args, one, other) in [
        (&["--rm", "--restart", "always"][..], "--rm", "--restart"),
        (&["-v", "/a:/x", "--tmpfs", "/y/../x"], "two mounts", "/x"),
        (&["--userns", "1:1", "--privileged"], "--userns", "--privileged"),
        (&["--userns", "1:1", "--net", "host"], "--userns", "--network host"),
        (&["--userns", "1:1", "--net", "ns:/a"], "--userns", "--network ns:"),
        (&["--uts", "host", "-h", "x"], "--hostname", "--uts host"),
        (&["--ipc", "host", "--shm-size", "1m"], "--shm-size", "--ipc host"),
        (&["--net", "host", "--sysctl", "net.ipv4.ip_forward=1"], "--sysctl", "--network host"),
        (&["--memory-swap", "1g"], "--memory-swap", "--memory"),
        (&["-m", "1g", "--memory-swap", "512m"], "--memory-swap", "--memory"),
    ] {
        let error = parse(&[args, &["busybox"]].concat()).unwrap_err();
        assert!(error.contains(one) && error.contains(other), "{args:?}: {error}");
    }
}

#[test]
fn no_value_makes_a_parser_panic() {
    type Parser = fn(&str);
    let parsers: &[Parser] = &[
        |text| drop(mount::volume(text)),
        |text| drop(mount::mount(text)),
        |text| drop(mount::tmpfs(text)),
        |text| drop(size::bytes(text)),
        |text| drop(lists::pair(text)),
        |text| drop(lists::full_pair(text)),
        |text| drop(isolation::security_opt(text)),
        |text| drop(isolation::capability(text)),
        |text| drop(isolation::device(text)),
        |text| drop(isolation::network(text)),
        |text| drop(isolation::user_namespace(text)),
        |text| drop(process::ulimit(text)),
        |text| drop(process::restart(text)),
        |text| drop(process::stop_signal(text)),
        |text| drop(process::stop_timeout(text)),
        |text| drop(process::oom_score_adj(text)),
        |text| drop(process::hostname(text)),
        |text| drop(process::name(text)),
        |text| drop(process::add_host(text)),
        |text| drop(process::user(text)),
        |text| drop(process::group(text)),
        |text| drop(process::platform(text)),
    ];
    let pieces = [
        "",
        "/",
        ":",
        "=",
        ",",
        ".",
        "-",
        "..",
        "0",
        "9",
        "99999999999999999999",
        "-1",
        "k",
        "é",
        "💥",
        "\u{0}",
        " ",
        "%",
        "type",
        "bind",
        "tmpfs",
        "source",
        "target",
        "size",
        "mode",
        "ro",
        "rwm",
        "nofile",
        "seccomp",
        "on-failure",
        "[",
        "]",
        "RTMIN+",
        "SIG",
        "/a",
        "1.5",
    ];
    // Xorshift: the same values in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..5000 {
        let text: String = (0..next(9)).map(|_| pieces[next(pieces.len())]).collect();
        for parser in parsers {
            parser(&text);
        }
    }
    for text in ["/", "9", "a:", "=", "é"].map(|piece| piece.repeat(100_000)) {
        for parser in parsers {
            parser(&text);
        }
    }
}
