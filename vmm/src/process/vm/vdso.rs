//! The shared object that every program finds in its memory (vdso(7)): an ELF image of one page with the functions the C
//! library looks for, which tell the time from the page of [`super::clock`].

use std::mem::offset_of;

use super::clock::{CLOCKS, Page};
use super::layout;
use crate::paging::entry::PAGE_SIZE;

core::arch::global_asm!(
    ".pushsection .rodata.berth_vdso,\"a\",@progbits",
    "berth_vdso_start:",
    // clock_gettime(clock, time)
    "berth_vdso_clock_gettime:",
    "cmp edi, {clocks}",
    "jae 4f",
    "mov r8, {page}",
    "mov ecx, edi",
    "shl ecx, 4",
    "1:",
    "mov r9d, [r8 + {sequence}]",
    "test r9d, 1",
    "jnz 3f",
    "lfence",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "sub rax, [r8 + {counter}]",
    "cmp rax, [r8 + {valid}]",
    // Too old, or of a processor whose counter is behind.
    "jae 4f",
    "mul qword ptr [r8 + {rate}]",
    "shrd rax, rdx, 32",
    "add rax, [r8 + rcx + {times} + 8]",
    "mov rdx, [r8 + rcx + {times}]",
    "cmp r9d, [r8 + {sequence}]",
    "jne 1b",
    "cmp rdx, -1",
    "je 4f",
    "cmp rax, 1000000000",
    "jb 2f",
    "sub rax, 1000000000",
    "inc rdx",
    "2:",
    "mov [rsi], rdx",
    "mov [rsi + 8], rax",
    "xor eax, eax",
    "ret",
    "3:",
    "pause",
    "jmp 1b",
    "4:",
    "mov eax, {clock_gettime}",
    "syscall",
    "ret",
    // gettimeofday(time, zone)
    "berth_vdso_gettimeofday:",
    "test rdi, rdi",
    "jz 5f",
    "test rsi, rsi",
    "jnz 5f",
    "push rdi",
    "mov rsi, rdi",
    "xor edi, edi",
    "call berth_vdso_clock_gettime",
    "pop rdi",
    "test eax, eax",
    "jnz 6f",
    "mov rax, [rdi + 8]",
    "xor edx, edx",
    "mov ecx, 1000",
    "div rcx",
    "mov [rdi + 8], rax",
    "xor eax, eax",
    "6:",
    "ret",
    "5:",
    "mov eax, {gettimeofday}",
    "syscall",
    "ret",
    // time(seconds)
    "berth_vdso_time:",
    "push rdi",
    "sub rsp, 16",
    "xor edi, edi",
    "mov rsi, rsp",
    "call berth_vdso_clock_gettime",
    "mov rax, [rsp]",
    "add rsp, 16",
    "pop rdi",
    "test rdi, rdi",
    "jz 7f",
    "mov [rdi], rax",
    "7:",
    "ret",
    "berth_vdso_end:",
    ".popsection",
    clocks = const CLOCKS,
    page = const layout::CLOCK,
    sequence = const offset_of!(Page, sequence),
    counter = const offset_of!(Page, counter),
    valid = const offset_of!(Page, valid),
    rate = const offset_of!(Page, rate),
    times = const offset_of!(Page, clocks),
    clock_gettime = const libc::SYS_clock_gettime,
    gettimeofday = const libc::SYS_gettimeofday,
);

unsafe extern "C" {
    static berth_vdso_start: u8;
    static berth_vdso_clock_gettime: u8;
    static berth_vdso_gettimeofday: u8;
    static berth_vdso_time: u8;
    static berth_vdso_end: u8;
}

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const SYMBOL: u64 = 24;
/// Where the tables begin.
const TABLES: u64 = HEADER + 2 * PROGRAM_HEADER;

/// The image, for [`layout::VDSO`].
pub fn image() -> Vec<u8> {
    let start = &raw const berth_vdso_start as usize;
    let functions = [
        ("__vdso_clock_gettime", &raw const berth_vdso_clock_gettime),
        ("__vdso_gettimeofday", &raw const berth_vdso_gettimeofday),
        ("__vdso_time", &raw const berth_vdso_time),
    ];
    let length = &raw const berth_vdso_end as usize - start;
    // SAFETY: the labels are the bounds of what stands between them.
    let code = unsafe { std::slice::from_raw_parts(&raw const berth_vdso_start, length) };

    let mut strings = vec![0];
    let mut string = |text: &str| {
        let at = strings.len();
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        at as u64
    };
    let name = string("linux-vdso.so.1");
    let names = functions.map(|(name, _)| string(name));
    let symbols = functions.len() as u64 + 1;
    let symbols_at = TABLES;
    // One bucket that chains all symbols.
    let hash_at = symbols_at + symbols * SYMBOL;
    let dynamic_at = (hash_at + (3 + symbols) * 4).next_multiple_of(8);
    let entries = |strings_at: u64, length: u64| {
        [(4, hash_at), (5, strings_at), (6, symbols_at), (10, length), (11, SYMBOL), (14, name), (0, 0)]
    };
    let dynamic_length = entries(0, 0).len() as u64 * 16;
    let strings_at = dynamic_at + dynamic_length;
    let code_at = (strings_at + strings.len() as u64).next_multiple_of(64);
    let size = code_at + code.len() as u64;

    let mut image = Image(Vec::new());
    image.bytes(b"\x7fELF\x02\x01\x01").pad(16);
    // ET_DYN, EM_X86_64, version.
    image.halves(&[3, 62]).words(&[1]).longs(&[0, HEADER, 0]).words(&[0]);
    image.halves(&[HEADER as u16, PROGRAM_HEADER as u16, 2, 64, 0, 0]);
    // PT_LOAD, to be read and executed; PT_DYNAMIC, to be read.
    image.words(&[1, 5]).longs(&[0, 0, 0, size, size, PAGE_SIZE]);
    image.words(&[2, 4]).longs(&[dynamic_at, dynamic_at, dynamic_at, dynamic_length, dynamic_length, 8]);
    image.pad((symbols_at + SYMBOL) as usize);
    for ((_, function), name) in functions.iter().zip(names) {
        // STB_GLOBAL STT_FUNC, default visibility, in some section.
        image.words(&[name as u32]).bytes(&[0x12, 0]).halves(&[1]);
        image.longs(&[code_at + (*function as usize - start) as u64, 0]);
    }
    image.words(&[1, symbols as u32, 1]).words(&[0]);
    image.words(&(2..symbols as u32).chain([0]).collect::<Vec<_>>());
    image.pad(dynamic_at as usize);
    for (tag, value) in entries(strings_at, strings.len() as u64) {
        image.longs(&[tag, value]);
    }
    image.bytes(&strings).pad(code_at as usize).bytes(code);
    debug_assert!(image.0.len() as u64 <= PAGE_SIZE);
    image.0
}

/// Numbers, one after the other.
struct Image(Vec<u8>);

impl Image {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn halves(&mut self, numbers: &[u16]) -> &mut Self {
        self.0.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        self
    }

    fn words(&mut self, numbers: &[u32]) -> &mut Self {
        self.0.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        self
    }

    fn longs(&mut self, numbers: &[u64]) -> &mut Self {
        self.0.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        self
    }

    fn pad(&mut self, to: usize) -> &mut Self {
        self.0.resize(to, 0);
        self
    }
}
