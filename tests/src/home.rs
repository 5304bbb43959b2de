//! A berth of one's own: data and state roots that no other test sees, and that must be empty in the end.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::command::Cmd;
use crate::{binaries, fixtures, leaks, wait};

/// Data and state roots for one test. Dropping it removes all containers and then looks for anything that is
/// left of them: mounts, cgroups, processes, files.
pub struct Home {
    dir: TempDir,
}

impl Home {
    /// Roots that hold the image `busybox`.
    pub fn new() -> Self {
        let home = Self::empty();
        home.berth("import").arg(fixtures::busybox_rootfs()).arg("busybox").ok();
        home
    }

    /// Roots with nothing in them.
    pub fn empty() -> Self {
        let dir = tempfile::Builder::new().prefix("berth-test-").tempdir().expect("room for temporary files");
        Self { dir }
    }

    /// A folder for the test's own files, removed in the end.
    pub fn scratch(&self) -> PathBuf {
        let scratch = self.dir.path().join("scratch");
        std::fs::create_dir_all(&scratch).expect("a folder for the test's files");
        scratch
    }

    /// The data root.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The state root.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The folder of everything that belongs to this home.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `berth` with the arguments in `words`, separated by blanks; more can be added.
    pub fn berth(&self, words: &str) -> Cmd {
        let mut command = Cmd::new(binaries::berth(), words)
            .env("BERTH_DATA_ROOT", self.data())
            .env("BERTH_STATE_ROOT", self.state())
            // Credentials and configuration of whoever runs the tests have no say.
            .env("HOME", self.dir.path())
            .env("XDG_CONFIG_HOME", self.dir.path().join("config"));
        command.inner.env_remove("DOCKER_CONFIG").env_remove("SSL_CERT_FILE");
        command
    }

    /// `berth run --rm FLAGS busybox sh -c SCRIPT`
    pub fn shell(&self, flags: &str, script: &str) -> Cmd {
        self.berth(&format!("run --rm {flags} busybox sh -c")).arg(script)
    }

    /// What [`Home::shell`] prints, without white space at its ends. It must succeed.
    #[track_caller]
    pub fn prints(&self, flags: &str, script: &str) -> String {
        self.shell(flags, script).run().code(0).trimmed()
    }

    /// `berth run -d FLAGS busybox sh -c SCRIPT`: the container's id.
    #[track_caller]
    pub fn detached(&self, flags: &str, script: &str) -> String {
        let id = self.berth(&format!("run -d {flags} busybox sh -c")).arg(script).run().code(0).trimmed();
        assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "not a container id: {id:?}");
        id
    }

    /// What `berth inspect` knows of a container.
    #[track_caller]
    pub fn inspect(&self, container: &str) -> Value {
        let mut list = self.berth("inspect").arg(container).run().code(0).json();
        list[0].take()
    }

    /// `State.Status` of a container.
    #[track_caller]
    pub fn status(&self, container: &str) -> String {
        self.inspect(container)["State"]["Status"].as_str().expect("State.Status is text").to_owned()
    }

    /// Process id, on the host, of a running container's first process.
    #[track_caller]
    pub fn pid(&self, container: &str) -> i64 {
        self.inspect(container)["State"]["Pid"].as_i64().expect("State.Pid is a number")
    }

    /// Waits until the container's log holds `text`.
    pub fn expect_log(&self, container: &str, text: &str) {
        wait::until(&format!("the log of {container} says {text:?}"), || {
            self.berth("logs").arg(container).run().text().contains(text)
        });
    }

    /// Names (`.Names`) of all containers, running or not.
    pub fn containers(&self) -> Vec<String> {
        let list = self.berth("ps -aq --no-trunc").ok().text();
        list.lines().map(str::to_owned).collect()
    }

    /// Removes all containers, then insists that nothing is left of them anywhere.
    pub fn expect_clean(&self) {
        let ids = leaks::ids(self);
        let containers = self.containers();
        if !containers.is_empty() {
            self.berth("rm -f").args(containers).ok();
        }
        leaks::expect_none(self, &ids);
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test has failed already: only clean up.
            let ids = leaks::ids(self);
            if let Ok(entries) = std::fs::read_dir(self.data().join("containers")) {
                for entry in entries.flatten() {
                    let _ = self.berth("rm -f").arg(entry.file_name()).inner.output();
                }
            }
            leaks::remove(self, &ids);
            return;
        }
        self.expect_clean();
    }
}
