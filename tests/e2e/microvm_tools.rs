//! `berth vm`, and what `inspect`, `stats` and `info` tell of microVMs. Where the guest comes from: see [`crate::microvm`].

use berth_tests::command::{Cmd, Output};
use berth_tests::fixtures::busybox_rootfs;
use berth_tests::home::Home;
use berth_tests::wait;
use serde_json::Value;

use crate::microvm::{TIMEOUT, is_possible, microvm};

/// Starts a guest called `guest` with 256 MiB and waits until it has done `first`.
fn start(home: &Home, first: &str) {
    let script = format!("{first}; echo up; while :; do sleep 1; done");
    let _ = microvm(home, "-d --name guest --memory 256m", &script).ok();
    // It may be asked as soon as it runs.
    let _ = vm(home, "exits guest").code(0);
    assert!(wait::within(TIMEOUT, || home.berth("logs guest").run().text().contains("up")));
}

fn vm(home: &Home, words: &str) -> Output {
    home.berth(&format!("vm {words}")).timeout(TIMEOUT).run()
}

#[test]
fn addresses_are_followed_as_kvm_follows_them() {
    if !is_possible("berth vm translate") {
        return;
    }
    let home = Home::new();
    start(&home, "true");
    // Linux maps the interrupt descriptor table here, read-only, for every processor (x86-64: Documentation/x86/x86_64/mm.rst,
    // "cpu_entry_area mapping"); other addresses of its are random.
    let table = "0xfffffe0000000000";
    let text = vm(&home, &format!("translate guest {table}")).code(0).text();
    for part in ["PML4", "PDPT", "PD ", "PT ", "guest-physical  0x", "host-virtual    0x", "supervisor r--", "  agrees"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let document: Value = vm(&home, &format!("translate guest {table} --format json")).code(0).json();
    assert_eq!(document["verdict"], "agrees");
    let translation = &document["translation"];
    assert_eq!(translation["guest_physical"], document["kvm"]);
    assert_eq!(translation["walk"]["steps"].as_array().unwrap().len(), 4, "{document}");
    assert!(!translation["rights"]["user"]["read"].is_null(), "no page of a program: {document}");

    assert!(vm(&home, "translate guest 1").code(0).text().contains("not present"));
    assert!(vm(&home, "translate guest 0x8000000000000000").code(0).text().contains("not canonical"));
    vm(&home, "translate guest 0 --vcpu 7").code(125).fails_with("there is no vCPU 7");
    vm(&home, "translate guest elsewhere").code(125).fails_with("not an address");
}

#[test]
fn a_balloon_gives_memory_back_to_the_host() {
    if !is_possible("berth vm balloon") {
        return;
    }
    // Read by the guest, a file's pages are neither free, so that free page reporting would give them back, nor needed.
    let home = Home::empty();
    let rootfs = home.scratch();
    let shell = format!(
        "cd {} && tar xf {} && dd if=/dev/zero of=big bs=1M count=80",
        rootfs.display(),
        busybox_rootfs().display()
    );
    let _ = Cmd::new("/bin/sh", "-c").arg(shell).ok();
    let tar = home.path().join("image.tar");
    let _ = Cmd::new("tar", "-c -f").arg(&tar).arg("-C").arg(&rootfs).arg(".").ok();
    let _ = home.berth("import").arg(&tar).arg("busybox").timeout(TIMEOUT).ok();
    start(&home, "cat /big > /dev/null");

    let before = resident(&home);
    assert!(keep(&home, "96m").text().contains("guest keeps 96.0MiB of 256.0MiB"));
    let after = resident(&home);
    // The monitor itself, unoptimised as it is here, is some of it.
    assert!(after < 96 + 24 && after + 40 < before, "{before} MiB before, {after} MiB after");
    let little = free(&home);
    let document = keep(&home, "256m --format json").json();
    assert_eq!(document["Kept"], 256 << 20);
    // Pages that the guest is reporting to the host as free are not among its free ones for that moment.
    assert!(little < 64, "{little} MiB free");
    assert!(wait::within(TIMEOUT, || free(&home) > little + 100), "{little} MiB free, and then {}", free(&home));

    for (size, message) in
        [("1m", "it can keep"), ("257m", "it can keep"), ("0", "nothing fits"), ("all", "not a size")]
    {
        vm(&home, &format!("balloon guest {size}")).code(125).fails_with(message);
    }
    // More than the guest can spare: it says how far it came, and lives.
    vm(&home, "balloon guest 16m").code(125).fails_with("instead of 16 MiB");
    assert_eq!(home.status("guest"), "running");
    let _ = keep(&home, "256m");
    assert!(free(&home) > little);
}

/// Sets what the guest keeps. On a loaded emulated machine it may stand still for so long that it is given up for a while.
fn keep(home: &Home, words: &str) -> Output {
    let mut last = None;
    let ask = || {
        let output = vm(home, &format!("balloon guest {words}"));
        let done = output.exit_code() == 0;
        last = Some(output);
        done
    };
    let done = wait::within(TIMEOUT, ask);
    let output = last.expect("it was asked once at least");
    assert!(done, "{output:?}");
    output
}

/// MiB of memory the VMM has in use.
fn resident(home: &Home) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", home.pid("guest"))).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// MiB of memory the guest calls free.
fn free(home: &Home) -> u64 {
    let script = "free -m | sed -n 's/^Mem: *[0-9]* *[0-9]* *\\([0-9]*\\).*/\\1/p'";
    home.berth("exec guest sh -c").arg(script).timeout(TIMEOUT).ok().trimmed().parse().unwrap()
}

#[test]
fn exits_are_counted_by_reason() {
    if !is_possible("exits of a guest") {
        return;
    }
    let home = Home::new();
    start(&home, "true");
    // A vCPU that happens to be outside the guest answers without a kick; one that waits for work has to be kicked.
    let is_kicked = || {
        let _ = vm(&home, "translate guest 0").code(0);
        home.inspect("guest")["Exits"]["Kicks"].as_u64().unwrap() >= 1
    };
    assert!(wait::within(TIMEOUT, is_kicked), "a question to a vCPU is a kick");
    let exits = home.inspect("guest")["Exits"].clone();
    assert!(exits["MmioWrites"].as_u64().unwrap() > 10, "drivers set their devices up: {exits}");
    assert_eq!(exits["Failures"], 0, "{exits}");
    let stats = home.berth("stats --no-stream --format json guest").timeout(TIMEOUT).ok().json();
    assert!(stats[0]["Exits"]["MmioWrites"].as_u64() >= exits["MmioWrites"].as_u64(), "{stats}");
    assert!(vm(&home, "exits guest").code(0).text().contains("MmioWrites"));

    // One that stands still, or has ended, is not asked.
    let _ = home.berth("pause guest").ok();
    vm(&home, "exits guest").code(125).fails_with("berth unpause guest");
    assert!(home.inspect("guest")["Exits"].is_null());
    let _ = home.berth("unpause guest").ok();
    let _ = home.berth("kill guest").ok();
    assert!(wait::within(TIMEOUT, || home.status("guest") == "exited"));
    vm(&home, "balloon guest 64m").code(125).fails_with("not running");
    assert!(home.inspect("guest")["Exits"].is_null());
}

#[test]
fn what_is_no_running_microvm_is_told_apart() {
    let home = Home::new();
    let _ = home.detached("--name container", "exec sleep 1000");
    for (command, message) in [
        ("translate container 0", "container is no microVM"),
        ("balloon container 64m", "container is no microVM"),
        ("exits container", "container is no microVM"),
        ("exits nobody", "no container is called `nobody`"),
        ("translate nobody 0", "no container is called `nobody`"),
        ("nonsense", "nonsense"),
    ] {
        vm(&home, command).code(125).fails_with(message);
    }
    assert!(home.inspect("container")["Exits"].is_null());
}

#[test]
fn info_says_how_guest_memory_is_translated() {
    let home = Home::new();
    let kvm = home.berth("info --format json").ok().json()["KVM"].clone();
    let translation = kvm["Translation"].as_str().unwrap();
    assert!(["ept", "npt", "shadow", "pvm", "none"].contains(&translation), "{kvm}");
    assert_eq!(kvm["LinuxGuest"], kvm["Reason"].is_null());
    let line = home.berth("info").ok().text();
    let line = line.lines().find(|line| line.starts_with("KVM ")).unwrap();
    match kvm["Reason"].as_str() {
        Some(reason) => assert!(line.contains(reason), "{line}"),
        None => assert!(line.contains("microVMs run with up to"), "{line}"),
    }
}
