//! `berth exec`: a second process in a running container.

use berth_tests::home::Home;
use berth_tests::terminal::Terminal;
use berth_tests::{cgroup, wait};
use nix::sys::signal::Signal;

#[test]
fn exec_runs_in_the_same_container() {
    let home = Home::new();
    let id = home.detached("--hostname boat --name it", "echo here > /mark; exec sleep 1000");
    home.expect_log("it", "");
    wait::until("the mark is there", || home.berth("exec it test -e /mark").run().exit_code() == 0);
    let out = home.berth("exec it sh -c").arg("cat /mark; hostname; cat /proc/1/comm").ok();
    assert_eq!(out.trimmed(), "here\nboat\nsleep");
    // It is held by the same limits.
    let inner = home.berth("exec it cat /proc/self/cgroup").ok().text();
    assert!(!inner.contains(".."), "exec is outside of the container's cgroup: {inner}");
    let pids = cgroup::read(home.pid(&id), "pids", "pids.current", "pids.current");
    assert_eq!(pids, "1", "nothing of it stays");
}

#[test]
fn exit_codes_and_output_pass() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    for code in [0, 1, 77, 255] {
        let _ = home.berth("exec it sh -c").arg(format!("exit {code}")).run().code(code);
    }
    let _ = home.berth("exec it sh -c").arg("kill -KILL $$").run().code(137);
    home.berth("exec it no-such-command").run().code(127).fails_with("no-such-command");
    home.berth("exec it /etc/passwd").run().code(126).fails_with("/etc/passwd");
    let out = home.berth("exec it sh -c").arg("echo out; echo err >&2").ok();
    assert_eq!((out.text(), out.stderr_text()), ("out\n".into(), "err\n".into()));
}

#[test]
fn i_passes_input() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    assert_eq!(home.berth("exec -i it cat").stdin("ahoy").ok().text(), "ahoy");
    assert_eq!(home.berth("exec it cat").stdin("ahoy").ok().text(), "");
}

#[test]
fn it_gives_a_terminal() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    let mut terminal = Terminal::start(home.berth("exec -it it sh"), 111, 22);
    terminal.type_in("stty size; tty\n");
    terminal.expect("22 111");
    terminal.expect("/dev/pts/");
    terminal.resize(99, 44);
    terminal.type_in("sleep 0.2; stty size\n");
    terminal.expect("44 99");
    terminal.type_in("sleep 1000\n");
    wait::until("sleep runs", || home.berth("top it").run().text().matches("sleep 1000").count() == 2);
    terminal.type_in("\x03");
    terminal.type_in("exit 6\n");
    assert_eq!(terminal.wait(), 6);
    assert!(terminal.is_cooked());
}

#[test]
fn e_u_and_w() {
    let home = Home::new();
    let _ = home.detached("--name it -e BASE=1 -e BOTH=run -u nobody -w /tmp", "exec sleep 1000");
    let out = home.berth("exec it sh -c").arg("echo $BASE $BOTH $(id -u) $(pwd)").ok();
    assert_eq!(out.trimmed(), "1 run 65534 /tmp", "what run was given holds");
    let out =
        home.berth("exec -e BOTH=exec -e NEW=2 -u berth -w /home it sh -c").arg("echo $BOTH $NEW $(id -u) $(pwd)");
    assert_eq!(out.ok().trimmed(), "exec 2 1000 /home");
    assert_eq!(home.berth("exec -u 12:34 it id -g").ok().trimmed(), "34");
    home.berth("exec -u no-such it true").run().fails_with("no-such");
}

#[test]
fn d_does_not_wait() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    let out = home.berth("exec -d it sh -c").arg("sleep 0.3; echo done > /mark; sleep 1000").ok();
    assert_eq!(out.text(), "");
    wait::until("it has gone on", || home.berth("exec it cat /mark").run().trimmed() == "done");
}

#[test]
fn exec_has_the_containers_bounds() {
    let home = Home::new();
    let _ = home.detached("--name it --cap-drop CHOWN", "exec sleep 1000");
    let status = home.berth("exec it cat /proc/self/status").ok().text();
    for line in ["CapEff:\t00000000a80425fa", "CapBnd:\t00000000a80425fa", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in\n{status}");
    }
    let _ = home.detached("--name free --privileged", "exec sleep 1000");
    assert!(home.berth("exec free cat /proc/self/status").ok().text().contains("Seccomp:\t0"));
}

#[test]
fn signals_to_exec_reach_the_command() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let running = home.berth("exec it sh -c").arg(script).spawn();
    running.expect("ready");
    running.signal(Signal::SIGTERM);
    let _ = running.wait().code(9);
}

#[test]
fn exec_ends_with_the_container() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    let running = home.berth("exec it sh -c").arg("echo ready; exec sleep 1000").spawn();
    running.expect("ready");
    let _ = home.berth("kill it").ok();
    let _ = running.wait().code(137);
    home.berth("exec it true").run().fails_with("not running");
}

#[test]
fn a_working_directory_that_is_missing_is_an_error_and_not_made() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    home.berth("exec -w /missing it true").run().code(125).fails_with("working directory /missing");
    let _ = home.berth("exec it test -e /missing").run().code(1);
}

#[test]
fn what_it_leaves_in_the_background_goes_on() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    let script = "(read _ < /tmp/go; echo late; head -c 300000 /dev/zero; echo $? > /tmp/survived) & echo started";
    let script = format!("mkfifo /tmp/go; {script}");
    assert_eq!(home.berth("exec it sh -c").arg(script).ok().text(), "started\n");
    let _ = home.berth("exec it sh -c").arg("echo > /tmp/go").ok();
    wait::until("it has written", || home.berth("exec it cat /tmp/survived").run().trimmed() == "0");
}

#[test]
fn output_that_cannot_be_passed_on_is_an_error() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    for (script, code) in [("echo lost", 125), ("echo lost; exit 3", 3)] {
        let mut command = home.berth("exec it sh -c").arg(script);
        command.inner.stdout(std::fs::File::create("/dev/full").unwrap()).stderr(std::process::Stdio::piped());
        let out = command.inner.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{out:?}");
        assert_eq!(code == 125, String::from_utf8_lossy(&out.stderr).contains("No space left"), "{out:?}");
    }
}

#[test]
fn input_that_ends_ends_the_input_of_a_terminal() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    for command in ["exec -it it cat", "run --rm -it busybox cat"] {
        let out = home.berth(command).stdin("words\n").ok().text();
        assert!(out.contains("words\r\nwords"), "{command}: {out:?}");
    }
}
