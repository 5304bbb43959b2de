//! `berth vm` and what `inspect` and `stats` tell of process guests.

use berth_tests::home::Home;
use serde_json::Value;

use crate::process_guest::is_possible;

fn guest() -> Home {
    let home = Home::new();
    let script = "echo up; (exec sleep 1000) & while :; do sleep 1; done";
    let _ = home.berth("run -d --name it --isolation microvm --guest process busybox sh -c").arg(script).ok();
    home.expect_log("it", "up");
    home
}

#[test]
fn addresses_are_followed_through_the_tables_of_a_process() {
    if !is_possible("berth vm translate of a process guest") {
        return;
    }
    let home = guest();
    let areas = home.berth("exec it sh -c").arg("cat /proc/self/maps; sleep 0").ok().text();
    let code = areas.lines().find(|line| line.contains(" r-xp ")).expect("a program has code");
    let address = format!("0x{}", code.split('-').next().unwrap());
    // Static programs without PIE stand where they were linked: the first process's code is where that of the one above was.
    let text = home.berth("vm translate it").arg(&address).ok().text();
    for part in ["PML4", "PDPT", "PD ", "PT ", "user r-x", "guest-physical  0x", "host-virtual    0x", "  agrees"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let follow = |pid: i32, address: &str| -> Value {
        home.berth(&format!("vm translate --format json --pid {pid} it {address}")).ok().json()
    };
    let of_first = follow(1, &address);
    assert_eq!(of_first["verdict"], "agrees");
    assert_eq!(of_first["translation"]["guest_physical"], of_first["kvm"]);
    assert_eq!(of_first["translation"]["walk"]["steps"].as_array().unwrap().len(), 4, "{of_first}");
    let slot = &of_first["translation"]["slot"];
    let (start, length) = (slot["start"].as_u64().unwrap(), slot["length"].as_u64().unwrap());
    assert!((start..start + length).contains(&of_first["kvm"].as_u64().unwrap()), "{of_first}");
    // Another process has tables of its own, in which the same file's page is the same memory.
    let of_second = follow(2, &address);
    assert_ne!(of_second["translation"]["mode"]["root"], of_first["translation"]["mode"]["root"]);
    assert_eq!(of_second["kvm"], of_first["kvm"]);
    // A stack is each one's own.
    let stacks = [1, 2].map(|pid| follow(pid, "0x7fffdfffff00"));
    assert!(stacks.iter().all(|stack| stack["verdict"] == "agrees" && !stack["kvm"].is_null()), "{stacks:?}");
    assert_ne!(stacks[0]["kvm"], stacks[1]["kvm"]);

    assert!(home.berth("vm translate it 1").ok().text().contains("not present"));
    assert!(home.berth("vm translate it 0x8000000000000000").ok().text().contains("not canonical"));
    for (words, message) in [
        ("--pid 99 it 0", "no process 99"),
        ("--vcpu 0 it 0", "use --pid"),
        ("--vcpu 0 --pid 1 it 0", "cannot be used with"),
        ("it elsewhere", "not an address"),
    ] {
        home.berth(&format!("vm translate {words}")).run().code(125).fails_with(message);
    }
    home.berth("vm balloon it 64m").run().code(125).fails_with("no balloon");
}

#[test]
fn exits_are_counted_by_reason() {
    if !is_possible("exits of a process guest") {
        return;
    }
    let home = guest();
    let count = |exits: &Value, reason: &str| exits[reason].as_u64().unwrap_or_else(|| panic!("{reason}: {exits}"));
    let before = home.inspect("it")["Exits"].clone();
    assert!(count(&before, "SystemCalls") > 20 && count(&before, "PageFaults") > 5, "{before}");
    assert_eq!(count(&before, "MissingPages"), 0, "{before}");
    // A thousand system calls more, at least, and a fault that is none of pages.
    let _ = home.berth("exec it dd if=/dev/zero of=/dev/null bs=1 count=500").ok();
    let stats = home.berth("stats --no-stream --format json it").ok().json();
    let after = stats[0]["Exits"].clone();
    assert!(count(&after, "SystemCalls") >= count(&before, "SystemCalls") + 1000, "{before} {after}");
    assert!(count(&after, "PageFaults") > count(&before, "PageFaults"), "{before} {after}");
    assert!(home.berth("vm exits it").ok().text().contains("SystemCalls"));
    let _ = home.berth("pause it").ok();
    home.berth("vm exits it").run().code(125).fails_with("berth unpause it");
    assert!(home.inspect("it")["Exits"].is_null());
    let _ = home.berth("rm -f it").ok();
}
