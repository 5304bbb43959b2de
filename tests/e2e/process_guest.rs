//! `--guest process`: the image's programs in a virtual machine without a kernel, on this host's own `/dev/kvm`.

use berth_tests::binaries;
use berth_tests::command::{Cmd, Output};
use berth_tests::fixtures;
use berth_tests::home::Home;
use berth_tests::terminal::Terminal;
use berth_tests::wait;

/// What `berth-vmm` says of this host's KVM.
fn kvm() -> Output {
    Cmd::new(binaries::dir().join("berth-vmm"), "host").run()
}

/// Whether process guests run here. If not, that is said past the capture of a test's output.
pub fn is_possible(test: &str) -> bool {
    use std::io::Write as _;
    let is_possible = kvm().exit_code() == 0;
    if !is_possible {
        let _ = writeln!(std::io::stderr(), "NOT TESTED, no KVM here: {test}");
    }
    is_possible
}

/// The same command in a container and in a process guest.
fn both(home: &Home, flags: &str, image_and_command: &[&str], stdin: &str) -> [Output; 2] {
    ["container", "microvm --guest process"].map(|isolation| {
        let words = format!("run --rm -i --isolation {isolation} {flags}");
        home.berth(&words).args(image_and_command).stdin(stdin).run()
    })
}

pub fn same(home: &Home, flags: &str, image_and_command: &[&str], stdin: &str) -> Output {
    let [container, guest] = both(home, flags, image_and_command, stdin);
    assert_eq!(guest.text(), container.text(), "{image_and_command:?}: {guest:?}");
    assert_eq!(guest.exit_code(), container.exit_code(), "{image_and_command:?}: {guest:?}");
    guest
}

#[test]
fn scripts_give_a_containers_output_and_exit_code() {
    if !is_possible("busybox in a process guest") {
        return;
    }
    let home = Home::new();
    let scripts = [
        "echo one two | tr a-z A-Z | wc -w; exit 42",
        "for i in 1 2 3; do (echo $i; exit $i); echo code $?; done",
        "cat << END | sort -r\nb\na\nEND",
        "sleep 0.1 & echo waiting; wait; echo done",
        "cat; echo $V; pwd; hostname; grep -c boat /etc/hosts; echo error >&2",
        "mkdir -p /tmp/a/b; echo x > /tmp/a/b/c; find /tmp/a | sort; rm -r /tmp/a; ls /tmp",
        "trap 'echo caught' USR1; kill -USR1 $$; echo on",
        "sh -c 'kill -9 $$'; echo $?; no-such-command; echo $?",
        "seq 1000 | sort -n | tail -n 1; seq 10 | awk '{s+=$1} END {print s}'",
    ];
    for script in scripts {
        let _ = same(&home, "-e V=x -w /home --hostname boat", &["busybox", "sh", "-c", script], "from outside\n");
    }
    let guest = same(&home, "-u 7:8", &["busybox", "sh", "-c", "touch /tmp/mine; stat -c '%u %g' /tmp/mine"], "");
    assert_eq!(guest.text(), "7 8\n");
    let _ = same(&home, "", &["busybox", "no-such-command"], "");
    assert!(home.containers().is_empty());
}

#[test]
fn without_a_word_about_the_guest_one_that_runs_here_is_taken() {
    if !is_possible("the choice of a guest") {
        return;
    }
    let home = Home::new();
    let output = home.berth("run --rm --isolation microvm busybox echo hello").ok();
    assert_eq!(output.text(), "hello\n");
    let says_so = output.stderr_text().contains("--guest process");
    assert_eq!(says_so, kvm().text().contains("pvm"), "where a Linux guest can run it is the first choice: {output:?}");
}

#[test]
fn a_detached_process_guest_lives_as_a_container_does() {
    if !is_possible("the life of a process guest") {
        return;
    }
    let home = Home::new();
    let dir = home.scratch();
    let script = "trap 'echo bye; exit 5' TERM; echo up > /mnt/here; echo up; while :; do sleep 0.1; done";
    let words =
        format!("run -d --name guest --isolation microvm --guest process -v {}:/mnt busybox sh -c", dir.display());
    let _ = home.berth(&words).arg(script).ok();
    home.expect_log("guest", "up");
    assert_eq!(std::fs::read_to_string(dir.join("here")).unwrap(), "up\n");
    assert_eq!(home.berth("exec guest sh -c").arg("echo in; exit 9").run().code(9).text(), "in\n");
    let _ = home.berth("pause guest").ok();
    assert_eq!(home.status("guest"), "paused");
    let _ = home.berth("unpause guest").ok();
    let _ = home.berth("stop guest").ok();
    assert_eq!(home.inspect("guest")["State"]["ExitCode"], 5, "the command's trap ran");
    wait::until("the log has the last word", || home.berth("logs guest").ok().text().ends_with("bye\n"));
    assert_eq!(home.berth("rm guest").ok().trimmed(), "guest");
}

#[test]
fn a_process_guest_has_a_terminal() {
    if !is_possible("a terminal in a process guest") {
        return;
    }
    let home = Home::new();
    let words = "run --rm -it --isolation microvm --guest process busybox sh -c";
    let mut terminal = Terminal::start(home.berth(words).arg("stty size; cat; cat; echo unreached"), 91, 33);
    terminal.expect("33 91");

    terminal.type_in("word\n");
    terminal.expect("word\r\nword");
    terminal.type_in("\x04");
    terminal.type_in("second\n");
    terminal.expect("second\r\nsecond");
    terminal.type_in("\x03");
    assert_eq!(terminal.wait(), 130);

    let first = home.berth("run --rm -it --isolation microvm --guest process busybox cat");
    let mut terminal = Terminal::start(first, 80, 24);
    terminal.type_in("word\n");
    terminal.expect("word\r\nword");
    terminal.type_in("\x03");
    assert_eq!(terminal.wait(), 130);
}

#[test]
fn python_says_the_same_in_a_process_guest() {
    if !is_possible("python3 in a process guest") {
        return;
    }
    let home = Home::empty();
    let _ = home.berth("load -i").arg(fixtures::debian_layout()).ok();
    let image = home.berth("images -q").ok().trimmed();
    let program = "import sys, json, threading, subprocess; out = []; \
        threads = [threading.Thread(target=out.append, args=(n,)) for n in range(8)]; \
        [t.start() for t in threads]; [t.join() for t in threads]; \
        print(sys.version_info[:2], json.dumps(sorted(out)), subprocess.run(['echo', 'sub'], capture_output=True).stdout); \
        sys.exit(7)";
    let guest = same(&home, "", &[&image, "python3", "-c", program], "");
    assert_eq!(guest.exit_code(), 7);
    let tools = "ls /usr/bin | grep -c .; find /etc -name '*.conf' | sort | head -n 3; tar -C /etc -c . | gzip | gunzip | tar -t | wc -l";
    let _ = same(&home, "", &[&image, "bash", "-c", tools], "");
}
