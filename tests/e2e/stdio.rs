//! Standard input, output and error behave as if the command ran locally.

use std::fs;
use std::process::Stdio;

use berth_tests::home::Home;
use berth_tests::{layout, terminal, wait};

#[test]
fn output_and_error_are_separate() {
    let home = Home::new();
    let out = home.shell("", "echo out; echo err >&2").ok();
    assert_eq!(out.text(), "out\n");
    assert_eq!(out.stderr_text(), "err\n");
}

#[test]
fn standard_input_is_passed_on_with_i_alone() {
    let home = Home::new();
    assert_eq!(home.berth("run --rm -i busybox cat").stdin("ahoy\n").ok().text(), "ahoy\n");
    assert_eq!(home.berth("run --rm busybox cat").stdin("ahoy\n").ok().text(), "");
}

#[test]
fn all_bytes_pass_in_large_amounts() {
    let home = Home::new();
    // No two blocks are alike, so a lost, doubled or swapped piece shows.
    let mut data = Vec::with_capacity(64 << 20);
    for block in 0_u64..(64 << 20) / 8 {
        data.extend_from_slice(&block.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    let out = home.berth("run --rm -i busybox tee /dev/stderr").stdin(data.clone()).ok();
    let right = layout::digest(&data);
    assert_eq!(layout::digest(&out.stdout), right);
    assert_eq!(layout::digest(&out.stderr), right);
}

#[test]
fn a_reader_that_leaves_ends_the_command() {
    let home = Home::new();
    let mut command = home.berth("run --rm busybox yes");
    let writer = terminal::closed_pipe();
    command.inner.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
    let mut child = command.inner.spawn().unwrap();
    drop(command);
    wait::until("`berth run busybox yes` into a closed pipe ends", || child.try_wait().unwrap().is_some());
}

#[test]
fn output_that_cannot_be_passed_on_is_told_once() {
    let home = Home::new();
    let mut command = home.berth("run --rm busybox sh -c").arg("echo one; sleep 0.1; echo two; exit 3");
    command.inner.stdin(Stdio::null()).stdout(fs::File::create("/dev/full").unwrap()).stderr(Stdio::piped());
    let output = command.inner.spawn().unwrap().wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), message.matches("No space left").count()), (Some(3), 1), "{message}");
}

#[test]
fn a_closed_standard_input_is_no_obstacle() {
    let home = Home::new();
    let command = home.berth("").in_shell(r#"exec "$0" run --rm busybox echo fine <&-"#);
    assert_eq!(command.ok().text(), "fine\n");
}

#[test]
fn output_arrives_while_the_command_runs() {
    let home = Home::new();
    let mut running = home.berth("run --rm -i busybox sh -c").arg("echo first; read line; echo got $line").spawn();
    running.expect("first");
    running.write("second\n");
    running.expect("got second");
    assert_eq!(running.wait().exit_code(), 0);
}

#[test]
fn the_last_output_is_not_lost() {
    let home = Home::new();
    for _ in 0..10 {
        let out = home.shell("", "head -c 300000 /dev/zero; echo end >&2").ok();
        assert_eq!((out.stdout.len(), out.stderr_text().as_str()), (300_000, "end\n"));
    }
}
