//! Records that somebody else wrote, or that are no records: nothing outside the data root is ever touched, nobody waits.

use std::fs;
use std::time::Duration;

use berth_tests::home::Home;
use serde_json::{Value, json};

/// A container and its record's path.
fn container(home: &Home) -> (String, std::path::PathBuf) {
    let id = home.berth("create --name boat busybox true").ok().trimmed();
    let path = home.data().join("containers").join(&id).join("container.json");
    (id, path)
}

#[test]
fn what_a_record_says_leads_nowhere_else() {
    let home = Home::new();
    let precious = home.scratch().join("precious");
    fs::create_dir(&precious).unwrap();
    for (key, value) in [
        ("id", json!("../../scratch/precious")),
        ("name", json!("../../scratch/precious")),
        ("anonymous_volumes", json!(["../../scratch/precious"])),
    ] {
        let (id, path) = container(&home);
        let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        record[key] = value;
        fs::write(&path, record.to_string()).unwrap();
        home.berth("start").arg(&id).run().fails_with("container.json");
        let _ = home.berth("rm -f -v").arg(&id).ok();
        assert!(precious.exists(), "{key}");
        assert!(home.containers().is_empty());
    }
}

#[test]
fn a_record_that_is_no_file_keeps_nobody_waiting() {
    let home = Home::new();
    for make in ["mkfifo", "mkdir"] {
        let (id, path) = container(&home);
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new(make).arg(&path).status().unwrap();
        assert!(made.success());
        let out = home.berth("ps -a").timeout(Duration::from_secs(20)).run();
        assert!(out.stderr_text().contains("container.json"), "{out:?}");
        let _ = home.berth("rm -f").arg(&id).timeout(Duration::from_secs(20)).ok();
        assert!(home.containers().is_empty());
    }
}
