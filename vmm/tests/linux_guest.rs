//! A Linux guest on real KVM semantics: Debian's kernel, the init, an image's disk. The machine it runs in is emulated
//! (`scripts/nested`: AMD's virtualization with nested paging, in software). This program plays two parts: the host's, which
//! prepares and starts that machine, and `inside`, which tests there.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitCode, Output, Stdio};

use berth_images::DiskFormat;
use berth_vmm::guest::initramfs::{self, Kernel};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

#[path = "../src/devices/net/tests/open_tap.rs"]
mod open_tap;

/// Checks a filesystem, linked statically: the machine has no shared libraries.
const E2FSCK: &str = "/sbin/e2fsck.static";

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|part| part == "inside") {
        let tests: [(&str, fn()); 7] = [
            ("a_process_in_a_guest", a_process_in_a_guest),
            ("more_processes", more_processes),
            ("a_disk_for_data", a_disk_for_data),
            ("disks_that_fail", disks_that_fail),
            ("a_network_of_two_guests", a_network_of_two_guests),
            ("processes_that_cannot_be", processes_that_cannot_be),
            ("a_guest_without_a_root", a_guest_without_a_root),
        ];
        for (name, test) in tests {
            test();
            println!("test {name} (nested paging, emulated) ... ok");
        }
        return ExitCode::SUCCESS;
    }
    outside()
}

fn outside() -> ExitCode {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let nested = workspace.join("scripts/nested");
    let check = Command::new(&nested).arg("--check").output().unwrap();
    if !check.status.success() {
        println!("not run: {}", String::from_utf8_lossy(&check.stderr).trim_end());
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    // Without what only debuggers read, which is most of them.
    let this = std::env::current_exe().unwrap();
    let programs = [
        (Path::new(env!("CARGO_BIN_EXE_berth-vmm")), "berth-vmm"),
        (Path::new(env!("CARGO_BIN_EXE_berth-guest-init")), "berth-guest-init"),
        (&this, "linux_guest"),
    ];
    for (program, name) in programs {
        let target = path(name);
        assert!(Command::new("strip").arg("-o").arg(target).arg(program).status().unwrap().success());
    }
    let kernel = Kernel::newest(Path::new("/boot"), Path::new("/lib/modules")).unwrap();
    let made = initramfs::open(&kernel, &path("berth-guest-init"), true, &path("cache")).unwrap();
    fs::copy(&kernel.image, path("vmlinuz")).unwrap();
    fs::copy(made.path, path("initramfs")).unwrap();
    let tar = path("rootfs.tar");
    assert!(Command::new(workspace.join("scripts/busybox-rootfs")).arg(&tar).status().unwrap().success());
    let store = berth_images::Store::open(&path("data")).unwrap().with_unpacker(berth_images::Unpacker::InProcess);
    store.import(File::open(tar).unwrap(), Some("busybox"), &berth_images::ImportOptions::default()).unwrap();
    let disk = store.disk(&store.resolve("busybox").unwrap(), DiskFormat::Erofs).unwrap();
    fs::copy(disk, path("root")).unwrap();
    File::create(path("data.img")).unwrap().set_len(32 << 20).unwrap();
    assert!(Command::new("mkfs.ext4").arg("-q").arg(path("data.img")).status().unwrap().success());
    let mut command = Command::new(nested);
    command.args(["--memory", "1500"]);
    for name in ["berth-vmm", "vmlinuz", "initramfs", "root", "data.img"] {
        command.arg("--file").arg(path(name));
    }
    command.args(["--file", E2FSCK]);
    let status = command.arg("--").arg(path("linux_guest")).arg("inside").status().unwrap();
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Descriptors for the machine, open in this process until it has been started. The vsock's listener above all: while anybody
/// has it, a connection to a machine that is gone waits.
#[derive(Default)]
struct Given(Vec<OwnedFd>);

impl Given {
    fn give(&mut self, file: impl Into<OwnedFd>) -> i32 {
        let file = file.into();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        self.0.push(file);
        self.0.last().unwrap().as_raw_fd()
    }

    fn open(&mut self, path: &str) -> i32 {
        self.give(File::options().read(true).write(true).open(path).unwrap())
    }
}

fn process(script: &str) -> Value {
    let process = json!({
        "args": ["sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
    });
    json!({ "process": process, "user": null, "groups": null, "machine": null })
}

fn machine(process: Value, mounts: &Value) -> Value {
    let mut process = process;
    let hosts = json!([{ "path": "/etc/hosts", "content": "127.0.0.1 localhost\n" }]);
    process["machine"] =
        json!({ "hostname": "box", "files": hosts, "mounts": mounts, "is_read_only": false, "network": null });
    process
}

/// Starts `berth-vmm run` with these disks (path, serial number).
fn vmm(process: &Value, disks: &[(&str, &str)]) -> Child {
    vmm_on_network(process, disks, None)
}

/// With a network card that has this address, on the tap.
fn vmm_on_network(process: &Value, disks: &[(&str, &str)], card: Option<([u8; 6], File)>) -> Child {
    let mut given = Given::default();
    let _ = fs::remove_file("vsock.sock");
    let listener = given.give(UnixListener::bind("vsock.sock").unwrap());
    let disks: Vec<Value> = disks
        .iter()
        .map(|(path, serial)| json!({ "file": given.open(path), "read_only": *serial == "root", "serial": serial }))
        .collect();
    let nets: Vec<Value> = card.map(|(mac, tap)| json!({ "tap": given.give(tap), "mac": mac })).into_iter().collect();
    let config = json!({
        "kvm": given.open("/dev/kvm"),
        "kernel": given.open("vmlinuz"),
        "initramfs": given.open("initramfs"),
        "console": given.give(File::create("console").unwrap()),
        "memory": 192 << 20,
        "vcpus": 1,
        "command_line": "rdinit=/init",
        "disks": disks,
        "nets": nets,
        "vsock": { "cid": 3, "listener": listener },
    });
    fs::write("config.json", config.to_string()).unwrap();
    fs::write("process.json", process.to_string()).unwrap();
    let mut command = Command::new("./berth-vmm");
    command.args(["run", "config.json", "process.json"]);
    let child = piped(&mut command);
    drop(given);
    child
}

fn piped(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn exec(script: &str) -> Command {
    fs::write("exec.json", process(script).to_string()).unwrap();
    let mut command = Command::new("./berth-vmm");
    command.args(["exec", "vsock.sock", "exec.json"]);
    command
}

fn text(output: &Output) -> (i32, &str, &str) {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn with_input(mut child: Child, input: &[u8]) -> Output {
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(input).unwrap();
            drop(stdin);
        });
        child.wait_with_output().unwrap()
    })
}

fn a_process_in_a_guest() {
    let script = "id; hostname; cat; cat /etc/hosts; df /data | tail -n 1 | cut -c 1-5; \
                  grep CapBnd /proc/self/status; touch /tmp/x && echo written; echo error >&2; exit 42";
    let mut start = machine(
        process(script),
        &json!([{ "destination": "/data", "kind": "tmpfs", "disk": null, "options": ["size=64k", "nosuid"] }]),
    );
    start["user"] = json!("berth");
    let kill = json!(["CAP_KILL"]);
    start["process"]["capabilities"] = json!({ "bounding": kill, "effective": kill, "permitted": kill });
    let output = with_input(vmm(&start, &[("root", "root")]), b"one line\n");
    let expected = "uid=1000(berth) gid=1000(berth) groups=44(video)\nbox\none line\n127.0.0.1 localhost\ntmpfs\n\
                    CapBnd:\t0000000000000020\nwritten\n";
    assert_eq!(text(&output), (42, expected, "error\n"));
}

/// A first process that says that it runs, and waits.
fn waiting(script: &str) -> (Child, ChildStdout) {
    ready(vmm(&machine(process(script), &json!([])), &[("root", "root")]))
}

/// The child when it has said that it is ready, and what it says from then on.
fn ready(mut child: Child) -> (Child, ChildStdout) {
    let mut stdout = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready\n");
    (child, stdout)
}

fn more_processes() {
    let (mut child, _stdout) = waiting("echo ready; exec sleep 10000");
    assert_eq!(text(&exec("echo second; exit 3").stdin(Stdio::null()).output().unwrap()), (3, "second\n", ""));
    let data: Vec<u8> = (0..2_000_000_u32).map(|number| (number.wrapping_mul(number) >> 7) as u8).collect();
    let output = with_input(piped(&mut exec("cat")), &data);
    assert!(output.status.success() && output.stdout == data, "{} bytes", output.stdout.len());
    assert_eq!(text(&exec("ps | grep -c '[s]leep 10000'").stdin(Stdio::null()).output().unwrap()), (0, "1\n", ""));
    let long = exec("sleep 9999").stdin(Stdio::null()).spawn().unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    // It goes down with the machine.
    assert_eq!(long.wait_with_output().unwrap().status.code(), Some(125));
    let output = exec("true").output().unwrap();
    assert!(text(&output).2.contains("is the microVM still running?"), "{output:?}");
}

fn a_disk_for_data() {
    let mounts = json!([{ "destination": "/data/deep", "kind": "ext4", "disk": "volume0", "options": ["noatime"] }]);
    let script = "yes berth | head -c 5000000 > /data/deep/file; sha256sum < /data/deep/file";
    let start = machine(process(script), &mounts);
    let disks = [("root", "root"), ("data.img", "volume0")];
    let written = with_input(vmm(&start, &disks), b"");
    assert_eq!((written.status.code(), written.stdout.len()), (Some(0), 68), "{written:?}");
    let start = machine(process("sha256sum < /data/deep/file; dmesg | grep -ci 'recovery' "), &mounts);
    let read = with_input(vmm(&start, &disks), b"");
    let (code, out, _) = text(&read);
    // It was unmounted before the exit code was said, so there is no journal to replay.
    assert_eq!((code, out), (1, format!("{}0\n", text(&written).1).as_str()));
    // Nor does another kernel find anything amiss.
    let program = Path::new(E2FSCK).file_name().unwrap();
    let check = Command::new(Path::new("./").join(program)).args(["-f", "-n", "data.img"]).output().unwrap();
    assert!(check.status.success(), "{check:?}");
    fs::create_dir("mounted").unwrap();
    shell("mount -o loop,ro data.img mounted");
    let sum = Command::new("sha256sum").stdin(File::open("mounted/file").unwrap()).output().unwrap();
    assert_eq!(text(&sum).1, text(&written).1);
    shell("umount mounted");
}

/// In the machine around the guests.
fn shell(script: &str) {
    assert!(Command::new("sh").args(["-e", "-c", script]).status().unwrap().success(), "{script}");
}

/// What is not zero of the disk, so that the copy has room where all of it would not.
fn copy_of_disk(target: &str) {
    let content = fs::read("data.img").unwrap();
    let copy = File::create(target).unwrap();
    copy.set_len(content.len() as u64).unwrap();
    for (place, block) in (0..).zip(content.chunks(4096)) {
        if block.iter().any(|&byte| byte != 0) {
            copy.write_all_at(block, place * 4096).unwrap();
        }
    }
}

/// The guest is told that its disk fails, and goes on without it.
fn disks_that_fail() {
    let mounts = json!([{ "destination": "/data", "kind": "ext4", "disk": "volume0", "options": [] }]);
    shell("mkdir small && mount -t tmpfs -o size=12m small small");
    copy_of_disk("small/data.img");
    let script = "dd if=/dev/zero of=/data/more bs=1M count=20 conv=fsync && echo written; exit 9";
    let full =
        with_input(vmm(&machine(process(script), &mounts), &[("root", "root"), ("small/data.img", "volume0")]), b"");
    assert_eq!((full.status.code(), text(&full).1), (Some(9), ""), "{full:?}");
    shell("umount small");

    copy_of_disk("vanishing.img");
    let script = "echo ready; read line; cat /data/file > /dev/null && echo read; exit 8";
    let disks = [("root", "root"), ("vanishing.img", "volume0")];
    let (child, mut stdout) = ready(vmm(&machine(process(script), &mounts), &disks));
    File::options().write(true).open("vanishing.img").unwrap().set_len(0).unwrap();
    let ended = with_input(child, b"go on\n");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((ended.status.code(), rest.as_str()), (Some(8), ""), "{ended:?}");
}

/// Two guests on taps of one bridge: what one sends the other gets, whole.
fn a_network_of_two_guests() {
    shell("brctl addbr bridge0; ip link set bridge0 up");
    let on_bridge = |number: u8, script: &str| {
        let name = format!("tap{number}");
        let tap = open_tap::open(&name);
        shell(&format!("brctl addif bridge0 {name}; ip link set {name} up"));
        let mut start = machine(process(script), &json!([]));
        let address = format!("10.9.0.{number}");
        start["machine"]["network"] = json!({ "address": address, "prefix": 24, "gateway": null });
        vmm_on_network(&start, &[("root", "root")], Some(([2, 0, 0, 0, 0, number], tap)))
    };
    let receive = "ip addr show lo | grep -q LOOPBACK,UP && echo ready; nc -l -p 9000 > /tmp/got; sha256sum < /tmp/got";
    let (receiver, mut received) = ready(on_bridge(1, receive));
    // It may not listen yet.
    let send = "head -c 3000000 /dev/urandom > /tmp/sent; until nc 10.9.0.1 9000 < /tmp/sent 2> /dev/null; do :; done; \
                sha256sum < /tmp/sent";
    let sent = with_input(on_bridge(2, send), b"");
    let mut sum = String::new();
    received.read_to_string(&mut sum).unwrap();
    assert_eq!(text(&sent), (0, sum.as_str(), ""));
    assert_eq!((sum.len(), receiver.wait_with_output().unwrap().status.code()), (68, Some(0)));
}

fn processes_that_cannot_be() {
    let mut start = machine(process(""), &json!([]));
    start["process"]["args"] = json!(["no-such-command"]);
    let output = with_input(vmm(&start, &[("root", "root")]), b"");
    let (code, _, message) = text(&output);
    assert_eq!(code, 127);
    assert!(message.contains("`no-such-command`: executable file not found"), "{message}");
    let mounts = json!([{ "destination": "/data", "kind": "ext4", "disk": "volume7", "options": [] }]);
    let output = with_input(vmm(&machine(process("true"), &mounts), &[("root", "root")]), b"");
    let (code, _, message) = text(&output);
    assert_eq!(code, 125);
    assert!(message.contains("no disk with the serial number 'volume7', only [\"root\"]"), "{message}");
}

fn a_guest_without_a_root() {
    let start = machine(process("true"), &json!([]));
    let output = with_input(vmm(&start, &[]), b"");
    let (code, _, message) = text(&output);
    assert_eq!(code, 125);
    assert!(message.contains("no disk with the serial number 'root'"), "{message}");
    // A disk without a file system.
    let output = with_input(vmm(&start, &[("initramfs", "root")]), b"");
    let (code, _, message) = text(&output);
    assert_eq!(code, 125);
    assert!(message.contains("mount /dev/vda at /lower"), "{message}");
}
