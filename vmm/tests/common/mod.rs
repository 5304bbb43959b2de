//! Freestanding guests: a few bytes of machine code in an ELF file of their own.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use serde::Serialize;

/// Where the code lies and begins.
pub const CODE: u64 = 0x10_0000;
/// Where the PVH entry point of [`elf`] is: the same code.
const NOTE_OFFSET: u64 = 0x200;
const CODE_OFFSET: u64 = 0x1000;

/// `mov dx, port; mov al, value; out dx, al`.
pub fn out8(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// `mov dx, port; in al, dx`.
pub fn in8(port: u16) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xec]
}

/// `mov ecx, count; mov dx, port; rep outsb` of whatever is in memory.
pub fn out_many(port: u16, count: u32) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    [&[0xb9][..], &count.to_le_bytes(), &[0x66, 0xba, low, high, 0xf3, 0x6e]].concat()
}

/// `mov dword [address], value`, in 32-bit code.
pub fn store32(address: u32, value: u32) -> Vec<u8> {
    [&[0xc7, 0x05][..], &address.to_le_bytes(), &value.to_le_bytes()].concat()
}

/// `mov ecx, msr; rdmsr`.
pub fn rdmsr(msr: u32) -> Vec<u8> {
    [&[0xb9][..], &msr.to_le_bytes(), &[0x0f, 0x32]].concat()
}

/// `mov rax, cr3; mov cr3, rax`.
pub const RELOAD_CR3: [u8; 6] = [0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8];
/// `hlt`.
pub const HLT: [u8; 1] = [0xf4];
/// `jmp .`
pub const SPIN: [u8; 2] = [0xeb, 0xfe];
/// `ud2`: without an interrupt table, a triple fault.
pub const UD2: [u8; 2] = [0x0f, 0x0b];

/// An ELF vmlinux with `code` at [`CODE`] and, for PVH, the note that says so.
pub fn elf(code: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    file.extend([CODE, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 2, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    let size = code.len() as u64;
    // The code, and before it in memory the notes: 4 KiB that hold both headers and notes.
    for (kind, offset, address, length) in
        [(1u32, 0, CODE - CODE_OFFSET + 0x1000, CODE_OFFSET + size), (4, NOTE_OFFSET, CODE + NOTE_OFFSET, 24)]
    {
        file.extend([kind, 7].iter().flat_map(|word| word.to_le_bytes()));
        file.extend([offset, 0, address, length, length, 0x1000].iter().flat_map(|word: &u64| word.to_le_bytes()));
    }
    // The entry is behind the headers.
    file[24..32].copy_from_slice(&(CODE + CODE_OFFSET).to_le_bytes());
    file.resize(NOTE_OFFSET as usize, 0);
    file.extend([4u32, 8, 18].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(b"Xen\0");
    file.extend((CODE + CODE_OFFSET).to_le_bytes());
    file.resize(CODE_OFFSET as usize, 0);
    file.extend(code);
    file
}

/// A file with `bytes`, without a name.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// `berth-vmm run` with `configuration`, which gets the descriptors `given` that its configuration names.
pub fn vmm(configuration: &impl Serialize, given: &[RawFd]) -> Command {
    let source = file(&serde_json::to_vec(configuration).unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-vmm"));
    command.arg("run").arg(source.as_raw_fd().to_string()).stdin(Stdio::null());
    let given = given.to_vec();
    // SAFETY: fcntl is safe between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for descriptor in given.iter().copied().chain([source.as_raw_fd()]) {
                libc::fcntl(descriptor, libc::F_SETFD, 0);
            }
            Ok(())
        })
    };
    command
}

/// Whether there is a KVM to test with; says so if not.
pub fn kvm() -> Option<kvm_ioctls::Kvm> {
    match berth_vmm::host::open().and_then(berth_vmm::host::kvm) {
        Ok(kvm) => {
            eprintln!("back end: KVM, {:?}", berth_vmm::host::Host::probe(&kvm).translation);
            Some(kvm)
        }
        Err(error) => {
            eprintln!("not tested: {error}");
            None
        }
    }
}
