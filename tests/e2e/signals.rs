//! Signals to the `berth` process are signals to the command.

use berth_tests::home::Home;
use nix::sys::signal::Signal;

#[test]
fn signals_are_forwarded() {
    let home = Home::new();
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
        (Signal::SIGUSR1, "USR1"),
        (Signal::SIGQUIT, "QUIT"),
    ] {
        let script = format!("trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.1; done");
        let running = home.shell("", &script).spawn();
        running.expect("ready");
        running.signal(signal);
        let out = running.wait().code(9);
        assert!(out.text().contains(&format!("got {name}")), "{out:?}");
    }
}

#[test]
fn under_init_a_signal_ends_a_command_without_a_handler() {
    let home = Home::new();
    let running = home.berth("run --rm --init busybox sh -c").arg("echo ready; exec sleep 1000").spawn();
    running.expect("ready");
    running.signal(Signal::SIGTERM);
    let _ = running.wait().code(143);
}

#[test]
fn sigkill_of_berth_leaves_nothing() {
    let home = Home::new();
    let running = home.shell("", "echo ready; exec sleep 1000").spawn();
    running.expect("ready");
    running.signal(Signal::SIGKILL);
    let _ = running.wait().code(137);
    // The next command, whichever it is, sweeps.
    assert_eq!(home.berth("ps -q").ok().text(), "");
}
