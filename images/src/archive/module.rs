//! `berth image build-wasm`: a Wasm module becomes an image.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use crate::digest::Hashing;
use crate::error::{Error, Result};
use crate::media;
use crate::reference::Reference;
use crate::store::{Image, IndexEntry, Store, descriptor};
use crate::wasm::{Interfaces, ModuleConfig, TITLE};

/// How `build_wasm` makes the image.
#[derive(Debug, Clone, Default)]
pub struct WasmOptions {
    /// Its name.
    pub reference: Option<String>,
    /// What a component offers and needs.
    pub interfaces: Option<Interfaces>,
}

/// Longest start of a module that tells what it is, bytes.
const START: usize = 8;

impl Store {
    /// Makes an image of the module in a file: the same file always makes the same image.
    pub fn build_wasm(&self, path: &Path, options: &WasmOptions) -> Result<Image> {
        let reference = options.reference.as_deref().map(str::parse::<Reference>).transpose()?;
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let metadata = file.metadata().map_err(Error::io("examine", path))?;
        if !metadata.is_file() {
            return Err(Error::invalid(path.display().to_string(), "it is no file with a Wasm module"));
        }
        let created = metadata.modified().ok().and_then(|time| jiff::Timestamp::try_from(time).ok());
        let _guard = self.read_guard()?;
        let mut start = Vec::new();
        file.by_ref().take(START as u64).read_to_end(&mut start).map_err(Error::io("read", path))?;
        let mut hashing = Hashing::new(std::io::sink());
        file.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
        std::io::copy(&mut &file, &mut hashing).map_err(Error::io("read", path))?;
        let (_, digest, size) = hashing.finish();
        let config =
            ModuleConfig::new(digest, &start, created.map(|time| time.to_string()), options.interfaces.clone());
        let config = config.map_err(|error| match error {
            Error::Invalid { reason, .. } => Error::invalid(path.display().to_string(), reason),
            other => other,
        })?;
        if !self.has_blob(digest) {
            file.seek(SeekFrom::Start(0)).map_err(Error::io("read", path))?;
            let mut blob = self.write_blob()?;
            let what = path.display().to_string();
            blob.fill(&what, BufReader::with_capacity(1 << 17, &file), size)?;
            blob.commit(self, Some((&what, digest)))?;
        }
        let config =
            serde_json::to_vec(&config).map_err(|error| Error::invalid("the module's configuration", error))?;
        let mut layer = descriptor(media::WASM_LAYER, digest, size)?;
        let title = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        layer.set_annotations(Some(HashMap::from([(TITLE.to_owned(), title)])));
        let config = descriptor(media::WASM_CONFIG, self.put(&config)?, config.len() as u64)?;
        let manifest = super::layout::manifest(config, vec![layer])?;
        let manifest_digest = self.put(&manifest)?;
        self.set_entry(IndexEntry {
            reference: reference.clone(),
            manifest: manifest_digest,
            media_type: media::OCI_MANIFEST.to_owned(),
            size: manifest.len() as u64,
            index: None,
        })?;
        let familiar = reference.as_ref().map_or_else(|| manifest_digest.to_string(), Reference::familiar);
        self.image(manifest_digest, media::OCI_MANIFEST, familiar)
    }
}
