//! The same on a KVM that gives guests a ring 0: in an emulated machine with AMD's virtualization and nested paging
//! (`scripts/nested`). Nothing of it is this machine's hardware.

use std::path::Path;
use std::process::Command;

/// What leans on how ring 3 is left and on how memory is translated: names of tests, or how they begin.
const TESTS: [&str; 10] = [
    "bounds::gates_to_ring_0",
    "clock::",
    "faults_become_signals",
    "fork_separates_memory",
    "shell_scripts_run",
    "signals_to_the_vmm",
    "threads_and_signals_work",
    "what_is_taken_away_is_gone",
    "wild::random_calls",
    "wild::random_instructions",
];

/// The most machines that are tried until one lives on to the end.
const MACHINES: usize = 5;

#[test]
fn the_same_holds_where_guests_have_a_ring_0() {
    let nested = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scripts/nested");
    let check = Command::new(&nested).arg("--check").output().unwrap();
    if !check.status.success() {
        println!("NOT TESTED with hardware virtualization: {}", String::from_utf8_lossy(&check.stderr).trim_end());
        return;
    }
    let this = std::env::current_exe().unwrap();
    let mut command = Command::new(nested);
    command.args(["--cpus", "2", "--timeout", "1200"]);
    // They are where this program looks for them.
    for file in [Path::new(env!("CARGO_BIN_EXE_berth-vmm")), &this] {
        command.arg("--file").arg(format!("{0}:{0}", file.display()));
    }
    command.arg("--").arg(&this).args(["--test-threads=2"]).args(TESTS);
    let mut output = command.output().unwrap();
    for _ in 1..MACHINES {
        // Not rightly emulated with more than one processor: after some minutes the outer kernel may find its stack overwritten.
        if !String::from_utf8_lossy(&output.stderr).contains("the machine ended without an exit code") {
            break;
        }
        println!("TRIED AGAIN: the emulated machine itself died");
        output = command.output().unwrap();
    }
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}{error}", output.status);
    for name in TESTS {
        assert!(
            out.lines().any(|line| line.contains(&format!("test {name}")) && line.ends_with("ok")),
            "{name}: {out}"
        );
    }
}
