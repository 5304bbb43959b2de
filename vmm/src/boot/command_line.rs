//! The kernel's command line.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Error;
use super::layout::{COMMAND_LINE, COMMAND_LINE_SIZE};

/// Options every guest gets, each because of what this machine is or has: no messages unless something is wrong; no PCI
/// bus to look for; an end at once after a panic; a reset by ACPI's register (on a hardware-reduced machine the kernel
/// would ask an EFI firmware otherwise); no tests of the kernel's cryptography, which whoever built it has tested: they are
/// half of the time to the first program.
const BASE: &str = "quiet pci=off panic=-1 reboot=a cryptomgr.notests";

/// The whole command line of a guest: the base, the console if it has one, then `additions`, which therefore win.
pub fn compose(console: bool, additions: &str) -> String {
    let mut words = vec![BASE];
    words.push(if console { "console=ttyS0 8250.nr_uarts=1" } else { "8250.nr_uarts=0" });
    if !additions.is_empty() {
        words.push(additions);
    }
    words.join(" ")
}

/// Writes `line` with its terminating zero.
pub fn write(memory: &GuestMemoryMmap, line: &str) -> Result<(), Error> {
    if line.len() >= COMMAND_LINE_SIZE {
        let length = line.len();
        return Err(Error::CommandLine(format!("is {length} bytes long, and {} are the most", COMMAND_LINE_SIZE - 1)));
    }
    if line.contains('\0') {
        return Err(Error::CommandLine("has a zero byte in it".to_owned()));
    }
    let bytes: Vec<u8> = line.bytes().chain([0]).collect();
    memory
        .write_slice(&bytes, GuestAddress(COMMAND_LINE))
        .map_err(|source| Error::Write { what: "the command line", source })
}
