//! Making files below the root of a container with a user namespace: the host's root has no id there, so nothing can be made
//! in its name. The thread takes on the ids of the container's root towards filesystems (`setfsuid(2)`) and keeps its rights.

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

use crate::error::{Attempt as _, Result};

/// As long as it lives, what this thread makes belongs to the container's root.
#[derive(Debug)]
pub(super) struct ContainerRoot {
    uid: Uid,
    gid: Gid,
    capabilities: CapabilitySets,
}

impl ContainerRoot {
    /// Takes on the ids. `id`: the host's id of the container's user and group 0.
    pub(super) fn take_on(id: u32) -> Result<Self> {
        let capabilities = capabilities(None).attempt(|| "read the own capabilities")?;
        let (gid, uid) = (setfsgid(Gid::from_raw(id)), setfsuid(Uid::from_raw(id)));
        let own = Self { uid, gid, capabilities };
        // The change has taken the rights over others' files away.
        set_capabilities(None, capabilities).attempt(|| "keep the own capabilities")?;
        Ok(own)
    }
}

impl Drop for ContainerRoot {
    fn drop(&mut self) {
        setfsuid(self.uid);
        setfsgid(self.gid);
        let _ = set_capabilities(None, self.capabilities);
    }
}
