//! Compiled code of Wasm modules: `wasm/<chain id hex>/<entry>-<compatibility>-<sha256 of the code>`. The chain id is that of the
//! layers that hold the module, which never change, so its code need not be looked for by its content.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::{Image, Store, Work};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::overlay;

/// Digits of an entry's digest in the name of its code: two of one image are told apart.
const ENTRY_DIGITS: usize = 16;

/// Code in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// Where it is.
    pub path: PathBuf,
    /// What it had when it was stored.
    pub digest: Digest,
}

impl Store {
    /// The code of an image's module, for engines of this compatibility. `entry` is its path in an image that is a file system.
    pub fn code(&self, image: &Image, entry: &str, compatibility: &str) -> Result<Option<Code>> {
        let directory = self.code_dir(image)?;
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io("read", &directory))?,
        };
        let prefix = prefix(entry, compatibility);
        Ok(entries.filter_map(Result::ok).find_map(|file| {
            let digest = Digest::from_hex(file.file_name().to_str()?.strip_prefix(&prefix)?)?;
            Some(Code { path: file.path(), digest })
        }))
    }

    /// Stores the code that `compile` makes of the module: it gets the module and the path of the file to write, and says the
    /// code's digest.
    pub fn add_code<E: From<Error>>(
        &self,
        image: &Image,
        entry: &str,
        compatibility: &str,
        compile: impl FnOnce(File, &Path) -> std::result::Result<Digest, E>,
    ) -> std::result::Result<Code, E> {
        let module = self.open_module(image, entry)?;
        let directory = self.code_dir(image)?;
        let work = Work::directory(self)?;
        let unfinished = work.path().join("code");
        let digest = compile(module, &unfinished)?;
        std::fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        let path = directory.join(format!("{}{}", prefix(entry, compatibility), digest.hex()));
        std::fs::rename(&unfinished, &path).map_err(Error::io("create", &path))?;
        Ok(Code { path, digest })
    }

    /// Removes the code of an image's module, whatever engines it is for.
    pub fn remove_code(&self, image: &Image) -> Result<()> {
        let directory = self.code_dir(image)?;
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &directory)(error)),
            _ => Ok(()),
        }
    }

    fn code_dir(&self, image: &Image) -> Result<PathBuf> {
        let top = image.layers.last().ok_or_else(|| Error::invalid(&image.reference, "it has no layers"))?;
        Ok(self.codes_dir().join(top.chain_id.hex()))
    }

    fn open_module(&self, image: &Image, entry: &str) -> Result<File> {
        if let Some(module) = image.module() {
            let path = self.blob_path(module.digest);
            return File::open(&path).map_err(Error::io("open", path));
        }
        let layers = self.lower_dirs(image)?;
        let root = overlay::read_only(&layers).map_err(Error::io("join the layers of", &image.reference))?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = openat2(&root, entry, flags, Mode::empty(), inside).map_err(Error::io("open", entry))?;
        let file = File::from(file);
        if !file.metadata().map_err(Error::io("examine", entry))?.is_file() {
            return Err(Error::invalid(format!("{entry} in {}", image.reference), "it is no file with a Wasm module"));
        }
        Ok(file)
    }
}

fn prefix(entry: &str, compatibility: &str) -> String {
    format!("{}-{compatibility}-", &Digest::of(entry.as_bytes()).hex()[..ENTRY_DIGITS])
}
