//! The pages in `docs/` say what the code does.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The system calls that a category's file serves: the patterns of its match arms.
fn served(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in source.lines().map(str::trim) {
        let pattern = line.strip_prefix("| ").unwrap_or(line);
        // A name that stands alone before a comma is part of a list.
        if !pattern.starts_with("libc::SYS_") || (pattern.ends_with(',') && !pattern.contains("=>")) {
            continue;
        }
        let pattern = pattern.split("=>").next().and_then(|pattern| pattern.split(" if ").next()).unwrap_or_default();
        let names = pattern.split('|').filter_map(|name| name.trim().strip_prefix("libc::SYS_"));
        found.extend(names.map(str::to_owned));
    }
    found
}

#[test]
fn the_table_of_system_calls_is_the_dispatchers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut expected = BTreeSet::new();
    for file in fs::read_dir(root.join("src/process/syscalls")).unwrap() {
        let path = file.unwrap().path();
        let source = fs::read_to_string(&path).unwrap();
        // What follows the dispatcher in its file asks about calls, and serves none.
        let dispatcher = source.split("/// Whether a call that a signal interrupts").next().unwrap();
        expected.extend(served(dispatcher));
    }
    assert!(expected.len() > 200 && expected.contains("openat") && expected.contains("exit_group"));
    let page = fs::read_to_string(root.join("../docs/process-guest.md")).unwrap();
    let table = page.split("## System calls").nth(1).and_then(|rest| rest.split("\n\nEverything else").next()).unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")).skip(2);
    let listed: BTreeSet<String> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|calls| calls.split(',').map(|call| call.trim().to_owned()).collect::<Vec<_>>())
        .collect();
    let missing: Vec<_> = expected.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&expected).collect();
    assert!(missing.is_empty() && gone.is_empty(), "docs/process-guest.md: missing {missing:?}, not served {gone:?}");
}
