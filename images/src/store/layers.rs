//! Unpacked layers: `layers/<chain id hex>/`, with the content in `fs`, the paths of opaque directories in `opaque` and what
//! is known of the layer in `layer.json`.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{CWD, Mode, OFlags, XattrFlags, fsetxattr, mkdirat, openat, openat2};
use serde::{Deserialize, Serialize};

use super::schedule::{Schedule, Turn};
use super::{Image, Layer, Store, Work};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::{self, CONTENT, INSIDE, Job, LayerError};

/// Layers unpacked at once at most: each keeps about one and a half CPUs busy.
const PARALLEL: usize = 4;
const RECORD: &str = "layer.json";

/// What is known of an unpacked layer.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LayerRecord {
    pub diff_id: Digest,
    /// Bytes of file content.
    pub size: u64,
}

/// Says when the blob of a layer is there; called with its place in the list.
pub type Available<'a> = dyn Fn(usize) -> Result<()> + Sync + 'a;

/// A layer on its way from blob to directory.
struct Pending<'a> {
    layer: &'a Layer,
    /// Its place in the image, lowest first.
    place: usize,
    work: Work,
}

impl Store {
    /// The image's layer directories for overlayfs, topmost first. Layers that are missing are unpacked.
    pub fn lower_dirs(&self, image: &Image) -> Result<Vec<PathBuf>> {
        if image.module().is_some() {
            return Ok(Vec::new());
        }
        if image.layers.iter().any(|layer| !self.has_layer(layer.chain_id)) {
            self.unpack_layers(&image.layers, &|_| Ok(()))?;
        }
        Ok(image.layers.iter().rev().map(|layer| self.layer_dir(layer.chain_id).join(CONTENT)).collect())
    }

    pub(crate) fn layer_dir(&self, chain_id: Digest) -> PathBuf {
        self.layers_dir().join(chain_id.hex())
    }

    pub(crate) fn has_layer(&self, chain_id: Digest) -> bool {
        self.layer_dir(chain_id).exists()
    }

    /// Bytes of file content in an unpacked layer.
    pub(crate) fn layer_size(&self, chain_id: Digest) -> Option<u64> {
        let text = std::fs::read(self.layer_dir(chain_id).join(RECORD)).ok()?;
        serde_json::from_slice::<LayerRecord>(&text).ok().map(|record| record.size)
    }

    /// Unpacks those of an image's layers that are missing, several at once.
    pub(crate) fn unpack_layers(&self, layers: &[Layer], available: &Available<'_>) -> Result<()> {
        // Somebody may have cleared it away to get rid of what can be unpacked anew.
        std::fs::create_dir_all(self.layers_dir()).map_err(Error::io("create", self.layers_dir()))?;
        let pending = self.claim(layers)?;
        if pending.is_empty() {
            return Ok(());
        }
        let lowers = self.lower_descriptors(layers, &pending)?;
        let schedule = Schedule::new(pending.len());
        let threads = thread::available_parallelism().map_or(1, usize::from).min(PARALLEL).min(pending.len());
        let run = || {
            while let Some(Turn { index, gate }) = schedule.next() {
                let result = self.unpack_one(&pending[index], &lowers, gate, available);
                schedule.done(index, result);
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(run);
            }
            run();
        });
        schedule.result()?;
        drop(lowers);
        self.publish_layers(pending)
    }

    /// Locks the missing layers, lowest first, so that two processes never wait for each other.
    fn claim<'a>(&self, layers: &'a [Layer]) -> Result<Vec<Pending<'a>>> {
        let mut pending: Vec<Pending<'_>> = Vec::new();
        for (place, layer) in layers.iter().enumerate() {
            if layer.is_module() || self.has_layer(layer.chain_id) {
                continue;
            }
            let work = Work::named_directory(self, &layer.chain_id.hex())?;
            // Another process may have been at it until now.
            if !self.has_layer(layer.chain_id) {
                mkdirat(work.fd(), CONTENT, Mode::from_raw_mode(0o755)).map_err(Error::io("create", work.path()))?;
                pending.push(Pending { layer, place, work });
            }
        }
        Ok(pending)
    }

    /// The directory of every layer, unpacked or on its way, lowest first, for reading.
    fn lower_descriptors(&self, layers: &[Layer], pending: &[Pending<'_>]) -> Result<Vec<OwnedFd>> {
        layers
            .iter()
            .enumerate()
            .map(|(place, layer)| {
                let work = pending.iter().find(|pending| pending.place == place);
                let path =
                    work.map_or_else(|| self.layer_dir(layer.chain_id), |pending| pending.work.path().to_owned());
                layer::detach(open_directory(&path)?, true).map_err(Error::io("open", path))
            })
            .collect()
    }

    fn unpack_one(
        &self,
        pending: &Pending<'_>,
        lowers: &[OwnedFd],
        gate: Option<File>,
        available: &Available<'_>,
    ) -> Result<()> {
        available(pending.place)?;
        let layer = pending.layer;
        let path = self.blob_path(layer.digest);
        let blob = File::open(&path).map_err(Error::io("open", &path))?;
        let job = Job {
            blob,
            digest: layer.digest,
            diff_id: Some(layer.diff_id),
            directory: open_directory(pending.work.path())?,
            lowers: lowers[..pending.place].iter().rev().map(AsFd::as_fd).collect(),
            gate,
            limits: self.limits().clone(),
        };
        let failed = |error| Error::Layer { digest: layer.digest, error: Box::new(error) };
        let unpacked = layer::run(self.unpacker(), job, pending.work.fd()).map_err(failed)?;
        let record = LayerRecord { diff_id: layer.diff_id, size: unpacked.size };
        complete(pending.work.fd(), record).map_err(failed)
    }

    /// Makes layers visible, lowest first, once their content is on the disk.
    fn publish_layers(&self, pending: Vec<Pending<'_>>) -> Result<()> {
        if let Some(first) = pending.first() {
            rustix::fs::syncfs(first.work.fd()).map_err(Error::io("write", self.layers_dir()))?;
        }
        for Pending { layer, work, .. } in pending {
            work.rename_if_new(&self.layer_dir(layer.chain_id))?;
        }
        Ok(())
    }

    /// Unpacks an only layer whose content is not known yet; `blob` holds it. Returns its diff id.
    pub(crate) fn unpack_unknown(&self, blob: File, digest: Digest) -> Result<Digest> {
        let work = Work::directory(self)?;
        mkdirat(work.fd(), CONTENT, Mode::from_raw_mode(0o755)).map_err(Error::io("create", work.path()))?;
        let directory = open_directory(work.path())?;
        let limits = self.limits().clone();
        let job = Job { blob, digest, diff_id: None, directory, lowers: Vec::new(), gate: None, limits };
        let failed = |error| Error::Layer { digest, error: Box::new(error) };
        let unpacked = layer::run(self.unpacker(), job, work.fd()).map_err(failed)?;
        complete(work.fd(), LayerRecord { diff_id: unpacked.diff_id, size: unpacked.size }).map_err(failed)?;
        rustix::fs::syncfs(work.fd()).map_err(Error::io("write", work.path()))?;
        work.rename_if_new(&self.layer_dir(unpacked.diff_id))?;
        Ok(unpacked.diff_id)
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(Error::io("open", path))
}

/// Marks the opaque directories that the worker listed, a step it has no privilege for, and writes the record.
fn complete(directory: &OwnedFd, record: LayerRecord) -> Result<(), LayerError> {
    let io =
        |action: &'static str| move |error: rustix::io::Errno| LayerError::Worker(format!("cannot {action}: {error}"));
    let read = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let content = openat2(directory, CONTENT, read, Mode::empty(), INSIDE).map_err(io("open the layer"))?;
    for path in layer::read_opaque(directory)? {
        let opaque = openat2(&content, &path, read, Mode::empty(), INSIDE).map_err(io("open an opaque directory"))?;
        fsetxattr(opaque, "trusted.overlay.opaque", b"y", XattrFlags::empty())
            .map_err(io("mark an opaque directory"))?;
    }
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(directory, RECORD, write, Mode::RUSR).map_err(io("create the layer's record"))?;
    serde_json::to_vec(&record)
        .map_err(std::io::Error::from)
        .and_then(|text| File::from(file).write_all(&text))
        .map_err(|error| LayerError::Worker(format!("cannot write the layer's record: {error}")))
}
