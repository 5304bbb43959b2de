//! `berth logs`

use berth_tests::home::Home;
use berth_tests::wait;

#[test]
fn logs_keeps_output_and_error_apart() {
    let home = Home::new();
    let id = home.detached("", "echo out; echo err >&2; printf 'no end'");
    let _ = home.berth("wait").arg(&id).ok();
    let out = home.berth("logs").arg(&id).ok();
    assert_eq!(out.text(), "out\nno end");
    assert_eq!(out.stderr_text(), "err\n");
}

#[test]
fn logs_are_kept_of_a_foreground_container_too() {
    let home = Home::new();
    let _ = home.berth("run --name it busybox echo seen").ok();
    assert_eq!(home.berth("logs it").ok().text(), "seen\n");
}

#[test]
fn logs_are_binary_safe() {
    let home = Home::new();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let _ = home.berth("run --name it -i busybox cat").stdin(bytes.clone()).ok();
    assert!(home.berth("logs it").ok().stdout == bytes);
}

#[test]
fn tail_is_the_last_lines() {
    let home = Home::new();
    let _ = home.berth("run --name it busybox seq 1000").ok();
    assert_eq!(home.berth("logs --tail 3 it").ok().text(), "998\n999\n1000\n");
    assert_eq!(home.berth("logs --tail 0 it").ok().text(), "");
    assert_eq!(home.berth("logs --tail all it").ok().text().lines().count(), 1000);
    assert_eq!(home.berth("logs -n 1 it").ok().text(), "1000\n");
    home.berth("logs --tail nonsense it").run().fails_with("nonsense");
}

#[test]
fn f_follows_to_the_end() {
    let home = Home::new();
    let id = home.detached("", "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two; exit 3");
    let following = home.berth("logs -f").arg(&id).spawn();
    following.expect("one");
    let _ = home.berth("exec").args([&*id, "touch", "/go"]).ok();
    following.expect("two");
    assert_eq!(following.wait().code(0).text(), "one\ntwo\n");
}

#[test]
fn f_with_tail_starts_there() {
    let home = Home::new();
    let id = home.detached("", "seq 5; while [ ! -e /go ]; do sleep 0.05; done; echo end");
    home.expect_log(&id, "5");
    let following = home.berth("logs -f --tail 2").arg(&id).spawn();
    following.expect("5");
    let _ = home.berth("exec").args([&*id, "touch", "/go"]).ok();
    assert_eq!(following.wait().code(0).text(), "4\n5\nend\n");
}

#[test]
fn t_shows_times_and_since_compares_them() {
    let home = Home::new();
    let id = home.detached("", "echo early; sleep 1.1; echo late; exec sleep 1000");
    home.expect_log(&id, "late");
    let stamped = home.berth("logs -t").arg(&id).ok().text();
    let late = stamped.lines().find(|line| line.ends_with(" late")).unwrap();
    let time = late.split(' ').next().unwrap();
    assert!(time.starts_with("20") && time.contains('T'), "RFC 3339: {late}");
    assert_eq!(home.berth("logs --since").args([time, &id]).ok().text(), "late\n");
    assert_eq!(home.berth("logs --since 1h").arg(&id).ok().text(), "early\nlate\n");
    assert_eq!(home.berth("logs --since 0s").arg(&id).ok().text(), "");
    home.berth("logs --since nonsense").arg(&id).run().fails_with("nonsense");
}

#[test]
fn logs_span_restarts() {
    let home = Home::new();
    let id = home.detached("", "echo started; exec sleep 1000");
    home.expect_log(&id, "started");
    let _ = home.berth("restart -t 0").arg(&id).ok();
    wait::until("both starts are there", || home.berth("logs").arg(&id).ok().text() == "started\nstarted\n");
}
