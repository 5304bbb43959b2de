//! podman, with a storage of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
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

    /// Writes a script that is `podman` as this machine needs it called, for other scripts.
    pub fn write_wrapper(&self, path: &Path) {
        let limits = self.dir.with_extension("conf");
        let text = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";
        fs::write(&limits, text).expect("podman's configuration");
        let command = self.command("").inner;
        let words = command.get_args().map(|word| word.to_str().expect("UTF-8")).collect::<Vec<_>>().join(" ");
        let script =
            format!("#!/bin/sh\nPATH=${{PATH#*:}} CONTAINERS_CONF={} exec podman {words} \"$@\"\n", limits.display());
        fs::write(path, script).expect("a script");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("an executable script");
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
