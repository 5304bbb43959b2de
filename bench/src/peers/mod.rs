//! Other programs that do the same work: what is installed of them, prepared outside of what is measured.

mod guests;

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::document::Kind;
use crate::error::{Error, Result};
use crate::peers::guests::{Boot, ENDED_WELL};
use crate::room::Room;
use crate::targets::Target;
use crate::timed::{self, Timed};

/// Version 2 of control groups beside version 1. crun, and podman with it, refuse to run where it is mounted.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// A program to compare berth with. Of use as long as the [`Peers`] are there.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What it is called.
    pub name: &'static str,
    /// What it runs, for a person.
    pub workload: String,
    /// The name of berth's subject that it is compared with.
    pub beside: Option<String>,
    /// How it is called, or why it cannot be.
    pub command: Result<Vec<String>, String>,
    /// Whether it has to run without [`UNIFIED`].
    is_hidden: bool,
    /// What it says if the work was done, where its exit code does not tell.
    success: Option<&'static str>,
}

impl Peer {
    /// One run.
    pub fn run(&self) -> Result<Timed> {
        let words = self.command.as_ref().map_err(|reason| Error::Invalid(reason.clone()))?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        let line = timed::line(&command);
        let timed = if self.is_hidden { hidden(|| timed::run(command, false)) } else { timed::run(command, false) }?;
        let said = String::from_utf8_lossy(&timed.output);
        if self.success.is_some_and(|success| !said.contains(success)) {
            let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
            return Err(Error::Failed { command: line, reason: last.trim().to_owned() });
        }
        Ok(timed)
    }
}

/// All peers.
pub struct Peers<'a> {
    room: &'a Room<'a>,
    volatile: PathBuf,
    /// berth's container with the same work, and its image.
    container: Option<&'a Target>,
    wasm: Option<&'a Target>,
    guest: Option<&'a Target>,
    bundle: Result<PathBuf, String>,
    podman: Result<Vec<String>, String>,
    wasmtime: Result<Vec<String>, String>,
    qemu: Result<Vec<String>, String>,
    firecracker: Result<Vec<String>, String>,
}

impl<'a> Peers<'a> {
    /// Prepares what is installed: a bundle with the image's root filesystem, the same as an image of podman's, a compiled module.
    pub fn prepare(room: &'a Room<'a>, targets: &'a [Target]) -> Result<Self> {
        let first = |kind| targets.iter().find(|target| target.kind == kind && target.reason.is_none());
        let (container, wasm, guest) = (first(Kind::Container), first(Kind::Wasm), first(Kind::MicrovmLinux));
        let nothing = |what| format!("no {what} is measured, whose work it would do");
        let mut peers = Self {
            room,
            volatile: room.scratch().join("volatile"),
            container,
            wasm,
            guest,
            bundle: Err(nothing("container")),
            podman: Err(nothing("container")),
            wasmtime: Err(nothing("built-in module")),
            qemu: Err(nothing("Linux guest")),
            firecracker: Err(nothing("Linux guest")),
        };
        if let Some(target) = container {
            peers.bundle = told(peers.make_bundle(target))?;
            peers.podman = match &peers.bundle {
                Ok(bundle) => told(peers.prepare_podman(bundle, target))?,
                Err(reason) => Err(reason.clone()),
            };
        }
        if wasm.is_some_and(|target| target.command.is_empty()) {
            peers.wasmtime = told(peers.prepare_wasmtime())?;
        }
        if let Some(target) = guest {
            let (qemu, firecracker) = (installed("qemu-system-x86_64"), installed("firecracker"));
            // Nothing is packed for nobody.
            let boot = match (&qemu, &firecracker) {
                (Err(reason), Err(_)) => Err(reason.clone()),
                _ => told(peers.boot(target))?,
            };
            peers.qemu = qemu.and_then(|program| Ok(boot.as_ref().map_err(Clone::clone)?.qemu(&program)));
            peers.firecracker = match (firecracker, &boot) {
                (Ok(program), Ok(boot)) => told(boot.firecracker(&program, room))?,
                (Err(reason), _) => Err(reason),
                (_, Err(reason)) => Err(reason.clone()),
            };
        }
        Ok(peers)
    }

    /// Each of them, also those that cannot run.
    pub fn all(&self) -> Vec<Peer> {
        let workload = |target: Option<&Target>| target.map_or_else(String::new, Target::workload);
        let beside = |target: Option<&Target>| target.map(|target| target.name.clone());
        let hidden = Path::new(UNIFIED).exists();
        let peer = |name, target: Option<&Target>, command, is_hidden| Peer {
            name,
            workload: workload(target),
            beside: beside(target),
            command,
            is_hidden,
            success: None,
        };
        let vmm = |name, command: &Result<_, String>| Peer {
            success: Some(ENDED_WELL),
            ..peer(name, self.guest, command.clone(), false)
        };
        let of_bundle = |program: &Path, root: &str| {
            let bundle = self.bundle.clone()?;
            let root = self.volatile.join(root);
            let words = [program.to_path_buf(), "--root".into(), root, "run".into(), "--bundle".into(), bundle];
            let id = self.room.name("peer");
            Ok(words.iter().map(|word| word.display().to_string()).chain([id]).collect())
        };
        let runtime = |name: &str| installed(name).and_then(|program| of_bundle(&program, name));
        vec![
            peer(
                "berth-oci, ready bundle",
                self.container,
                of_bundle(&self.room.program("berth-oci"), "berth-oci"),
                false,
            ),
            peer("runc, ready bundle", self.container, runtime("runc"), false),
            peer("crun, ready bundle", self.container, runtime("crun"), hidden),
            peer("podman", self.container, self.podman.clone(), hidden),
            peer("wasmtime, compiled", self.wasm, self.wasmtime.clone(), false),
            vmm("QEMU microvm", &self.qemu),
            vmm("Firecracker", &self.firecracker),
        ]
    }

    /// What other VMMs boot, where this host can run a Linux guest at all.
    fn boot(&self, target: &Target) -> Result<Boot> {
        if let Some(reason) = berth_engine::info::info(self.room.roots, 0)?.kvm.reason {
            return Err(refused(reason));
        }
        let root = self.room.scratch().join("guest");
        self.copy_files(&target.image, &root)?;
        Boot::prepare(self.room, &root, &target.command)
    }

    /// Copies all files of an image.
    fn copy_files(&self, image: &str, to: &Path) -> Result<()> {
        let name = self.room.name("rootfs");
        timed::prepare(self.room.berth(&["create", "--name", &name, "--pull", "never", image, "true"]))?;
        let copied = timed::prepare(self.room.berth(&["cp", &format!("{name}:/"), &to.to_string_lossy()]));
        timed::prepare(self.room.berth(&["rm", "-f", &name]))?;
        copied?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o755)).map_err(Error::file("change", to))
    }

    /// A bundle as `runc spec` would write it, without a seccomp filter: compiling one is most of what runc and crun
    /// otherwise do.
    fn make_bundle(&self, target: &Target) -> Result<PathBuf> {
        let bundle = self.room.scratch().join("bundle");
        let root = bundle.join("rootfs");
        fs::create_dir_all(&self.volatile).map_err(Error::file("make", &self.volatile))?;
        fs::create_dir_all(&bundle).map_err(Error::file("make", &bundle))?;
        self.copy_files(&target.image, &root)?;
        let mut spec = Command::new(self.room.program("berth-oci"));
        spec.arg("spec").arg("--bundle").arg(&bundle);
        timed::prepare(spec)?;
        let path = bundle.join("config.json");
        let text = fs::read(&path).map_err(Error::file("read", &path))?;
        let broken = |error: serde_json::Error| Error::Invalid(format!("{}: {error}", path.display()));
        let mut config: Value = serde_json::from_slice(&text).map_err(broken)?;
        // The newest that all of them take.
        config["ociVersion"] = json!("1.0.2");
        config["process"]["args"] = json!(target.command);
        config["process"]["terminal"] = json!(false);
        if let Some(linux) = config["linux"].as_object_mut() {
            linux.remove("seccomp");
            linux.insert("resources".to_owned(), json!({}));
        }
        fs::write(&path, config.to_string()).map_err(Error::file("write", &path))?;
        Ok(bundle)
    }

    fn prepare_podman(&self, bundle: &Path, target: &Target) -> Result<Vec<String>> {
        let podman = installed("podman").map_err(refused)?;
        let of = |path: PathBuf| path.display().to_string();
        let archive = of(self.room.scratch().join("rootfs.tar"));
        let mut tar = Command::new("tar");
        tar.args(["-C", &of(bundle.join("rootfs")), "-cf", &archive, "."]);
        timed::prepare(tar)?;
        let mut words = vec![of(podman), "--root".to_owned(), of(self.storage()), "--runroot".to_owned()];
        words.push(of(self.volatile.join("podman")));
        words.extend(["--cgroup-manager=cgroupfs", "--events-backend=file"].map(str::to_owned));
        let mut import = Command::new(&words[0]);
        import.args(&words[1..]).args(["import", "--quiet", &archive, "localhost/berth-bench"]);
        timed::prepare(import)?;
        let limits = "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024";
        let run = format!("run --rm --network none {limits} localhost/berth-bench");
        words.extend(run.split(' ').map(str::to_owned).chain(target.command.iter().cloned()));
        Ok(words)
    }

    fn prepare_wasmtime(&self) -> Result<Vec<String>> {
        let wasmtime = installed("wasmtime").map_err(refused)?.display().to_string();
        let module = self.room.scratch().join("echo.wasm").display().to_string();
        let code = self.room.scratch().join("echo.cwasm").display().to_string();
        let mut compile = Command::new(&wasmtime);
        compile.args(["compile", "-o", &code, &module]);
        timed::prepare(compile)?;
        Ok([&wasmtime, "run", "--allow-precompiled", &code].iter().map(ToString::to_string).collect())
    }

    fn storage(&self) -> PathBuf {
        self.room.scratch().join("podman")
    }
}

impl Drop for Peers<'_> {
    fn drop(&mut self) {
        // podman mounts its storage on itself.
        let _ = umount2(&self.storage().join("overlay"), MntFlags::MNT_DETACH);
    }
}

/// A program on the path, or that it is not installed.
fn installed(name: &str) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Where a minimal path does not look.
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = env::split_paths(&path).chain(more).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| format!("{name} is not installed"))
}

fn refused(reason: String) -> Error {
    Error::Failed { command: String::new(), reason }
}

/// A failure to prepare a peer is told; all others end the measurement.
fn told<T>(result: Result<T>) -> Result<Result<T, String>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Error::Failed { reason, .. }) => Ok(Err(reason)),
        Err(error) => Err(error),
    }
}

/// Runs something on a thread that does not see [`UNIFIED`], which its children inherit: no process stands between them and it.
fn hidden<T: Send>(act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let on_thread = || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).map_err(Error::system("make a mount namespace"))?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .map_err(Error::system("make mounts private"))?;
        umount2(UNIFIED, MntFlags::MNT_DETACH).map_err(Error::system("hide control groups of version 2"))?;
        act()
    };
    thread::scope(|scope| scope.spawn(on_thread).join().unwrap_or(Err(Error::Interrupted)))
}
