//! Limits: what each flag tells the kernel, and what the kernel then does.

use berth_tests::home::Home;
use berth_tests::{cgroup, wait};

const BUSY: &str = "while :; do :; done";

/// A cgroup value of a container that idles, started with `flags`.
fn told(home: &Home, flags: &str, controller: &str, v1: &str, v2: &str) -> String {
    let id = home.detached(flags, "exec sleep 1000");
    cgroup::read(home.pid(&id), controller, v1, v2)
}

#[test]
fn memory_beyond_the_limit_ends_the_command() {
    let home = Home::new();
    assert_eq!(told(&home, "--memory 32m", "memory", "memory.limit_in_bytes", "memory.max"), (32 << 20).to_string());
    let hungry = "dd if=/dev/zero of=/dev/null bs=64M count=1";
    let _ = home.shell("--memory 128m", hungry).ok();
    let run =
        home.berth("run --name hungry --memory 16m --memory-swap 16m busybox sh -c").arg(format!("exec {hungry}"));
    let _ = run.run().code(137);
    let state = home.inspect("hungry")["State"].take();
    assert_eq!((&state["OOMKilled"], &state["ExitCode"]), (&true.into(), &137.into()), "{state}");
}

#[test]
fn a_kill_is_not_taken_for_want_of_memory() {
    let home = Home::new();
    let id = home.detached("--memory 32m", "exec sleep 1000");
    let _ = home.berth("kill").arg(&id).ok();
    assert_eq!(home.berth("wait").arg(&id).ok().trimmed(), "137");
    assert_eq!(home.inspect(&id)["State"]["OOMKilled"], false);
}

#[test]
fn memory_swap_is_memory_and_swap() {
    let home = Home::new();
    let id = home.detached("--memory 32m --memory-swap 48m", "exec sleep 1000");
    let pid = home.pid(&id);
    if !cgroup::knows(pid, "memory", &["memory.memsw.limit_in_bytes", "memory.swap.max"]) {
        println!("this kernel does not account for swap: --memory-swap cannot be seen to work");
        return;
    }
    let value = cgroup::read(pid, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max");
    let v1 = cgroup::knows(pid, "memory", &["memory.memsw.limit_in_bytes"]);
    assert_eq!(value, (if v1 { 48 << 20 } else { 16 << 20 }).to_string());
    home.shell("--memory 32m --memory-swap 16m", "true").run().code(125).fails_with("swap");
}

#[test]
fn cpus_throttles() {
    let home = Home::new();
    let id = home.detached("--cpus 0.2", BUSY);
    let pid = home.pid(&id);
    let quota = cgroup::read(pid, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "20000" || quota == "20000 100000", "{quota}");
    wait::until("the kernel has throttled it", || cgroup::throttled(pid) >= 5);
}

#[test]
fn cpu_shares_is_a_weight() {
    let home = Home::new();
    let weight = told(&home, "--cpu-shares 512", "cpu", "cpu.shares", "cpu.weight");
    assert!(weight == "512" || weight == "59", "{weight}");
}

#[test]
fn cpuset_cpus_pins() {
    let home = Home::new();
    assert_eq!(home.prints("--cpuset-cpus 0", "grep Cpus_allowed_list /proc/self/status | cut -f2; nproc"), "0\n1");
    home.shell("--cpuset-cpus 9999", "true").run().fails_with("9999");
    home.shell("--cpuset-cpus 1023", "true").run().code(125).fails_with("this host has the CPUs 0");
    home.shell("--pids-limit 4194305", "true").run().code(125).fails_with("the most is 4194304");
    home.shell("--cpuset-cpus nonsense", "true").run().code(125).fails_with("nonsense");
}

#[test]
fn pids_limit_stops_forks() {
    let home = Home::new();
    assert_eq!(told(&home, "--pids-limit 20", "pids", "pids.max", "pids.max"), "20");
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done";
    let _ = home.shell("--pids-limit 20", script).ok();
    home.shell("--pids-limit 5", script).run().fails_with("can't fork");
}

#[test]
fn blkio_weight_is_passed_on() {
    let home = Home::new();
    let id = home.detached("--blkio-weight 300", "exec sleep 1000");
    let config = std::fs::read(home.data().join("containers").join(&id).join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["linux"]["resources"]["blockIO"]["weight"], 300, "{config:#}");
    let pid = home.pid(&id);
    if cgroup::knows(pid, "blkio", &["blkio.bfq.weight", "blkio.weight", "io.bfq.weight", "io.weight"]) {
        let v1 = if cgroup::knows(pid, "blkio", &["blkio.weight"]) { "blkio.weight" } else { "blkio.bfq.weight" };
        let weight = cgroup::read(pid, "blkio", v1, "io.bfq.weight");
        assert!(weight.contains("300"), "{weight}");
    } else {
        println!("this kernel has no weights for block devices: --blkio-weight cannot be seen to work");
    }
    home.shell("--blkio-weight 5", "true").run().code(125).fails_with("weight");
}

#[test]
fn update_changes_the_limits_of_a_running_container() {
    let home = Home::new();
    let id = home.detached("--memory 64m --cpus 1 --pids-limit 50", "exec sleep 1000");
    let update = "update --memory 32m --memory-swap 32m --cpus 0.5 --cpu-shares 256 --pids-limit 30 --cpuset-cpus 0";
    let _ = home.berth(update).arg(&id).ok();
    let pid = home.pid(&id);
    let told = |controller, v1, v2| cgroup::read(pid, controller, v1, v2);
    assert_eq!(told("memory", "memory.limit_in_bytes", "memory.max"), (32 << 20).to_string());
    let quota = told("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");
    let shares = told("cpu", "cpu.shares", "cpu.weight");
    assert!(shares == "256" || shares == "35", "{shares}");
    assert_eq!(told("pids", "pids.max", "pids.max"), "30");
    assert_eq!(told("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    // They hold for the next start as well.
    let _ = home.berth("restart -t 0").arg(&id).ok();
    let pid = home.pid(&id);
    assert_eq!(cgroup::read(pid, "pids", "pids.max", "pids.max"), "30");
    home.berth("update --memory nonsense").arg(&id).run().fails_with("nonsense");
    home.berth("update --memory 32m no-such").run().fails_with("no-such");
}
