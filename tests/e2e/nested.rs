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

/// The whole of it takes a minute on two idle CPUs.
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

#[test]
fn limits_and_their_like_hold_on_cgroup_v2_and_another_kernel() {
    if !is_possible() {
        return;
    }
    let this = std::env::current_exe().unwrap();
    let output = nested("--cpus 2 --env BERTH_BIN_DIR=/usr/local/bin --env BERTH_FIXTURES_DIR=/root --bin")
        .arg(binaries::dir())
        .arg("--file")
        .arg(fixtures::busybox_rootfs())
        .args(["--timeout", &TIMEOUT.as_secs().to_string(), "--"])
        .arg(this)
        .arg("--test-threads=2")
        .args(TESTS)
        .args(["--skip", "process_guest"])
        .ok();
    let text = output.text();
    for name in TESTS {
        assert!(text.contains(&format!("test {name}")), "no test begins with {name}: {output:?}");
    }
}

/// The newest kernel of this host with its modules, which the machine's guests boot: flags for `scripts/nested`.
fn guest_kernel() -> Vec<String> {
    let mut versions: Vec<String> = std::fs::read_dir("/lib/modules")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|version| Path::new("/boot").join(format!("vmlinuz-{version}")).exists())
        .collect();
    versions.sort();
    let version = versions.pop().expect("a kernel in /boot with modules; scripts/setup installs one");
    ["/boot/vmlinuz-", "/lib/modules/"].map(|begin| format!("{begin}{version}:{begin}{version}")).to_vec()
}

#[test]
fn microvms_run_linux_guests() {
    if !is_possible() {
        return;
    }
    let run = || {
        let mut command =
            nested("--cpus 2 --memory 3000 --env BERTH_BIN_DIR=/usr/local/bin --env BERTH_FIXTURES_DIR=/root --bin")
                .arg(binaries::dir());
        for file in guest_kernel() {
            command = command.args(["--file", &file]);
        }
        for fixture in [fixtures::busybox_rootfs(), fixtures::debian_layout()] {
            command = command.arg("--file").arg(fixture);
        }
        let this = std::env::current_exe().unwrap();
        command
            .args(["--timeout", &TIMEOUT.as_secs().to_string(), "--"])
            .arg(this)
            .args(["--test-threads=2", "microvm::", "microvm_tools::"])
            // Guests without a kernel too: there they have a ring 0, unlike with PVM.
            .args([
                "process_guest::a_detached",
                "process_guest::scripts",
                "process_guest_exec::",
                "process_guest_tools::",
            ])
            .run()
    };
    let mut output = run();
    // Seen twice on QEMU's emulation of AMD's virtualization: the outer kernel faulted until its stack was at its end, and
    // the outer machine reset without a word. A test that fails is another exit code.
    if output.exit_code() == 125 && output.stderr_text().contains("the machine ended without an exit code") {
        let _ = writeln!(std::io::stderr(), "TRIED AGAIN: the emulated machine itself died: {}", output.stderr_text());
        output = run();
    }
    let output = output.code(0);
    for test in ["microvm::a_guest_is_as_a_container", "process_guest::scripts_give_a_containers_output_and_exit_code"]
    {
        assert!(output.text().contains(&format!("test {test} ... ok")), "{output:?}");
    }
    assert!(!output.stderr_text().contains("NOT TESTED"), "{output:?}");
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
