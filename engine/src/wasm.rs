//! `--isolation wasm`: which images are Wasm, their modules' compiled code, and what the host of a module, `berth-wasm`, is handed.
//!
//! That program runs modules (`berth_runtime::executor`), and `berth-wasm-compile` compiles them; nothing of a module is parsed here.
//! Code is compiled once and kept beside the image. What must be equal for code to be used again is asked of the compiler once after
//! each boot.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use berth_images::{Code, Image, Interfaces, Store, WasmOptions};
use berth_runtime::annotations;
use berth_runtime::executor::{Executor, HostFile, Root};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::container::Container;
use crate::document;
use crate::error::{Attempt as _, Error, Result};
use crate::launch;
use crate::options::{Isolation, Network, Options, Seccomp};
use crate::paths::{PRIVATE, Roots, make_dir};
use crate::spec;
use crate::volumes::ResolvedMount;

/// The host's binary.
const BINARY: &str = "berth-wasm";
/// Names the host where it is not found.
const BINARY_VARIABLE: &str = "BERTH_WASM";
/// The compiler's.
const COMPILER: &str = "berth-wasm-compile";
/// Names the compiler where it is not found.
const COMPILER_VARIABLE: &str = "BERTH_WASM_COMPILE";
/// Bytes the host may use beside the module's memories.
const MEMORY_OVERHEAD: i64 = 32 << 20;
/// Threads of the host.
const PIDS_OVERHEAD: i64 = 16;
/// A module that cannot be compiled cannot be executed.
const NOT_EXECUTABLE: i32 = 126;

/// Whether this is a module's path, and not an image's name.
pub fn is_path(reference: &str) -> bool {
    ["/", "./", "../"].iter().any(|start| reference.starts_with(start))
}

/// Makes the image of a module in a file, for one run of it: without a name.
pub(crate) fn image_of_file(store: &Store, path: &str) -> Result<Image> {
    Ok(store.build_wasm(Path::new(path), &WasmOptions::default())?)
}

/// Chooses this isolation for images that can have no other, and says what it cannot be combined with.
pub(crate) fn choose(options: &mut Options, image: &Image) -> Result<()> {
    if options.isolation == Isolation::Container && is_wasm(options, image) {
        options.isolation = Isolation::Wasm;
    }
    if image.module().is_some() && options.isolation != Isolation::Wasm {
        return Err(Error::Invalid(format!(
            "image '{}' is a Wasm module, which runs with --isolation wasm alone",
            image.reference
        )));
    }
    let own = [
        (options.timeout.is_some(), "--timeout"),
        (options.fuel.is_some(), "--fuel"),
        (options.serve.is_some(), "`berth wasm serve`"),
    ];
    match own.into_iter().find(|(is_asked, _)| *is_asked && options.isolation != Isolation::Wasm) {
        Some((_, flag)) => Err(Error::Invalid(format!(
            "{flag} is for Wasm modules, and image '{}' is none; leave it out",
            image.reference
        ))),
        None => check(options),
    }
}

fn is_wasm(options: &Options, image: &Image) -> bool {
    let get = |key: &str| options.annotations.get(key).or_else(|| image.annotations.get(key)).map(String::as_str);
    let args = spec::args(options, &image.config).unwrap_or_default();
    let said = annotations::is_wasm(get, args.first().map_or("", String::as_str));
    said.unwrap_or_else(|| image.config.architecture().to_string() == "wasm")
}

/// What a Wasm sandbox cannot be given; again when it is known that it is one.
pub(crate) fn check(options: &Options) -> Result<()> {
    if options.isolation != Isolation::Wasm {
        return Ok(());
    }
    if options.serve.is_some() && options.fuel.is_some() {
        return Err(Error::Invalid("--fuel is for one run; bound a request with --timeout".to_owned()));
    }
    let refused = [
        (options.init, "--init"),
        (options.privileged, "--privileged"),
        (!options.cap_add.is_empty(), "--cap-add"),
        (!options.devices.is_empty(), "--device"),
        (!options.group_add.is_empty(), "--group-add"),
        (options.pid_host, "--pid host"),
        (options.ipc_host, "--ipc host"),
        (!options.sysctls.is_empty(), "--sysctl"),
        (options.shm_size.is_some(), "--shm-size"),
        (options.seccomp != Seccomp::Default, "--security-opt seccomp"),
    ];
    let reason = "a module has files, streams, clocks and sockets, and nothing else; leave out one of them";
    Ok(spec::refuse("--isolation wasm", &refused, reason)?)
}

/// The executor that runs the image's module, which is compiled where it was not before. `args` is the module's command line.
pub(crate) fn executor(
    roots: &Roots,
    store: &Store,
    image: &Image,
    options: &Options,
    args: &[String],
    mounts: &[ResolvedMount],
) -> Result<Executor> {
    let host = Host::find(roots)?;
    let entry = entry(image, options, args);
    let code = host.code(store, image, &entry, options.fuel.is_some())?;
    let code_size = code.path.metadata().attempt(|| format!("examine {}", code.path.display()))?.len();
    let settings = json!({
        "code": code.digest.hex(),
        "directories": directories(image, options, mounts),
        "memory": options.limits.memory,
        "timeout_ms": options.timeout.map(|time| time.as_millis()),
        "fuel": options.fuel,
        "network": options.network != Network::None,
        "serve": options.serve.as_ref().map(|serve| json!({
            "concurrency": serve.concurrency,
            "memory": serve.memory,
            "requests": serve.requests,
        })),
    });
    let sockets = options.serve.iter().flat_map(|serve| {
        let metrics = serve.metrics.map(|address| ("metrics".to_owned(), address));
        [("requests".to_owned(), serve.listen)].into_iter().chain(metrics)
    });
    let file = HostFile { path: code.path, write: false };
    Ok(Executor {
        program: host.program,
        prefix: String::new(),
        root: Root::Image,
        files: BTreeMap::from([("code".to_owned(), file)]),
        sockets: sockets.collect(),
        control: None,
        limits_memory: false,
        settings,
        // The code is in memory while it is checked, and once more when it runs.
        memory_overhead: MEMORY_OVERHEAD + 2 * code_size.cast_signed(),
        pids_overhead: PIDS_OVERHEAD,
    })
}

/// Where the module is in an image that is a root filesystem.
fn entry(image: &Image, options: &Options, args: &[String]) -> String {
    let name = args.first().map_or("", String::as_str);
    if image.module().is_some() || name.starts_with('/') {
        return name.to_owned();
    }
    let config = image.config.config().as_ref();
    let of_image = config.and_then(|config| config.working_dir().clone());
    let directory = options.workdir.clone().or(of_image).unwrap_or_default();
    Path::new("/").join(directory).join(name).to_string_lossy().into_owned()
}

/// The directories a module gets: what is mounted, and all of an image that is a root filesystem.
fn directories(image: &Image, options: &Options, mounts: &[ResolvedMount]) -> Value {
    if image.module().is_none() {
        return json!([{ "path": "/", "read_only": options.read_only && mounts.iter().all(|mount| mount.read_only) }]);
    }
    mounts.iter().map(|mount| json!({ "path": mount.target, "read_only": mount.read_only })).collect()
}

/// Whether a container has files of its own, and not only a module.
pub(crate) fn has_files(options: &Options, lower_dirs: &[PathBuf]) -> bool {
    options.isolation != Isolation::Wasm || !lower_dirs.is_empty()
}

/// Refuses what would need files that a module's sandbox does not have.
pub(crate) fn refuse_files(container: &Container, what: &str) -> Result<()> {
    if has_files(&container.record.options, &container.record.lower_dirs) {
        return Ok(());
    }
    let name = container.name();
    Err(Error::Invalid(format!(
        "cannot {what} {name}: it is a Wasm module without files of its own; give it a directory with -v"
    )))
}

/// Refuses to change what a module was given at its start.
pub(crate) fn refuse_memory(container: &Container) -> Result<()> {
    if container.record.options.isolation != Isolation::Wasm {
        return Ok(());
    }
    let name = container.name();
    let advice = "make another one with --memory";
    Err(Error::Invalid(format!(
        "cannot change the memory of {name}: it is a Wasm module, whose memory is limited at its start; {advice}"
    )))
}

/// Makes an image of the module in a file, and compiles it.
pub fn build(roots: &Roots, store: &Store, path: &Path, name: &str) -> Result<Image> {
    let host = Host::find(roots)?;
    let mut options = WasmOptions { reference: None, interfaces: host.describe(path)? };
    // It gets its name when it has proved to be a module.
    let image = store.build_wasm(path, &options)?;
    host.code(store, &image, &own_entry(&image)?, false)?;
    options.reference = Some(name.to_owned());
    Ok(store.build_wasm(path, &options)?)
}

/// Compiles an image's module, whether it was compiled before or not.
pub fn compile(roots: &Roots, store: &Store, reference: &str) -> Result<Code> {
    let host = Host::find(roots)?;
    let image = if is_path(reference) { image_of_file(store, reference)? } else { store.resolve(reference)? };
    store.remove_code(&image)?;
    host.code(store, &image, &own_entry(&image)?, false)
}

/// Compiles the module of an image that is one, unless that was done before, so that its first run need not.
pub fn compile_ahead(roots: &Roots, store: &Store, image: &Image) -> Result<()> {
    if image.module().is_none() {
        return Ok(());
    }
    Host::find(roots)?.code(store, image, &own_entry(image)?, false).map(drop)
}

/// The entry of an image that is run without options.
fn own_entry(image: &Image) -> Result<String> {
    let options = Options::default();
    Ok(entry(image, &options, &spec::args(&options, &image.config)?))
}

/// `berth-wasm`, its compiler, and what tells whether code suits them.
struct Host {
    program: PathBuf,
    compiler: PathBuf,
    keys: Keys,
}

/// What code of this compiler carries in its name.
#[derive(Debug, Serialize, Deserialize)]
struct Keys {
    plain: String,
    fuel: String,
}

/// The keys of the compiler that is this file. Kept in the state root: they depend on the processor, which may be another one
/// after a reboot.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    program: PathBuf,
    inode: (u64, u64),
    changed: (i64, i64),
    keys: Keys,
}

impl Host {
    fn find(roots: &Roots) -> Result<Self> {
        let program = launch::find(BINARY, BINARY_VARIABLE)?;
        let compiler = launch::find(COMPILER, COMPILER_VARIABLE)?;
        let file = compiler.metadata().attempt(|| format!("examine {}", compiler.display()))?;
        let (inode, changed) = ((file.dev(), file.ino()), (file.ctime(), file.ctime_nsec()));
        let path = roots.wasm_keys();
        let known: Option<Known> = document::read(&path, "remove it")?;
        if let Some(known) = known
            && (&known.program, known.inode, known.changed) == (&compiler, inode, changed)
        {
            return Ok(Self { program, compiler, keys: known.keys });
        }
        let keys: Keys = answer(&compiler, Command::new(&compiler).arg("compatibility"))?;
        let known = Known { program: compiler, inode, changed, keys };
        make_dir(roots.state(), PRIVATE)?;
        document::write(&path, &known)?;
        Ok(Self { program, compiler: known.program, keys: known.keys })
    }

    /// The code of an image's module, compiled now unless it is in the store.
    fn code(&self, store: &Store, image: &Image, entry: &str, fuel: bool) -> Result<Code> {
        let key = if fuel { &self.keys.fuel } else { &self.keys.plain };
        if let Some(code) = store.code(image, entry, key)? {
            return Ok(code);
        }
        store.add_code(image, entry, key, |module, output| {
            let mut command = Command::new(&self.compiler);
            command.arg("compile").arg(output).args(fuel.then_some("--fuel")).stdin(module);
            let text = output_of(&self.compiler, &mut command).map_err(|error| of_module(error, image))?;
            format!("sha256:{}", text.trim())
                .parse()
                .map_err(|error| Error::Invalid(format!("{COMPILER} answers something else than a digest: {error}")))
        })
    }

    /// A component's interfaces; none: it is a core module.
    fn describe(&self, path: &Path) -> Result<Option<Interfaces>> {
        let module = File::open(path).attempt(|| format!("open {}", path.display()))?;
        let described = answer(&self.compiler, Command::new(&self.compiler).arg("describe").stdin(module));
        described.map_err(|error| match error {
            Error::Start { message, code } => Error::Start { message: format!("{}: {message}", path.display()), code },
            other => other,
        })
    }
}

/// Says which module an error is about.
fn of_module(error: Error, image: &Image) -> Error {
    match error {
        Error::Start { message, code } => {
            Error::Start { message: format!("image '{}': {message}", image.reference), code }
        }
        other => other,
    }
}

fn answer<T: DeserializeOwned>(program: &Path, command: &mut Command) -> Result<T> {
    serde_json::from_str(&output_of(program, command)?)
        .map_err(|error| Error::Invalid(format!("{COMPILER} answers something unexpected: {error}")))
}

/// What the program prints. It reads what strangers wrote: its end is no surprise.
fn output_of(program: &Path, command: &mut Command) -> Result<String> {
    let child = command.env_clear().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let output = child.and_then(std::process::Child::wait_with_output);
    let output = output.attempt(|| format!("execute {}", program.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("berth-wasm-compile: ");
    let message = if output.status.code().is_none() {
        format!(
            "the compiler ended with {}: the module takes more time or memory to compile than it may have",
            output.status
        )
    } else {
        said.to_owned()
    };
    Err(Error::Start { message, code: output.status.code().unwrap_or(NOT_EXECUTABLE) })
}
