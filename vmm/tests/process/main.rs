//! The process guest, with this very test binary as the guest's program: it is static, threaded, and knows what it
//! expects. A test named `guest_…` runs inside; the test without the prefix starts it there.

mod bad_input;
mod bounds;
mod clock;
mod hardware;
mod wild;

use std::arch::asm;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

const PAGE: usize = 4096;

/// Runs a command in a guest whose root holds this binary as `/test`, and busybox where the machine has it.
fn guest(root: &Path, command: &[&str]) -> Output {
    self::command(root, command).output().expect("berth-vmm starts")
}

/// What runs a command in such a guest.
fn command(root: &Path, command: &[&str]) -> Command {
    let mut vmm = Command::new(env!("CARGO_BIN_EXE_berth-vmm"));
    // A pipe, not the host's `/dev/null`: what a wild program does to its streams it may do to nothing else.
    vmm.arg("process").arg(root).args(command).stdin(Stdio::piped());
    vmm
}

fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::copy(std::env::current_exe().unwrap(), root.path().join("test")).unwrap();
    for directory in ["tmp", "bin"] {
        std::fs::create_dir(root.path().join(directory)).unwrap();
    }
    let _ = std::fs::copy("/bin/busybox", root.path().join("bin/busybox"));
    root
}

/// Runs a test of this file in a guest. Without `/dev/kvm` there is nothing to test.
fn in_guest(test: &str) {
    if std::fs::File::open("/dev/kvm").is_err() {
        println!("skipped: /dev/kvm cannot be opened");
        return;
    }
    let root = root();
    let output = guest(root.path(), &["/test", "--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{}\n{out}{error}", output.status);
}

/// Whether this runs in a guest: what the tests do there they must never do to a host.
fn inside() -> bool {
    let version = nix::sys::utsname::uname().unwrap().version().to_string_lossy().into_owned();
    let inside = version.ends_with("berth");
    if !inside {
        println!("skipped: this part of a test runs in a guest");
    }
    inside
}

/// Whether the processor is QEMU's emulation of one, by its name (Intel SDM volume 2, CPUID).
fn is_emulated() -> bool {
    let leaves = [0x8000_0002, 0x8000_0003, 0x8000_0004].map(core::arch::x86_64::__cpuid);
    let words = leaves.iter().flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
    let name: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    String::from_utf8_lossy(&name).contains("QEMU TCG")
}

/// What a child exits with whose `action` has panicked.
const PANICKED: i32 = 101;

/// Runs `action` in a child and gives the status it ends with.
fn child(action: impl FnOnce()) -> i32 {
    // SAFETY: the child runs nothing but the action and ends; this process has no other thread that holds a lock it needs.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            for signal in [libc::SIGSEGV, libc::SIGBUS] {
                libc::signal(signal, libc::SIG_DFL);
            }
            // Nobody here hears of a thread that has panicked: the status is to say so.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(action));
            libc::_exit(if done.is_ok() { 0 } else { PANICKED });
        }
        let mut status = -1;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        status
    }
}

/// Whether `action` kills a process by `signal`.
fn dies_of(signal: i32, action: impl FnOnce()) -> bool {
    let status = child(action);
    libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == signal
}

/// Private memory of zeroes.
fn pages(count: usize) -> *mut u8 {
    mapping(count, libc::MAP_PRIVATE)
}

fn mapping(count: usize, sharing: i32) -> *mut u8 {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping touches nothing that exists.
    let start =
        unsafe { libc::mmap(std::ptr::null_mut(), count * PAGE, protection, sharing | libc::MAP_ANONYMOUS, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED);
    start.cast()
}

fn protect(start: *mut u8, count: usize, protection: i32) {
    // SAFETY: the range is one of `pages`, no reference into it exists.
    assert_eq!(unsafe { libc::mprotect(start.cast(), count * PAGE, protection) }, 0);
}

fn read(at: *mut u8) -> u8 {
    // SAFETY: the address is in a range of `pages`; where it is not mapped the process is meant to die.
    unsafe { at.read_volatile() }
}

fn write(at: *mut u8, value: u8) {
    // SAFETY: as for `read`.
    unsafe { at.write_volatile(value) }
}

fn jump(to: *mut u8) {
    // SAFETY: there is a `ret`, or the process is meant to die.
    unsafe { std::mem::transmute::<*mut u8, extern "C" fn()>(to)() }
}

fn page(start: *mut u8, index: usize) -> *mut u8 {
    start.wrapping_add(index * PAGE)
}

#[test]
fn what_is_taken_away_is_gone() {
    in_guest("guest_what_is_taken_away_is_gone");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_what_is_taken_away_is_gone() {
    if !inside() {
        return;
    }
    let start = pages(16);
    (0..16).for_each(|at| write(page(start, at), 7));
    protect(start, 16, libc::PROT_READ);
    assert!(dies_of(libc::SIGSEGV, || write(page(start, 15), 1)));
    assert_eq!(read(start), 7);
    protect(start, 16, libc::PROT_NONE);
    assert!(dies_of(libc::SIGSEGV, || assert_ne!(read(start), 255)));
    protect(start, 16, libc::PROT_READ | libc::PROT_WRITE);
    assert_eq!(read(page(start, 3)), 7);
    // `ret`, to be executed only where that is allowed.
    write(start, 0xc3);
    assert!(dies_of(libc::SIGSEGV, || jump(start)));
    protect(start, 1, libc::PROT_READ | libc::PROT_EXEC);
    jump(start);
    assert!(dies_of(libc::SIGSEGV, || write(start, 0xc3)));
    protect(start, 1, libc::PROT_READ);
    assert!(dies_of(libc::SIGSEGV, || jump(start)));
    // SAFETY: the pages are ours, and nothing refers to them.
    unsafe {
        assert_eq!(libc::munmap(page(start, 1).cast(), PAGE), 0);
        assert!(dies_of(libc::SIGSEGV, || assert_ne!(read(page(start, 1)), 255)));
        assert_eq!(libc::madvise(page(start, 2).cast(), PAGE, libc::MADV_DONTNEED), 0);
        assert_eq!(read(page(start, 2)), 0);
        let moved = libc::mremap(page(start, 4).cast(), 4 * PAGE, 64 * PAGE, libc::MREMAP_MAYMOVE).cast::<u8>();
        assert_eq!((read(moved), read(page(moved, 3)), read(page(moved, 4))), (7, 7, 0));
        assert!(moved == page(start, 4) || dies_of(libc::SIGSEGV, || assert_ne!(read(page(start, 4)), 255)));
        // What is moved right behind where it was is all that is left.
        let (old, new) = (pages(64), libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
        (0..64).for_each(|at| write(page(old, at), at as u8));
        assert_eq!(libc::mremap(old.cast(), 4 * PAGE, 60 * PAGE, new, page(old, 4)), page(old, 4).cast());
        assert_eq!([4, 7, 8, 63].map(|at| read(page(old, at))), [0, 3, 0, 0]);
        assert!((0..4).all(|at| dies_of(libc::SIGSEGV, || assert_ne!(read(page(old, at)), 255))));
    }
    // A thread that is writing loses the page too.
    let spinning = dies_of(libc::SIGSEGV, || {
        let shared = pages(1) as usize;
        std::thread::spawn(move || {
            loop {
                write(shared as *mut u8, 1);
            }
        });
        while read(shared as *mut u8) == 0 {
            std::hint::spin_loop();
        }
        // SAFETY: the page is ours; the thread that uses it is meant to die.
        unsafe { libc::munmap(shared as *mut libc::c_void, PAGE) };
        std::thread::park();
    });
    assert!(spinning);
}

#[test]
fn fork_separates_memory() {
    in_guest("guest_fork_separates_memory");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_fork_separates_memory() {
    if !inside() {
        return;
    }
    let private = pages(8);
    let shared = mapping(1, libc::MAP_SHARED);
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    let wait = || {
        let mut byte = 0u8;
        // SAFETY: one byte fits.
        assert_eq!(unsafe { libc::read(ends[0], (&raw mut byte).cast(), 1) }, 1);
    };
    for round in 0..10 {
        write(private, 1);
        // SAFETY: the child uses nothing but memory, the pipe and `_exit`.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let before = read(private);
            wait();
            let unseen = read(private) == 1 && before == 1;
            write(private, 2);
            write(page(private, 1), 2);
            write(shared, round + 1);
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!(unseen && read(private) == 2))) };
        }
        // The host writes into the page that both have; this process has read it through the old mapping.
        assert_eq!(read(private), 1);
        std::fs::write("/tmp/three", [3]).unwrap();
        let file = std::fs::File::open("/tmp/three").unwrap();
        // SAFETY: the page is ours.
        let into = unsafe { std::slice::from_raw_parts_mut(private, 1) };
        assert_eq!(std::io::Read::read(&mut &file, into).unwrap(), 1);
        assert_eq!(read(private), 3);
        // SAFETY: one byte; and the status has room.
        unsafe {
            assert_eq!(libc::write(ends[1], [0u8].as_ptr().cast(), 1), 1);
            let mut status = -1;
            assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
            assert_eq!(status, 0, "round {round}");
        }
        assert_eq!((read(private), read(page(private, 1)), read(shared)), (3, 0, round + 1));
    }
}

/// Recurses until the stack ends.
fn deep(count: u64) -> u64 {
    std::hint::black_box([count; 64])[0] + if count == 0 { 0 } else { deep(count + 1) }
}

#[test]
fn faults_become_signals() {
    in_guest("guest_faults_become_signals");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_faults_become_signals() {
    if !inside() {
        return;
    }
    // SAFETY: each of these ends the child that executes it.
    unsafe {
        assert!(dies_of(libc::SIGILL, || asm!("ud2")));
        assert!(dies_of(libc::SIGTRAP, || asm!("int3")));
        assert!(dies_of(libc::SIGSEGV, || asm!("hlt")));
        assert!(dies_of(libc::SIGSEGV, || asm!("int 0x80")));
        assert!(dies_of(libc::SIGSEGV, || asm!("mov cr3, {}", in(reg) 0u64)));
        assert!(dies_of(libc::SIGSEGV, || asm!("out 0x80, al")));
        assert!(dies_of(libc::SIGSEGV, || asm!("in al, 0x60", out("al") _)));
        assert!(dies_of(libc::SIGSEGV, || asm!("wrmsr", in("ecx") 0xc000_0080u32, in("eax") 0, in("edx") 0)));
        let divide = || asm!("xor edx, edx", "div {0:e}", in(reg) 0, inout("eax") 1 => _, out("edx") _);
        assert!(dies_of(libc::SIGFPE, divide));
        // Divisions by zero that are not masked.
        let (x87, vector) = (0x37bu16, 0x1d80u32);
        let divide = || asm!("fldcw [{}]", "fld1", "fldz", "fdivp", "fwait", in(reg) &raw const x87);
        assert!(dies_of(libc::SIGFPE, divide));
        let divide = || asm!("ldmxcsr [{}]", "divsd {}, {}", in(reg) &raw const vector, inout(xmm_reg) 1.0f64 => _, in(xmm_reg) 0.0f64);
        if is_emulated() {
            println!("skipped: QEMU's own processor raises no exception of vector arithmetic");
        } else {
            assert!(dies_of(libc::SIGFPE, divide));
        }
    }
    for address in [0usize, 8, 0x7fff_ff00_0000, 0x7fff_ff00_1000, 1 << 47, usize::MAX, 0xffff_8000_0000_0000] {
        assert!(dies_of(libc::SIGSEGV, || write(address as *mut u8, 1)), "{address:#x}");
    }
    assert!(dies_of(libc::SIGSEGV, || assert_ne!(deep(1), 0)));
    assert_eq!(child(|| ()), 0, "the guest goes on");
}

#[test]
fn threads_and_signals_work() {
    in_guest("guest_threads_and_signals_work");
}

static CALLS: AtomicI32 = AtomicI32::new(0);

extern "C" fn count(_: i32) {
    // Uses vector registers, which belong to what was interrupted.
    let numbers = std::hint::black_box([1.5f64; 8]);
    CALLS.fetch_add((numbers.iter().sum::<f64>() / 12.0) as i32, Ordering::SeqCst);
}

fn handle(signal: i32, flags: i32) {
    // SAFETY: the handler does nothing that is not allowed in one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
    }
}

#[test]
#[ignore = "runs in a guest"]
fn guest_threads_and_signals_work() {
    if !inside() {
        return;
    }
    let total = Arc::new(Mutex::new(0));
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let (total, sender) = (total.clone(), sender.clone());
            std::thread::spawn(move || {
                for _ in 0..1000 {
                    *total.lock().unwrap() += 1;
                }
                sender.send(number).unwrap();
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    drop(sender);
    assert_eq!((*total.lock().unwrap(), receiver.iter().sum::<i32>()), (8000, 28));

    // A computation in vector registers, interrupted again and again.
    handle(libc::SIGUSR1, libc::SA_RESTART);
    // SAFETY: plain system calls.
    let (pid, main) = unsafe { (libc::getpid(), libc::gettid()) };
    let sums = Arc::new(AtomicU64::new(0));
    let interrupter = std::thread::spawn(move || {
        for _ in 0..50 {
            // SAFETY: a plain system call.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, main, libc::SIGUSR1) };
            std::thread::yield_now();
        }
    });
    while !interrupter.is_finished() {
        let sum: f64 = std::hint::black_box((0..1000).map(f64::from).collect::<Vec<_>>()).iter().sum();
        assert_eq!(sum.to_bits(), 499_500f64.to_bits());
        sums.fetch_add(1, Ordering::Relaxed);
    }
    assert!(CALLS.load(Ordering::SeqCst) > 0);

    // Copies of much memory hold it in vector registers while they fault, whole ones and halves.
    let from: Vec<u8> = (0..3 << 20).map(|at: u32| (at % 251) as u8).collect();
    let every = libc::timeval { tv_sec: 0, tv_usec: 3000 };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    handle(libc::SIGALRM, libc::SA_RESTART);
    // SAFETY: the structure is read by the call.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    for round in 0..20 {
        let to = pages(from.len() / PAGE);
        // SAFETY: the mapping is fresh and as long as what is copied; nothing refers to it at the end.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len());
            assert!(std::slice::from_raw_parts(to, from.len()) == from, "round {round}");
            libc::munmap(to.cast(), from.len());
        }
    }
    let none = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: 0 },
    };
    // SAFETY: as above.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const none, std::ptr::null_mut()) };

    // A read that a signal interrupts ends, or begins again, as the handler asks.
    for (flags, again) in [(0, false), (libc::SA_RESTART, true)] {
        handle(libc::SIGUSR2, flags);
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let (tell, told) = mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            // The first ones may come before the read. The pipe is kept open: an end of file would end the read too.
            for round in 0.. {
                // SAFETY: a plain system call.
                unsafe { libc::syscall(libc::SYS_tgkill, pid, main, libc::SIGUSR2) };
                if round == 20 && again {
                    std::io::Write::write_all(&mut writer, b"x").unwrap();
                }
                if told.recv_timeout(Duration::from_millis(5)) == Err(mpsc::RecvTimeoutError::Disconnected) {
                    break;
                }
            }
        });
        let mut byte = [0];
        let done = std::io::Read::read(&mut reader, &mut byte);
        drop(tell);
        match (again, done) {
            (true, Ok(1)) => assert_eq!(byte, *b"x"),
            (false, Err(error)) => assert_eq!(error.kind(), std::io::ErrorKind::Interrupted),
            (_, done) => panic!("{done:?}"),
        }
        other.join().unwrap();
    }
}

#[test]
fn shell_scripts_run() {
    let root = root();
    if !root.path().join("bin/busybox").exists() || std::fs::File::open("/dev/kvm").is_err() {
        println!("skipped: busybox or /dev/kvm is missing");
        return;
    }
    let run = |script: &str| {
        let output = guest(root.path(), &["/bin/busybox", "sh", "-c", script]);
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code().unwrap())
    };
    let busybox = "alias b=/bin/busybox; PATH=/bin; for a in cat wc sort head sleep; do /bin/busybox ln -sf busybox /bin/$a; done; ";
    assert_eq!(run("echo a | cat; exit 3"), ("a\n".into(), 3));
    let script = format!(
        "{busybox} for i in 3 1 2; do echo $i; done | sort | while read x; do echo \"<$x>\"; done; (exit 7); echo $?"
    );
    assert_eq!(run(&script), ("<1>\n<2>\n<3>\n7\n".into(), 0));
    let script = format!(
        "{busybox} sleep 0.05 & wait $!; echo $?; trap 'echo usr1' USR1; kill -USR1 $$; cat <<E\nhere\nE\ncd /tmp; echo x > f; cat < f; pwd"
    );
    assert_eq!(run(&script), ("0\nusr1\nhere\nx\n/tmp\n".into(), 0));
    assert_eq!(run("(kill -9 $(/bin/busybox sh -c 'echo $PPID')); echo $?").1, 0);
    assert_eq!(guest(root.path(), &["nothing"]).status.code(), Some(127));
    std::fs::write(root.path().join("bin/broken"), "\x7fELFnot").unwrap();
    std::fs::set_permissions(root.path().join("bin/broken"), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(guest(root.path(), &["/bin/broken"]).status.code(), Some(126));
}

#[test]
fn signals_to_the_vmm_reach_the_first_process() {
    let root = root();
    if !root.path().join("bin/busybox").exists() || std::fs::File::open("/dev/kvm").is_err() {
        println!("skipped: busybox or /dev/kvm is missing");
        return;
    }
    let script = "trap 'echo got it; exit 5' TERM; echo ready; while :; do /bin/busybox sleep 0.1; done";
    let mut vmm = Command::new(env!("CARGO_BIN_EXE_berth-vmm"))
        .arg("process")
        .arg(root.path())
        .args(["/bin/busybox", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(vmm.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    // SAFETY: a plain system call; the child has not been waited for.
    assert_eq!(unsafe { libc::kill(vmm.id().cast_signed(), libc::SIGTERM) }, 0);
    assert_eq!(lines.next().unwrap().unwrap(), "got it");
    assert_eq!(vmm.wait().unwrap().code(), Some(5));
}

#[test]
fn nothing_outside_the_root_is_reached() {
    let root = root();
    if !root.path().join("bin/busybox").exists() || std::fs::File::open("/dev/kvm").is_err() {
        println!("skipped: busybox or /dev/kvm is missing");
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), root.path().join("link")).unwrap();
    let secret = outside.path().join("secret");
    let up = format!("{}{}", "../".repeat(20), secret.strip_prefix("/").unwrap().display());
    for path in ["/link".to_string(), secret.display().to_string(), up, format!("/tmp/../..{}", secret.display())] {
        let output = guest(root.path(), &["/bin/busybox", "cat", &path]);
        assert_eq!((output.stdout.as_slice(), output.status.code()), (&b""[..], Some(1)), "{path}");
    }
}
