//! System calls by category.
//!
//! | file | calls |
//! | --- | --- |
//! | [`memory`] | brk, mmap, munmap, mprotect, mremap, madvise, msync, mlock |
//! | [`files`] | read and write in all forms, open, close, dup, fcntl, ioctl, seek, sync, truncate |
//! | [`names`] | what takes a path: stat, access, links, directories, modes, owners, times |
//! | [`pipes`] | pipe, eventfd, memfd, socketpair's kin |
//! | [`processes`] | clone, execve, exit, wait, groups, sessions, prctl |
//! | [`futex`] | futex, robust lists |
//! | [`signals`] | actions, masks, kill, sigsuspend, alternate stacks, signalfd |
//! | [`timers`] | alarm, setitimer, `timer_create` |
//! | [`limits`] | limits, rusage, times |
//! | [`time`] | clocks, sleeping, timerfd |
//! | [`poll`] | poll, select, epoll |
//! | [`sockets`], [`options`], [`messages`] | sockets, in the sandbox's network namespace |
//! | [`unix`] | local sockets by paths below the root; watching files |
//! | [`credentials`] | users, groups, capabilities |
//! | [`identity`] | uname, random, scheduling |
//!
//! What is not there is refused with `ENOSYS`. What differs: signals reach
//! the first process only where it handles them, as in a container; one process group's locks of fcntl(2) are held by the open
//! file, as with `F_OFD_SETLK`; ids belong to a process, not to each of its threads.

pub mod credentials;
pub mod files;
pub mod futex;
pub mod host;
pub mod identity;
pub mod limits;
pub mod memory;
pub mod messages;
pub mod names;
pub mod options;
pub mod pipes;
pub mod poll;
pub mod processes;
pub mod signals;
pub mod sockets;
#[cfg(any(test, feature = "fuzzing"))]
pub mod tests;
pub mod time;
pub mod timers;
pub mod unix;

use nix::errno::Errno;

use super::Result;
use super::task::{Answer, Task};

/// The arguments of a call.
pub type Arguments = [u64; 6];

/// Serves one call.
///
/// # Errors
/// What the guest finds negated in RAX.
pub fn dispatch(task: &mut Task, number: u64, arguments: Arguments) -> Result<Answer> {
    let number = number.cast_signed();
    match number {
        libc::SYS_execve | libc::SYS_execveat => return processes::execute(task, number, arguments),
        libc::SYS_rt_sigreturn => return signals::return_from_handler(task),
        libc::SYS_exit => {
            task.end_this_thread(arguments[0] as u8);
            return Ok(Answer::Registers);
        }
        libc::SYS_exit_group => {
            task.end_process(super::task::table::Status::Exited(arguments[0] as u8));
            return Ok(Answer::Registers);
        }
        _ => {}
    }
    let categories = [
        files::serve,
        memory::serve,
        names::serve,
        futex::serve,
        signals::serve,
        time::serve,
        timers::serve,
        limits::serve,
        processes::serve,
        pipes::serve,
        poll::serve,
        identity::serve,
        credentials::serve,
        sockets::serve,
        options::serve,
        messages::serve,
        unix::serve,
    ];
    categories
        .into_iter()
        .find_map(|serve| serve(task, number, arguments))
        .unwrap_or(Err(Errno::ENOSYS))
        .map(Answer::Value)
}

/// Whether a call that a signal interrupts begins again after a handler with `SA_RESTART` (signal(7)).
pub fn begins_again(number: u64) -> bool {
    !matches!(
        number.cast_signed(),
        libc::SYS_pause
            | libc::SYS_rt_sigsuspend
            | libc::SYS_rt_sigtimedwait
            | libc::SYS_nanosleep
            | libc::SYS_clock_nanosleep
            | libc::SYS_poll
            | libc::SYS_ppoll
            | libc::SYS_select
            | libc::SYS_pselect6
            | libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
    )
}

/// A call as a line of a trace.
pub fn describe(number: u64, arguments: &Arguments) -> String {
    let name = syscalls::Sysno::new(number as usize).map_or("?", |name| name.name());
    let arguments = arguments.map(|argument| format!("{argument:#x}"));
    format!("{name}({})", arguments.join(", "))
}
