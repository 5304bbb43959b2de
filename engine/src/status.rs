//! What a container's monitor says of it, `status.json`.

use berth_runtime::monitor::{Phase, Status};

use crate::document;
use crate::error::Result;
use crate::id::short;
use crate::paths::Roots;

/// Reads `status.json`; a container that was never started has none.
pub(crate) fn read(roots: &Roots, id: &str) -> Result<Status> {
    let path = roots.container(id).join("status.json");
    Ok(document::read(&path, &format!("`berth rm -f {}` removes the container", short(id)))?.unwrap_or_default())
}

/// What is known of a container whose monitor is gone without a word.
pub(crate) fn lost(status: &Status) -> Status {
    Status {
        phase: Phase::Exited,
        pid: None,
        monitor_pid: None,
        finished_at: status.finished_at.max(status.started_at),
        exit_code: Some(137),
        error: Some("its monitor was killed, or the host was restarted".to_owned()),
        ..status.clone()
    }
}
