//! Removal of names and of content that nothing needs any more.
//!
//! Content is needed by the images of the index, by containers, and by pulls under way (their leases). It is deleted
//! under the exclusive content lock, so nobody is between finding an image and recording its use.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use serde::Serialize;

use super::ingest::{self, Lease};
use super::{Guard, IndexEntry, Store, Work, index};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;

/// What a container uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Use {
    /// The container, as a message should name it.
    pub user: String,
    /// Digest of the image's manifest, `sha256:…`.
    pub manifest: String,
    /// Its layer directories, topmost first.
    pub layers: Vec<PathBuf>,
}

/// What `remove` did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Removed {
    /// Names taken away, as docker shows them.
    pub untagged: Vec<String>,
    /// Digests of the images that are gone.
    pub deleted: Vec<Digest>,
    /// Bytes given back to the file system, counted by files' content.
    pub reclaimed: u64,
}

/// What `prune` did.
pub type Pruned = Removed;

/// The error containers' records may give.
type UseError = Box<dyn std::error::Error + Send + Sync>;

impl Store {
    /// Removes a name, or an image by its id, and the content only it needed. `in_use` tells what containers use; it is
    /// asked while nobody can start using an image. With `force`, an image that a container uses loses its names,
    /// and an image with several names can be removed by its id; content in use stays in any case.
    pub fn remove(
        &self,
        reference: &str,
        force: bool,
        in_use: impl FnOnce() -> Result<Vec<Use>, UseError>,
    ) -> Result<Removed> {
        let _lock = Guard::exclusive(&self.root.join("content.lock"))?;
        let uses = in_use().map_err(Error::Users)?;
        let mut removed = Removed::default();
        self.update_entries(|entries| {
            let entry = self.find(entries, reference)?.clone();
            let named = reference
                .parse::<Reference>()
                .is_ok_and(|name| entry.reference.as_ref().is_some_and(|have| have.name() == name.name()));
            let names: Vec<String> = entries
                .iter()
                .filter(|other| other.manifest == entry.manifest)
                .filter_map(|other| Some(other.reference.as_ref()?.familiar()))
                .collect();
            if !named && names.len() > 1 && !force {
                return Err(Error::SeveralNames { id: reference.to_owned(), names });
            }
            let last = !named || names.len() <= 1;
            if last
                && !force
                && let Some(user) = uses.iter().find(|user| user.manifest == entry.manifest.to_string())
            {
                return Err(Error::InUse { reference: reference.to_owned(), user: user.user.clone() });
            }
            entries.retain(|other| {
                let goes = if named { other.reference == entry.reference } else { other.manifest == entry.manifest };
                if goes && let Some(name) = &other.reference {
                    removed.untagged.push(name.familiar());
                }
                !goes
            });
            if !entries.iter().any(|other| other.manifest == entry.manifest) {
                removed.deleted.push(entry.manifest);
            }
            Ok(())
        })?;
        // The name is gone; a damaged image elsewhere only keeps the content from being tidied up.
        match self.collect(&uses) {
            Ok(reclaimed) => removed.reclaimed = reclaimed,
            Err(error) => tracing::warn!("unneeded content stays: {error}"),
        }
        Ok(removed)
    }

    /// Removes images without a name, with `all` every image that no container uses, and all content nothing needs,
    /// unfinished downloads included.
    pub fn prune(&self, all: bool, in_use: impl FnOnce() -> Result<Vec<Use>, UseError>) -> Result<Pruned> {
        let _lock = Guard::exclusive(&self.root.join("content.lock"))?;
        let uses = in_use().map_err(Error::Users)?;
        let used: HashSet<&str> = uses.iter().map(|user| user.manifest.as_str()).collect();
        let mut removed = Removed::default();
        self.update_entries(|entries| {
            let goes = |entry: &IndexEntry| {
                (all || entry.reference.is_none()) && !used.contains(entry.manifest.to_string().as_str())
            };
            for entry in entries.iter().filter(|entry| goes(entry)) {
                removed.untagged.extend(entry.reference.as_ref().map(Reference::familiar));
                if !removed.deleted.contains(&entry.manifest) {
                    removed.deleted.push(entry.manifest);
                }
            }
            entries.retain(|entry| !goes(entry));
            index::drop_nameless_duplicates(entries);
            Ok(())
        })?;
        ingest::sweep_partial(self, std::time::Duration::ZERO)?;
        removed.reclaimed = self.collect(&uses)?;
        Ok(removed)
    }

    /// Deletes what nothing needs; returns the bytes of blobs and layers deleted.
    fn collect(&self, uses: &[Use]) -> Result<u64> {
        let needed = self.needed(uses)?;
        let mut reclaimed = 0;
        let blobs = self.root.join("blobs/sha256");
        for (name, path) in children(&blobs)? {
            if Digest::from_hex(&name).is_some_and(|digest| needed.blobs.contains(&digest)) {
                continue;
            }
            reclaimed += std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        for (name, path) in children(&self.disks_dir())? {
            let digest = name.split_once('.').and_then(|(digest, _format)| Digest::from_hex(digest));
            if digest.is_some_and(|digest| needed.tops.contains(&digest)) {
                continue;
            }
            reclaimed += std::fs::metadata(&path).map_or(0, |metadata| metadata.blocks() * 512);
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        for (name, path) in children(&self.codes_dir())? {
            if Digest::from_hex(&name).is_some_and(|digest| needed.tops.contains(&digest)) {
                continue;
            }
            reclaimed += children(&path)?.iter().filter_map(|(_, code)| Some(code.metadata().ok()?.len())).sum::<u64>();
            std::fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
        }
        for (name, path) in children(&self.layers_dir())? {
            let digest = Digest::from_hex(&name);
            if digest.is_some_and(|digest| needed.chain_ids.contains(&digest)) || needed.paths.contains(&path) {
                continue;
            }
            reclaimed += digest.and_then(|digest| self.layer_size(digest)).unwrap_or(0);
            // It vanishes in one step; what is left in `ingest/` is removed on drop, or swept.
            let trash = Work::directory(self)?;
            let target = trash.path().join("layer");
            std::fs::rename(&path, &target).map_err(Error::io("remove", &path))?;
        }
        Ok(reclaimed)
    }

    fn needed(&self, uses: &[Use]) -> Result<Needed> {
        let mut needed = Needed::default();
        let mut manifests: Vec<Digest> = self.entries()?.iter().map(|entry| entry.manifest).collect();
        let indexed = manifests.len();
        manifests.extend(uses.iter().filter_map(|user| user.manifest.parse::<Digest>().ok()));
        for (place, manifest) in manifests.into_iter().enumerate() {
            match self.image(manifest, "", manifest.to_string()) {
                Ok(image) => needed.add(&image),
                // A container's image may be gone; its layers are kept by their paths.
                Err(Error::MissingBlob { .. }) if place >= indexed => {}
                // Better to keep too much than to delete the layers of an image that cannot be read.
                Err(error) => return Err(error),
            }
        }
        for lease in Lease::all(self)? {
            needed.blobs.extend(lease.blobs);
            needed.chain_ids.extend(lease.chain_ids);
        }
        let top = |user: &Use| Digest::from_hex(user.layers.first()?.parent()?.file_name()?.to_str()?);
        needed.tops.extend(uses.iter().filter_map(top));
        // A layer directory is `<chain id>/fs`.
        needed
            .paths
            .extend(uses.iter().flat_map(|user| &user.layers).filter_map(|path| Some(path.parent()?.to_owned())));
        Ok(needed)
    }
}

/// What garbage collection keeps.
#[derive(Default)]
struct Needed {
    blobs: HashSet<Digest>,
    chain_ids: HashSet<Digest>,
    paths: HashSet<PathBuf>,
    /// Chain ids of images' topmost layers.
    tops: HashSet<Digest>,
}

impl Needed {
    fn add(&mut self, image: &super::Image) {
        self.blobs.extend([image.manifest_digest, image.id]);
        self.blobs.extend(image.layers.iter().map(|layer| layer.digest));
        self.chain_ids.extend(image.layers.iter().map(|layer| layer.chain_id));
        self.tops.extend(image.layers.last().map(|layer| layer.chain_id));
    }
}

/// What is in a directory; nothing if it is not there.
fn children(directory: &std::path::Path) -> Result<Vec<(String, PathBuf)>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::io("read", directory))?,
    };
    entries
        .map(|entry| {
            let entry = entry.map_err(Error::io("read", directory))?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.path()))
        })
        .collect()
}
