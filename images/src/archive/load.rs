//! `berth load`: images from an OCI layout or a `docker save` archive.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::source::Source;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media::Compression;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{IndexEntry, Layer, Store, Work};

/// How `load` takes images in.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The name for an image that has none in the archive.
    pub name: Option<String>,
    /// Which image of an index; this machine's platform by default.
    pub platform: Option<Platform>,
}

impl Store {
    /// Takes in every image of an OCI layout (folder or tar) or a `docker save` archive, compressed or not. Returns
    /// their names as docker shows them, or digests for images without a name.
    pub fn load(&self, path: &Path, options: &LoadOptions) -> Result<Vec<String>> {
        if path.is_dir() {
            let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
            return self.load_source(&Source::Folder(path.to_owned()), name.as_deref(), options);
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        let stem = path.file_name().and_then(|name| name.to_str()).map(|name| name.split('.').next().unwrap_or(name));
        self.load_file(&path.display().to_string(), file, stem, options)
    }

    /// As [`Store::load`], from a stream.
    pub fn load_stream(&self, stream: impl Read, options: &LoadOptions) -> Result<Vec<String>> {
        let spool = self.spool("the archive", stream)?;
        self.load_file("the archive", spool.open_file()?, None, options)
    }

    fn load_file(&self, name: &str, mut file: File, stem: Option<&str>, options: &LoadOptions) -> Result<Vec<String>> {
        let mut start = [0; 4];
        let read = file.read(&mut start).map_err(Error::io("read", name))?;
        file.seek(SeekFrom::Start(0)).map_err(Error::io("read", name))?;
        let spool = match Compression::sniff(&start[..read]) {
            Compression::None => None,
            Compression::Gzip => Some(self.spool(name, MultiGzDecoder::new(BufReader::new(&file)))?),
            Compression::Zstd => {
                let decoder = zstd::Decoder::new(&file).map_err(Error::io("read", name))?;
                Some(self.spool(name, decoder)?)
            }
        };
        let plain = match &spool {
            Some(spool) => spool.open_file()?,
            None => file,
        };
        self.load_source(&Source::tar(name, plain)?, stem, options)
    }

    /// Copies a stream into a file that vanishes with the result.
    fn spool(&self, name: &str, stream: impl Read) -> Result<Work> {
        let work = Work::file(self)?;
        let limit = self.limits().max_unpacked;
        let mut file = work.open_file()?;
        let copied = std::io::copy(&mut stream.take(limit + 1), &mut file).map_err(Error::io("read", name))?;
        if copied > limit {
            return Err(Error::SizeMismatch { what: name.to_owned(), expected: limit, actual: copied });
        }
        file.seek(SeekFrom::Start(0)).map_err(Error::io("read", name))?;
        Ok(work)
    }

    fn load_source(&self, source: &Source, stem: Option<&str>, options: &LoadOptions) -> Result<Vec<String>> {
        let _guard = self.read_guard()?;
        if source.has("oci-layout") && source.has("index.json") {
            self.load_layout(source, stem, options)
        } else if source.has("manifest.json") {
            self.load_docker(source, options)
        } else {
            let advice =
                "it is neither an OCI layout nor a `docker save` archive; a root file system goes to `berth import`";
            Err(Error::invalid(source.name(), advice))
        }
    }

    /// Copies a blob in and checks it, unless it is here.
    pub(super) fn take_blob(&self, source: &Source, path: &str, digest: Digest, size: u64) -> Result<()> {
        let what = format!("{path} in {}", source.name());
        if self.holds(&what, digest, size)? {
            return Ok(());
        }
        if !source.has(path) {
            return Err(Error::invalid(source.name(), format!("it lacks the blob {digest}")));
        }
        let mut blob = self.write_blob()?;
        blob.fill(&what, source.open(path)?, size)?;
        if blob.size() < size {
            return Err(Error::SizeMismatch { what, expected: size, actual: blob.size() });
        }
        blob.commit(self, Some((&what, digest)))?;
        Ok(())
    }

    /// Unpacks a loaded image, and gives it its names once that went well.
    pub(super) fn enter(&self, image: &Loaded<'_>) -> Result<Vec<String>> {
        self.unpack_layers(image.layers, &|_| Ok(()))?;
        let entry = |reference| IndexEntry {
            reference,
            manifest: image.manifest,
            media_type: image.media_type.to_owned(),
            size: image.size,
            index: image.index,
        };
        if image.references.is_empty() {
            self.set_entry(entry(None))?;
            return Ok(vec![image.manifest.to_string()]);
        }
        for reference in &image.references {
            self.set_entry(entry(Some(reference.clone())))?;
        }
        Ok(image.references.iter().map(Reference::familiar).collect())
    }
}

/// An image whose blobs are in the store.
pub(super) struct Loaded<'a> {
    pub layers: &'a [Layer],
    pub manifest: Digest,
    pub media_type: &'a str,
    /// Bytes of the manifest.
    pub size: u64,
    pub index: Option<Digest>,
    pub references: Vec<Reference>,
}
