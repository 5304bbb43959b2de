//! What the engine does with a container that a monitor looks after. The monitor here is a `cat` that ends when its
//! input is closed, and this test, which holds the lock and writes the files a monitor writes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use berth_engine::lock::{self, Lock};
use berth_engine::logs::{self, Wanted};
use berth_engine::monitor::{self, Monitor};
use berth_engine::options::Options;
use berth_engine::record::Record;
use berth_engine::{Container, Error, Roots, lifecycle, remove, sweep};
use berth_runtime::monitor::{Phase, Status};
use jiff::Timestamp;

struct Host {
    roots: Roots,
    id: String,
    monitor: Child,
    lock: Option<Lock>,
    _dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(&dir.path().join("data"), &dir.path().join("state")).unwrap();
        let id = "a".repeat(64);
        fs::create_dir_all(roots.container(&id)).unwrap();
        let lock = Lock::try_take(&roots, &id).unwrap();
        let record = Record {
            id: id.clone(),
            name: "web".to_owned(),
            created_at: Timestamp::now(),
            image: "busybox".to_owned(),
            image_digest: String::new(),
            image_id: String::new(),
            lower_dirs: Vec::new(),
            args: Vec::new(),
            anonymous_volumes: Vec::new(),
            options: Options::default(),
        };
        record.write(&roots).unwrap();
        let monitor = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let host = Self { roots, id, monitor, lock, _dir: dir };
        host.status(Phase::Running, None);
        host
    }

    fn status(&self, phase: Phase, exit_code: Option<i32>) {
        let monitor_pid = (phase == Phase::Running).then(|| self.monitor.id().cast_signed());
        let status = Status { phase, monitor_pid, exit_code, ..Status::default() };
        let path = self.roots.container(&self.id).join("status.json");
        fs::write(path, serde_json::to_vec(&status).unwrap()).unwrap();
    }

    fn container(&self) -> Container {
        Container::load(&self.roots, &self.id).unwrap()
    }

    fn log(&self, text: &str) {
        let path = self.roots.container(&self.id).join("container.log");
        let mut log = OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(log, "{:.9} stdout F {text}", Timestamp::now()).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}

/// Standard output of a follower: each line it shows makes the container do the next thing.
struct Steps<'a> {
    host: &'a Host,
    input: Option<ChildStdin>,
    shown: Vec<u8>,
}

impl Write for Steps<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.shown.extend_from_slice(bytes);
        if self.shown.ends_with(b"one\n") {
            self.host.log("two");
        } else if self.shown.ends_with(b"two\n") {
            self.host.log("last words");
            self.input = None;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives the container's lock up. A child that another test has just forked holds a copy of it until it executes its program.
fn unlock(host: &mut Host) {
    host.lock = None;
    let begin = Instant::now();
    while lock::is_held(&host.roots, &host.id) {
        assert!(begin.elapsed() < Duration::from_secs(30), "somebody else holds the lock");
        std::thread::yield_now();
    }
}

#[test]
fn a_log_is_followed_to_the_last_words() {
    let mut host = Host::new();
    let input = host.monitor.stdin.take();
    host.log("one");
    let mut stdout = Steps { host: &host, input, shown: Vec::new() };
    let wanted = Wanted { follow: true, ..Wanted::default() };
    logs::show(&host.container(), &wanted, &mut stdout, &mut io::sink()).unwrap();
    assert_eq!(String::from_utf8_lossy(&stdout.shown), "one\ntwo\nlast words\n");
}

#[test]
fn a_monitor_is_waited_for() {
    let mut host = Host::new();
    let container = host.container();
    let watched = Monitor::of(&container).unwrap().unwrap();
    assert!(!watched.wait(Some(Duration::ZERO)).unwrap());
    host.status(Phase::Exited, Some(17));
    drop(host.monitor.stdin.take());
    assert!(watched.wait(None).unwrap());
    unlock(&mut host);
    assert!(Monitor::of(&container).unwrap().is_none());
    assert_eq!(monitor::wait(&container).unwrap().exit_code, Some(17));
}

#[test]
fn a_container_that_is_looked_after_is_not_swept_started_or_removed() {
    let host = Host::new();
    assert!(sweep::sweep(&host.roots).is_empty());
    assert!(lifecycle::begin_start(&host.container()).unwrap().is_none(), "it runs already");
    let error = remove::remove(&host.roots, &host.id, false, false).unwrap_err();
    assert!(matches!(error, Error::WrongState { state: "running", .. }), "{error}");
    assert!(host.container().live_dir().exists());
}

#[test]
fn without_a_monitor_nothing_runs() {
    let mut host = Host::new();
    unlock(&mut host);
    let status = host.container().status().unwrap();
    assert_eq!((status.phase, status.exit_code), (Phase::Exited, Some(137)));
    assert!(lifecycle::begin_start(&host.container()).unwrap().is_some());
}
