//! `berth exec` into a process guest: the same machine, as it is the same container elsewhere.

use berth_tests::command::Cmd;
use berth_tests::home::Home;
use berth_tests::terminal::Terminal;
use berth_tests::wait;
use nix::sys::signal::Signal;

use crate::process_guest::is_possible;

/// A guest called `it` that idles.
fn guest(flags: &str) -> Home {
    let home = Home::new();
    let _ = start(&home, "microvm --guest process", flags, "exec sleep 1000").ok();
    home
}

fn start(home: &Home, isolation: &str, flags: &str, script: &str) -> Cmd {
    home.berth(&format!("run -d --name it --isolation {isolation} {flags} busybox sh -c")).arg(script)
}

/// What a script says in a container, and that it says the same in a process guest, with the same exit code.
fn same(run_flags: &str, exec_flags: &str, script: &str) -> String {
    let [container, guest] = ["container", "microvm --guest process"].map(|isolation| {
        let home = Home::new();
        let _ = start(&home, isolation, run_flags, "exec sleep 1000").ok();
        home.berth(&format!("exec {exec_flags} it sh -c")).arg(script).run()
    });
    assert_eq!(guest.text(), container.text(), "{exec_flags} {script}: {guest:?}");
    assert_eq!(guest.exit_code(), container.exit_code(), "{exec_flags} {script}: {guest:?}");
    guest.text()
}

#[test]
fn exec_sees_the_processes_that_are_there_and_may_end_them() {
    if !is_possible("exec into a process guest") {
        return;
    }
    let home = Home::new();
    let script = "trap 'echo told; exit 5' USR1; echo up; while :; do sleep 0.1; done";
    let _ = start(&home, "microvm --guest process", "", script).ok();
    home.expect_log("it", "up");
    let list = home.berth("exec it ps -o pid,ppid,args").ok().text();
    let line = |command: &str| {
        let line = list.lines().find(|line| line.contains(command)).unwrap_or_else(|| panic!("{command}: {list}"));
        line.split_whitespace().take(2).map(|id| id.parse::<i32>().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(line("trap"), [1, 0], "{list}");
    assert!(matches!(line("ps -o")[..], [pid, 0] if pid > 1), "{list}");
    assert_eq!(
        home.berth("exec it sh -c").arg("tr '\\0' ' ' < /proc/1/cmdline").ok().text(),
        format!("sh -c {script} ")
    );
    // What one leaves running is there for the next, and is the first process's child.
    let left = home.berth("exec it sh -c").arg("sleep 777 > /dev/null 2>&1 & echo $!").ok().trimmed();
    let parent = format!("grep PPid /proc/{left}/status; kill -9 {left}; sleep 0.05; kill -0 {left}");
    let seen = home.berth("exec it sh -c").arg(parent).run();
    assert_eq!(seen.text(), "PPid:\t1\n", "{seen:?}");
    // The guest may be gone before it is told that the command has ended.
    let code = home.berth("exec it kill -USR1 1").run().exit_code();
    assert!([0, 137].contains(&code), "{code}");
    wait::until("the first process has ended", || home.status("it") == "exited");
    assert_eq!(home.inspect("it")["State"]["ExitCode"], 5);
    assert!(home.berth("logs it").ok().text().ends_with("told\n"));
}

#[test]
fn exec_has_a_containers_streams_users_and_exit_codes() {
    if !is_possible("streams, users and exit codes of exec into a process guest") {
        return;
    }
    let home = guest("");
    for code in [0, 1, 77, 255] {
        let _ = home.berth("exec it sh -c").arg(format!("exit {code}")).run().code(code);
    }
    let _ = home.berth("exec it sh -c").arg("kill -KILL $$").run().code(137);
    home.berth("exec it no-such-command").run().code(127).fails_with("no-such-command");
    home.berth("exec it /etc/passwd").run().code(126).fails_with("/etc/passwd");
    home.berth("exec -w /no-such it true").run().fails_with("directory");
    let out = home.berth("exec it sh -c").arg("echo out; echo err >&2").ok();
    assert_eq!((out.text(), out.stderr_text()), ("out\n".into(), "err\n".into()));
    assert_eq!(home.berth("exec -i it cat").stdin("ahoy").ok().text(), "ahoy");
    assert_eq!(home.berth("exec it cat").stdin("ahoy").ok().text(), "");
    // Whoever closes its streams lets go of who reads them.
    let _ = home.berth("exec -d it sh -c").arg("echo on > /mark; exec sleep 1000").ok();
    wait::until("it goes on", || home.berth("exec it cat /mark").run().trimmed() == "on");

    assert_eq!(
        same("-e BASE=1 -e BOTH=run -u nobody -w /tmp", "", "echo $BASE $BOTH $(id -u) $(pwd)"),
        "1 run 65534 /tmp\n"
    );
    assert_eq!(
        same("", "-e BOTH=exec -e NEW=2 -u berth -w /home", "echo $BOTH $NEW $(id -u) $(pwd)"),
        "exec 2 1000 /home\n"
    );
    // Rights are those of who was asked for, whoever the first process is.
    let files = "id; umask; touch /etc/mine /tmp/mine; echo $?; stat -c '%u %g' /tmp/mine; chown 0 /tmp; echo $?; \
                 cat /etc/shadow > /dev/null; echo $?; kill -0 1; echo $?; ulimit -n; grep ^Cap /proc/self/status | grep -v -e Bnd -e Amb";
    for (run, exec) in [("", "-u 7:8"), ("-u 7:8", "-u 0"), ("-u 7:8", ""), ("--cap-drop ALL", "-u 7:8")] {
        let _ = same(run, exec, &format!("exec 2>&1; {files}"));
    }
}

#[test]
fn exec_has_a_terminal_of_its_own() {
    if !is_possible("a terminal of exec into a process guest") {
        return;
    }
    let home = guest("");
    let mut terminal = Terminal::start(home.berth("exec -it it sh"), 111, 22);
    terminal.type_in("stty size; tty; echo to-the-terminal > /dev/tty\n");
    for text in ["22 111", "/dev/pts/", "\nto-the-terminal"] {
        terminal.expect(text);
    }
    terminal.resize(99, 44);
    terminal.type_in("sleep 0.2; stty size\n");
    terminal.expect("44 99");
    terminal.type_in("sleep 1234\n");
    let sleeps = || home.berth("exec it sh -c").arg("ps | grep -c '[s]leep 1234'").run().trimmed() == "1";
    wait::until("sleep runs", sleeps);
    terminal.type_in("\x03");
    terminal.type_in("exit 6\n");
    assert_eq!(terminal.wait(), 6);
    assert!(terminal.is_cooked());
    assert_eq!(home.status("it"), "running", "an interrupt goes to the terminal's own session");
    home.berth("exec it sh -c").arg("echo x > /dev/tty").run().fails_with("No such device");
}

#[test]
fn signals_reach_what_exec_runs_and_its_end_is_the_relays() {
    if !is_possible("signals to exec into a process guest") {
        return;
    }
    let home = guest("");
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let running = home.berth("exec it sh -c").arg(script).spawn();
    running.expect("ready");
    running.signal(Signal::SIGTERM);
    let _ = running.wait().code(9);
    let running = home.berth("exec it sh -c").arg("echo ready; exec sleep 1000").spawn();
    running.expect("ready");
    let _ = home.berth("kill it").ok();
    let _ = running.wait().code(137);
    home.berth("exec it true").run().fails_with("not running");
}

#[test]
fn what_exec_runs_is_within_the_same_limits() {
    if !is_possible("limits of exec into a process guest") {
        return;
    }
    let home = Home::new();
    // The first process holds most of what there is.
    let holds = "dd if=/dev/zero bs=60M count=1 iflag=fullblock | (head -c 1 > /dev/null; echo holds; sleep 1000)";
    let _ = start(&home, "microvm --guest process", "-m 150m --pids-limit 8", holds).ok();
    home.expect_log("it", "holds");
    let fits = |megabytes: u32| {
        let script = format!("dd if=/dev/zero of=/dev/null bs={megabytes}M count=1 iflag=fullblock 2> /dev/null");
        home.berth("exec it sh -c").arg(script).run().exit_code()
    };
    assert_eq!((fits(60), fits(120)), (0, 137));
    let _ = home.berth("exec it tail /dev/zero").run().code(137);
    assert_eq!(home.status("it"), "running");
    let bomb = "i=0; while [ $i -lt 12 ]; do sleep 60 > /dev/null 2>&1 & i=$((i+1)); echo $i; done";
    let many = home.berth("exec it sh -c").arg(bomb).run();
    // Of the eight there are the first process, what it has begun, and the shell.
    let begun = many.text().lines().count();
    assert!((3..=5).contains(&begun) && many.stderr_text().contains("can't fork"), "{many:?}");
    let _ = home.berth("rm -f it").ok();
    home.expect_clean();
}
