//! `--restart`: what happens after the command has ended.

use std::path::PathBuf;

use berth_tests::home::Home;
use berth_tests::wait;

/// A container that notes each start in a file on the host and ends with `code`.
fn counted(home: &Home, policy: &str, code: u8) -> (String, PathBuf) {
    let dir = home.scratch();
    let flags = format!("--restart {policy} -v {}:/out", dir.display());
    let id = home.detached(&flags, &format!("echo started >> /out/{policy}; exit {code}"));
    (id, dir.join(policy))
}

fn starts(file: &PathBuf) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

fn wait_exited(home: &Home, id: &str) {
    wait::until("it has ended for good", || home.status(id) == "exited");
}

#[test]
fn no_is_once() {
    let home = Home::new();
    let (id, file) = counted(&home, "no", 1);
    wait_exited(&home, &id);
    assert_eq!(starts(&file), 1);
}

#[test]
fn on_failure_counts() {
    let home = Home::new();
    let (id, file) = counted(&home, "on-failure:2", 5);
    wait_exited(&home, &id);
    assert_eq!(starts(&file), 3);
    let info = home.inspect(&id);
    assert_eq!((&info["RestartCount"], &info["State"]["ExitCode"]), (&2.into(), &5.into()));

    let (id, file) = counted(&home, "on-failure", 0);
    wait_exited(&home, &id);
    assert_eq!(starts(&file), 1, "success is no failure");
}

#[test]
fn always_goes_on_until_stopped() {
    let home = Home::new();
    for policy in ["always", "unless-stopped"] {
        let (id, file) = counted(&home, policy, 0);
        wait::until("it was started again", || starts(&file) >= 3);
        let _ = home.berth("stop -t 1").arg(&id).ok();
        wait_exited(&home, &id);
        let before = starts(&file);
        let again = wait::within(std::time::Duration::from_millis(1500), || starts(&file) > before);
        assert!(!again, "{policy}: started again after stop");
    }
}

#[test]
fn always_survives_a_kill_from_outside() {
    let home = Home::new();
    let id = home.detached("--restart always", "exec sleep 1000");
    let before = home.pid(&id);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(before as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait::until("it runs again", || {
        let info = home.inspect(&id);
        info["State"]["Status"] == "running" && info["State"]["Pid"] != before
    });
}

#[test]
fn nonsense_is_refused() {
    let home = Home::new();
    for policy in ["sometimes", "on-failure:x", "always:3"] {
        home.berth(&format!("run --restart {policy} busybox true")).run().code(125).fails_with(policy);
    }
    let out = home.berth("run -d --rm --restart always busybox true").run();
    out.code(125).fails_with("--rm");
}
