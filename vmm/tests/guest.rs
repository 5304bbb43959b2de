//! The guest's init and the host's client together, without a machine between them: a socket pair takes the place of vsock.
//! This program plays two parts: the tests, and `berth-vmm exec` (`client START`, with a `Start` as JSON).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use berth_vmm::guest::client::{self, ClientError};
use berth_vmm::guest::frame::{Exit, Frame};
use berth_vmm::guest::link::Link;
use berth_vmm::guest::start::Start;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == "client") {
        return play_client(&arguments[2]);
    }
    let tests: [(&str, fn()); 15] = [
        ("streams_and_exit_codes", streams_and_exit_codes),
        ("a_lot_of_input_and_output", a_lot_of_input_and_output),
        ("commands_that_cannot_run", commands_that_cannot_run),
        ("environment_and_directory", environment_and_directory),
        ("users_and_groups", users_and_groups),
        ("limits_and_capabilities", limits_and_capabilities),
        ("signals", signals),
        ("the_last_signal", the_last_signal),
        ("a_reader_that_goes_away", a_reader_that_goes_away),
        ("a_child_that_stays", a_child_that_stays),
        ("a_terminal", a_terminal),
        ("a_terminal_changes_its_size", a_terminal_changes_its_size),
        ("a_host_that_goes_away", a_host_that_goes_away),
        ("a_guest_that_goes_away", a_guest_that_goes_away),
        ("connecting", connecting),
    ];
    let wanted = arguments.get(1).map_or("", String::as_str);
    for (name, test) in tests.into_iter().filter(|(name, _)| name.contains(wanted)) {
        test();
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

fn play_client(start: &str) -> ExitCode {
    let signals = client::signals().unwrap();
    let start: Start = serde_json::from_str(start).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut init = init(theirs.into());
    let result = client::run(ours.into(), start, &signals);
    init.wait().unwrap();
    match result {
        Ok(exit) => ExitCode::from(exit.code() as u8),
        Err(error) => {
            eprintln!("client: {error}");
            ExitCode::from(error.exit_code() as u8)
        }
    }
}

fn init(connection: OwnedFd) -> Child {
    Command::new(env!("CARGO_BIN_EXE_berth-guest-init")).stdin(connection).spawn().unwrap()
}

fn start(args: &[&str], change: impl FnOnce(&mut Value)) -> Start {
    let mut process = json!({
        "args": args,
        "cwd": "/",
        "env": ["PATH=/usr/bin:/bin"],
        "user": { "uid": 0, "gid": 0 },
    });
    change(&mut process);
    Start { process: serde_json::from_value(process).unwrap(), ..Start::default() }
}

fn client_of(start: &Start) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("client").arg(serde_json::to_string(start).unwrap());
    command
}

fn run_start(start: &Start) -> Output {
    client_of(start).stdin(Stdio::null()).output().unwrap()
}

fn run(script: &str) -> Output {
    run_start(&start(&["sh", "-c", script], |_| ()))
}

fn text(output: &Output) -> (i32, &str, &str) {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn wait_until(condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_mins(1), "waited for too long");
        std::thread::yield_now();
    }
}

fn streams_and_exit_codes() {
    assert_eq!(text(&run("echo out; echo err >&2; exit 7")), (7, "out\n", "err\n"));
    assert_eq!(text(&run("echo one | tr a-z A-Z | cat")), (0, "ONE\n", ""));
    assert_eq!(text(&run("kill -SEGV $$")).0, 139);
    assert_eq!(text(&run("exit 255")).0, 255);
    assert_eq!(text(&run("cat; echo end")), (0, "end\n", ""));
}

fn a_lot_of_input_and_output() {
    let data: Vec<u8> = (0..9_000_000_u32).map(|number| (number.wrapping_mul(number) >> 7) as u8).collect();
    let mut child = client_of(&start(&["cat"], |_| ())).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&data).unwrap();
            drop(stdin);
        });
        child.wait_with_output().unwrap()
    });
    assert!(output.stdout == data);
    assert_eq!(output.status.code(), Some(0));
    // Input that nobody reads keeps nothing from ending.
    let mut child = client_of(&start(&["true"], |_| ())).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(&data);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn commands_that_cannot_run() {
    let output = run_start(&start(&["no-such-command"], |_| ()));
    let (code, _, message) = text(&output);
    assert_eq!(code, 127);
    assert!(message.contains("exec `no-such-command`: executable file not found in $PATH"), "{message}");
    let output = run_start(&start(&["/etc/passwd"], |_| ()));
    assert_eq!(text(&output).0, 126);
    let output = run_start(&start(&[], |_| ()));
    let (code, _, message) = text(&output);
    assert_eq!((code, message), (125, "client: there is no command to run\n"));
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let long = start(&["true", &"x".repeat(5 << 20)], |_| ());
    let error = client::run(ours.into(), long, &client::signals().unwrap()).unwrap_err();
    signals_again();
    assert!(matches!(error, ClientError::TooLong(length) if length > 5 << 20), "{error}");
    let output = run_start(&start(&["true"], |process| process["cwd"] = json!("/etc/passwd")));
    let (code, _, message) = text(&output);
    assert_eq!(code, 125);
    assert!(message.contains("enter the working directory /etc/passwd"), "{message}");
}

fn environment_and_directory() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("is/there");
    std::fs::create_dir_all(&made).unwrap();
    let start = start(&["sh", "-c", "pwd; env"], |process| {
        process["env"] = json!(["PATH=/bin:/usr/bin", "A=b c", "HOME=/nowhere"]);
        process["cwd"] = json!(made);
    });
    let output = run_start(&start);
    let (code, out, _) = text(&output);
    let mut lines: Vec<_> = out.lines().filter(|line| !line.starts_with("PWD=") && !line.starts_with("_=")).collect();
    lines[1..].sort_unstable();
    assert_eq!((code, lines), (0, vec![made.to_str().unwrap(), "A=b c", "HOME=/nowhere", "PATH=/bin:/usr/bin"]));
}

fn users_and_groups() {
    let ids = start(&["sh", "-c", "id -u; id -g; id -G; umask"], |process| {
        process["user"] = json!({ "uid": 4242, "gid": 4343, "additionalGids": [44, 55], "umask": 0o77 });
    });
    assert_eq!(text(&run_start(&ids)), (0, "4242\n4343\n4343 44 55\n0077\n", ""));
    let mut named = start(&["sh", "-c", "id -un; echo $HOME"], |_| ());
    named.user = Some("daemon".to_owned());
    assert_eq!(text(&run_start(&named)), (0, "daemon\n/usr/sbin\n", ""));
    named.user = Some("nobody-of-that-name".to_owned());
    let output = run_start(&named);
    assert!(text(&output).2.contains("user `nobody-of-that-name` is not in the image's /etc/passwd"));
}

fn limits_and_capabilities() {
    let limited =
        start(&["sh", "-c", "ulimit -n; ulimit -c; grep -E 'CapBnd|NoNewPrivs' /proc/self/status"], |process| {
            process["rlimits"] = json!([
                { "type": "RLIMIT_NOFILE", "soft": 99, "hard": 100 },
                { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
            ]);
            process["capabilities"] =
                json!({ "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] });
            process["noNewPrivileges"] = json!(true);
        });
    assert_eq!(text(&run_start(&limited)), (0, "99\n0\nCapBnd:\t0000000000000020\nNoNewPrivs:\t1\n", ""));
}

fn started(script: &str) -> (Child, std::process::ChildStdout) {
    let mut child =
        client_of(&start(&["sh", "-c", script], |_| ())).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready\n");
    (child, stdout)
}

fn signals() {
    for name in ["TERM", "INT", "HUP", "USR1", "WINCH", "QUIT"] {
        // The shell runs the trap when its child ends, which the signal makes it do too.
        let script = format!("trap 'echo {name}; exit 9' {name}; echo ready; while :; do read x < /dev/zero; done");
        let (mut child, mut stdout) = started(&script.replace("read x < /dev/zero", ":"));
        kill(Pid::from_raw(child.id() as i32), format!("SIG{name}").parse::<Signal>().unwrap()).unwrap();
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.trim_end(), child.wait().unwrap().code()), (name, Some(9)));
    }
}

fn the_last_signal() {
    let (mut child, _stdout) = started("echo ready; exec sleep 1000");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(143), None));
}

fn a_reader_that_goes_away() {
    let (mut child, stdout) = started("echo ready; exec yes");
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(128 + Signal::SIGPIPE as i32));
}

/// It has the streams open, and writes without end.
fn a_child_that_stays() {
    let pid_in = |text: &str| Pid::from_raw(text.trim_end().parse().unwrap());
    let output = run("sleep 1000 & echo $!; exit 3");
    let (code, pid, _) = text(&output);
    assert_eq!(code, 3);
    // In a machine it would go with everything else.
    kill(pid_in(pid), Signal::SIGKILL).unwrap();
    let output = run("yes & echo $! >&2; exit 4");
    let (code, out, pid) = text(&output);
    assert_eq!(code, 4);
    assert!(out.len() < 8 << 20, "{} bytes", out.len());
    // Its pipe has no reader any more.
    wait_until(|| kill(pid_in(pid), None).is_err());
}

/// A client on a terminal of its own, and that terminal's other side.
fn on_terminal(script: &str) -> (Child, File) {
    let pty = nix::pty::openpty(Some(&nix::pty::Winsize { ws_row: 30, ws_col: 90, ws_xpixel: 0, ws_ypixel: 0 }), None)
        .unwrap();
    let start = start(&["sh", "-c", script], |process| process["terminal"] = json!(true));
    let [stdin, stdout] = [(); 2].map(|()| pty.slave.try_clone().unwrap());
    let child = client_of(&start).stdin(stdin).stdout(stdout).spawn().unwrap();
    (child, pty.master.into())
}

fn read_until(terminal: &mut File, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let mut byte = [0];
        match terminal.read(&mut byte) {
            Ok(1) => text.extend(byte),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&text)),
        }
    }
    String::from_utf8(text).unwrap()
}

fn a_terminal() {
    let (mut child, mut terminal) =
        on_terminal("stty size; tty; echo ready; read line; echo got $line; exec sleep 1000");
    let greeting = read_until(&mut terminal, "ready\r\n");
    assert!(greeting.starts_with("30 90\r\n/dev/pts/"), "{greeting:?}");
    terminal.write_all(b"hello\r").unwrap();
    // The guest's terminal echoes, once.
    assert_eq!(read_until(&mut terminal, "got hello\r\n"), "hello\r\ngot hello\r\n");
    terminal.write_all(b"\x03").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

fn a_terminal_changes_its_size() {
    let (mut child, mut terminal) = on_terminal("trap 'stty size; exit 5' WINCH; echo ready; while :; do :; done");
    read_until(&mut terminal, "ready\r\n");
    berth_runtime::sandbox::resize(&terminal, 11, 22).unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGWINCH).unwrap();
    assert_eq!(read_until(&mut terminal, "\n"), "11 22\r\n");
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

fn a_host_that_goes_away() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut init = init(theirs.into());
    let mut link = Link::new(ours);
    link.send(&Frame::Start(Box::new(start(&["sh", "-c", "echo $$; exec sleep 1000"], |_| ())))).unwrap();
    let pid = loop {
        link.receive().unwrap();
        if let Some(Frame::Stdout(data)) = link.take().unwrap() {
            break String::from_utf8(data).unwrap().trim_end().parse().unwrap();
        }
    };
    drop(link);
    assert!(init.wait().unwrap().success());
    wait_until(|| kill(Pid::from_raw(pid), None).is_err());
}

fn a_guest_that_goes_away() {
    let signals = client::signals().unwrap();
    for message in [&b""[..], b"nonsense", &[6, 0, 0, 0, 255]] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(message).unwrap();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                // Not before the start is read, since unread bytes would make it a reset.
                let mut link = Link::new(theirs);
                while link.take().unwrap().is_none() {
                    link.receive().unwrap();
                }
            });
            client::run(ours.into(), start(&["true"], |_| ()), &signals).unwrap_err()
        });
        assert_eq!(matches!(error, ClientError::Lost), message.is_empty(), "{error}");
    }
    signals_again();
}

/// The mask was for the client's part.
fn signals_again() {
    nix::sys::signal::SigSet::empty().thread_set_mask().unwrap();
}

fn connecting() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock.sock");
    let error = client::connect(&path, 1).unwrap_err().to_string();
    assert!(error.contains("vsock.sock") && error.contains("is the microVM still running?"), "{error}");
    let listener = UnixListener::bind(&path).unwrap();
    for (answer, works) in
        [("OK 1073741824\n", true), ("", false), ("what?\n", false), ("no end of line for very long", false)]
    {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = [0; 10];
                stream.read_exact(&mut line).unwrap();
                assert_eq!(&line, b"CONNECT 1\n");
                stream.write_all(answer.as_bytes()).unwrap();
                if works {
                    let mut bytes = Vec::new();
                    Frame::Exited(Exit::Code(0)).encode(&mut bytes);
                    stream.write_all(&bytes).unwrap();
                }
            });
            let connected = client::connect(&path, 1);
            assert_eq!(connected.is_ok(), works, "{answer:?}: {connected:?}");
            if let Ok(stream) = connected {
                let mut link = Link::new(UnixStream::from(stream));
                link.receive().unwrap();
                assert_eq!(link.take().unwrap(), Some(Frame::Exited(Exit::Code(0))));
            }
        });
    }
}
