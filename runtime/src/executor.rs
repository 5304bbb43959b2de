//! Executors: programs that become a sandbox's first process instead of the image's process, and isolate what the image
//! holds in their own way (`berth-vmm`).
//!
//! A bundle names its executor in `executor.json` beside `config.json`: whoever controls the bundle's directory may have files
//! opened with the host's rights, an annotation could come from anybody. The contract has two steps.
//!
//! - **Prepare**, outside, with the host's rights: the files that are named are opened, nothing in them is read.
//! - **Run**, inside, confined: the program is executed from its descriptor as `PROGRAM start N`, where descriptor N
//!   holds a [`Handover`] as JSON. A further process (`exec`) is `PROGRAM enter N` with an [`ExecHandover`].
//!
//! The sandbox is made of the same configuration, less what is for the image's process alone: [`Root`] says how much
//! is left.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::eventfd::{EfdFlags, EventFd};
use oci_spec::runtime::{LinuxCapabilities, LinuxResources, Mount, Process, Spec, User};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::annotations;
use crate::bundle::{Bundle, read_json};
use crate::error::{Attempt as _, Error, Result};
use crate::sandbox;
use crate::span;

/// Name of the document in the bundle.
pub const FILE: &str = "executor.json";
/// Who an executor with a root filesystem of its own is on the host: `nobody`, with no rights.
const NOBODY: u32 = 65534;
/// Bytes of the file system an executor has as its root: for its sockets.
const ROOT_SIZE: &str = "size=64k";

/// The isolation of Wasm modules, which needs no document.
const WASM: &str = "wasm";
/// The program that it takes: it compiles the module first.
const WASM_PROGRAM: &str = "berth-wasm-compile";
/// Names a `berth-wasm-compile` that lies elsewhere than next to this program.
const WASM_VARIABLE: &str = "BERTH_WASM_COMPILE";
/// What [`Executor::control`] is called among the files.
pub const CONTROL: &str = "control";
/// What the counter of [`Executor::limits_memory`] is called among the files.
pub const OOM: &str = "oom";
/// Bytes and tasks that compiling a module takes.
const COMPILER_MEMORY: i64 = 256 << 20;
const COMPILER_TASKS: i64 = 32;

/// `executor.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Executor {
    /// The program, absolute.
    pub program: PathBuf,
    /// Put before `start` and `enter` where the program is several executors, for example `process-`.
    #[serde(default)]
    pub prefix: String,
    /// What it sees as its root filesystem.
    pub root: Root,
    /// What is opened for it, by the names it knows them under.
    pub files: BTreeMap<String, HostFile>,
    /// Addresses that are listened on for it, in the network of whoever makes the sandbox, by the names it knows the sockets
    /// under.
    #[serde(default)]
    pub sockets: BTreeMap<String, SocketAddr>,
    /// A unix socket that is listened on for it, absolute: there it is asked from outside. It knows the listener as [`CONTROL`],
    /// a further process a connection to it.
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// Whether it holds the image's programs to `memory.limit` itself. Then it counts those it has ended for want of memory in an
    /// event counter (`eventfd(2)`) that it knows as [`OOM`].
    #[serde(default)]
    pub limits_memory: bool,
    /// Passed on as it is.
    pub settings: Value,
    /// Bytes of memory it may use beyond what `memory.limit` allows.
    pub memory_overhead: i64,
    /// Tasks it may have beyond what `pids.limit` allows.
    pub pids_overhead: i64,
}

/// What an executor sees as its root filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Root {
    /// An empty one in memory; it runs as `nobody` without capabilities.
    Empty,
    /// The image's, with all mounts, as the image's process would see it, and as that user.
    Image,
}

/// A file that is opened with the host's rights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFile {
    /// Where it is, absolute.
    pub path: PathBuf,
    /// Whether it is opened for writing too.
    #[serde(default)]
    pub write: bool,
}

/// What an executor is told at its start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handover {
    /// The open files and sockets.
    pub files: BTreeMap<String, RawFd>,
    /// [`Executor::settings`].
    pub settings: Value,
    /// The configuration of what it is to run.
    pub spec: Spec,
}

/// What an executor is told for a further process.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecHandover {
    /// A connection to the first process, where that [listens](Executor::control).
    pub files: BTreeMap<String, RawFd>,
    /// [`Executor::settings`].
    pub settings: Value,
    /// The process.
    pub process: Process,
    /// The user to look up inside instead of `process.user`.
    pub user: Option<String>,
}

/// An executor with everything open.
#[derive(Debug)]
pub struct Ready {
    program: OwnedFd,
    document: OwnedFd,
    files: Vec<OwnedFd>,
    /// What it counts in whom it has ended for want of memory.
    pub(crate) oom: Option<OwnedFd>,
}

impl Executor {
    /// The bundle's executor, if its annotations ask for another isolation than `container`.
    pub fn of(bundle: &Bundle) -> Result<Option<Self>> {
        match bundle.annotation(annotations::ISOLATION) {
            None | Some("") => {
                let process = bundle.spec.process().as_ref();
                let program = process.and_then(|process| process.args().as_ref()?.first()).map_or("", String::as_str);
                let is_wasm = annotations::is_wasm(|key| bundle.annotation(key), program) == Some(true);
                is_wasm.then(|| Self::wasm(&bundle.spec)).transpose()
            }
            Some("container") => Ok(None),
            Some(isolation) => {
                let path = bundle.dir.join(FILE);
                if path.exists() {
                    return read_json(&path).map(Some);
                }
                if isolation == WASM {
                    return Self::wasm(&bundle.spec).map(Some);
                }
                let (key, path) = (annotations::ISOLATION, path.display());
                Err(Error::Invalid(format!("the annotation {key} asks for `{isolation}`, but {path} is missing")))
            }
        }
    }

    /// For a bundle whose engine knows nothing of executors: the program is a module in the root filesystem, which is compiled when
    /// it starts, inside, because here is no place to keep its code.
    fn wasm(spec: &Spec) -> Result<Self> {
        let memory = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()?.memory().as_ref()?.limit());
        Ok(Self {
            program: beside(WASM_PROGRAM)?,
            prefix: String::new(),
            root: Root::Image,
            files: BTreeMap::new(),
            sockets: BTreeMap::new(),
            control: None,
            limits_memory: false,
            settings: json!({ "memory": memory.filter(|limit| *limit > 0), "network": true }),
            memory_overhead: COMPILER_MEMORY,
            pids_overhead: COMPILER_TASKS,
        })
    }

    /// Opens everything for the first process of `bundle`; comes back with the bundle of the sandbox around it too.
    pub(crate) fn prepare(&self, bundle: &Bundle) -> Result<(Ready, Bundle)> {
        let (mut files, mut numbers) = self.open_files()?;
        for (name, address) in &self.sockets {
            let socket = TcpListener::bind(address).attempt(|| format!("listen on {address}"))?;
            numbers.insert(name.clone(), socket.as_raw_fd());
            files.push(socket.into());
        }
        if let Some(path) = &self.control {
            let attempt = || format!("listen on {}", path.display());
            match std::fs::remove_file(path) {
                // Of the start before this one.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).attempt(attempt),
                _ => {}
            }
            let listener = sandbox::bind_socket(path).attempt(attempt)?;
            numbers.insert(CONTROL.to_owned(), listener.as_raw_fd());
            files.push(listener.into());
        }
        let oom = if self.limits_memory {
            let attempt = || "make an event counter";
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let counter = OwnedFd::from(EventFd::from_flags(flags).attempt(attempt)?);
            let its = counter.try_clone().attempt(attempt)?;
            numbers.insert(OOM.to_owned(), its.as_raw_fd());
            files.push(its);
            Some(counter)
        } else {
            None
        };
        if let Some(spans) = span::copy() {
            numbers.insert(span::FILE.to_owned(), spans.as_raw_fd());
            files.push(spans);
        }
        let handover = Handover { files: numbers, settings: self.settings.clone(), spec: bundle.spec.clone() };
        let document = document(&handover)?;
        let spec = self.sandbox(&bundle.spec, "start", &document);
        Ok((Ready { program: self.open()?, document, files, oom }, Bundle { dir: bundle.dir.clone(), spec }))
    }

    /// Opens everything for a further process; comes back with the process that takes its place in the sandbox too.
    pub(crate) fn prepare_exec(&self, process: &Process, user: Option<String>) -> Result<(Ready, Process)> {
        let (mut files, mut numbers) = (Vec::new(), BTreeMap::new());
        if let Some(path) = &self.control {
            let connection = sandbox::connect_socket(path);
            let connection =
                connection.attempt(|| format!("connect to what runs the container at {}", path.display()))?;
            numbers.insert(CONTROL.to_owned(), connection.as_raw_fd());
            files.push(connection.into());
        }
        let handover = ExecHandover { files: numbers, settings: self.settings.clone(), process: process.clone(), user };
        let document = document(&handover)?;
        let process = self.process(process, "enter", &document);
        Ok((Ready { program: self.open()?, document, files, oom: None }, process))
    }

    fn open_files(&self) -> Result<(Vec<OwnedFd>, BTreeMap<String, RawFd>)> {
        let mut files = Vec::new();
        let mut numbers = BTreeMap::new();
        for (name, file) in &self.files {
            let opened = file.open()?;
            numbers.insert(name.clone(), opened.as_raw_fd());
            files.push(opened);
        }
        Ok((files, numbers))
    }

    fn open(&self) -> Result<OwnedFd> {
        sandbox::read_only_file(&self.program)
    }

    /// The configuration of the sandbox around it.
    fn sandbox(&self, spec: &Spec, command: &str, document: &OwnedFd) -> Spec {
        let mut spec = spec.clone();
        let process = spec.process().clone().unwrap_or_default();
        let terminal = process.terminal().unwrap_or(false);
        spec.set_process(Some(self.process(&process, command, document)));
        if let Some(all) = spec.annotations_mut() {
            for key in [annotations::USER, annotations::GROUPS, annotations::INIT] {
                if self.root == Root::Empty || key == annotations::INIT {
                    all.remove(key);
                }
            }
        }
        if let Some(root) = spec.root_mut()
            && self.root == Root::Empty
        {
            root.set_readonly(None);
        }
        if self.root == Root::Empty {
            spec.set_mounts(Some(mounts(terminal)));
        }
        if let Some(linux) = spec.linux_mut() {
            if self.root == Root::Empty {
                // It confines itself: it knows which system calls it needs.
                linux.set_seccomp(None);
                linux.set_masked_paths(None).set_readonly_paths(None).set_devices(None).set_sysctl(None);
                linux.set_rootfs_propagation(None);
            }
            if let Some(resources) = linux.resources_mut() {
                self.add_overhead(resources);
            }
        }
        spec
    }

    /// The process that takes the place of the image's.
    fn process(&self, process: &Process, command: &str, document: &OwnedFd) -> Process {
        let mut own = process.clone();
        let name = self.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        own.set_args(Some(vec![name, format!("{}{command}", self.prefix), document.as_raw_fd().to_string()]))
            .set_cwd(PathBuf::from("/"))
            .set_env(None)
            .set_rlimits(None)
            .set_no_new_privileges(Some(true))
            .set_apparmor_profile(None)
            .set_selinux_label(None);
        if self.root == Root::Empty {
            let mut nobody = User::default();
            nobody.set_uid(NOBODY).set_gid(NOBODY);
            own.set_user(nobody).set_capabilities(Some(LinuxCapabilities::default()));
        }
        own
    }

    /// The limits of the sandbox around it, from those of what it runs.
    pub fn add_overhead(&self, resources: &mut LinuxResources) {
        if let Some(memory) = resources.memory_mut() {
            let more =
                |limit: Option<i64>| limit.map(|limit| if limit > 0 { limit + self.memory_overhead } else { limit });
            let (limit, swap, reservation) = (more(memory.limit()), more(memory.swap()), memory.reservation());
            memory.set_limit(limit).set_swap(swap).set_reservation(reservation);
        }
        if let Some(pids) = resources.pids_mut() {
            let limit = pids.limit();
            pids.set_limit(if limit > 0 { limit + self.pids_overhead } else { limit });
        }
    }
}

/// A program next to this one, which was called by its path; else what [`WASM_VARIABLE`] names.
fn beside(program: &str) -> Result<PathBuf> {
    let own = std::env::args_os().next().map(PathBuf::from).filter(|own| own.is_absolute());
    let beside = own.map(|own| own.with_file_name(program)).filter(|path| path.is_file());
    beside.or_else(|| std::env::var_os(WASM_VARIABLE).map(PathBuf::from)).ok_or_else(|| {
        let advice = "put it next to berth-oci and call that by its whole path";
        Error::Invalid(format!("cannot find {program}; {advice}, or name it in {WASM_VARIABLE}"))
    })
}

impl HostFile {
    fn open(&self) -> Result<OwnedFd> {
        let access = if self.write { OFlags::RDWR } else { OFlags::RDONLY };
        rustix::fs::open(&self.path, access | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
            .attempt(|| format!("open {}", self.path.display()))
    }
}

impl Ready {
    /// Lets the program that is executed next have its descriptors, and no other one.
    pub(crate) fn pass_on(&self) -> Result<()> {
        let all = self.files.iter().chain([&self.document]);
        all.into_iter().try_for_each(|fd| fcntl_setfd(fd, FdFlags::empty())).attempt(|| "pass on a descriptor")
    }

    /// Executes the program; comes back only with the error.
    pub(crate) fn execute(&self, arguments: &[CString], environment: &[CString]) -> Error {
        use nix::fcntl::AtFlags;
        let Err(errno) =
            nix::unistd::execveat(self.program.as_fd(), c"", arguments, environment, AtFlags::AT_EMPTY_PATH);
        let name = arguments.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Error::Process { message: format!("exec `{name}`: {}", errno.desc()), code: 125 }
    }
}

/// The mounts of an empty root filesystem, in which `nobody` may make sockets.
fn mounts(terminal: bool) -> Vec<Mount> {
    let mount = |destination: &str, kind: &str, options: &[&str]| {
        let mut mount = Mount::default();
        mount
            .set_destination(PathBuf::from(destination))
            .set_typ(Some(kind.to_owned()))
            .set_source(Some(PathBuf::from(kind)))
            .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
        mount
    };
    let owner = format!("uid={NOBODY}");
    let mut mounts = vec![mount("/", "tmpfs", &["nosuid", "nodev", "noexec", "mode=755", &owner, ROOT_SIZE])];
    if terminal {
        mounts.push(mount("/dev", "tmpfs", &["nosuid", "noexec", "mode=755", ROOT_SIZE]));
        mounts.push(mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]));
    }
    mounts
}

/// A document in memory, to be read from its beginning.
fn document(value: &impl Serialize) -> Result<OwnedFd> {
    let attempt = || "write the executor's document";
    let mut file = File::from(memfd_create("executor", MemfdFlags::CLOEXEC).attempt(attempt)?);
    let text = serde_json::to_vec(value).map_err(std::io::Error::from).attempt(attempt)?;
    file.write_all(&text).and_then(|()| file.rewind()).attempt(attempt)?;
    Ok(file.into())
}
