//! What holds a process guest that takes more than it was given.

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
    // Two beside the guest's own: the VMM's first, and the one that passes signals on.
    assert!((2..=52).contains(&threads()), "{} threads", threads());
    let _ = home.berth("rm -f bomb").ok();
    wait::until("the VMM is gone", || threads() == 0);
    assert!(home.containers().is_empty());
}
