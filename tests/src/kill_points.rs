//! Killing berth at every step. A step is a system call that changes something outside the calling process:
//! between two of them a kill makes no difference to what is left behind.
//!
//! The command runs under ptrace(2), with all its children. At the entry to the n-th step, the process that is about
//! to take it gets SIGKILL; everything else goes on, as it would had the out-of-memory killer struck.

use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::command::Cmd;

/// How long a command may take that is not killed.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long what is left of a command is followed after the kill. What has not ended by then goes on unobserved: the
/// next berth command has to deal with it.
const GRACE: Duration = Duration::from_secs(1);

/// System calls that change what other processes can see.
const STEPS: &[libc::c_long] = &[
    libc::SYS_bind,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_creat,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit_group,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_flock,
    libc::SYS_fork,
    libc::SYS_fsetxattr,
    libc::SYS_fsmount,
    libc::SYS_ftruncate,
    libc::SYS_kill,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_lsetxattr,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pivot_root,
    libc::SYS_pwrite64,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_rmdir,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_setxattr,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_umount2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_unshare,
    libc::SYS_utimensat,
    libc::SYS_vfork,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Runs `command` and kills the process that takes step `at` (counted from 0). Returns how many steps there were
/// up to its end, or to the kill: with `at` beyond the last step nothing is killed.
pub fn run(command: Cmd, at: usize) -> usize {
    // ptrace ties the command to the thread that started it.
    std::thread::spawn(move || trace(command, at)).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn trace(command: Cmd, at: usize) -> usize {
    let mut command = command.inner;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: ptrace(2) is async-signal-safe and concerns the child alone.
    unsafe {
        command.pre_exec(|| Ok(ptrace::traceme()?));
    }
    let first = {
        // The loop below waits for every process, this one among them.
        #[expect(clippy::zombie_processes)]
        let child = command.spawn().expect("the command can be started");
        Pid::from_raw(child.id().cast_signed())
    };
    waitpid(first, None).expect("the child stops at its execve");
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC;
    ptrace::setoptions(first, options).expect("ptrace options");
    let _ = ptrace::syscall(first, None);

    let mut steps = 0;
    let mut killed = false;
    let mut end = Instant::now() + PATIENCE;
    loop {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG;
        match waitpid(Pid::from_raw(-1), Some(flags)) {
            Err(Errno::ECHILD) => return steps,
            Err(Errno::EINTR) => {}
            Err(errno) => panic!("waitpid: {errno}"),
            Ok(WaitStatus::StillAlive) => {
                if Instant::now() >= end {
                    assert!(killed, "the command does not end within {PATIENCE:?}");
                    // The kernel releases the rest when this thread, their tracer, ends.
                    return steps;
                }
                std::thread::sleep(Duration::from_micros(100));
            }
            Ok(WaitStatus::PtraceSyscall(pid)) => {
                if !killed && enters_step(pid) {
                    if steps == at {
                        let _ = kill(pid, Signal::SIGKILL);
                        killed = true;
                        end = Instant::now() + GRACE;
                        continue;
                    }
                    steps += 1;
                }
                let _ = ptrace::syscall(pid, None);
            }
            Ok(WaitStatus::Stopped(pid, signal)) => {
                // A new process or thread begins with a SIGSTOP that nobody sent.
                let signal = (signal != Signal::SIGSTOP).then_some(signal);
                let _ = ptrace::syscall(pid, signal);
            }
            Ok(WaitStatus::PtraceEvent(pid, _, _)) => drop(ptrace::syscall(pid, None)),
            Ok(_) => {}
        }
    }
}

/// Whether the process has stopped at the entry, not the exit, of a step.
fn enters_step(pid: Pid) -> bool {
    match ptrace::syscall_info(pid) {
        Ok(info) if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: `op` says which member of the union the kernel has filled in.
            let number = unsafe { info.u.entry.nr };
            STEPS.contains(&number.cast_signed())
        }
        _ => false,
    }
}
