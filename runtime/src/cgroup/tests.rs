//! Groups on this host's own hierarchies, and the v2 files in a directory that only looks like a hierarchy.

use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;
use serde_json::json;

use super::hierarchies::{Controller, Hierarchies, Mount};
use super::processes::pids;
use super::{CgroupManager, Entry, Error, PATIENCE};

fn resources(json: serde_json::Value) -> LinuxResources {
    serde_json::from_value(json).unwrap()
}

/// A group of this test alone, removed at its end.
struct Group(CgroupManager);

impl Group {
    fn new(name: &str) -> Self {
        let group = Self(CgroupManager::new(&format!("/berth-test-{}-{name}", std::process::id())).unwrap());
        group.create().unwrap();
        group
    }

    /// The group as a host without v2 would have it; none on a host without v1.
    fn v1_only(name: &str) -> Option<Self> {
        let mut group = Self::new(name);
        if group.hierarchies.v1.is_empty() {
            println!("this host has no cgroup v1 hierarchy to try this on");
            return None;
        }
        if let Some(v2) = group.0.hierarchies.v2.take() {
            std::fs::remove_dir(v2.point.join(&group.path)).unwrap();
        }
        Some(group)
    }

    fn is_v1(&self, controller: &str) -> bool {
        matches!(self.controller(controller), Controller::V1(_))
    }

    /// What the kernel was told: the file `v1` where `controller` is in a v1 hierarchy, else `v2`.
    fn told(&self, controller: &str, v1: &str, v2: &str) -> String {
        let path = match self.controller(controller) {
            Controller::V1(dir) => dir.join(v1),
            Controller::V2(dir) => dir.join(v2),
            Controller::Missing => panic!("this host has no controller {controller}"),
        };
        super::file::read(&path).unwrap()
    }

    /// Starts a process in the group. It may only make system calls; its result is its exit code.
    fn spawn(&self, body: impl FnOnce() -> i32) -> Pid {
        let entry = self.entry().unwrap();
        // SAFETY: all zero is a valid value of this plain structure.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.exit_signal = libc::SIGCHLD as u64;
        if let Some(group) = entry.clone_into() {
            args.flags = Entry::CLONE_INTO_CGROUP;
            args.cgroup = group.as_raw_fd() as u64;
        }
        // SAFETY: without CLONE_VM this is a fork; the child makes system calls and exits.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
        assert!(pid >= 0, "clone3: {}", std::io::Error::last_os_error());
        if pid == 0 {
            let code = if entry.enter().is_ok() { body() } else { 99 };
            // SAFETY: ends this child at once.
            unsafe { libc::_exit(code) }
        }
        Pid::from_raw(pid as i32)
    }

    /// Runs a process in the group: its exit code, or 128 and the signal that ended it.
    fn run(&self, body: impl FnOnce() -> i32) -> i32 {
        match waitpid(self.spawn(body), None).unwrap() {
            WaitStatus::Exited(_, code) => code,
            WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
            status => panic!("unexpected {status:?}"),
        }
    }
}

impl std::ops::Deref for Group {
    type Target = CgroupManager;

    fn deref(&self) -> &CgroupManager {
        &self.0
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill_all().and_then(|()| self.delete()).unwrap_or_else(|error| eprintln!("left behind: {error}"));
    }
}

/// Waits for something another process is about to do.
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not after {PATIENCE:?}");
        std::thread::yield_now();
    }
}

fn pause() -> i32 {
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}

/// Forks until it cannot, at most 64 times; the children wait to be killed. The number of forks.
fn fork_until_refused() -> i32 {
    for count in 0..64 {
        // SAFETY: the child makes system calls only.
        match unsafe { libc::fork() } {
            0 => {
                pause();
            }
            -1 => return count,
            _ => {}
        }
    }
    64
}

#[test]
fn a_group_is_made_entered_and_removed_in_every_hierarchy() {
    let group = Group::new("life");
    let everywhere = group.hierarchies.points().count();
    assert!(group.exists());
    assert_eq!(group.dirs().filter(|dir| dir.is_dir()).count(), everywhere);
    let pid = group.spawn(pause);
    // The process is born in the v2 group and enters the others itself.
    eventually("the process is in every group", || group.dirs().all(|dir| pids(&dir) == [pid.as_raw()]));
    let again = CgroupManager::new(&format!("/{}", group.path.display())).unwrap();
    assert!(matches!(again.create(), Err(Error::InUse { pids, .. }) if pids == [pid.as_raw()]));
    assert_eq!(again.pids(), [pid.as_raw()]);
    again.kill_all().unwrap();
    assert!(matches!(waitpid(pid, None).unwrap(), WaitStatus::Signaled(_, Signal::SIGKILL, _)));
    assert!(group.pids().is_empty());
    again.create().expect("an empty group is taken over");
    group.delete().unwrap();
    assert!(!group.exists());
    group.delete().expect("a second time is no error");
    group.kill_all().expect("nor is killing what is gone");
    assert!(group.stats().is_err());
}

#[test]
fn missing_parents_are_made_and_groups_below_are_removed() {
    let parent = Group::new("parent");
    let child = CgroupManager::new(&format!("{}/a/b", parent.path.display())).unwrap();
    child.create().unwrap();
    assert!(child.dirs().all(|dir| dir.is_dir()));
    let a = CgroupManager::new(&format!("{}/a", parent.path.display())).unwrap();
    a.delete().unwrap();
    assert!(!child.exists() && !a.exists() && parent.exists());
}

#[test]
fn a_running_process_can_be_added() {
    let group = Group::new("add");
    // SAFETY: the child makes system calls only.
    let pid = match unsafe { libc::fork() } {
        0 => {
            pause();
            unreachable!()
        }
        pid => pid,
    };
    group.add(pid).unwrap();
    assert!(group.dirs().all(|dir| pids(&dir) == [pid]));
    group.kill_all().unwrap();
    waitpid(Pid::from_raw(pid), None).unwrap();
}

#[test]
fn the_pids_limit_refuses_forks() {
    let group = Group::new("pids");
    group.apply(&resources(json!({"pids": {"limit": 4}})), false).unwrap();
    assert_eq!(group.run(fork_until_refused), 3);
    assert_eq!(group.stats().unwrap().pids.limit, Some(4));
    group.update(&resources(json!({"pids": {"limit": -1}}))).unwrap();
    assert_eq!(group.stats().unwrap().pids.limit, None);
}

#[test]
fn more_memory_than_allowed_ends_the_process() {
    const LIMIT: u64 = 16 << 20;
    let group = Group::new("memory");
    let limits = resources(json!({"memory": {"limit": LIMIT, "swap": LIMIT, "reservation": LIMIT / 2}}));
    assert_eq!(group.apply(&limits, false).unwrap(), []);
    assert_eq!(group.stats().unwrap().memory.limit, Some(LIMIT));
    let touch = |bytes: usize| {
        move || {
            // SAFETY: a fresh anonymous mapping, written within its bounds.
            unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
                let memory = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
                i32::from(memory == libc::MAP_FAILED || *memory.cast::<u8>() != 0)
            }
        }
    };
    assert_eq!(group.oom_kills(), 0);
    assert_eq!(group.run(touch(LIMIT as usize / 2)), 0);
    assert_eq!(group.run(touch(LIMIT as usize * 4)), 128 + libc::SIGKILL);
    assert_eq!(group.oom_kills(), 1);
    let memory = group.stats().unwrap().memory;
    assert!(memory.peak.unwrap() > LIMIT / 2 && memory.usage < LIMIT, "{memory:?}");

    // Up and down again, each in one step: the order of the two limits matters and is different.
    for limit in [4 * LIMIT, LIMIT, 2 * LIMIT] {
        group.update(&resources(json!({"memory": {"limit": limit, "swap": limit + LIMIT}}))).unwrap();
        assert_eq!(group.told("memory", "memory.limit_in_bytes", "memory.max"), limit.to_string());
        // v2 limits swap by itself.
        let swap = if group.is_v1("memory") { limit + LIMIT } else { LIMIT };
        assert_eq!(group.told("memory", "memory.memsw.limit_in_bytes", "memory.swap.max"), swap.to_string());
    }
    group.update(&resources(json!({"memory": {"limit": -1}}))).unwrap();
    assert_eq!(group.stats().unwrap().memory.limit, None);
}

#[test]
fn cpu_limits_are_written_in_an_order_the_kernel_takes() {
    let group = Group::new("cpu");
    let limits = json!({"cpu": {"shares": 512, "quota": 50_000, "period": 200_000, "cpus": "0", "mems": "0"}});
    group.apply(&resources(limits), false).unwrap();
    let is_v1 = group.is_v1("cpu");
    assert_eq!(group.told("cpu", "cpu.shares", "cpu.weight"), if is_v1 { "512" } else { "59" });
    assert_eq!(group.told("cpu", "cpu.cfs_quota_us", "cpu.max"), if is_v1 { "50000" } else { "50000 200000" });
    assert_eq!(group.told("cpu", "cpu.cfs_period_us", "cpu.max"), if is_v1 { "200000" } else { "50000 200000" });
    assert_eq!(group.told("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    // Within a limited parent: 25 % to 20 % of another period.
    let child = CgroupManager::new(&format!("{}/child", group.path.display())).unwrap();
    child.create().unwrap();
    for (quota, period) in [(50_000, 200_000), (20_000, 100_000), (100_000, 400_000)] {
        child.update(&resources(json!({"cpu": {"quota": quota, "period": period}}))).unwrap();
    }
    // v2 takes more than the parent has; the parent's limit holds all the same.
    if is_v1 {
        let refused = child.update(&resources(json!({"cpu": {"quota": 90_000, "period": 100_000}}))).unwrap_err();
        assert!(refused.to_string().contains("cpu.cfs_"), "{refused}");
    }
    child.delete().unwrap();
}

#[test]
fn a_cpu_quota_throttles() {
    let group = Group::new("throttle");
    group.apply(&resources(json!({"cpu": {"quota": 10_000, "period": 100_000}})), false).unwrap();
    let spin = || {
        let start = Instant::now();
        while start.elapsed().as_millis() < 300 {}
        0
    };
    assert_eq!(group.run(spin), 0);
    let cpu = group.stats().unwrap().cpu;
    assert!(cpu.usage.as_millis() >= 10 && cpu.usage.as_millis() < 150, "{cpu:?}");
    assert!(cpu.throttled_periods > 0 && !cpu.throttled.is_zero(), "{cpu:?}");
}

#[test]
fn limits_the_host_lacks_are_refused_by_name() {
    let group = Group::new("lacks");
    let refused = |json| group.update(&resources(json)).unwrap_err();
    // Weights depend on the kernel's I/O schedulers: here they work, or are refused by name.
    match group.update(&resources(json!({"blockIO": {"weight": 500}}))) {
        Ok(_) if group.is_v1("blkio") => assert!(group.told("blkio", "blkio.bfq.weight", "").contains("500")),
        Ok(_) => assert!(group.told("io", "", "io.bfq.weight").contains("500")),
        Err(error) => assert!(matches!(error, Error::Unsupported { controller: "blkio" | "io", .. }), "{error}"),
    }
    if group.is_v1("memory") {
        let error = refused(json!({"unified": {"memory.max": "1"}}));
        assert!(error.to_string().contains("no such file"), "{error}");
    }
    for (limits, about) in [
        (json!({"hugepageLimits": [{"pageSize": "../2MB", "limit": 1}]}), "page size"),
        (json!({"unified": {"../memory.max": "1"}}), "not the name of a cgroup v2 file"),
        (json!({"unified": {"memory.nonsense": "1"}}), "no such file"),
        (json!({"cpu": {"shares": 1024, "cpus": "4096"}}), "cpuset.cpus"),
    ] {
        let error = refused(limits);
        assert!(error.to_string().contains(about), "{error}");
    }
}

/// Opens a device node in the group: 0, or the errno.
fn open_in(group: &Group, path: &Path) -> i32 {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    group.run(|| {
        // SAFETY: the path is a C string; errno is this thread's.
        unsafe {
            if libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NONBLOCK) < 0 { *libc::__errno_location() } else { 0 }
        }
    })
}

/// Makes a device node in the group: 0, or the errno.
fn make_in(group: &Group, path: &Path) -> i32 {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    group.run(|| {
        // SAFETY: as above.
        unsafe {
            let made = libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 11));
            if made < 0 { *libc::__errno_location() } else { 0 }
        }
    })
}

/// Whatever enforces the rules: kmsg (1:11) opens only when a rule says so, null always does.
fn prove_device_rules(group: &Group) {
    let temp = tempfile::tempdir().unwrap();
    let kmsg = temp.path().join("kmsg");
    group.apply(&resources(json!({})), false).unwrap();
    assert_eq!(make_in(group, &kmsg), 0, "nodes may be made");
    assert_eq!(open_in(group, &kmsg), libc::EPERM);
    assert_eq!(open_in(group, Path::new("/dev/null")), 0);
    let rule = |allow, access: &str| {
        resources(json!({"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": allow, "type": "c", "major": 1, "minor": 11, "access": access},
        ]}))
    };
    group.update(&rule(true, "rw")).unwrap();
    assert_eq!(open_in(group, &kmsg), 0);
    group.update(&resources(json!({"pids": {"limit": 100}}))).unwrap();
    assert_eq!(open_in(group, &kmsg), 0, "an update without devices leaves them");
    group.update(&rule(true, "r")).unwrap();
    assert_eq!(open_in(group, &kmsg), libc::EPERM, "reading is not writing");
    group.update(&resources(json!({"devices": [{"allow": true, "type": "a", "access": "rwm"}]}))).unwrap();
    assert_eq!(open_in(group, &kmsg), 0);
    group.update(&rule(false, "rw")).unwrap();
    assert_eq!(open_in(group, &kmsg), libc::EPERM);
}

#[test]
fn device_rules_hold_on_v1() {
    if let Some(group) = Group::v1_only("devices") {
        prove_device_rules(&group);
    }
}

#[test]
fn device_rules_hold_as_a_program_on_v2() {
    let mut group = Group::new("program");
    // Without the v1 controller; everything else as it is.
    for mount in &mut group.0.hierarchies.v1 {
        mount.controllers.retain(|controller| controller != "devices");
    }
    prove_device_rules(&group);
}

/// A process that counts in shared memory for as long as it runs.
fn count(counter: &std::sync::atomic::AtomicU64) -> i32 {
    loop {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

fn prove_freezing(group: &Group) {
    use std::sync::atomic::{AtomicU64, Ordering};
    // SAFETY: a shared page that is never unmapped; the kernel gives it zeroed and aligned.
    let counter = unsafe {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let page = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(page, libc::MAP_FAILED);
        &*page.cast::<AtomicU64>()
    };
    let value = || counter.load(Ordering::Relaxed);
    let pid = group.spawn(|| count(counter));
    eventually("it counts", || value() > 0);
    assert!(!group.is_frozen().unwrap());
    group.freeze().unwrap();
    assert!(group.is_frozen().unwrap());
    let before = value();
    let start = Instant::now();
    while start.elapsed().as_millis() < 20 {
        std::thread::yield_now();
    }
    assert_eq!(value(), before, "it is frozen and counts");
    group.thaw().unwrap();
    assert!(!group.is_frozen().unwrap());
    eventually("it counts again", || value() > before);
    group.freeze().unwrap();
    group.kill_all().unwrap();
    assert!(matches!(waitpid(pid, None).unwrap(), WaitStatus::Signaled(_, Signal::SIGKILL, _)), "frozen ones die too");
}

#[test]
fn processes_freeze_go_on_and_die() {
    prove_freezing(&Group::new("freeze"));
}

#[test]
fn processes_freeze_go_on_and_die_on_v1_alone() {
    if let Some(group) = Group::v1_only("freeze-v1") {
        prove_freezing(&group);
    }
}

fn prove_killing(group: &Group) {
    group.update(&resources(json!({"pids": {"limit": 50}}))).unwrap();
    let pid = group.spawn(|| {
        // A tree whose every process goes on forking.
        loop {
            // SAFETY: both sides go on with system calls only.
            unsafe { libc::fork() };
        }
    });
    eventually("the tree grows", || group.pids().len() >= 49);
    group.kill_all().unwrap();
    assert!(group.pids().is_empty());
    waitpid(pid, None).unwrap();
    group.delete().unwrap();
    assert!(!group.exists());
}

#[test]
fn a_forking_tree_is_killed_whole() {
    prove_killing(&Group::new("tree"));
}

#[test]
fn a_forking_tree_is_killed_whole_on_v1_alone() {
    if let Some(group) = Group::v1_only("tree-v1") {
        prove_killing(&group);
    }
}

/// A directory with the files of a pure v2 hierarchy, and a group in it.
fn fake_v2(controllers: &str) -> (tempfile::TempDir, CgroupManager) {
    let root = tempfile::tempdir().unwrap();
    for group in ["", "berth", "berth/x"] {
        let dir = root.path().join(group);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
        std::fs::write(dir.join("cgroup.subtree_control"), "").unwrap();
    }
    let mount = Mount::v2(root.path().to_str().unwrap());
    let hierarchies = Hierarchies { v1: Vec::new(), v2: Some(mount) };
    (root, CgroupManager { hierarchies, path: "berth/x".into() })
}

/// What a file of the group has after `limits` were applied; the files named in `files` exist before.
fn after(limits: serde_json::Value, files: &[(&str, &str)]) -> Result<Vec<String>, Error> {
    let (root, group) = fake_v2("cpuset cpu io memory hugetlb pids");
    let path = |name| root.path().join("berth/x").join(name);
    for (name, content) in files {
        std::fs::write(path(name), content).unwrap();
    }
    group.update(&resources(limits))?;
    Ok(files.iter().map(|(name, _)| std::fs::read_to_string(path(name)).unwrap()).collect())
}

#[test]
fn v2_controllers_are_enabled_down_the_path() {
    let (root, group) = fake_v2("cpu memory pids");
    std::fs::write(root.path().join("cgroup.subtree_control"), "memory cpu pids").unwrap();
    group.create().unwrap();
    let control = |name| std::fs::read_to_string(root.path().join(name).join("cgroup.subtree_control")).unwrap();
    assert_eq!(control(""), "memory cpu pids", "what is enabled is not written again");
    assert_eq!(control("berth"), "+cpu +memory +pids");
    assert_eq!(control("berth/x"), "", "a group with processes must not");
    assert!(group.entry().unwrap().clone_into().is_some());
}

#[test]
fn v2_values_are_written_in_its_own_terms() {
    let memory = json!({"memory": {"limit": 1000, "swap": 3000, "reservation": 500}});
    let files = [("memory.max", ""), ("memory.swap.max", ""), ("memory.low", "")];
    assert_eq!(after(memory, &files).unwrap(), ["1000", "2000", "500"]);
    let unlimited = json!({"memory": {"limit": -1}});
    assert_eq!(after(unlimited, &files[..2]).unwrap(), ["max", "max"]);

    let cpu = json!({"cpu": {"shares": 1024, "quota": -1, "period": 50_000, "cpus": "0-1", "idle": 1}});
    let files = [("cpu.weight", ""), ("cpu.max", ""), ("cpuset.cpus", ""), ("cpu.idle", "")];
    assert_eq!(after(cpu, &files).unwrap(), ["100", "max 50000", "0-1", "1"]);
    let period = json!({"cpu": {"period": 50_000}});
    assert_eq!(after(period, &[("cpu.max", "7 1")]).unwrap(), ["7 50000"]);

    let pids = json!({"pids": {"limit": 7}});
    assert_eq!(after(pids, &[("pids.max", "")]).unwrap(), ["7"]);

    let io = json!({"blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]}});
    assert_eq!(after(io, &[("io.weight", ""), ("io.max", "")]).unwrap(), ["4950", "8:0 rbps=1000"]);
    let bfq = json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 300}]}});
    assert_eq!(after(bfq, &[("io.bfq.weight", "")]).unwrap(), ["8:0 300"]);

    let pages = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4096}]});
    let files = [("hugetlb.2MB.max", ""), ("hugetlb.2MB.rsvd.max", "")];
    assert_eq!(after(pages, &files).unwrap(), ["4096", "4096"]);

    let unified = json!({"unified": {"memory.high": "900"}});
    assert_eq!(after(unified, &[("memory.high", "")]).unwrap(), ["900"]);
}

#[test]
fn v2_refuses_what_it_cannot_do() {
    for (limits, about) in [
        (json!({"memory": {"swap": 5}}), "needs memory.limit"),
        (json!({"memory": {"limit": 10, "swap": 5}}), "less than memory.limit"),
        (json!({"memory": {"limit": 10}}), "no memory cgroup controller"),
        (json!({"blockIO": {"weight": 100}}), "no io cgroup controller"),
        (json!({"network": {"classID": 1}}), "no net_cls cgroup controller"),
        (json!({"rdma": {"mlx": {"hcaHandles": 1}}}), "no rdma cgroup controller"),
    ] {
        let error = after(limits, &[]).unwrap_err();
        assert!(error.to_string().contains(about), "{error}");
    }
    let (root, group) = fake_v2("memory");
    for name in ["memory.max", "memory.low"] {
        std::fs::write(root.path().join("berth/x").join(name), "").unwrap();
    }
    let warnings = group.update(&resources(json!({"memory": {"limit": 10, "swap": 20, "swappiness": 1}}))).unwrap();
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "memory.swap is ignored: this kernel does not account swap",
            "memory.swappiness is ignored: cgroup v2 does not have it",
        ]
    );
}

#[test]
fn v2_usage_is_read_in_its_own_terms() {
    let (root, group) = fake_v2("cpu io memory pids");
    for (name, content) in [
        ("cgroup.procs", ""),
        ("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 5\nnr_throttled 2\nthrottled_usec 7\n"),
        ("memory.current", "5000\n"),
        ("memory.stat", "anon 1\ninactive_file 1000\n"),
        ("memory.max", "max\n"),
        ("memory.peak", "6000\n"),
        ("memory.events", "low 0\noom 4\noom_kill 3\noom_group_kill 0\n"),
        ("pids.current", "2\n"),
        ("pids.max", "10\n"),
        ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:16 rbytes=5 wbytes=0 rios=1 wios=0\n"),
    ] {
        std::fs::write(root.path().join("berth/x").join(name), content).unwrap();
    }
    let stats = serde_json::to_value(group.stats().unwrap()).unwrap();
    let micros = |micros: u32| json!({"secs": 0, "nanos": micros * 1000});
    assert_eq!(
        stats,
        json!({
            "cpu": {"usage": micros(30), "user": micros(20), "system": micros(10),
                    "periods": 5, "throttled_periods": 2, "throttled": micros(7)},
            "memory": {"usage": 4000, "limit": null, "peak": 6000, "swap": null},
            "pids": {"current": 2, "limit": 10},
            "block_io": {"read_bytes": 15, "write_bytes": 20, "reads": 2, "writes": 2},
        })
    );
    assert_eq!(group.oom_kills(), 3);
}
