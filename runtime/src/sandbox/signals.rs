//! What a signal would do to the first process. As process 1 of its pid namespace it is spared every signal it has not
//! asked for (`pid_namespaces(7)`), while a person expects Ctrl-C and `stop` to end a program that does nothing about them.

use std::fs;

/// Whether the process would live on whatever the signal.
pub fn is_deaf_to(pid: i32, signal: i32) -> bool {
    // A thread in sigtimedwait(2) takes the signal though its mask does not show it; look at the masks on both sides
    // of the look at the system call.
    !handles(pid, signal) && !waits_for_signals(pid) && !handles(pid, signal)
}

/// Whether the process catches, ignores or blocks the signal (`proc_pid_status(5)`). Unknown counts as yes.
fn handles(pid: i32, signal: i32) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let Some(bit) = signal.checked_sub(1).and_then(|shift| 1_u64.checked_shl(shift as u32)) else { return true };
    ["SigBlk:", "SigIgn:", "SigCgt:"].iter().any(|key| {
        let value = text.lines().find_map(|line| line.strip_prefix(key));
        value.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).is_none_or(|mask| mask & bit != 0)
    })
}

/// Whether the process is in `rt_sigtimedwait` (`proc_pid_syscall(5)`).
fn waits_for_signals(pid: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()) == Some(libc::SYS_rt_sigtimedwait)
}
