//! The first stack: arguments, environment and the auxiliary vector (System V ABI, AMD64 supplement, section 3.4.1).

use nix::errno::Errno;

use crate::paging::entry::PAGE_SIZE;
use crate::process::Result;
use crate::process::files::Credentials;
use crate::process::memory::area::{Protection, Source};
use crate::process::memory::{Memory, Place};
use crate::process::task::signal;
use crate::process::vm::layout;

/// Bytes of stack that are mapped at first; it grows from there.
const FIRST_BYTES: u64 = 132 << 10;
/// Most bytes of arguments and environment, a quarter of the usual stack limit as on Linux.
pub const MOST_BYTES: usize = 2 << 20;

const AT_PHDR: u64 = 3;
const AT_PHENT: u64 = 4;
const AT_PHNUM: u64 = 5;
const AT_PAGESZ: u64 = 6;
const AT_BASE: u64 = 7;
const AT_FLAGS: u64 = 8;
const AT_ENTRY: u64 = 9;
const AT_UID: u64 = 11;
const AT_EUID: u64 = 12;
const AT_GID: u64 = 13;
const AT_EGID: u64 = 14;
const AT_PLATFORM: u64 = 15;
const AT_HWCAP: u64 = 16;
const AT_CLKTCK: u64 = 17;
const AT_SECURE: u64 = 23;
const AT_RANDOM: u64 = 25;
const AT_EXECFN: u64 = 31;
const AT_SYSINFO_EHDR: u64 = 33;
const AT_MINSIGSTKSZ: u64 = 51;

/// What the auxiliary vector says of a program.
#[derive(Debug)]
pub struct Program<'a> {
    /// The program's own entry.
    pub entry: u64,
    /// Where its interpreter was loaded; 0 without one.
    pub interpreter: u64,
    /// Where its program headers stand.
    pub headers: u64,
    /// How many there are.
    pub header_count: u16,
    /// The path it was executed by.
    pub path: &'a [u8],
}

/// The bytes of the stack that an argument or a string of the environment takes, its end and its address included.
pub fn bytes_of(text: &[u8]) -> usize {
    text.len() + 9
}

/// Maps the stack, fills it and gives the stack pointer to begin with.
pub fn build(
    memory: &mut Memory,
    program: &Program,
    arguments: &[Vec<u8>],
    environment: &[Vec<u8>],
    who: &Credentials,
) -> Result {
    let strings: usize = arguments.iter().chain(environment).map(|text| bytes_of(text)).sum();
    if strings > MOST_BYTES {
        return Err(Errno::E2BIG);
    }
    let size = FIRST_BYTES + (strings as u64).next_multiple_of(PAGE_SIZE);
    let protection = Protection { read: true, write: true, execute: false };
    memory.mmap(Place::Fixed(layout::STACK_END - size), size, protection, Source::Anonymous, true)?;

    // Strings and the random bytes stand at the end, the vectors below them.
    let mut bytes = Vec::new();
    let mut offsets = |text: &[u8]| {
        let at = bytes.len() as u64;
        bytes.extend_from_slice(text);
        bytes.push(0);
        at
    };
    let mut random = [0; 16];
    getrandom(&mut random)?;
    let random_at = offsets(&random);
    let platform_at = offsets(b"x86_64");
    let path_at = offsets(program.path);
    let arguments: Vec<u64> = arguments.iter().map(|text| offsets(text)).collect();
    let environment: Vec<u64> = environment.iter().map(|text| offsets(text)).collect();
    let base = (layout::STACK_END - 8 - bytes.len() as u64) & !15;
    memory.write(base, &bytes)?;

    let auxiliary = [
        (AT_PHDR, program.headers),
        (AT_PHENT, 56),
        (AT_PHNUM, u64::from(program.header_count)),
        (AT_PAGESZ, PAGE_SIZE),
        (AT_BASE, program.interpreter),
        (AT_FLAGS, 0),
        (AT_ENTRY, program.entry),
        (AT_UID, who.user.real.into()),
        (AT_EUID, who.user.effective.into()),
        (AT_GID, who.group.real.into()),
        (AT_EGID, who.group.effective.into()),
        (AT_SECURE, 0),
        (AT_CLKTCK, 100),
        (AT_HWCAP, u64::from(core::arch::x86_64::__cpuid(1).edx)),
        (AT_PLATFORM, base + platform_at),
        (AT_RANDOM, base + random_at),
        (AT_EXECFN, base + path_at),
        (AT_MINSIGSTKSZ, signal::most_frame_bytes()),
        (AT_SYSINFO_EHDR, layout::VDSO),
        (0, 0),
    ];
    let mut words = vec![arguments.len() as u64];
    words.extend(arguments.iter().map(|at| base + at));
    words.push(0);
    words.extend(environment.iter().map(|at| base + at));
    words.push(0);
    words.extend(auxiliary.iter().flat_map(|&(key, value)| [key, value]));
    let pointer = (base - words.len() as u64 * 8) & !15;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write(pointer, &bytes)?;
    Ok(pointer)
}

/// Fills a buffer with random bytes.
fn getrandom(buffer: &mut [u8]) -> Result<()> {
    // SAFETY: the buffer is as long as said.
    Errno::result(unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) }).map(|_| ())
}
