//! podman, with a storage of its own.

use std::path::{Path, PathBuf};

use crate::command::Cmd;

/// podman on roots that go away with it.
pub struct Podman {
    dir: PathBuf,
}

impl Podman {
    /// Its roots are inside the folder `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.join("podman") }
    }

    /// `podman` with the arguments in `words`.
    pub fn command(&self, words: &str) -> Cmd {
        Cmd::new("podman", "--cgroup-manager=cgroupfs --events-backend=file --root")
            .arg(self.dir.join("root"))
            .arg("--runroot")
            .arg(self.dir.join("run"))
            .arg("--tmpdir")
            .arg(self.dir.join("tmp"))
            .args(words.split_whitespace())
    }

    /// `podman` with another OCI runtime.
    pub fn with_runtime(&self, runtime: &Path, words: &str) -> Cmd {
        let mut command = self.command("--runtime");
        command.inner.arg(runtime);
        command.args(words.split_whitespace())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.command("rm -af -t 0").inner.output();
        // Its storage is mounted on itself.
        let overlay = self.dir.join("root/overlay");
        let _ = nix::mount::umount2(&overlay, nix::mount::MntFlags::MNT_DETACH);
    }
}
