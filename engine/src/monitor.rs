//! Waiting for the end of a container: for its monitor, which lives exactly as long as the container may run.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use berth_runtime::monitor::{Phase, Status};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::container::Container;
use crate::error::{Attempt as _, Result};
use crate::events;
use crate::lock;
use crate::status;

/// How often a monitor that has not yet said its process id is looked at again.
const PATIENCE: Duration = Duration::from_millis(5);

/// The monitor of one container, watched by descriptor.
#[derive(Debug)]
pub struct Monitor {
    pidfd: OwnedFd,
}

impl Monitor {
    /// The container's monitor; `None`: nobody looks after it.
    pub fn of(container: &Container) -> Result<Option<Self>> {
        loop {
            if !lock::is_held(container.roots(), container.id()) {
                return Ok(None);
            }
            let status = status::read(container.roots(), container.id())?;
            let pid = status.monitor_pid.and_then(Pid::from_raw);
            if let Some(pidfd) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
                // Still held and still the same: the process that the number meant was the monitor.
                let again = status::read(container.roots(), container.id())?;
                if again.monitor_pid == status.monitor_pid && lock::is_held(container.roots(), container.id()) {
                    return Ok(Some(Self { pidfd }));
                }
            }
            // It is being started, or is about to end.
            std::thread::sleep(PATIENCE);
        }
    }

    /// Waits until the monitor has ended, or the time is over: whether it has ended.
    pub fn wait(&self, limit: Option<Duration>) -> Result<bool> {
        let begin = Instant::now();
        loop {
            let left = limit.map(|limit| limit.saturating_sub(begin.elapsed()));
            // Rounded up, so that the last millisecond is not spent spinning.
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
            });
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if left.is_none_or(|left| left.is_zero()) => return Ok(false),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                other => {
                    return other.map(|_| true).attempt(|| "wait for a container's monitor");
                }
            }
        }
    }

    /// The descriptor that becomes readable when the monitor ends.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }
}

/// Waits until the container has ended for good and returns its last status.
pub fn wait(container: &Container) -> Result<Status> {
    if let Some(monitor) = Monitor::of(container)? {
        monitor.wait(None)?;
    }
    if container.dir().exists() {
        return container.status();
    }
    // With `--rm` nothing is left of it but what the journal says.
    let exit_code = events::exit_code(container.roots(), container.id())?;
    Ok(Status { phase: Phase::Exited, exit_code, ..Status::default() })
}
