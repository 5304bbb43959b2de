//! Calls that would reach the VMM itself, or others in the guest, if it did not look at them first.

use std::arch::asm;

use crate::{PAGE, child, dies_of, in_guest, inside, write};

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
    const ZEROCOPY_RECEIVE: i32 = 35;
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
    const SI_KERNEL: i32 = 0x80;
    // SAFETY: the kernel gives a whole structure; this ends the process.
    unsafe { libc::_exit(i32::from((*info).si_code != SI_KERNEL)) }
}

#[test]
#[ignore = "runs in a guest"]
fn guest_gates_to_ring_0_have_no_place() {
    if !inside() {
        return;
    }
    const LOWEST: usize = 0x1_0000;
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
