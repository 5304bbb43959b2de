//! Commands with a deadline: what goes in, what comes out, and the exit code.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// How long a command may take unless it says otherwise.
const TIMEOUT: Duration = Duration::from_mins(2);

/// A command that is about to be run.
pub struct Cmd {
    /// The command, for what has no shorthand here.
    pub inner: Command,
    stdin: Vec<u8>,
    timeout: Duration,
}

/// What a command left when it ended.
pub struct Output {
    line: String,
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output, as bytes.
    pub stdout: Vec<u8>,
    /// Standard error, as bytes.
    pub stderr: Vec<u8>,
}

/// A command that runs; it is killed if it is dropped before it has ended.
pub struct Running {
    line: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Captured,
    stderr: Captured,
    timeout: Duration,
}

/// A stream that a thread reads to its end.
struct Captured {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Cmd {
    /// `program` with the arguments in `words`, separated by blanks.
    pub fn new(program: impl AsRef<OsStr>, words: &str) -> Self {
        let mut inner = Command::new(program);
        inner.args(words.split_whitespace());
        Self { inner, stdin: Vec::new(), timeout: TIMEOUT }
    }

    /// Adds one argument as it is.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.inner.arg(arg);
        self
    }

    /// Adds arguments as they are.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.inner.args(args);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.inner.env(key, value);
        self
    }

    /// Runs it from a shell script instead, which finds the program as `$0`.
    #[must_use]
    pub fn in_shell(mut self, script: &str) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(self.inner.get_program());
        shell.envs(self.inner.get_envs().filter_map(|(key, value)| Some((key, value?))));
        self.inner = shell;
        self
    }

    /// What [`Cmd::run`] writes to its standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Output {
        let input = std::mem::take(&mut self.stdin);
        let mut running = self.spawn();
        let mut stdin = running.stdin.take().expect("standard input is a pipe");
        // A command may well end without reading all of its input.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = running.wait();
        writer.join().expect("the writer does not panic");
        output
    }

    /// Runs it and insists on exit code 0.
    pub fn ok(self) -> Output {
        self.run().code(0)
    }

    /// Starts it, with all three standard streams on pipes.
    pub fn spawn(mut self) -> Running {
        let line = format!("{:?}", self.inner);
        self.inner.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.inner.spawn().unwrap_or_else(|error| panic!("cannot start {line}: {error}"));
        let stdin = child.stdin.take();
        let stdout = Captured::of(child.stdout.take().expect("it is a pipe"));
        let stderr = Captured::of(child.stderr.take().expect("it is a pipe"));
        Running { line, child, stdin, stdout, stderr, timeout: self.timeout }
    }
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap_or_else(|error| panic!("cannot send {signal} to {}: {error}", self.line));
    }

    /// Writes to its standard input.
    pub fn write(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is still open");
        stdin.write_all(text.as_bytes()).unwrap_or_else(|error| panic!("cannot write to {}: {error}", self.line));
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Waits until `text` is somewhere in its standard output.
    pub fn expect(&self, text: &str) {
        assert!(
            wait::within(wait::DEADLINE, || self.stdout().contains(text)),
            "{} did not print {text:?}; standard output: {:?}, standard error: {:?}",
            self.line,
            self.stdout(),
            self.stderr.text()
        );
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Output {
        self.stdin = None;
        let mut status = None;
        wait::within(self.timeout, || {
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        let Some(status) = status else {
            panic!(
                "{} did not end within {:?}; standard output: {:?}, standard error: {:?}",
                self.line,
                self.timeout,
                self.stdout(),
                self.stderr.text()
            );
        };
        let line = self.line.clone();
        Output { stdout: self.stdout.finish(&line), stderr: self.stderr.finish(&line), line, status }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Captured {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                sink.lock().expect("no holder panics").extend_from_slice(&buffer[..count]);
            }
        });
        Self { bytes, reader: Some(reader) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no holder panics")).into_owned()
    }

    /// Everything, once all writers have closed the stream.
    fn finish(&mut self, line: &str) -> Vec<u8> {
        let reader = self.reader.take().expect("finished once");
        assert!(
            wait::within(wait::DEADLINE, || reader.is_finished()),
            "{line} ended, but some other process keeps its output open; so far: {:?}",
            self.text()
        );
        std::mem::take(&mut self.bytes.lock().expect("no holder panics"))
    }
}

impl Output {
    /// The exit code, 128+n for signal n.
    pub fn exit_code(&self) -> i32 {
        self.status.code().or_else(|| self.status.signal().map(|n| 128 + n)).expect("it has ended")
    }

    /// Insists on an exit code.
    #[must_use]
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert!(self.exit_code() == code, "exit code {} instead of {code}: {self:?}", self.exit_code());
        self
    }

    /// Insists on failure with one clear line on standard error that has `text` in it.
    #[track_caller]
    pub fn fails_with(&self, text: &str) {
        assert!(self.exit_code() != 0, "it should have failed: {self:?}");
        let said = self.stderr_text();
        assert!(!said.contains("panicked at"), "it panicked: {self:?}");
        assert!(said.to_lowercase().contains(&text.to_lowercase()), "the error does not say {text:?}: {self:?}");
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as text without white space at its ends.
    pub fn trimmed(&self) -> String {
        self.text().trim().to_owned()
    }

    /// Standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shorten = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).into_owned();
            if bytes.len() > 4096 { format!("{text}… ({} bytes)", bytes.len()) } else { text }
        };
        write!(
            f,
            "{}\n{}\n--- standard output\n{}\n--- standard error\n{}",
            self.line,
            self.status,
            shorten(&self.stdout),
            shorten(&self.stderr)
        )
    }
}
