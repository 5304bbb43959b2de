//! The search part of a filter: from the system call number to what is done about it, by bisection.

use seccompiler::sock_filter;

/// What a range of system call numbers leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// End the filter with this `SECCOMP_RET_*` value.
    Return(u32),
    /// Go on with the block of this index (rules on arguments).
    Block(usize),
}

/// System call numbers from `start` up to the next range's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub start: u32,
    pub target: Target,
}

/// An instruction whose jump to a block is not known before all code is placed.
enum Code {
    Done(sock_filter),
    JumpToBlock(usize),
}

/// Load the 32-bit word of `struct seccomp_data` at offset `k`.
pub(super) const fn load(k: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, k)
}

/// End the filter with the `SECCOMP_RET_*` value `k`.
pub(super) const fn ret(k: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, k)
}

/// Skip `k` instructions.
pub(super) const fn skip(k: u32) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, k)
}

/// Skip `jt` instructions if the accumulator equals `k`, none otherwise.
pub(super) const fn skip_if_equal(k: u32, jt: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, 0, k)
}

const fn skip_if_at_least(k: u32, jt: u8, jf: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, jt, jf, k)
}

#[expect(clippy::cast_possible_truncation, reason = "BPF codes fit 16 bits")]
const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

/// The search over `ranges` (ascending, the first starting at 0) for the number in the accumulator, and `blocks` behind it.
pub(super) fn search(ranges: &[Range], blocks: Vec<Vec<sock_filter>>) -> Vec<sock_filter> {
    let code = bisect(ranges);
    let mut starts = Vec::with_capacity(blocks.len());
    let mut end = code.len();
    for block in &blocks {
        starts.push(end);
        end += block.len();
    }
    let mut program = Vec::with_capacity(end);
    for (position, code) in code.into_iter().enumerate() {
        program.push(match code {
            Code::Done(instruction) => instruction,
            Code::JumpToBlock(block) => skip((starts[block] - position - 1) as u32),
        });
    }
    program.extend(blocks.into_iter().flatten());
    program
}

fn bisect(ranges: &[Range]) -> Vec<Code> {
    if let [range] = ranges {
        return vec![match range.target {
            Target::Return(value) => Code::Done(ret(value)),
            Target::Block(block) => Code::JumpToBlock(block),
        }];
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let low_code = bisect(low);
    let mut code = Vec::with_capacity(2 * low_code.len() + 2);
    // A conditional jump reaches 255 instructions, an unconditional one any distance.
    if let Ok(distance) = u8::try_from(low_code.len()) {
        code.push(Code::Done(skip_if_at_least(high[0].start, distance, 0)));
    } else {
        code.push(Code::Done(skip_if_at_least(high[0].start, 0, 1)));
        code.push(Code::Done(skip(low_code.len() as u32)));
    }
    code.extend(low_code);
    code.extend(bisect(high));
    code
}
