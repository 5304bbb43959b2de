//! Programs that do anything at all: it happens to them alone.

use std::arch::asm;

use crate::{PAGE, child, dies_of, in_guest, inside, page, pages, protect, read, write};

#[test]
fn random_calls_only_hurt_the_caller() {
    in_guest("wild::guest_random_calls_only_hurt_the_caller");
}

/// A generator of numbers that is good enough here (xorshift).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn argument(&mut self, memory: u64) -> u64 {
        match self.next() % 6 {
            0 => self.next() % 8,
            1 => memory + self.next() % 8192,
            2 => self.next(),
            3 => self.next() & 0xffff_ffff,
            4 => u64::MAX - self.next() % 4096,
            _ => 1 << (self.next() % 64),
        }
    }
}

#[test]
#[ignore = "runs in a guest"]
fn guest_random_calls_only_hurt_the_caller() {
    if !inside() {
        return;
    }
    let memory = pages(2) as u64;
    for seed in 1..=40 {
        // A call may block for ever, or stop the child.
        let status = child(|| {
            let mut numbers = Numbers(seed * 0x9e37_79b9_7f4a_7c15);
            // SAFETY: nothing is: whatever happens, it happens to this child.
            unsafe {
                libc::alarm(2);
                for _ in 0..400 {
                    let number = numbers.next() % 470;
                    let with: [u64; 6] = std::array::from_fn(|_| numbers.argument(memory));
                    let blocks = [libc::SYS_pause, libc::SYS_alarm, libc::SYS_rt_sigsuspend, libc::SYS_setitimer];
                    let ends = [libc::SYS_exit, libc::SYS_exit_group, libc::SYS_vfork, libc::SYS_fork];
                    let clones = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_kill, libc::SYS_rt_sigaction];
                    if [blocks, ends, clones].concat().contains(&(number as i64)) {
                        continue;
                    }
                    libc::syscall(number as i64, with[0], with[1], with[2], with[3], with[4], with[5]);
                }
            }
        });
        assert!(libc::WIFEXITED(status) || libc::WIFSIGNALED(status), "seed {seed}: {status:#x}");
    }
    assert_eq!(child(|| ()), 0, "the guest goes on");
}

#[test]
fn random_instructions_only_hurt_the_caller() {
    in_guest("wild::guest_random_instructions_only_hurt_the_caller");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_random_instructions_only_hurt_the_caller() {
    if !inside() {
        return;
    }
    let code = pages(2);
    protect(code, 2, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    // Every interrupt, then port I/O, privileged instructions and jumps among noise.
    let interrupts = (0..=255u8).filter(|number| *number != 3).map(|number| vec![0xcd, number]);
    for bytes in interrupts {
        assert!(dies_of(libc::SIGSEGV, || run(code, &bytes)), "{bytes:x?}");
    }
    let privileged: [&[u8]; 12] = [
        &[0xfa],             // cli
        &[0xf4],             // hlt
        &[0xee],             // out dx, al
        &[0x6c],             // insb
        &[0x0f, 0x01, 0xd0], // xgetbv, which is allowed
        &[0x0f, 0x01, 0xc1], // vmcall
        &[0x0f, 0x22, 0xc0], // mov cr0, rax
        &[0x0f, 0x30],       // wrmsr
        &[0x0f, 0x07],       // sysretq
        &[0x48, 0xcf],       // iretq
        &[0x0f, 0x01, 0xf8], // swapgs
        &[0xff, 0xe0],       // jmp rax
    ];
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    for round in 0..120usize {
        let status = child(|| {
            let mut bytes: Vec<u8> = (0..PAGE).map(|_| numbers.next() as u8).collect();
            let with = privileged[round % privileged.len()];
            // What hangs a VM on some hosts is not for a test: `vmcall` leaves ring 3 only with hardware virtualization.
            if with != [0x0f, 0x01, 0xc1] {
                bytes[..with.len()].copy_from_slice(with);
            }
            // SAFETY: a plain system call; noise may loop for ever.
            unsafe { libc::alarm(2) };
            run(code, &bytes);
        });
        assert!(libc::WIFEXITED(status) || libc::WIFSIGNALED(status), "round {round}: {status:#x}");
        numbers.next();
    }
    assert_eq!(child(|| ()), 0, "the guest goes on");
}

/// Puts bytes where they can be executed, and jumps there.
fn run(code: *mut u8, bytes: &[u8]) {
    // SAFETY: the pages are ours; what happens then happens to the child that calls this.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), code, bytes.len());
        asm!("call {}", in(reg) code, clobber_abi("C"));
    }
}

#[test]
fn code_that_changes_itself_and_thousands_of_mappings_work() {
    in_guest("wild::guest_code_that_changes_itself_and_thousands_of_mappings_work");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_code_that_changes_itself_and_thousands_of_mappings_work() {
    if !inside() {
        return;
    }
    let code = pages(1);
    protect(code, 1, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    for number in 0..200u8 {
        // `mov eax, number; ret`.
        for (at, byte) in [0xb8, number, 0, 0, 0, 0xc3].into_iter().enumerate() {
            write(code.wrapping_add(at), byte);
        }
        // SAFETY: the page holds that function.
        let function: extern "C" fn() -> i32 = unsafe { std::mem::transmute(code) };
        assert_eq!(function(), i32::from(number));
    }
    let many = pages(8000);
    for at in (0..8000).step_by(2) {
        write(page(many, at), 7);
        protect(page(many, at), 1, libc::PROT_READ);
    }
    for at in (0..8000).step_by(500) {
        assert_eq!(read(page(many, at)), 7);
        assert!(dies_of(libc::SIGSEGV, || write(page(many, at), 1)));
        write(page(many, at + 1), 1);
    }
    // SAFETY: the mappings are ours, and nothing refers to them.
    assert_eq!(unsafe { libc::munmap(many.cast(), 8000 * PAGE) }, 0);
}
