//! Making a container: from a person's options to a bundle and a record.
//!
//! The lock comes first and the record last, so that a kill at any instant leaves either a container or something
//! the next [`crate::sweep`] removes.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use berth_images::{Image, Platform, Store};
use berth_runtime::executor;
use berth_runtime::monitor;
use berth_runtime::span::{self, Phase};
use jiff::Timestamp;

use crate::base;
use crate::document;
use crate::error::{Attempt as _, Error, Result};
use crate::events::{self, Event};
use crate::ids;
use crate::lock::{self, Lock};
use crate::microvm;
use crate::names;
use crate::options::{Isolation, Options, Pull, UserNamespace};
use crate::paths::{PRIVATE, Roots, make_dir};
use crate::record::Record;
use crate::remove;
use crate::signal;
use crate::spec;
use crate::volumes::{self, ResolvedMount};
use crate::wasm;

/// Fetches an image by reference into the store.
pub type Fetch<'a> = &'a mut dyn FnMut(&str) -> Result<()>;

/// A container that has just been made, still locked.
#[derive(Debug)]
pub struct Created {
    /// Its record.
    pub record: Record,
    /// Its lock: hand it to [`crate::launch`], or retire it.
    pub lock: Lock,
    /// What a person should know about how it is made.
    pub notice: Option<String>,
}

/// Makes a container. `fetch` is called where the pull policy wants the image fetched.
pub fn create(roots: &Roots, store: &Store, mut options: Options, fetch: Fetch) -> Result<Created> {
    span::mark(Phase::Image);
    check(&options)?;
    let (guest, notice) = microvm::choose(roots, &mut options)?;
    if options.pull == Pull::Always && !wasm::is_path(&options.image) {
        fetch(&options.image)?;
    }
    // Until the record is written, only the guard keeps the image from being collected.
    let mut guard = store.read_guard()?;
    let found = match &options.image {
        path if wasm::is_path(path) => Ok(wasm::image_of_file(store, path)?),
        name => store.resolve(name),
    };
    let image = match found {
        Err(berth_images::Error::NotFound { .. }) if options.pull == Pull::Missing => {
            drop(guard);
            fetch(&options.image)
                .map_err(|error| Error::Invalid(format!("image '{}' is not here: {error}", options.image)))?;
            guard = store.read_guard()?;
            store.resolve(&options.image)?
        }
        other => other?,
    };
    check_platform(&options, &image)?;
    wasm::choose(&mut options, &image)?;
    let id = names::new_id()?;
    let lock = Lock::take(roots, &id)?.ok_or_else(|| lock::busy(&id, "there already", "try again"))?;
    let made = make(roots, store, &image, options, guest, &id);
    drop(guard);
    match made {
        Ok(record) => {
            events::append(roots, &Event::of(&record, "create"))?;
            Ok(Created { record, lock, notice })
        }
        Err(error) => {
            // What cannot be undone now is found by the next sweep, as long as the lock's directory stays.
            if remove::remains(roots, &id).is_ok() {
                lock.retire(roots, &id)?;
            }
            Err(error)
        }
    }
}

/// What can be said without the image.
fn check(options: &Options) -> Result<()> {
    if let Some(name) = &options.name {
        names::check(name)?;
    }
    if let Some(text) = &options.stop_signal {
        signal::parse(text)?;
    }
    if options.remove && options.restart != monitor::RestartPolicy::No {
        return Err(Error::Invalid("--rm and --restart exclude each other; give one of them".to_owned()));
    }
    if let Some(path) = options.cidfile.as_ref().filter(|path| path.exists()) {
        return Err(Error::Invalid(format!("{} exists already; remove it or name another --cidfile", path.display())));
    }
    wasm::check(options)?;
    Ok(spec::check(options)?)
}

/// An image that is here already is taken whatever its platform, unless the person has said which it is to be.
fn check_platform(options: &Options, image: &Image) -> Result<()> {
    let Some(wanted) = options.platform.as_deref() else { return Ok(()) };
    let wanted: Platform = wanted.parse()?;
    let actual = format!("{}/{}", image.config.os(), image.config.architecture());
    if actual == format!("{}/{}", wanted.os, wanted.architecture) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "image '{}' is for {actual}, not for {wanted}; `berth pull --platform {wanted} {}` fetches the other one",
        image.reference, image.reference
    )))
}

fn make(
    roots: &Roots,
    store: &Store,
    image: &Image,
    mut options: Options,
    guest: Option<microvm::Chosen>,
    id: &str,
) -> Result<Record> {
    let dir = roots.container(id);
    let lower_dirs = store.lower_dirs(image)?;
    make_directories(roots, &dir, wasm::has_files(&options, &lower_dirs).then_some(lower_dirs.as_slice()))?;
    span::mark(Phase::Bundle);
    let name = match &options.name {
        Some(name) => names::claim(roots, name, id).map(|()| name.clone())?,
        None => names::claim_random(roots, id)?,
    };
    let config = image.config.config().as_ref();
    for (key, value) in config.and_then(|config| config.labels().clone()).into_iter().flatten() {
        options.labels.entry(key).or_insert(value);
    }
    if options.stop_signal.is_none() {
        options.stop_signal = config.and_then(|config| config.stop_signal().clone());
    }
    // Holds its lock until the record is written.
    let ids = match options.userns {
        UserNamespace::Auto => Some(ids::choose(roots)?),
        UserNamespace::Host | UserNamespace::Range(_) => None,
    };
    if let Some((range, _)) = &ids {
        options.userns = UserNamespace::Range(*range);
    }
    let mut record = Record {
        id: id.to_owned(),
        name,
        created_at: Timestamp::now(),
        image: options.image.clone(),
        image_digest: image.manifest_digest.to_string(),
        image_id: image.id.to_string(),
        lower_dirs,
        args: spec::args(&options, &image.config)?,
        anonymous_volumes: Vec::new(),
        options,
    };
    // Holds its locks on the volumes until the record is written.
    let volumes =
        volumes::Store::new(roots.data()).resolve(id, &mut record.options, &image.config, &record.lower_dirs)?;
    record.anonymous_volumes.clone_from(&volumes.anonymous);
    write_bundle(roots, &dir, image, &record, &volumes.mounts)?;
    span::mark(Phase::Image);
    let executor = match guest {
        Some(guest) => Some(microvm::executor(store, image, guest, &record.options, &roots.live_container(id))?),
        None if record.options.isolation == Isolation::Wasm => {
            Some(wasm::executor(roots, store, image, &record.options, &record.args, &volumes.mounts)?)
        }
        None => None,
    };
    span::mark(Phase::Bundle);
    if let Some(executor) = executor {
        document::write(&dir.join(executor::FILE), &executor)?;
    }
    if let Some(path) = &record.options.cidfile {
        fs::write(path, id).attempt(|| format!("write {}", path.display()))?;
    }
    record.write(roots)?;
    drop((volumes, ids));
    Ok(record)
}

/// The container's directory. Its `upper` shows through as `/` in the container, so it looks like the image's; a
/// container without files has none.
fn make_directories(roots: &Roots, dir: &Path, lower_dirs: Option<&[PathBuf]>) -> Result<()> {
    if !roots.containers().exists() {
        make_dir(&roots.containers(), PRIVATE)?;
        spread(&roots.containers());
    }
    let make =
        |path: &Path, mode| DirBuilder::new().mode(mode).create(path).attempt(|| format!("create {}", path.display()));
    make(dir, PRIVATE)?;
    let Some(lower_dirs) = lower_dirs else { return Ok(()) };
    make(&dir.join("upper"), 0o755)?;
    make(&dir.join("work"), PRIVATE)?;
    let upper = dir.join("upper");
    let attempt = || format!("make {} like the image's root", upper.display());
    let (mode, uid, gid) = match lower_dirs.first() {
        Some(top) => {
            let metadata = fs::metadata(top).attempt(|| format!("look at layer {}", top.display()))?;
            (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
        }
        None => (0o755, 0, 0),
    };
    chown(&upper, Some(uid), Some(gid)).attempt(attempt)?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(mode)).attempt(attempt)
}

/// Tells ext4 that the directories in this one have nothing to do with each other, so that it spreads them over the disk
/// (`FS_TOPDIR_FL`, `ioctl_iflags(2)`). Side by side, each new file would look at every inode freed there within a minute:
/// thousands where containers come and go.
fn spread(dir: &Path) {
    let Ok(dir) = fs::File::open(dir) else { return };
    // Other file systems have no such flag, and no such cost.
    if let Ok(flags) = rustix::fs::ioctl_getflags(&dir) {
        let _ = rustix::fs::ioctl_setflags(&dir, flags | rustix::fs::IFlags::TOPDIR);
    }
}

fn write_bundle(roots: &Roots, dir: &Path, image: &Image, record: &Record, mounts: &[ResolvedMount]) -> Result<()> {
    let options = &record.options;
    let host = spec::Host::read(options)?;
    let inputs = spec::Inputs {
        id: &record.id,
        options,
        image: &image.config,
        lower_dirs: &record.lower_dirs,
        base: &base::layer(roots)?,
        dir,
        live_dir: &roots.live_container(&record.id),
        mounts,
        host: &host,
        volatile: options.remove,
    };
    // Nobody looks for it before there is a record.
    document::create(&dir.join("config.json"), &spec::build(&inputs)?)
}
