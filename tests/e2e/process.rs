//! The container's process: what it is, which environment it has, and how it ends.

use berth_tests::home::Home;

#[test]
fn the_exit_code_is_the_commands() {
    let home = Home::new();
    for code in [0, 1, 2, 42, 124, 125, 126, 127, 128, 137, 254, 255] {
        let _ = home.shell("", &format!("exit {code}")).run().code(code);
    }
}

#[test]
fn a_command_that_cannot_be_executed_is_126() {
    let home = Home::new();
    home.berth("run --rm busybox /etc/passwd").run().code(126).fails_with("/etc/passwd");
    home.berth("run --rm busybox /etc").run().code(126).fails_with("/etc");
}

#[test]
fn a_command_that_does_not_exist_is_127() {
    let home = Home::new();
    home.berth("run --rm busybox no-such-command").run().code(127).fails_with("no-such-command");
    home.berth("run --rm busybox /no/such/command").run().code(127).fails_with("/no/such/command");
}

#[test]
fn what_berth_refuses_is_125() {
    let home = Home::new();
    home.berth("run --no-such-flag busybox true").run().code(125).fails_with("--no-such-flag");
    home.berth("run --memory lots busybox true").run().code(125).fails_with("lots");
    home.berth("run --rm --pull never no-such-image true").run().code(125).fails_with("no-such-image");
    home.berth("run").run().code(125).fails_with("");
}

#[test]
fn a_signal_that_ends_the_command_is_128_and_its_number() {
    let home = Home::new();
    let _ = home.berth("run --rm --init busybox sh -c").arg("kill -KILL $$").run().code(137);
    let _ = home.berth("run --rm --init busybox sh -c").arg("kill -TERM $$").run().code(143);
    let _ = home.berth("run --rm --init busybox sh -c").arg("kill -SEGV $$").run().code(139);
}

#[test]
fn entrypoint_replaces_the_images() {
    let home = Home::new();
    let out = home.berth("run --rm --entrypoint echo busybox one two").ok();
    assert_eq!(out.trimmed(), "one two");
}

#[test]
fn environment_comes_from_flags_and_files_alone() {
    let home = Home::new();
    let file = home.scratch().join("env");
    std::fs::write(&file, "# a comment\n\nFROM_FILE=in the file\nBOTH=file\nTAKEN\n").unwrap();
    let out = home
        .berth("run --rm -e BOTH=flag -e A=1 --env B=two=2 -e FROM_CALLER -e NOT_SET --env-file")
        .arg(&file)
        .args(["busybox", "env"])
        .env("FROM_CALLER", "caller")
        .env("TAKEN", "taken")
        .env("SECRET", "must not be seen")
        .ok()
        .text();
    let has = |line: &str| assert!(out.lines().any(|l| l == line), "{line} is not in:\n{out}");
    has("A=1");
    has("B=two=2");
    has("BOTH=flag");
    has("FROM_CALLER=caller");
    has("FROM_FILE=in the file");
    has("TAKEN=taken");
    assert!(!out.contains("SECRET") && !out.contains("NOT_SET") && !out.contains("BERTH_"), "{out}");
    assert!(out.contains("PATH=") && out.contains("HOME=/root") && out.contains("HOSTNAME="), "{out}");

    std::fs::write(&file, b"A=1\nB=\xff\n").unwrap();
    let refused = home.berth("run --rm --env-file").arg(&file).args(["busybox", "env"]).run().code(125);
    refused.fails_with("line 2: it is no UTF-8 text");
}

#[test]
fn workdir_is_where_it_starts_and_is_made() {
    let home = Home::new();
    assert_eq!(home.prints("", "pwd"), "/");
    assert_eq!(home.prints("-w /home/berth", "pwd"), "/home/berth");
    assert_eq!(home.prints("--workdir /not/there/yet", "pwd"), "/not/there/yet");
    home.shell("-w /etc/passwd", "pwd").run().fails_with("/etc/passwd");
}

#[test]
fn user_is_a_name_or_a_number() {
    let home = Home::new();
    let id = |user: &str| home.prints(&format!("-u {user}"), "echo $(id -u):$(id -g) $(id -G) $HOME");
    assert_eq!(id("berth"), "1000:1000 1000 44 /home/berth");
    assert_eq!(id("1000"), "1000:1000 1000 44 /home/berth");
    assert_eq!(id("1234:5678"), "1234:5678 5678 /");
    assert_eq!(id("berth:video"), "1000:44 44 /home/berth");
    assert_eq!(id("0"), "0:0 0 /root");
    home.shell("-u nobody-knows", "true").run().fails_with("nobody-knows");
    home.shell("-u berth:no-such-group", "true").run().fails_with("no-such-group");
}

#[test]
fn a_user_other_than_root_has_no_capabilities() {
    let home = Home::new();
    assert_eq!(home.prints("-u berth", "grep CapEff /proc/self/status"), "CapEff:\t0000000000000000");
    home.shell("-u berth", "touch /etc/x").run().fails_with("permission denied");
}

#[test]
fn init_is_process_1_and_reaps() {
    let home = Home::new();
    assert_eq!(home.prints("", "echo $$"), "1");
    let script = "[ $$ != 1 ] || exit 9; (sleep 0 & exec sleep 0.1) & wait; sleep 1; ps -o stat | grep -c Z; exit 0";
    assert_eq!(home.prints("--init", script), "0", "no zombies are left under --init");
    // What `ps` shows of it tells nothing of the host.
    assert_eq!(home.prints("--init", "tr '\\0' ' ' < /proc/1/cmdline; cat /proc/1/comm"), "berth-init berth-init");
}

#[test]
fn orphans_do_not_outlive_the_command() {
    let home = Home::new();
    let _ = home.shell("", "sleep 1000 & exit 3").run().code(3);
}

#[test]
fn arguments_arrive_as_they_are() {
    let home = Home::new();
    let script = r#"for a in "$@"; do printf '<%s>' "$a"; done"#;
    let out =
        home.berth("run --rm busybox sh -c").args([script, "sh", "", " a b ", "-d", "--rm", "$HOME", "ä€\n", "*"]).ok();
    assert_eq!(out.text(), "<>< a b ><-d><--rm><$HOME><ä€\n><*>");
}

#[test]
fn group_add_gives_more_groups() {
    let home = Home::new();
    assert_eq!(home.prints("-u berth --group-add tty --group-add 4242", "id -G"), "1000 5 44 4242");
    home.shell("--group-add no-such-group", "true").run().fails_with("no-such-group");
}

#[test]
fn oom_score_adj_is_set() {
    let home = Home::new();
    assert_eq!(home.prints("--oom-score-adj 321", "cat /proc/self/oom_score_adj"), "321");
}
