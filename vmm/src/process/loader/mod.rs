//! Loads a program: its segments, its interpreter, the first stack.

pub mod elf;
mod stack;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use self::elf::{Header, Segment};
use super::Result;
use super::files::{Credentials, Root};
use super::memory::area::{Protection, Source};
use super::memory::window::{MappedFile, MappedFiles};
use super::memory::{Memory, Place, page_of};
use super::vm::{Vm, layout};
use crate::paging::entry::PAGE_SIZE;

pub use self::stack::{MOST_BYTES, bytes_of};

/// How many `#!` lines may follow each other.
const MOST_SCRIPTS: usize = 5;
/// The longest `#!` line, as on Linux.
const SCRIPT_LINE: usize = 256;

/// A program to load.
#[derive(Debug)]
pub struct Program {
    /// The open file.
    pub file: OwnedFd,
    /// The path it was found by.
    pub path: Vec<u8>,
    /// Its arguments.
    pub arguments: Vec<Vec<u8>>,
    /// Its environment.
    pub environment: Vec<Vec<u8>>,
}

/// A program in memory.
#[derive(Debug)]
pub struct Loaded {
    /// The memory it stands in.
    pub memory: Memory,
    /// Where to begin.
    pub entry: u64,
    /// The stack to begin with.
    pub stack: u64,
    /// The path of what was loaded in the end, for `/proc/self/exe`.
    pub path: Vec<u8>,
}

/// Loads `program` into fresh memory.
///
/// # Errors
/// `ENOEXEC` where it is no program, `E2BIG` where its arguments are too long, `ENOENT` where its interpreter is
/// missing, and what reading it gives.
pub fn load(vm: &Arc<Vm>, files: &MappedFiles, root: &Root, program: Program, who: &Credentials) -> Result<Loaded> {
    let mut program = program;
    for _ in 0..MOST_SCRIPTS {
        let mut start = [0; SCRIPT_LINE];
        let length = nix::sys::uio::pread(&program.file, &mut start, 0)?;
        if !start[..length].starts_with(b"#!") {
            return load_elf(vm, files, root, program, who);
        }
        program = interpreted(root, program, &start[2..length], who)?;
    }
    Err(Errno::ELOOP)
}

/// The interpreter that a `#!` line names, with the script as its argument.
fn interpreted(root: &Root, program: Program, line: &[u8], who: &Credentials) -> Result<Program> {
    let end = line.iter().position(|&byte| byte == b'\n').unwrap_or(line.len());
    let line = line[..end].trim_ascii();
    let split = line.iter().position(u8::is_ascii_whitespace).unwrap_or(line.len());
    let (path, argument) = (line[..split].to_vec(), line[split..].trim_ascii());
    if path.is_empty() {
        return Err(Errno::ENOEXEC);
    }
    let mut arguments = vec![path.clone()];
    if !argument.is_empty() {
        arguments.push(argument.to_vec());
    }
    arguments.push(program.path);
    arguments.extend(program.arguments.into_iter().skip(1));
    let file = root.open_program(who, &path)?;
    Ok(Program { file, path, arguments, environment: program.environment })
}

fn load_elf(vm: &Arc<Vm>, files: &MappedFiles, root: &Root, program: Program, who: &Credentials) -> Result<Loaded> {
    let Program { file, path, arguments, environment } = program;
    let header = Header::read(&file)?;
    let mut memory = Memory::new(vm.clone())?;
    let mapped = files.get(vm, &file, false, &path)?;
    let base = if header.anywhere { layout::PROGRAM } else { 0 };
    let end = map_segments(&mut memory, &header, &mapped, base)?;
    memory.program_break = (end, end);
    let entry = base.wrapping_add(header.entry);
    let (start, interpreter) = match &header.interpreter {
        None => (entry, 0),
        Some(path) => {
            let file = root.open_program(who, path)?;
            let header = Header::read(&file).map_err(|_| Errno::ELIBBAD)?;
            let mapped = files.get(vm, &file, false, path)?;
            let base = if header.anywhere {
                memory.mmap(Place::Hint(0), header.span()?, Protection::default(), Source::Anonymous, false)?
            } else {
                0
            };
            map_segments(&mut memory, &header, &mapped, base)?;
            (base.wrapping_add(header.entry), base)
        }
    };
    let program = stack::Program {
        entry,
        interpreter,
        headers: base.wrapping_add(header.headers_address()),
        header_count: header.header_count,
        path: &path,
    };
    let stack = stack::build(&mut memory, &program, &arguments, &environment, who)?;
    memory.bring(start);
    Ok(Loaded { memory, entry: start, stack, path })
}

/// Maps the segments and gives the page-aligned end of the highest.
fn map_segments(memory: &mut Memory, header: &Header, file: &Arc<MappedFile>, base: u64) -> Result {
    let mut highest = 0;
    for segment in &header.segments {
        let start = base.checked_add(segment.address).ok_or(Errno::ENOEXEC)?;
        map_segment(memory, segment, file, start).map_err(|_| Errno::ENOEXEC)?;
        highest = highest.max(start + segment.memory_size);
    }
    Ok(highest.next_multiple_of(PAGE_SIZE))
}

fn map_segment(memory: &mut Memory, segment: &Segment, file: &Arc<MappedFile>, start: u64) -> Result<()> {
    let page = page_of(start);
    let offset = page_of(segment.offset);
    let file_end = start + segment.file_size;
    let end = start.checked_add(segment.memory_size).ok_or(Errno::ENOEXEC)?;
    let protection = segment.protection;
    if segment.file_size > 0 {
        let source = Source::File(file.clone(), offset);
        memory.mmap(Place::Fixed(page), file_end - page, protection, source, false)?;
        if protection.write {
            // Relocations and the program's first steps write to both ends.
            memory.bring(page);
            memory.bring(file_end - 1);
        }
    }
    let zeroes = if segment.file_size > 0 { file_end.next_multiple_of(PAGE_SIZE) } else { page };
    if end > zeroes {
        memory.mmap(Place::Fixed(zeroes), end - zeroes, protection, Source::Anonymous, false)?;
        memory.bring(zeroes);
    }
    if end > file_end && segment.file_size > 0 && protection.write {
        // What follows the file's bytes reads as zeroes to the end of the page: loaders use what is left of it.
        let tail = vec![0; (zeroes - file_end) as usize];
        memory.write(file_end, &tail)?;
    }
    Ok(())
}
