//! What holds a process guest that takes more than it was given.

use std::fs;

use berth_tests::fixtures;
use berth_tests::home::Home;
use berth_tests::wait;

use crate::process_guest::{is_possible, same};

#[test]
fn memory_beyond_the_limit_ends_the_program() {
    if !is_possible("the memory limit of a process guest") {
        return;
    }
    let home = Home::new();
    // The VMM brings the pages for a system call in the first, the program touches them itself in the second.
    for program in ["tail /dev/zero", "awk 'BEGIN { text = \"x\"; while (1) text = text text }'"] {
        let script = format!("{program}; echo $?");
        let guest = same(&home, "-m 48m", &["busybox", "sh", "-c", &script], "");
        assert_eq!(guest.text(), "137\n", "{program}");
        let guest = same(&home, "-m 48m", &["busybox", "sh", "-c", &format!("exec {program}")], "");
        assert_eq!(guest.exit_code(), 137, "{program}");
    }
    // What is within it is given back and can be had again.
    let within = "for i in 1 2 3 4; do dd if=/dev/zero of=/dev/null bs=20M count=1 2>/dev/null; echo $?; done";
    let guest = same(&home, "-m 48m", &["busybox", "sh", "-c", within], "");
    assert_eq!(guest.text(), "0\n0\n0\n0\n");
}

#[test]
fn processes_beyond_the_limit_are_refused() {
    if !is_possible("the pids limit of a process guest") {
        return;
    }
    let home = Home::new();
    let script = "i=0; while [ $i -lt 30 ]; do sleep 60 & i=$((i+1)); echo $i; done";
    let guest = same(&home, "--pids-limit 20", &["busybox", "sh", "-c", script], "");
    assert!(guest.text().ends_with("\n19\n"), "{guest:?}");
}

#[test]
fn a_fork_bomb_is_held_and_removed() {
    if !is_possible("a fork bomb in a process guest") {
        return;
    }
    let home = Home::new();
    let words = "run -d --name bomb --pids-limit 50 --isolation microvm --guest process busybox sh -c";
    let _ = home.berth(words).arg("exec 2>&1; bomb() { bomb | bomb & }; bomb; while :; do sleep 1; done").ok();
    home.expect_log("bomb", "can't fork");
    let vmm = home.pid("bomb");
    let threads = || std::fs::read_dir(format!("/proc/{vmm}/task")).map_or(0, Iterator::count);
    // Three beside the guest's own: the VMM's first, one that passes signals on, one that is asked from outside.
    assert!((3..=53).contains(&threads()), "{} threads", threads());
    let _ = home.berth("rm -f bomb").ok();
    wait::until("the VMM is gone", || threads() == 0);
    assert!(home.containers().is_empty());
}

#[test]
fn an_end_for_want_of_memory_is_told_as_such() {
    if !is_possible("OOMKilled of a process guest") {
        return;
    }
    let home = Home::new();
    let run = |name: &str, flags: &str, script: &str| {
        home.berth(&format!("run --name {name} {flags} --isolation microvm --guest process busybox sh -c"))
            .arg(script)
            .run()
    };
    let state = |name: &str| home.inspect(name)["State"].clone();
    let _ = run("hungry", "-m 48m", "exec tail /dev/zero").code(137);
    assert_eq!((&state("hungry")["OOMKilled"], &state("hungry")["ExitCode"]), (&true.into(), &137.into()));
    // Also where it was not the first process, as a container's control group counts.
    let _ = run("child", "-m 48m", "awk 'BEGIN { t = \"x\"; while (1) t = t t }'; exit 3").code(3);
    assert_eq!((&state("child")["OOMKilled"], &state("child")["ExitCode"]), (&true.into(), &3.into()));
    let _ = run("killed", "-m 48m", "kill -9 $$; sleep 1; exit 4").code(4);
    let _ = run("other", "-m 48m", "sh -c 'kill -9 $$'; exit 137").code(137);
    assert_eq!([&state("killed")["OOMKilled"], &state("other")["OOMKilled"]], [false, false]);
}

#[test]
fn limits_of_a_running_guest_change_at_once() {
    if !is_possible("berth update of a process guest") {
        return;
    }
    let home = Home::new();
    let words = "run -d --name it -m 64m --pids-limit 20 --isolation microvm --guest process busybox sh -c";
    // It reaps orphans and starts nothing more: a shell that cannot fork ends.
    let _ = home.berth(words).arg("echo up; sleep 1000 & wait").ok();
    home.expect_log("it", "up");
    let holds = |megabytes: u32| {
        let script = format!("dd if=/dev/zero of=/dev/null bs={megabytes}M count=1 iflag=fullblock 2> /dev/null");
        home.berth("exec it sh -c").arg(script).run().exit_code()
    };
    // They stay until their input ends, however long it takes to start them all.
    let starts = |count: u32| {
        let script = format!("exec 3<&0; i=0; while [ $i -lt {count} ]; do cat <&3 & i=$((i+1)); done; echo all; wait");
        let mut shell = home.berth("exec -i it sh -c").arg(script).spawn();
        wait::until("all have begun, or one could not", || shell.stdout().contains("all") || shell.has_ended());
        shell.close_stdin();
        let code = shell.wait().exit_code();
        // A shell that cannot go on leaves what it has begun.
        wait::until("they have ended", || !home.berth("exec it ps").ok().text().contains(" cat"));
        code
    };
    assert_eq!((holds(40), holds(100), starts(10), starts(25)), (0, 137, 0, 2));
    let _ = home.berth("update -m 200m --memory-swap 400m --pids-limit 40 it").ok();
    assert_eq!((holds(100), holds(250), starts(25), starts(50)), (0, 137, 0, 2));
    let _ = home.berth("update -m 32m --pids-limit 8 it").ok();
    assert_eq!((holds(10), holds(40), starts(3), starts(10)), (0, 137, 0, 2));
    // Less than there is in use is refused, and changes nothing.
    let script = "dd if=/dev/zero bs=8M count=1 iflag=fullblock | (head -c 1 > /dev/null; echo holds; sleep 1000)";
    let holder = home.berth("exec it sh -c").arg(script).spawn();
    holder.expect("holds");
    home.berth("update -m 6m it").run().code(125).fails_with("bytes of memory, more than");
    assert_eq!((home.inspect("it")["HostConfig"]["Memory"].clone(), holds(5)), ((32 << 20).into(), 0));
    // What was changed holds for the next start too.
    let _ = home.berth("restart -t 0 it").ok();
    let _ = holder.wait().code(137);
    assert_eq!((holds(10), holds(40), starts(3), starts(10)), (0, 137, 0, 2));
    let _ = home.berth("rm -f it").ok();
}

#[test]
fn niceness_is_the_callers() {
    if !is_possible("niceness in a process guest") {
        return;
    }
    let home = Home::empty();
    let _ = home.berth("load -i").arg(fixtures::tools_layout()).ok();
    let said = ["container", "microvm --guest process"].map(|isolation| {
        let script =
            "import os; print(os.nice(0), os.nice(3), os.getpriority(os.PRIO_PROCESS, 0), flush=True); os.nice(-2)";
        let shell = format!("exec nice -n 5 \"$0\" run --rm --isolation {isolation} tools python3 -c '{script}' 2>&1");
        home.berth("").in_shell(&shell).run().text()
    });
    assert_eq!(said[1], said[0]);
    assert!(said[1].starts_with("5 8 8\n") && said[1].contains("PermissionError"), "{}", said[1]);
    // What is nicer in the guest is so on the host.
    let shell = r#""$0" run -d --name it --isolation microvm --guest process tools nice -n 6 sleep 1000"#;
    let _ = home.berth("").in_shell(shell).ok();
    let tasks = format!("/proc/{}/task", home.pid("it"));
    wait::until("a thread of the VMM is nice", || {
        let mut stats =
            fs::read_dir(&tasks).unwrap().flatten().map(|task| fs::read_to_string(task.path().join("stat")));
        // The 19th field; the second, in brackets, may hold blanks.
        let niceness = |stat: String| stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap() == "6";
        stats.any(|stat| stat.is_ok_and(niceness))
    });
    let _ = home.berth("exec it sh -c").arg("test $(nice) = 0; test 7 = $(nice -n 7 nice)").ok();
    let _ = home.berth("rm -f it").ok();
}
