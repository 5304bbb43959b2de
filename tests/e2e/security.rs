//! The walls of a container, tried from inside.

use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;

use berth_tests::binaries;
use berth_tests::home::Home;
use berth_tests::{layout, wait};

#[test]
fn open_files_of_the_caller_do_not_leak_in() {
    let home = Home::new();
    let secret = fs::File::open("/etc/shadow").unwrap();
    let mut command = home.shell("", "ls /proc/self/fd | wc -l; ls -l /proc/1/fd");
    let number = secret.as_raw_fd();
    // SAFETY: dup2(2) is async-signal-safe; the copies are the child's and not closed by its execve.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command.inner, move || {
            for copy in [50, 51, 99] {
                if libc::dup2(number, copy) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    let text = command.ok().text();
    assert!(!text.contains("shadow"), "{text}");
    assert_eq!(text.lines().next().unwrap().trim(), "4", "three streams and the folder that ls reads: {text}");
}

#[test]
fn no_descriptor_leads_out_of_the_container() {
    let home = Home::new();
    // CVE-2024-21626: a leaked descriptor of the host as working directory.
    for number in 3..12 {
        let flags = format!("-w /proc/self/fd/{number}");
        let out = home.shell(&flags, "cd ../../../../../..; ls etc/shadow 2>/dev/null; cat etc/hostname").run();
        assert!(!out.text().contains("shadow"), "{number}: {out:?}");
    }
}

#[test]
fn the_keyring_of_the_caller_is_not_the_containers() {
    let home = Home::new();
    // A session keyring of its own, as the default profile denies the calls that would show it.
    let flags = "--security-opt seccomp=unconfined --cap-add SYS_ADMIN";
    let session =
        |text: String| text.lines().filter(|line| line.contains("_ses")).map(str::to_owned).collect::<Vec<_>>();
    let host = session(fs::read_to_string("/proc/keys").unwrap_or_default());
    let inside = session(home.prints(flags, "cat /proc/keys 2>/dev/null || true"));
    for line in &inside {
        assert!(!host.contains(line), "the caller's session keyring is in the container: {line}");
    }
    // keyctl(2) and its kin are refused.
    assert_eq!(home.prints("", "cat /proc/keys 2>/dev/null | wc -l"), "0", "/proc/keys is masked");
}

#[test]
fn masked_and_read_only_paths() {
    let home = Home::new();
    let script = "for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug /proc/latency_stats; do \
                  [ -e $f ] && head -c 1 $f | wc -c | grep -v ^0 && echo readable: $f; done; \
                  for d in /proc/acpi /proc/scsi /sys/firmware; do [ -d $d ] && ls -A $d; done; true";
    assert_eq!(home.prints("", script), "");
    for path in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity"] {
        if fs::exists(path).unwrap() {
            home.shell("", &format!("echo 1 > {path}")).run().fails_with("read-only");
        }
    }
    home.shell("", "mkdir /sys/fs/cgroup/x || touch /sys/x").run().fails_with("read-only");
}

#[test]
fn disks_are_out_of_reach() {
    let home = Home::new();
    let disks: Vec<_> = fs::read_to_string("/proc/partitions")
        .unwrap()
        .lines()
        .skip(2)
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            Some((fields.first()?.to_string(), fields.get(1)?.to_string()))
        })
        .collect();
    assert!(!disks.is_empty(), "a machine without a disk");
    for (major, minor) in disks {
        let script = format!("mknod /disk b {major} {minor} && head -c 1 /disk");
        home.shell("", &script).run().fails_with("not permitted");
    }
    home.shell("", "mknod /mem c 1 1 && head -c 1 /mem").run().fails_with("not permitted");
}

#[test]
fn default_devices_work() {
    let home = Home::new();
    let script = "head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo x > /dev/null; \
                  head -c 4 /dev/full | wc -c; ls -d /dev/fd /dev/stdin /dev/stdout /dev/stderr /dev/ptmx /dev/pts \
                  /dev/shm /dev/random /dev/tty /dev/mqueue | wc -l; echo x 2>/dev/null > /dev/full || echo full";
    assert_eq!(home.prints("", script), "4\n4\n4\n10\nfull");
}

#[test]
fn system_calls_that_reach_the_kernel_are_refused() {
    let home = Home::new();
    for script in [
        "mount -t tmpfs none /tmp",
        "unshare -m true",
        "unshare -U true",
        "umount /proc",
        "swapoff -a; swapon /etc/passwd",
        "insmod /etc/passwd",
        "reboot -f",
        "chroot / mount -o bind / /mnt",
        "nsenter -t 1 -m true",
        "hostname other",
    ] {
        let out = home.shell("", script).run();
        assert!(out.exit_code() != 0, "{script} works: {out:?}");
    }
    // With every capability the filter still stands.
    home.shell("--cap-add ALL", "reboot -f; exit 3").run().fails_with("");
}

#[test]
fn the_runtimes_binary_cannot_be_overwritten() {
    // CVE-2019-5736: /proc/PID/exe of a process of the runtime, seen from the container, is the host's binary.
    let home = Home::new();
    let hash = || [binaries::berth(), binaries::berth_oci()].map(|path| layout::digest(&fs::read(path).unwrap()));
    let before = hash();
    let write = "while :; do for p in /proc/[0-9]*; do { echo overwritten > $p/exe; } 2>/dev/null; done; done";
    let _ = home.detached("--name it --cap-add SYS_PTRACE --cap-add ALL", write);
    for _ in 0..10 {
        // A command that is a link to the runtime itself, as in the published exploit.
        let _ = home.berth("exec it /proc/self/exe --version").run();
        let _ = home.berth("exec it true").run();
    }
    let _ = home.berth("run --rm busybox /proc/self/exe").run();
    let _ = home.berth("run --rm --entrypoint /proc/self/exe busybox version").run();
    assert_eq!(hash(), before);
    let _ = home.berth("version").ok();
}

#[test]
fn setuid_programs_give_nothing() {
    let home = Home::new();
    let script = "cp /bin/busybox /su; chmod 4755 /su; ln -s /su /id; \
                  setpriv --reuid 1000 --clear-groups /id -u 2>/dev/null || su berth -c '/id -u'";
    let id = home.prints("", script);
    assert_eq!(id, "1000", "no_new_privs keeps a setuid program from changing the user");
}

#[test]
fn proc_shows_only_the_container() {
    let home = Home::new();
    let processes: usize = home.prints("", "ls -d /proc/[0-9]* | wc -l").parse().unwrap();
    assert!(processes <= 3, "more than the shell, ls and wc");
    home.shell("", "kill -9 2 2>/dev/null; kill -9 1000").run().fails_with("no such process");
    let pid_1 = home.prints("", "cat /proc/1/environ | tr '\\0' '\\n' | grep -c -i berth_ || true");
    assert_eq!(pid_1, "0");
}

#[test]
fn the_oom_score_is_not_the_callers() {
    let home = Home::new();
    assert_eq!(home.prints("", "cat /proc/self/oom_score_adj"), "0");
}

#[test]
fn signal_dispositions_are_the_defaults() {
    let home = Home::new();
    // A caller that ignores SIGPIPE and blocks SIGTERM (as nohup, cargo and many daemons do) is not inherited.
    let mut command = home.berth("run --rm busybox grep -E").args(["^Sig(Ign|Blk)", "/proc/self/status"]);
    // SAFETY: signal(2) and sigprocmask(2) are async-signal-safe and concern the child alone.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command.inner, || {
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGUSR2);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            Ok(())
        });
    }
    assert_eq!(command.ok().trimmed(), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000");
}

#[test]
fn streams_lead_to_nothing_of_the_host() {
    let home = Home::new();
    let device = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.mode(), metadata.uid(), metadata.gid())
    };
    let null = Path::new("/dev/null");
    let before = device(null);
    let change = "for fd in 0 1 2; do chmod 4755 /proc/self/fd/$fd; chown 5:5 /proc/self/fd/$fd; done; exit 7";
    let mut kinds = vec![""];
    if crate::process_guest::is_possible("the streams of a process guest") {
        kinds.push("--isolation microvm --guest process");
    }
    for kind in kinds {
        assert_eq!(home.prints(kind, "stat -Lc %t:%T /dev/stdin; cat /dev/stdin; echo x > /dev/stdin"), "1:3");
        let _ = home.shell(kind, change).run().code(7);
        let id = home.detached(&format!("{kind} -i"), &format!("({change}); sleep 1000"));
        let _ = home.berth("exec -d").arg(&id).args(["sh", "-c", change]).ok();
        let dir = home.scratch();
        let (input, output, error) = (dir.join("input"), dir.join("output"), dir.join("error"));
        fs::write(&input, "ahoy\n").unwrap();
        for flags in ["-dt", "-dit", "", "-i"] {
            let mut command = home.berth("exec");
            command.inner.args(flags.split_whitespace()).arg(&id);
            command.inner.args(["sh", "-c", &format!("cat; echo error >&2; touch '/done{flags}'; {change}")]);
            command.inner.stdin(File::open(&input).unwrap());
            command.inner.stdout(File::create(&output).unwrap()).stderr(File::create(&error).unwrap());
            let before = [&input, &output, &error].map(|path| device(path));
            let code = command.inner.status().unwrap().code();
            let done = format!("test -e '/done{flags}' && ! pidof cat");
            wait::until("it has ended", || {
                home.berth("exec").arg(&id).args(["sh", "-c", &done]).run().exit_code() == 0
            });
            assert_eq!([&input, &output, &error].map(|path| device(path)), before, "{flags}");
            if flags.contains('d') {
                assert_eq!((code, fs::metadata(&output).unwrap().len()), (Some(0), 0), "{flags}");
                continue;
            }
            assert_eq!(code, Some(7));
            assert_eq!(fs::read_to_string(&output).unwrap(), if flags.is_empty() { "" } else { "ahoy\n" });
            assert!(fs::read_to_string(&error).unwrap().starts_with("error\n"));
        }
        let _ = home.berth("rm -f").arg(&id).ok();
    }
    let after = device(null);
    if after != before {
        // Everybody needs it.
        fs::set_permissions(null, Permissions::from_mode(before.0)).unwrap();
        chown(null, Some(before.1), Some(before.2)).unwrap();
    }
    assert_eq!(after, before);
}
