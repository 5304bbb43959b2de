//! System calls with any arguments, decoded and served as a guest's are: with the VMM's own walls round the thread that serves
//! them, which end the process where a server makes a call of the host that it has no business with.
//!
//! What a call could do to the machine it runs on is held by those walls, by a network namespace without a network, and by a root
//! directory in memory that is empty but for a few files.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, setrlimit};
use rustix::fs::{Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

use super::dispatch;
use super::futex::Futexes;
use super::limits::Limits;
use crate::host as kvm;
use crate::process::confine::confine;
use crate::process::files::{Authority, Descriptors, OpenFile, Root};
use crate::process::memory::area::{Protection, Source};
use crate::process::memory::window::MappedFiles;
use crate::process::memory::{Memory, Place as At};
use crate::process::task::alarm::Alarms;
use crate::process::task::gate::{self, Event, Flag};
use crate::process::task::table::{Handle, Table};
use crate::process::task::{Kernel, Place};
use crate::process::vm::{Vm, lock};

/// Calls of one input at most.
const MOST_CALLS: usize = 48;
/// Bytes of memory a process has, and of the largest file it may write.
const MEMORY: u64 = 32 << 20;
const LARGEST_FILE: u64 = 1 << 20;
/// Where the process has two pages that hold what its arguments point to.
const PAGES: u64 = 0x10_0000;
const PAGES_LENGTH: u64 = 8192;
/// How long a call may wait before it is interrupted, as a signal would.
const PATIENCE: Duration = Duration::from_millis(1);
/// By when an input must be through.
const DEADLINE: Duration = Duration::from_mins(1);

/// What stands in the pages at first, for arguments to point to: paths, and whatever zeroes are taken for.
const TEXTS: [&[u8]; 8] =
    [b"/file\0", b"directory\0", b"/proc/self/stat\0", b"/dev/tty\0", b"..\0", b"new\0", b"/link\0", b"user.name\0"];

/// Serves the calls in `data`; the fuzz target's body.
///
/// # Panics
/// Where a server does, where a call does not end, or where there is no guest to make them in.
pub fn fuzz(data: &[u8]) {
    static WORKER: OnceLock<Mutex<Worker>> = OnceLock::new();
    let worker = lock(WORKER.get_or_init(|| Mutex::new(Worker::start())));
    worker.inputs.send(data.to_vec()).expect("the thread that serves calls lives");
    worker.done.recv_timeout(DEADLINE).expect("each call ends, and none panics");
}

/// The thread that serves the calls: its walls cannot be taken down again.
struct Worker {
    inputs: SyncSender<Vec<u8>>,
    done: Receiver<()>,
}

impl Worker {
    fn start() -> Self {
        let (inputs, received) = sync_channel::<Vec<u8>>(0);
        let (tell, done) = sync_channel(0);
        std::thread::spawn(move || {
            let kernel = machine();
            let busy = Arc::new(AtomicBool::new(false));
            interrupt(kernel.clone(), busy.clone());
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_FS).expect("root may have a network of its own");
            confine().expect("walls stand");
            while let Ok(data) = received.recv() {
                serve(&kernel, &data, &busy);
                if tell.send(()).is_err() {
                    break;
                }
            }
        });
        Self { inputs, done }
    }
}

/// A guest without processes.
fn machine() -> Arc<Kernel> {
    let root = files().expect("root may make a file system in memory");
    let vm = Vm::new(&kvm::kvm(kvm::open().expect("/dev/kvm can be opened")).expect("/dev/kvm is KVM"), MEMORY);
    // After the guest's memory, which is a large file with nothing in it.
    setrlimit(Resource::RLIMIT_FSIZE, LARGEST_FILE, LARGEST_FILE).expect("less is allowed");
    for signal in [libc::SIGXFSZ, libc::SIGPIPE] {
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    gate::install();
    let kernel = Kernel {
        vm: Arc::new(vm.expect("a VM can be made")),
        mapped: MappedFiles::default(),
        root: Root::new(root, Authority::alone().expect("this process is somebody")),
        devices: Vec::new(),
        own: None,
        // One: what begins a thread is decoded, and refused.
        table: Mutex::new(Table::new(1)),
        changed: Event::default(),
        alarms: Alarms::default(),
        futexes: Futexes::default(),
        host_name: b"fuzz".to_vec().into(),
        limits: Limits::own(),
        oom: None,
        started: Instant::now(),
        trace: false,
    };
    Arc::new(kernel)
}

/// A file system in memory that is mounted nowhere, and goes with its descriptor.
fn files() -> rustix::io::Result<OwnedFd> {
    let new = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(new.as_fd(), "size", "8m")?;
    fsconfig_create(new.as_fd())?;
    let root = fsmount(new.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    mkdirat(&root, "directory", Mode::from_raw_mode(0o755))?;
    let file = openat(&root, "file", OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o755))?;
    rustix::io::write(&file, &[b'x'; 5000])?;
    symlinkat("directory/../file", &root, "link")?;
    Ok(root)
}

/// Kills whoever waits in a call, again and again.
fn interrupt(kernel: Arc<Kernel>, busy: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(PATIENCE);
            if busy.load(Ordering::Relaxed) {
                let mut table = lock(&kernel.table);
                let Some(&pid) = table.processes.keys().next() else { continue };
                table.pass_on(pid, libc::SIGKILL);
                if let Ok(process) = table.process(pid) {
                    process.interrupt_all();
                }
            }
        }
    });
}

/// A process that makes the calls in `data`, and ends.
fn serve(kernel: &Arc<Kernel>, data: &[u8], busy: &AtomicBool) {
    let mut memory = Memory::new(kernel.vm.clone()).expect("room for tables");
    let protection = Protection { read: true, write: true, execute: false };
    memory.mmap(At::Fixed(PAGES), PAGES_LENGTH, protection, Source::Anonymous, false).expect("it is free");
    for (at, text) in (PAGES..).step_by(64).zip(TEXTS) {
        memory.write(at, text).expect("it is mapped");
    }
    let who = Arc::new(kernel.root.authority.own().clone());
    let top = kernel.root.top().expect("descriptors are left");
    let mut descriptors = Descriptors::new(64);
    for (number, file) in (0..).zip([memory_file(), file(kernel), Some(top.clone())]) {
        if let Some(file) = file {
            descriptors.set(number, file, false).expect("the number is low");
        }
    }
    let place = Place { directory: top, umask: 0o022 };
    let said = (b"/file".to_vec(), vec![b"file".to_vec()], 0);
    let (pid, make) = kernel.admit(memory, said, descriptors, place, who).expect("nobody else is there");
    let mut vcpu = kernel.vm.vcpu().expect("a vCPU");
    // SAFETY: a plain system call without arguments.
    let host_thread = unsafe { libc::gettid() };
    let handle = Arc::new(Handle { flag: Flag::default(), kick: vcpu.kick(), host_thread });
    if let Some(thread) = lock(&kernel.table).process(pid).expect("it was made").threads.get_mut(&pid) {
        thread.handle = Some(handle.clone());
    }
    let mut task = make(handle.clone(), vcpu);
    let mut numbers = Numbers(data);
    for _ in 0..MOST_CALLS {
        let Some(first) = numbers.byte() else { break };
        let number = u64::from(first) | u64::from(numbers.byte().unwrap_or(0) & 1) << 8;
        if number >= 480 {
            let at = PAGES + number % 32 * 8 + u64::from(numbers.byte().unwrap_or(0)) * 16;
            let _ = lock(&task.memory).write(at, &numbers.argument().to_le_bytes());
            continue;
        }
        let arguments = std::array::from_fn(|_| numbers.argument());
        handle.flag.take();
        task.vcpu.registers().rsp = PAGES + PAGES_LENGTH / 2;
        busy.store(true, Ordering::Relaxed);
        let _ = dispatch(&mut task, number, arguments);
        busy.store(false, Ordering::Relaxed);
        // It was not killed after all.
        if let Ok(process) = lock(&kernel.table).process(pid) {
            process.pending.clear();
            process.threads.values_mut().for_each(|thread| thread.pending.clear());
        }
    }
    kernel.alarms.forget(pid, true);
    kernel.vm.put_vcpu(task.give_up());
    let mut table = lock(&kernel.table);
    table.processes.clear();
    table.sessions.clear();
}

/// An open file of nothing, in memory.
fn memory_file() -> Option<Arc<OpenFile>> {
    let fd: OwnedFd = memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).ok()?;
    Some(OpenFile::new(fd, "/memory"))
}

fn file(kernel: &Kernel) -> Option<Arc<OpenFile>> {
    let (top, who) = (kernel.root.top().ok()?, kernel.root.authority.own());
    kernel.root.open(who, &top, b"/file", OFlag::O_RDWR, nix::sys::stat::Mode::empty()).ok().map(Arc::new)
}

/// Arguments out of bytes.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A number of the kinds that calls take: small ones, descriptors and flags; addresses of the pages; and any.
    fn argument(&mut self) -> u64 {
        let kind = self.byte().unwrap_or(0);
        let mut more = || u64::from(self.byte().unwrap_or(0));
        match kind % 8 {
            0 | 1 => more() % 8,
            2 => PAGES + more() % 32 * 64,
            3 => PAGES + more() * 32 + more() % 32,
            4 => 1 << (more() % 64),
            5 => more() | more() << 8 | more() << 16 | more() << 24,
            6 => u64::MAX - more(),
            _ => (0..8).fold(0, |number, _| number << 8 | more()),
        }
    }
}

#[cfg(test)]
mod function {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn random_arguments_are_served_or_refused() {
        if kvm::open().is_err() || !nix::unistd::geteuid().is_root() {
            eprintln!("NOT TESTED, needs /dev/kvm and root: system calls with random arguments");
            return;
        }
        // The walls, and what stands behind them, are for a whole process.
        let tests = "process::syscalls::tests::function::served_behind_walls";
        let itself = std::env::current_exe().unwrap();
        let output = Command::new(itself).args([tests, "--ignored", "--nocapture"]).output().unwrap();
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && out.contains("2 passed"), "{}\n{out}{error}", output.status);
    }

    #[test]
    #[ignore = "runs in a process of its own"]
    fn served_behind_walls_each() {
        for number in 0..480u16 {
            let [low, high] = number.to_le_bytes();
            for kind in 0..8 {
                let arguments = [kind, 1].repeat(6);
                fuzz(&[&[low, high][..], &arguments].concat());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        #[ignore = "runs in a process of its own"]
        fn served_behind_walls_any(data in prop::collection::vec(any::<u8>(), 0..1500)) {
            fuzz(&data);
        }
    }
}
