//! The same tests on another kernel: Debian's, with cgroup v2 alone, in an emulated machine (`scripts/nested`).
//!
//! A test that leans on something the kernel or the layout of cgroups may lack belongs into [`TESTS`] as well. The machine
//! is ten times slower than this one: only such tests are worth it.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use berth_tests::command::{Cmd, Output};
use berth_tests::{binaries, fixtures};

/// What runs in the machine: names of tests, or how they begin.
const TESTS: &[&str] = &[
    "copy::diff_lists",
    "exec::exec_ends_with_the_container",
    "lifecycle::a_paused_container_stands_still",
    "limits::",
    "namespaces::cgroupns_host",
    "namespaces::the_cgroup_namespace",
    "privileges::device_is_there",
    "runtime::create_start_kill_delete",
    "security::masked_and_read_only_paths",
    "views::stats_shows_use",
];

/// The same with guests. Those without a kernel too: there they have a ring 0, unlike with PVM.
const GUESTS: &[&str] = &[
    "microvm::",
    "microvm_tools::",
    "process_guest::scripts",
    "process_guest_exec::exec_has_a_containers",
    "process_guest_exec::signals",
    "process_guest_tools::",
];

/// The one of them whose guest has two, so that the machine has to have them as well.
const WITH_TWO_CPUS: &str = "microvm::a_guest_has_its_size_and_a_kernel_of_its_own";

/// The most machines that are tried until each test has passed in one.
const MACHINES: usize = 10;

/// How long one of them may take: with limits a minute on two idle CPUs, with guests a quarter of an hour.
const TIMEOUT: Duration = Duration::from_mins(20);

fn nested(words: &str) -> Cmd {
    Cmd::new(binaries::workspace().join("scripts/nested"), words).timeout(TIMEOUT + Duration::from_secs(30))
}

/// Whether this host can emulate the machine. If not, that is said past the capture of a test's output.
fn is_possible() -> bool {
    let check = nested("--check").run();
    if check.exit_code() != 0 {
        let _ = write!(std::io::stderr(), "NOT TESTED on cgroup v2 and another kernel: {}", check.stderr_text());
    }
    check.exit_code() == 0
}

/// The names of this program's tests that begin so.
fn tests(begins: &[&str]) -> Vec<String> {
    let listed = Cmd::new(std::env::current_exe().unwrap(), "--list").ok().text();
    let begins_so = |name: &&str| begins.iter().any(|begin| name.starts_with(begin));
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test")).filter(begins_so);
    let names: Vec<String> = names.map(str::to_owned).collect();
    for begin in begins {
        assert!(names.iter().any(|name| name.starts_with(begin)), "no test begins with {begin}: {listed}");
    }
    names
}

/// Runs tests of this program in a machine, with these flags of `scripts/nested`, until each has passed there once.
///
/// What has not passed is tried again in another machine, and that is said. QEMU emulates AMD's virtualization with more than
/// one processor not quite rightly: every few minutes with guests in it the outer kernel finds its stack overwritten, or a guest
/// hears nothing more. A fault of berth's is there in each machine: a test fails that fails in two of them.
fn pass_in_machines(cpus: u8, flags: &[String], mut left: Vec<String>) {
    let this = std::env::current_exe().unwrap();
    let flags = [&["--cpus".to_owned(), cpus.to_string()], flags].concat();
    let mut failed: Vec<String> = Vec::new();
    for machines in 1.. {
        let output = nested("--env BERTH_BIN_DIR=/usr/local/bin --env BERTH_FIXTURES_DIR=/root --bin")
            .arg(binaries::dir())
            .args(&flags)
            .args(["--timeout", &TIMEOUT.as_secs().to_string(), "--"])
            .arg(&this)
            .args([&format!("--test-threads={cpus}"), "--exact"])
            .args(&left)
            .run();
        assert!(!output.stderr_text().contains("NOT TESTED"), "{output:?}");
        let text = output.text();
        let ended = |name: &str, how: &str| text.contains(&format!("test {name} ... {how}"));
        left.retain(|name| !ended(name, "ok"));
        if left.is_empty() {
            return;
        }
        for name in left.iter().filter(|name| ended(name, "FAILED")) {
            assert!(!failed.contains(name), "{name} failed in another machine as well: {output:?}");
            failed.push(name.clone());
        }
        assert!(machines < MACHINES, "in {machines} machines {left:?} have not passed: {output:?}");
        let end = output.stderr_text().lines().next_back().unwrap_or_default().to_owned();
        let code = output.exit_code();
        let _ = writeln!(std::io::stderr(), "TRIED AGAIN in another machine: {left:?} ({code}: {end})");
    }
}

fn file(path: &Path) -> [String; 2] {
    ["--file".to_owned(), path.display().to_string()]
}

#[test]
fn limits_and_their_like_hold_on_cgroup_v2_and_another_kernel() {
    if is_possible() {
        pass_in_machines(2, &file(fixtures::busybox_rootfs()), tests(TESTS));
    }
}

/// The newest kernel of this host with its modules, which the machine's guests boot: flags for `scripts/nested`.
fn guest_kernel() -> impl Iterator<Item = String> {
    let mut versions: Vec<String> = std::fs::read_dir("/lib/modules")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|version| Path::new("/boot").join(format!("vmlinuz-{version}")).exists())
        .collect();
    versions.sort();
    let version = versions.pop().expect("a kernel in /boot with modules; scripts/setup installs one");
    let copy = move |begin| ["--file".to_owned(), format!("{begin}{version}:{begin}{version}")];
    ["/boot/vmlinuz-", "/lib/modules/"].into_iter().flat_map(copy)
}

#[test]
fn microvms_run_linux_guests() {
    if is_possible() {
        let images = [fixtures::busybox_rootfs(), fixtures::debian_layout()];
        let memory = ["--memory".to_owned(), "3000".to_owned()];
        let flags: Vec<String> =
            memory.into_iter().chain(guest_kernel()).chain(images.iter().flat_map(|image| file(image))).collect();
        let (two, one) = tests(GUESTS).into_iter().partition(|name| name == WITH_TWO_CPUS);
        pass_in_machines(1, &flags, one);
        pass_in_machines(2, &flags, two);
    }
}

#[test]
fn output_and_exit_code_of_the_machines_program_are_the_scripts() {
    if !is_possible() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    let run = |flags: &str, script: &str| -> Output {
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        nested(flags).arg("--").arg(&program).args(["a b", "it's"]).run()
    };
    let script = "printf '%s|' \"$@\" \"$V\"; echo error >&2; cat program; \
        grep cgroup /proc/mounts | cut -d ' ' -f 3; cat /sys/module/kvm_amd/parameters/npt; sleep 1000 & exit 137";
    let output = run(&format!("--env V='x' --file {}", program.display()), script).code(137);
    let text = output.text();
    assert!(text.starts_with("a b|it's|'x'|#!/bin/sh\n"), "{output:?}");
    assert!(text.ends_with("\ncgroup2\nY\n"), "{output:?}");
    assert_eq!(output.stderr_text(), "error\n");

    run("--timeout 5", "echo started; exec sleep 1000").code(124).fails_with("5 seconds");
    run("", "echo c > /proc/sysrq-trigger").code(125).fails_with("sysrq triggered crash");
    run("--memory none", "true").code(125).fails_with("--memory none");
    run("--file /no/such", "true").code(125).fails_with("/no/such");
    run("--nonsense", "true").code(125).fails_with("--nonsense");
}
