//! Calls that would reach the VMM itself, or others in the guest, if it did not look at them first.

use std::arch::asm;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{PAGE, child, dies_of, in_guest, inside, write};

/// An option of `<linux/tcp.h>`, and what `si_code` says of a signal that a program or the kernel has sent.
const ZEROCOPY_RECEIVE: i32 = 35;
const SI_QUEUE: i32 = -1;
const SI_KERNEL: i32 = 0x80;
/// The lowest address that is mapped.
const LOWEST: usize = 0x1_0000;

/// The error of the last call of the C library.
fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

/// Two ends of a local stream.
fn ends() -> [i32; 2] {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()) }, 0);
    ends
}

#[test]
fn socket_options_with_pointers_are_refused() {
    in_guest("bounds::guest_socket_options_with_pointers_are_refused");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_socket_options_with_pointers_are_refused() {
    if !inside() {
        return;
    }
    let [end, _] = ends();
    // SAFETY: a plain system call.
    let stream = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
    let mut value = [0u8; 64];
    let refused = [
        (end, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
        (end, libc::SOL_SOCKET, libc::SO_ATTACH_BPF),
        (end, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF),
        (end, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF),
        (end, libc::SOL_SOCKET, libc::SO_ZEROCOPY),
        (stream, libc::SOL_TCP, ZEROCOPY_RECEIVE),
        (stream, libc::SOL_IP, 64),
    ];
    for (socket, level, name) in refused {
        let mut length = value.len() as u32;
        // SAFETY: the value is as long as said.
        unsafe {
            assert_eq!(libc::setsockopt(socket, level, name, value.as_ptr().cast(), length), -1, "{level} {name}");
            assert_eq!(errno(), libc::ENOPROTOOPT, "{level} {name}");
            assert_eq!(libc::getsockopt(socket, level, name, value.as_mut_ptr().cast(), &raw mut length), -1);
            assert_eq!(errno(), libc::ENOPROTOOPT, "{level} {name}");
        }
    }
    let plain = [
        (end, libc::SOL_SOCKET, libc::SO_KEEPALIVE),
        (stream, libc::SOL_SOCKET, libc::SO_REUSEADDR),
        (stream, libc::SOL_TCP, libc::TCP_NODELAY),
        (stream, libc::SOL_IP, libc::IP_RECVERR),
    ];
    for (socket, level, name) in plain {
        let (mut number, mut length) = (1i32, 4u32);
        // SAFETY: the number is as long as said.
        unsafe {
            assert_eq!(libc::setsockopt(socket, level, name, (&raw const number).cast(), length), 0, "{level} {name}");
            number = 0;
            assert_eq!(libc::getsockopt(socket, level, name, (&raw mut number).cast(), &raw mut length), 0);
        }
        assert_eq!((number, length), (1, 4), "{level} {name}");
    }
}

#[test]
fn gates_to_ring_0_have_no_place() {
    in_guest("bounds::guest_gates_to_ring_0_have_no_place");
}

/// Ends the process with 0 where what was raised is no page fault.
extern "C" fn says_whether_protected(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a whole structure; this ends the process.
    unsafe { libc::_exit(i32::from((*info).si_code != SI_KERNEL)) }
}

#[test]
#[ignore = "runs in a guest"]
fn guest_gates_to_ring_0_have_no_place() {
    if !inside() {
        return;
    }
    // An area that grows does so down to the lowest address there is, and not beyond.
    let at = (LOWEST + 16 * PAGE) as *mut libc::c_void;
    let (protection, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: nothing else stands so low.
    let start = unsafe { libc::mmap(at, PAGE, protection, kind | libc::MAP_FIXED | libc::MAP_GROWSDOWN, -1, 0) };
    assert_eq!(start, at);
    write(LOWEST as *mut u8, 1);
    for address in [LOWEST - 1, LOWEST - PAGE, PAGE] {
        assert!(dies_of(libc::SIGSEGV, || write(address as *mut u8, 1)), "{address:#x}");
    }
    // There is no local table of descriptors that a far call would be looked up in.
    for selector in [7u16, 15, 0xffff] {
        let ended = child(|| {
            let pointer = [0u16, 0, selector];
            // SAFETY: either the handler ends the process or the call does.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = says_whether_protected as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO;
                libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut());
                asm!("call fword ptr [{}]", in(reg) &raw const pointer);
                libc::_exit(2);
            }
        });
        assert_eq!(ended, 0, "{selector:#x}");
    }
}

#[test]
fn signals_that_are_none_are_no_childs_last() {
    in_guest("bounds::guest_signals_that_are_none_are_no_childs_last");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_signals_that_are_none_are_no_childs_last() {
    if !inside() {
        return;
    }
    // SAFETY: a child ends at once.
    let clone = |signal: u64| unsafe {
        let pid = libc::syscall(libc::SYS_clone, signal, 0, 0, 0, 0);
        if pid == 0 {
            libc::_exit(0);
        }
        pid
    };
    let clone3 = |signal: u64| {
        let request = [0, 0, 0, 0, signal, 0, 0, 0u64];
        // SAFETY: as above.
        unsafe {
            let pid = libc::syscall(libc::SYS_clone3, request.as_ptr(), size_of_val(&request));
            if pid == 0 {
                libc::_exit(0);
            }
            pid
        }
    };
    for signal in [65, 200, 255] {
        assert_eq!((clone(signal), errno()), (-1, libc::EINVAL), "{signal}");
        assert_eq!((clone3(signal), errno()), (-1, libc::EINVAL), "{signal}");
    }
    assert_eq!((clone3(256 + 17), errno()), (-1, libc::EINVAL));
    for pid in [clone(libc::SIGCHLD as u64), clone3(libc::SIGCHLD as u64), clone(0)] {
        assert!(pid > 0);
        let mut status = -1;
        // SAFETY: the status has room.
        assert_eq!(i64::from(unsafe { libc::waitpid(pid as i32, &raw mut status, libc::__WALL) }), pid);
        assert_eq!(status, 0);
    }
}

#[test]
fn others_are_out_of_reach() {
    in_guest("bounds::guest_others_are_out_of_reach");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_others_are_out_of_reach() {
    // SAFETY: a plain system call.
    if !inside() || unsafe { libc::getuid() } != 0 {
        return;
    }
    // SAFETY: plain system calls.
    let (pid, thread) = unsafe { (libc::getpid(), libc::gettid()) };
    let limit = libc::rlimit { rlim_cur: 20, rlim_max: 20 };
    let files = libc::RLIMIT_NOFILE;
    // SAFETY: the structures have room; what is sent would end the process.
    let status = child(|| unsafe {
        assert_eq!(libc::prlimit(pid, files, std::ptr::null(), std::ptr::null_mut()), 0, "root may");
        libc::syscall(libc::SYS_setresgid, 1000, 1000, 1000);
        libc::syscall(libc::SYS_setresuid, 1000, 1000, 1000);
        let refused = |done: i64| assert_eq!((done, errno()), (-1, libc::EPERM));
        refused(libc::syscall(libc::SYS_tkill, thread, libc::SIGKILL));
        refused(libc::syscall(libc::SYS_tkill, thread, 0));
        refused(libc::syscall(libc::SYS_tgkill, pid, thread, libc::SIGKILL));
        refused(libc::prlimit(pid, files, &raw const limit, std::ptr::null_mut()).into());
        refused(libc::prlimit(pid, files, std::ptr::null(), std::ptr::null_mut()).into());
        // What it is itself remains its own.
        assert_eq!(libc::syscall(libc::SYS_tkill, libc::gettid(), 0), 0);
        assert_eq!(libc::prlimit(libc::getpid(), files, &raw const limit, std::ptr::null_mut()), 0);
    });
    assert_eq!(status, 0);
}

#[test]
fn arguments_without_end_are_too_many() {
    in_guest("bounds::guest_arguments_without_end_are_too_many");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_arguments_without_end_are_too_many() {
    if !inside() {
        return;
    }
    let (text, empty) = (vec![b'x'; 100 << 10].into_iter().chain([0]).collect::<Vec<u8>>(), [0u8; 8]);
    // Those that are too many are followed by one that nobody reads.
    let mut arguments = vec![text.as_ptr(); 21];
    arguments.extend([std::ptr::without_provenance(8), std::ptr::null()]);
    let none = std::ptr::null::<*const u8>();
    for (arguments, environment) in [(arguments.as_ptr(), none), (empty.as_ptr().cast(), arguments.as_ptr())] {
        // SAFETY: the vectors end with null; the program is not executed.
        let done = unsafe { libc::syscall(libc::SYS_execve, c"/test".as_ptr(), arguments, environment) };
        assert_eq!((done, errno()), (-1, libc::E2BIG));
    }
}

/// Sends descriptors over a stream, with a byte.
fn send(to: i32, descriptors: &[i32]) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let rights = [ControlMessage::ScmRights(descriptors)];
    assert_eq!(sendmsg::<()>(to, &[std::io::IoSlice::new(b"x")], &rights, MsgFlags::empty(), None), Ok(1));
}

/// The descriptors that come with a byte, and whether there were more.
fn receive(from: i32) -> (Vec<i32>, bool) {
    let (mut byte, mut room) = ([0u8], [0u64; 32]);
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // SAFETY: the message is of zeroes but for a byte and room for control data, which the call fills with whole messages.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_control, message.msg_controllen) = (room.as_mut_ptr().cast(), size_of_val(&room));
        assert_eq!(libc::recvmsg(from, &raw mut message, 0), 1, "{}", std::io::Error::last_os_error());
        let mut numbers = Vec::new();
        let mut control = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(header) = control.as_ref() {
            assert_eq!((header.cmsg_level, header.cmsg_type), (libc::SOL_SOCKET, libc::SCM_RIGHTS));
            let bytes = header.cmsg_len - libc::CMSG_LEN(0) as usize;
            let mut these = vec![0i32; bytes / 4];
            std::ptr::copy_nonoverlapping(libc::CMSG_DATA(control), these.as_mut_ptr().cast(), bytes);
            numbers.extend(these);
            control = libc::CMSG_NXTHDR(&raw const message, control);
        }
        (numbers, message.msg_flags & libc::MSG_CTRUNC != 0)
    }
}

#[test]
fn descriptors_that_nobody_takes_are_closed() {
    in_guest("bounds::guest_descriptors_that_nobody_takes_are_closed");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_descriptors_that_nobody_takes_are_closed() {
    if !inside() {
        return;
    }
    let [from, to] = ends();
    // Who asks for ids gets the descriptors that come with them.
    let yes = 1i32;
    // SAFETY: the number is as long as said.
    unsafe {
        let (level, name) = (libc::SOL_SOCKET, libc::SO_PASSCRED);
        assert_eq!(libc::setsockopt(from, level, name, (&raw const yes).cast(), 4), 0);
    }
    send(to, &[to]);
    let (mut numbers, is_cut) = receive(from);
    assert_eq!((numbers.len(), is_cut), (1, false));
    numbers.extend([from, to]);
    // With room for `room` more.
    for room in [0, 1] {
        let mut pipe = [0; 2];
        // SAFETY: the array has room for two descriptors, which are closed once.
        unsafe {
            assert_eq!(libc::pipe2(pipe.as_mut_ptr(), libc::O_NONBLOCK), 0);
            send(to, &[to, pipe[1], pipe[1]]);
            assert_eq!(libc::close(pipe[1]), 0);
        }
        let first_free = pipe[1] as u64;
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the structures are read and filled by the calls.
        let (received, is_cut) = unsafe {
            assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut before), 0);
            let narrow = libc::rlimit { rlim_cur: first_free + room, ..before };
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const narrow), 0);
            let received = receive(from);
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const before), 0);
            received
        };
        assert_eq!((received.len() as u64, is_cut), (room, true));
        let mut byte = 0u8;
        // SAFETY: one byte fits.
        let read = unsafe { libc::read(pipe[0], (&raw mut byte).cast(), 1) };
        assert_eq!(read, 0, "nobody has the other end: {}", errno());
        numbers.extend(received.into_iter().chain([pipe[0]]));
    }
    for number in numbers {
        // SAFETY: nobody uses them any more.
        assert_eq!(unsafe { libc::close(number) }, 0);
    }
}

#[test]
fn signals_wait_in_bounds() {
    in_guest("bounds::guest_signals_wait_in_bounds");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_signals_wait_in_bounds() {
    if !inside() {
        return;
    }
    let status = child(|| {
        let signal = libc::SIGRTMIN();
        let mut info = [0u8; 128];
        info[8..12].copy_from_slice(&SI_QUEUE.to_le_bytes());
        // SAFETY: the structures are as the calls take them to be; the signal is blocked.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigaddset(&raw mut set, signal);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            let (pid, thread) = (libc::getpid(), libc::gettid());
            let queue = || libc::syscall(libc::SYS_rt_sigqueueinfo, pid, signal, info.as_ptr());
            let queued = |most: i32| (0..=most).take_while(|_| queue() == 0).count() as i32;
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            assert_eq!(libc::getrlimit(libc::RLIMIT_SIGPENDING, &raw mut limit), 0);
            limit.rlim_cur = 10;
            assert_eq!(libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const limit), 0);
            assert_eq!((queued(100), errno()), (10, libc::EAGAIN));
            assert_eq!(libc::syscall(libc::SYS_tgkill, pid, thread, signal), -1);
            assert_eq!(errno(), libc::EAGAIN);
            // These say nothing that could be lost.
            assert_eq!(libc::kill(pid, signal), 0);
            assert_eq!(libc::kill(pid, libc::SIGCHLD), 0);
            limit.rlim_cur = limit.rlim_max;
            assert_eq!(libc::setrlimit(libc::RLIMIT_SIGPENDING, &raw const limit), 0);
            // The VMM's own bound, however high the limit.
            let more = queued(10_000);
            assert!(more > 0 && more < 10_000, "{more}");
            assert_eq!(errno(), libc::EAGAIN);
            let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let taken =
                (0..).take_while(|_| libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const none) > 0);
            assert_eq!(taken.count() as i32, 10 + more);
        }
    });
    assert_eq!(status, 0);
}

#[test]
fn a_first_thread_that_ends_leaves_its_id_to_who_executes() {
    in_guest("bounds::guest_a_first_thread_that_ends_leaves_its_id_to_who_executes");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_a_first_thread_that_ends_leaves_its_id_to_who_executes() {
    if !inside() {
        return;
    }
    for round in 0..40u32 {
        let status = child(|| {
            let go = &AtomicBool::new(false);
            // Locks without end, which take the thread a while to look through when it ends.
            let mut node = [0u64; 2];
            node[0] = node.as_ptr() as u64;
            let head = [node[0], 8, 0];
            // SAFETY: what is on this stack stays there until the process has another one.
            unsafe { libc::syscall(libc::SYS_set_robust_list, head.as_ptr(), size_of_val(&head)) };
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    while !go.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                    let name = c"bounds::guest_that_is_executed_exits_with_7";
                    let arguments = [c"test", c"--exact", name, c"--ignored"].map(std::ffi::CStr::as_ptr);
                    let arguments = [&arguments[..], &[std::ptr::null()]].concat();
                    // SAFETY: the vector ends with null.
                    unsafe { libc::execv(c"/test".as_ptr(), arguments.as_ptr()) };
                });
                go.store(true, Ordering::Relaxed);
                // At another moment each time.
                for _ in 0..round * 500 {
                    std::hint::spin_loop();
                }
                // SAFETY: ends this thread, whose stack the other one does not use.
                unsafe { libc::syscall(libc::SYS_exit, 3) };
            });
        });
        assert_eq!(status, 7 << 8, "round {round}");
    }
}

#[test]
#[ignore = "runs in a guest"]
fn guest_that_is_executed_exits_with_7() {
    if inside() {
        std::process::exit(7);
    }
}

#[test]
fn threads_that_cannot_begin_cost_nothing() {
    if std::fs::File::open("/dev/kvm").is_err() {
        println!("skipped: /dev/kvm cannot be opened");
        return;
    }
    let root = crate::root();
    let test = "bounds::guest_threads_that_cannot_begin_cost_nothing";
    let mut command = crate::command(root.path(), &["/test", "--exact", test, "--ignored", "--test-threads=1"]);
    // SAFETY: what runs in between makes one system call.
    unsafe {
        use std::os::unix::process::CommandExt as _;
        let few = libc::rlimit { rlim_cur: 100, rlim_max: 100 };
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const few) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let output = command.output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{}\n{out}{error}", output.status);
}

#[test]
#[ignore = "runs in a guest"]
fn guest_threads_that_cannot_begin_cost_nothing() {
    /// More than any KVM gives a VM.
    const MANY: usize = 5000;
    extern "C" fn end(_: *mut libc::c_void) -> libc::c_int {
        0
    }
    if !inside() {
        return;
    }
    // The VMM has as few descriptors as this process may have, and some of its own.
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/test") {
        files.push(file);
    }
    // SAFETY: a child waits to be killed; what runs on the stack of its own does nothing.
    unsafe {
        let mut children = Vec::new();
        // They have the vCPUs that were made before.
        loop {
            match libc::fork() {
                0 => loop {
                    libc::pause();
                },
                -1 => break,
                pid => children.push(pid),
            }
        }
        assert_eq!(errno(), libc::EAGAIN);
        let stack = crate::page(crate::pages(4), 4).cast();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        for _ in 0..MANY {
            assert_eq!(libc::clone(end, stack, flags, std::ptr::null_mut()), -1);
        }
        drop(files);
        assert_eq!(child(|| ()), 0, "a vCPU is left");
        for pid in children {
            assert_eq!(libc::kill(pid, libc::SIGKILL), 0);
            assert_eq!(libc::waitpid(pid, std::ptr::null_mut(), 0), pid);
        }
    }
}
