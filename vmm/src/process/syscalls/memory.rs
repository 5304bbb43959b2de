//! Memory: brk, mmap and what follows from it.

use nix::errno::Errno;

use super::Arguments;
use crate::process::Result;
use crate::process::memory::Place;
use crate::process::memory::area::{Protection, Source};
use crate::process::memory::window::SharedPages;
use crate::process::task::Task;
use crate::process::vm::lock;

const MSYNC_FLAGS: u64 = (libc::MS_ASYNC | libc::MS_SYNC | libc::MS_INVALIDATE) as u64;

/// Serves the calls of this category.
pub fn serve(task: &mut Task, number: i64, a: Arguments) -> Option<Result> {
    let done = |result: Result<()>| result.map(|()| 0);
    Some(match number {
        libc::SYS_brk => Ok(lock(&task.memory).set_break(a[0])),
        libc::SYS_mmap => mmap(task, a),
        libc::SYS_munmap if a[1] == 0 => Err(Errno::EINVAL),
        libc::SYS_munmap => done(lock(&task.memory).munmap(a[0], a[1])),
        libc::SYS_mprotect => done(lock(&task.memory).mprotect(a[0], a[1], Protection::from_bits(a[2]))),
        libc::SYS_mremap => {
            let has = |flag: i32| a[3] & flag as u64 != 0;
            let to = has(libc::MREMAP_FIXED).then_some(a[4]);
            lock(&task.memory).mremap(a[0], a[1], a[2], has(libc::MREMAP_MAYMOVE), to)
        }
        libc::SYS_madvise => match a[2] as i32 {
            libc::MADV_DONTNEED => done(lock(&task.memory).discard(a[0], a[1])),
            libc::MADV_REMOVE => Err(Errno::EOPNOTSUPP),
            _ => Ok(0),
        },
        libc::SYS_msync if !a[0].is_multiple_of(4096) || a[2] & !MSYNC_FLAGS != 0 => Err(Errno::EINVAL),
        // Shared mappings are the page cache itself; the rest is advice.
        libc::SYS_msync
        | libc::SYS_mlock
        | libc::SYS_mlock2
        | libc::SYS_munlock
        | libc::SYS_mlockall
        | libc::SYS_munlockall => Ok(0),
        _ => return None,
    })
}

fn mmap(task: &mut Task, [address, length, protection, flags, descriptor, offset]: Arguments) -> Result {
    let has = |flag: i32| flags & flag as u64 != 0;
    let shared = match flags as i32 & libc::MAP_TYPE {
        libc::MAP_PRIVATE => false,
        libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE => true,
        _ => return Err(Errno::EINVAL),
    };
    if length == 0 || offset % 4096 != 0 {
        return Err(Errno::EINVAL);
    }
    let protection = Protection::from_bits(protection);
    let vm = &task.kernel.vm;
    let source = match (has(libc::MAP_ANONYMOUS), shared) {
        (true, false) => Source::Anonymous,
        (true, true) => Source::Shared(SharedPages::new(vm.clone()), 0),
        (false, shared) => {
            let file = task.file(descriptor)?;
            let mode = nix::fcntl::fcntl(&file.fd, nix::fcntl::FcntlArg::F_GETFL)? & libc::O_ACCMODE;
            if mode == libc::O_WRONLY || (shared && protection.write && mode != libc::O_RDWR) {
                return Err(Errno::EACCES);
            }
            // A shared mapping that cannot be written is the page cache, as a private one is until it is written.
            let writes = shared && mode == libc::O_RDWR;
            let mapped = task.kernel.mapped.get(vm, &file.fd, writes, &file.path)?;
            if writes { Source::SharedFile(mapped, offset) } else { Source::File(mapped, offset) }
        }
    };
    let place = if has(libc::MAP_FIXED_NOREPLACE) {
        Place::FixedFree(address)
    } else if has(libc::MAP_FIXED) {
        Place::Fixed(address)
    } else {
        Place::Hint(address)
    };
    // What a dynamic loader places by segment is about to be used.
    let segment = matches!((&source, place), (Source::File(..), Place::Fixed(_)));
    let mut memory = lock(&task.memory);
    let start = memory.mmap(place, length, protection, source, has(libc::MAP_GROWSDOWN))?;
    if segment {
        memory.bring(start);
    }
    Ok(start)
}
