//! Where a measurement is at home: the roots it uses, and what it makes in them, which goes with it.

use std::cell::{Cell, RefCell};
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_engine::{Container, Roots};
use berth_images::Store;
use nix::unistd::geteuid;
use serde_json::Value;
use tempfile::TempDir;

use crate::error::{Error, Result};
use crate::{interrupt, timed};

/// How long an instance may take until it idles.
const PATIENCE: Duration = Duration::from_mins(5);
/// How the names of all that is made for a measurement begin; its process's id follows.
pub const PREFIX: &str = "berth-bench-";
/// How many are removed by one command: a command line has an end.
const MANY: usize = 100;
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Is told what is being done, and how far it is.
pub type Progress<'a> = &'a dyn Fn(&str, usize, usize);

/// Roots, scratch space, and what is to be removed.
pub struct Room<'a> {
    /// The roots whose images are measured.
    pub roots: &'a Roots,
    /// Who hears of it.
    pub progress: Progress<'a>,
    berth: PathBuf,
    scratch: TempDir,
    images: RefCell<Vec<String>>,
    instances: RefCell<Vec<String>>,
    names: Cell<usize>,
}

impl<'a> Room<'a> {
    /// A room over these roots; Ctrl-C ends what goes on in it.
    pub fn new(roots: &'a Roots, progress: Progress<'a>) -> Result<Self> {
        interrupt::watch()?;
        let scratch = tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir();
        let room = Self {
            roots,
            progress,
            berth: env::current_exe().map_err(Error::system("find berth's own program"))?,
            scratch: scratch.map_err(Error::system("make a temporary folder"))?,
            images: RefCell::default(),
            instances: RefCell::default(),
            names: Cell::default(),
        };
        room.sweep()?;
        Ok(room)
    }

    /// Removes what measurements have left that were killed.
    fn sweep(&self) -> Result<()> {
        let lists: [(&[&str], &str, &[&str]); 2] =
            [(&["ps", "--all"], "Name", &["rm", "--force"]), (&["images"], "Repository", &["rmi"])];
        for (list, field, remove) in lists {
            let text = timed::prepare(self.berth(&[list, &["--format", "json"]].concat()))?;
            let entries: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
            let left: Vec<&str> =
                entries.iter().filter_map(|entry| entry[field].as_str()).filter(|name| is_left(name)).collect();
            for some in left.chunks(MANY) {
                timed::prepare(self.berth(&[remove, some].concat()))?;
            }
        }
        for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
            let own = entry.metadata().is_ok_and(|data| data.is_dir() && data.uid() == geteuid().as_raw());
            if own && entry.file_name().to_str().is_some_and(is_left) {
                fs::remove_dir_all(entry.path()).map_err(Error::file("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// A folder that goes with the room.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The images.
    pub fn store(&self) -> Result<Store> {
        Ok(Store::open(self.roots.data())?)
    }

    /// One of berth's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.berth.with_file_name(name)
    }

    /// `berth` with these arguments, over the room's roots.
    pub fn berth(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.berth);
        command.env("BERTH_DATA_ROOT", self.roots.data()).env("BERTH_STATE_ROOT", self.roots.state()).args(words);
        command
    }

    /// A name that nobody else has.
    pub fn name(&self, what: &str) -> String {
        self.names.set(self.names.get() + 1);
        format!("{PREFIX}{}-{}-{what}", std::process::id(), self.names.get())
    }

    /// An image of this module, for as long as the room is there.
    pub fn module(&self, what: &str, wasm: &[u8]) -> Result<String> {
        let path = self.scratch().join(format!("{what}.wasm"));
        fs::write(&path, wasm).map_err(Error::file("write", &path))?;
        let name = self.name(what);
        timed::prepare(self.berth(&["image", "build-wasm", "-t", &name, &path.to_string_lossy()]))?;
        self.images.borrow_mut().push(name.clone());
        Ok(name)
    }

    /// An image of nothing but `berth-work`, for as long as the room is there.
    pub fn work_image(&self) -> Result<String> {
        let path = self.scratch().join("work.tar");
        let program = self.program("berth-work");
        let missing = || Error::Invalid(format!("cannot find {}; put berth-work next to berth", program.display()));
        let attempt = || -> std::io::Result<()> {
            let mut archive = tar::Builder::new(fs::File::create(&path)?);
            archive.append_path_with_name(&program, "berth-work")?;
            archive.into_inner()?.sync_data()
        };
        if !program.is_file() {
            return Err(missing());
        }
        attempt().map_err(Error::file("write", &path))?;
        let name = self.name("work");
        timed::prepare(self.berth(&["import", &path.to_string_lossy(), &name]))?;
        self.images.borrow_mut().push(name.clone());
        Ok(name)
    }

    /// Starts an instance in the background and waits until it has said that it idles; its id.
    pub fn idle(&self, arguments: &[String]) -> Result<String> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let name = self.name("idle");
        let command = self.berth(&[&["run", "-d", "--name", &name], words.as_slice()].concat());
        let line = timed::line(&command);
        let id = timed::prepare(command)?;
        self.instances.borrow_mut().push(id.clone());
        let container = Container::load(self.roots, &id)?;
        let log = container.dir().join("container.log");
        let begin = Instant::now();
        while !fs::metadata(&log).is_ok_and(|data| data.len() > 0) {
            let status = container.status()?;
            if status.pid.is_none() || begin.elapsed() > PATIENCE {
                let why = status.error.unwrap_or_else(|| format!("it ended with {}", status.exit_code.unwrap_or(0)));
                let reason = if status.pid.is_some() { "it never said that it had started".to_owned() } else { why };
                return Err(Error::Failed { command: line, reason });
            }
            interrupt::check()?;
            std::thread::sleep(LOOK);
        }
        Ok(id)
    }

    /// Removes all instances.
    pub fn clear(&self) -> Result<()> {
        let ids = self.instances.take();
        for some in ids.chunks(MANY) {
            let words: Vec<&str> = some.iter().map(String::as_str).collect();
            timed::prepare(self.berth(&[&["rm", "-f"], words.as_slice()].concat()))?;
        }
        Ok(())
    }
}

/// Whether a name is that of something whose measurement is gone.
fn is_left(name: &str) -> bool {
    let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
    process.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists())
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut failed = self.clear().err();
        for name in self.images.take() {
            failed = timed::prepare(self.berth(&["rmi", &name])).err().or(failed);
        }
        if let Some(error) = failed {
            eprintln!("berth: warning: something of the measurement is left: {error}");
        }
    }
}
