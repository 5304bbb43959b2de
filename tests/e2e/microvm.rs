//! `--isolation microvm`: an image in a virtual machine with a Linux kernel of its own.
//!
//! Most of it needs a KVM that runs Linux guests. Where this host's does not, the tests say so and run in the emulated machine
//! (`nested`), whose processor has AMD's virtualization with nested paging.

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_tests::command::{Cmd, Output};
use berth_tests::fixtures;
use berth_tests::home::Home;
use berth_tests::terminal::Terminal;
use berth_tests::wait;
use berth_tests::{binaries, cgroup};

/// An emulated machine is slow.
pub const TIMEOUT: Duration = Duration::from_mins(5);

/// What keeps this host from running Linux guests.
fn obstacle() -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let output = Cmd::new(binaries::dir().join("berth-vmm"), "initramfs").arg(dir.path()).run();
    (output.exit_code() != 0).then(|| output.stderr_text())
}

/// Whether Linux guests run here. If not, that is said past the capture of a test's output.
pub fn is_possible(test: &str) -> bool {
    use std::io::Write as _;
    let obstacle = obstacle();
    if let Some(obstacle) = &obstacle {
        let _ = writeln!(std::io::stderr(), "NOT TESTED on this host's own KVM: {test}: {}", obstacle.trim());
    }
    obstacle.is_none()
}

/// `berth run --isolation microvm --guest linux FLAGS busybox sh -c SCRIPT`
pub fn microvm(home: &Home, flags: &str, script: &str) -> Cmd {
    let words = format!("run --isolation microvm --guest linux {flags} busybox sh -c");
    home.berth(&words).arg(script).timeout(TIMEOUT)
}

#[test]
fn a_host_that_cannot_run_linux_says_so_before_anything_is_made() {
    let Some(obstacle) = obstacle() else {
        return;
    };
    let home = Home::new();
    let output = microvm(&home, "--name never", "true").run().code(125);
    assert!(obstacle.contains(output.stderr_text().trim_start_matches("berth: ").trim()), "{output:?}");
    assert!(home.containers().is_empty());
}

#[test]
fn what_a_guest_cannot_have_is_refused_by_name() {
    let home = Home::new();
    let cases = [
        ("-v /tmp:/mnt", "bind mount"),
        ("-v data:/mnt", "volume"),
        ("--device /dev/null", "--device"),
        ("--network host", "--network host"),
        ("--pid host", "--pid host"),
        ("--userns auto", "--userns"),
        ("--privileged", "--privileged"),
        ("--sysctl net.ipv4.ip_forward=1", "--sysctl"),
        ("--security-opt seccomp=unconfined", "seccomp"),
    ];
    for (flags, named) in cases {
        microvm(&home, flags, "true").run().code(125).fails_with(named);
    }
    let disk = "--mount type=ext4,source=/etc/hosts,target=/data";
    microvm(&home, "-v /tmp:/mnt", "true").run().code(125).fails_with("--mount type=ext4");
    for flags in ["", "--isolation microvm --guest process"] {
        for needs_linux in ["--kernel /boot/vmlinuz", disk] {
            let words = format!("run {flags} {needs_linux} busybox true");
            home.berth(&words).run().code(125).fails_with("--isolation microvm --guest linux");
        }
    }
    assert!(home.containers().is_empty());
}

#[test]
fn a_guest_is_as_a_container() {
    if !is_possible("a guest beside a container") {
        return;
    }
    let home = Home::new();
    let script = "echo one two | tr a-z A-Z | wc -w; cat; echo $((6*7)); id -u; id -g; pwd; hostname; echo $V; \
        cat /etc/hosts | grep -c boat; ip addr show lo | grep -c 'LOOPBACK,UP'; ip link | grep -c ^[0-9]; touch /tmp/new && ls /tmp/new; echo error >&2; exit 42";
    let run = |isolation: &str| -> Output {
        let words = format!("run --rm -i --isolation {isolation} --hostname boat -e V=x -w /home -u 7:8 busybox sh -c");
        home.berth(&words).arg(script).stdin("from outside\n").timeout(TIMEOUT).run()
    };
    let (container, guest) = (run("container"), run("microvm"));
    assert_eq!(guest.text(), container.text(), "{guest:?}");
    assert_eq!(guest.stderr_text(), container.stderr_text());
    assert_eq!(guest.exit_code(), container.exit_code());
    assert!(guest.text().starts_with("2\nfrom outside\n42\n7\n8\n/home\nboat\nx\n"), "{guest:?}");
    for (script, code) in [("exit 3", 3), ("kill -9 $$", 137), ("exec /etc", 126)] {
        let _ = microvm(&home, "--rm", script).run().code(code);
    }
    let missing = home
        .berth("run --rm --isolation microvm --guest linux busybox no-such-command")
        .timeout(TIMEOUT)
        .run()
        .code(127);
    missing.fails_with("no-such-command");
    assert!(home.containers().is_empty());
}

#[test]
fn a_guest_has_its_size_and_a_kernel_of_its_own() {
    if !is_possible("memory, vCPUs and kernel of a guest") {
        return;
    }
    let home = Home::new();
    let script = "nproc; free -m | sed -n 's/^Mem: *\\([0-9]*\\).*/\\1/p'; cut -d ' ' -f 1 /proc/uptime; ls /proc | grep -c '^[0-9]'";
    let text = microvm(&home, "--rm --memory 128m --cpus 2", script).ok().text();
    let numbers: Vec<f64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let [vcpus, megabytes, uptime, _processes] = numbers[..] else { panic!("{text}") };
    assert!((vcpus - 2.0).abs() < 0.1 && megabytes < 128.0 && megabytes > 60.0 && uptime < 120.0, "{text}");
    // What fits into no guest of that size is ended by the guest's kernel, not by the host's.
    let eat = "x=a; while :; do x=$x$x$x$x; done";
    let _ = microvm(&home, "--rm --memory 96m", &format!("sh -c '{eat}'; echo $?")).ok();
}

#[test]
fn limits_hold_in_a_guest() {
    if !is_possible("limits of a guest") {
        return;
    }
    let home = Home::new();
    let flags = "--rm --ulimit nofile=99:100 --pids-limit 20 --shm-size 1m";
    // The shell cannot start the last ones, and its root cannot change that.
    let script = "ulimit -n; ulimit -Hn; df -k /dev/shm | awk 'END { print $2 }'; \
        echo max 2> /dev/null > /sys/fs/cgroup/guest/pids.max || echo kept; \
        (for i in $(seq 40); do sleep 1000 > /dev/null 2>&1 & done) 2>&1 | grep -c fork";
    let output = microvm(&home, flags, script).run();
    assert_eq!(output.text(), "99\n100\n1024\nkept\n1\n", "{output:?}");

    // The sandbox's own limits are wider, by what is shown.
    let _ = microvm(&home, "-d --name guest --memory 200m --pids-limit 20", "exec sleep 1000").ok();
    let container = home.inspect("guest");
    let overhead = container["MemoryOverhead"].as_u64().unwrap();
    assert_eq!(container["HostConfig"]["Memory"], 200 << 20);
    let stats = home.berth("stats --no-stream --format json guest").timeout(TIMEOUT).ok().json();
    assert_eq!(stats[0]["MemoryLimit"], (200 << 20) + overhead, "{stats}");
    let pids = cgroup::read(home.pid("guest"), "pids", "pids.max", "pids.max");
    assert_eq!(pids, (20 + container["PidsOverhead"].as_u64().unwrap()).to_string());
    let _ = home.berth("kill guest").ok();
}

#[test]
fn disks_keep_what_guests_write() {
    if !is_possible("disks of a guest") {
        return;
    }
    let home = Home::new();
    let disk = home.scratch().join("data.img");
    let source = disk.display();
    std::fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    let _ = Cmd::new("busybox", "mke2fs -F").arg(&disk).ok();
    let at = |options: &str| format!("--mount type=ext4,source={source},target=/my/data{options}");
    let write = "yes berth | head -c 3000000 > /my/data/file; sha256sum < /my/data/file";
    let sum = microvm(&home, &format!("--rm {}", at("")), write).ok().text();
    let read = "sha256sum < /my/data/file; touch /my/data/new 2> /dev/null || echo kept";
    let again = microvm(&home, &format!("--rm {}", at(",readonly")), read).ok().text();
    assert_eq!(again, format!("{sum}kept\n"));

    // One machine writes to it, or several read.
    let _ = microvm(&home, &format!("-d --name writer {}", at("")), "echo up; exec sleep 1000").ok();
    assert!(wait::within(TIMEOUT, || home.berth("logs writer").run().text().contains("up")));
    for options in ["", ",readonly"] {
        microvm(&home, &format!("--rm {}", at(options)), "true").run().code(125).fails_with("cannot lock the disk");
    }
    let shown = home.inspect("writer")["Mounts"][0].clone();
    assert_eq!((&shown["Type"], &shown["Destination"]), (&"ext4".into(), &"/my/data".into()), "{shown}");
    let _ = home.berth("kill writer").ok();

    let missing = "--rm --mount type=ext4,source=/no/such/disk,target=/data";
    microvm(&home, missing, "true").run().code(125).fails_with("/no/such/disk");
    microvm(&home, "--rm --mount type=ext4,source=/etc,target=/data", "true").run().code(125).fails_with("is no disk");
    let empty = home.scratch().join("empty.img");
    std::fs::File::create(&empty).unwrap().set_len(1 << 20).unwrap();
    let flags = format!("--rm --mount type=ext4,source={},target=/data", empty.display());
    microvm(&home, &flags, "true").run().code(125).fails_with("/data");
}

#[test]
fn a_detached_guest_lives_as_a_container_does() {
    if !is_possible("the life of a detached guest") {
        return;
    }
    let home = Home::new();
    let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";
    let id = microvm(&home, "-d --name guest", script).ok().trimmed();
    assert!(wait::within(TIMEOUT, || home.berth("logs guest").run().text().contains("up")));
    assert_eq!(home.status("guest"), "running");
    assert_eq!(
        home.berth("exec guest sh -c").arg("echo $0 in; exit 9").timeout(TIMEOUT).run().code(9).text(),
        "sh in\n"
    );
    let echoed =
        home.berth("exec -i -u 7 -w /tmp guest sh -c").arg("id -u; pwd; cat").stdin("through").timeout(TIMEOUT);
    assert_eq!(echoed.ok().text(), "7\n/tmp\nthrough");
    home.berth("exec guest no-such-command").timeout(TIMEOUT).run().code(127).fails_with("no-such-command");
    let _ = home.berth("pause guest").ok();
    assert_eq!(home.status("guest"), "paused");
    let _ = home.berth("unpause guest").ok();
    let stats = home.berth("stats --no-stream --format json guest").timeout(TIMEOUT).ok();
    assert!(stats.text().contains("guest"), "{stats:?}");
    for refused in ["cp guest:/etc/hosts -", "diff guest", "update --memory 1g guest"] {
        home.berth(refused).run().code(125).fails_with("microVM");
    }
    let _ = home.berth("stop -t 60 guest").timeout(TIMEOUT).ok();
    assert_eq!(home.inspect("guest")["State"]["ExitCode"], 5, "the command's trap ran");
    assert!(home.berth("logs guest").ok().text().ends_with("bye\n"));
    let _ = home.berth("start guest").timeout(TIMEOUT).ok();
    assert!(wait::within(TIMEOUT, || home.berth("logs guest").run().text().matches("up").count() == 2));
    let _ = home.berth("kill guest").ok();
    assert!(wait::within(TIMEOUT, || home.status("guest") == "exited"));
    assert_eq!(home.berth("rm guest").ok().trimmed(), "guest");
    assert!(!home.containers().contains(&id));
}

#[test]
fn a_guest_has_a_terminal() {
    if !is_possible("a terminal in a guest") {
        return;
    }
    let home = Home::new();
    let script = "trap 'echo now $(stty size)' WINCH; stty size; while :; do sleep 0.1; done";
    let mut terminal = Terminal::start(microvm(&home, "--rm -it", script), 91, 33);
    assert!(wait::within(TIMEOUT, || terminal.screen().contains("33 91")), "{}", terminal.screen());
    terminal.resize(123, 45);
    terminal.expect("now 45 123");
    terminal.type_in("\x03");
    assert_eq!(terminal.wait(), 130);
}

#[test]
fn kernels_that_are_none_are_refused() {
    if !is_possible("kernels that are none") {
        return;
    }
    let home = Home::new();
    let dir = home.scratch();
    let file = dir.join("vmlinuz-junk");
    std::fs::write(&file, "no kernel").unwrap();
    for path in [file.to_str().unwrap(), "/no/such/kernel", "/etc"] {
        microvm(&home, &format!("--rm --kernel {path}"), "true").run().code(125).fails_with(path);
    }
    // The header of a kernel whose modules are not here, and half of one whose modules are.
    let mut header = vec![0; 0x1000];
    header[0x202..0x206].copy_from_slice(b"HdrS");
    header[0x20e..0x210].copy_from_slice(&0x300_u16.to_le_bytes());
    header[0x500..0x50b].copy_from_slice(b"9.9.9-none ");
    std::fs::write(&file, header).unwrap();
    let run = |flags: &str| microvm(&home, &format!("--rm {flags}"), "true").run().code(125);
    let alone = run(&format!("--kernel {}", file.display()));
    alone.fails_with("/lib/modules/9.9.9-none/modules.dep");
    std::fs::write(&file, &std::fs::read(newest_kernel()).unwrap()[..1 << 20]).unwrap();
    run(&format!("--kernel {}", file.display())).fails_with("truncated");
    assert!(home.containers().is_empty());
}

#[test]
fn what_a_host_does_not_have_is_refused() {
    if !is_possible("guests that are too large") {
        return;
    }
    let home = Home::new();
    let run = |flags: &str| microvm(&home, &format!("--rm {flags}"), "true").run().code(125);
    run("--memory 16m").fails_with("raise --memory");
    run("--memory 900g").fails_with("bytes of memory were asked for");
    run("--cpus 200").fails_with("--cpus");
    // A first root filesystem that somebody removes between two starts.
    let _ = home.berth("create --name later --isolation microvm --guest linux busybox true").timeout(TIMEOUT).ok();
    for file in std::fs::read_dir(home.data().join("guests")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    home.berth("start -a later").timeout(TIMEOUT).run().code(125).fails_with(".cpio");
    let _ = home.berth("rm later").ok();
    assert!(home.containers().is_empty());
}

#[test]
fn python_says_the_same_in_a_guest() {
    if !is_possible("a Debian image in a guest") {
        return;
    }
    let home = Home::empty();
    let _ = home.berth("load -i").arg(fixtures::debian_layout()).timeout(TIMEOUT * 2).ok();
    let image = home.berth("images -q").ok().trimmed();
    let program = "import sys, json, hashlib; print(sys.version_info[:2], json.dumps({'a': [1, 2]}), \
        hashlib.sha256(open('/usr/bin/python3', 'rb').read()).hexdigest()); sys.exit(7)";
    let run = |isolation: &str| {
        let words = format!("run --rm --isolation {isolation} {image} python3 -c");
        home.berth(&words).arg(program).timeout(TIMEOUT * 2).run().code(7).text()
    };
    assert_eq!(run("microvm"), run("container"));
}

/// The newest of the host's kernels.
fn newest_kernel() -> PathBuf {
    let kernels = std::fs::read_dir("/boot").unwrap().map(|entry| entry.unwrap().path());
    kernels.filter(|path| path.to_str().unwrap().contains("/vmlinuz-")).max().unwrap()
}

/// It is the host's own under another name, below which all modules but one are listed, for `berth` alone to see.
#[test]
fn a_kernel_without_erofs_reads_the_image_as_ext4() {
    if !is_possible("a kernel without erofs") {
        return;
    }
    let home = Home::new();
    let (kernel, modules) = (newest_kernel(), home.scratch().join("modules"));
    let version = kernel.file_name().unwrap().to_str().unwrap().trim_start_matches("vmlinuz-").to_owned();
    let other = format!("9{}", &version[1..]);
    let mut image = std::fs::read(&kernel).unwrap();
    let place = 0x200 + usize::from(u16::from_le_bytes([image[0x20e], image[0x20f]]));
    assert!(image[place..].starts_with(version.as_bytes()));
    image[place] = b'9';
    let file = home.scratch().join("kernel");
    std::fs::write(&file, image).unwrap();

    let real = Path::new("/lib/modules").join(&version);
    let listed = modules.join(&other);
    std::fs::create_dir_all(listed.join("kernel")).unwrap();
    let dependencies = std::fs::read_to_string(real.join("modules.dep")).unwrap();
    let without = |line: &&str| !line.split(':').next().unwrap().ends_with("/erofs.ko");
    let kept: Vec<&str> = dependencies.lines().filter(without).collect();
    assert_eq!(kept.len() + 1, dependencies.lines().count());
    std::fs::write(listed.join("modules.dep"), kept.join("\n")).unwrap();
    let _ = std::fs::copy(real.join("modules.builtin"), listed.join("modules.builtin")).unwrap();

    let script = "sha256sum /bin/busybox; ls -ln /bin | head -n 20; ls -a /";
    let guest = home.berth("").timeout(TIMEOUT).in_shell(&format!(
        "exec unshare -m sh -c 'mount --rbind {real}/kernel {modules}/{other}/kernel && mount --rbind {modules} /lib/modules && \
             exec \"$0\" run --rm --isolation microvm --guest linux --kernel {kernel} busybox sh -c \"{script}; \
             grep -c erofs /proc/filesystems\"' \"$0\"",
        real = real.display(),
        modules = modules.display(),
        kernel = file.display(),
    ));
    let guest = guest.run().code(1);
    assert_eq!(guest.text(), home.shell("", script).ok().text() + "0\n", "{guest:?}");
    let disks: Vec<_> = std::fs::read_dir(home.data().join("images/disks")).unwrap().collect();
    assert!(disks.len() == 1 && disks[0].as_ref().unwrap().path().extension().unwrap() == "ext4", "{disks:?}");
}
