//! `index.json`: the names of images. One entry a name; an image without a name keeps one entry without.

use std::collections::HashMap;
use std::io::Read;

use oci_spec::image::{Descriptor, ImageIndex, ImageIndexBuilder, MediaType};

use super::{Guard, Store, Work};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media;
use crate::reference::Reference;

/// The annotation that holds an entry's full reference.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation that holds the digest of the image index the manifest was chosen from.
const FROM_INDEX: &str = "org.berth.image.index";
/// Largest `index.json`, bytes.
const MAX_INDEX: u64 = 64 << 20;

/// One image under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    pub reference: Option<Reference>,
    pub manifest: Digest,
    pub media_type: String,
    /// Bytes of the manifest.
    pub size: u64,
    /// Digest of the image index it was chosen from.
    pub index: Option<Digest>,
}

impl IndexEntry {
    fn parse(descriptor: &Descriptor) -> Option<Self> {
        let annotation = |key| descriptor.annotations().as_ref().and_then(|all| all.get(key));
        let media_type = descriptor.media_type().to_string();
        Some(Self {
            reference: annotation(REF_NAME).and_then(|text| text.parse().ok()),
            manifest: descriptor.digest().as_ref().parse().ok()?,
            size: descriptor.size(),
            index: annotation(FROM_INDEX).and_then(|text| text.parse().ok()),
            media_type: media::is_manifest(&media_type).then_some(media_type)?,
        })
    }

    fn descriptor(&self) -> Result<Descriptor> {
        let mut annotations = HashMap::new();
        if let Some(reference) = &self.reference {
            annotations.insert(REF_NAME.to_owned(), reference.to_string());
        }
        if let Some(index) = self.index {
            annotations.insert(FROM_INDEX.to_owned(), index.to_string());
        }
        let mut descriptor = descriptor(&self.media_type, self.manifest, self.size)?;
        descriptor.set_annotations((!annotations.is_empty()).then_some(annotations));
        Ok(descriptor)
    }
}

/// A descriptor in the form the OCI types have it.
pub fn descriptor(media_type: &str, digest: Digest, size: u64) -> Result<Descriptor> {
    let digest: oci_spec::image::Digest =
        digest.to_string().parse().map_err(|error| Error::invalid(digest.to_string(), error))?;
    Ok(Descriptor::new(MediaType::from(media_type), size, digest))
}

/// An image index of these manifests, as `index.json` has it (OCI image-spec, "Image Index").
pub(crate) fn index_json(manifests: Vec<Descriptor>) -> Result<Vec<u8>> {
    let index = ImageIndexBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()
        .map_err(|error| Error::invalid("index.json", error))?;
    serde_json::to_vec(&index).map_err(|error| Error::invalid("index.json", error))
}

impl Store {
    /// All entries, in the order they were made.
    pub(crate) fn entries(&self) -> Result<Vec<IndexEntry>> {
        let path = self.root.join("index.json");
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("open", &path)(error)),
        };
        let mut text = Vec::new();
        file.take(MAX_INDEX).read_to_end(&mut text).map_err(Error::io("read", &path))?;
        let index: ImageIndex = serde_json::from_slice(&text).map_err(|error| {
            let advice = "restore it, or move it away and load the images again";
            Error::invalid(path.display().to_string(), format!("{error}; {advice}"))
        })?;
        Ok(index.manifests().iter().filter_map(IndexEntry::parse).collect())
    }

    /// Changes the entries as one step that no other process can interleave with.
    pub(crate) fn update_entries<T>(&self, change: impl FnOnce(&mut Vec<IndexEntry>) -> Result<T>) -> Result<T> {
        let _lock = Guard::exclusive(&self.root.join("index.lock"))?;
        let mut entries = self.entries()?;
        let before = entries.clone();
        let result = change(&mut entries)?;
        if entries != before {
            let manifests = entries.iter().map(IndexEntry::descriptor).collect::<Result<Vec<_>>>()?;
            let text = index_json(manifests)?;
            let work = Work::file(self)?;
            work.write(&text)?;
            work.rename(&self.root.join("index.json"))?;
        }
        Ok(result)
    }

    /// Gives an image its name, which another image may lose; that one stays, without a name.
    pub(crate) fn set_entry(&self, new: IndexEntry) -> Result<()> {
        self.update_entries(|entries| {
            insert(entries, new);
            Ok(())
        })
    }
}

/// Adds an entry; its name is taken from whoever has it.
pub fn insert(entries: &mut Vec<IndexEntry>, new: IndexEntry) {
    if new.reference.is_some() {
        for entry in entries.iter_mut().filter(|entry| entry.reference == new.reference) {
            entry.reference = None;
        }
    }
    let manifest = new.manifest;
    if new.reference.is_some() || !entries.iter().any(|entry| entry.manifest == manifest) {
        entries.push(new);
    }
    drop_nameless_duplicates(entries);
}

/// An entry without a name is only there for images that have no other.
pub fn drop_nameless_duplicates(entries: &mut Vec<IndexEntry>) {
    let mut index = 0;
    while index < entries.len() {
        let manifest = entries[index].manifest;
        let duplicate = entries[index].reference.is_none()
            && entries
                .iter()
                .enumerate()
                .any(|(other, entry)| entry.manifest == manifest && (entry.reference.is_some() || other < index));
        if duplicate {
            entries.remove(index);
        } else {
            index += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: Option<&str>, content: &[u8]) -> IndexEntry {
        IndexEntry {
            reference: name.map(|name| name.parse().unwrap()),
            manifest: Digest::of(content),
            media_type: media::OCI_MANIFEST.to_owned(),
            size: 1,
            index: None,
        }
    }

    #[test]
    fn a_moved_name_leaves_a_nameless_image() {
        let mut entries = Vec::new();
        insert(&mut entries, entry(Some("a"), b"old"));
        insert(&mut entries, entry(Some("a"), b"new"));
        assert_eq!(entries, [entry(None, b"old"), entry(Some("a"), b"new")]);
    }

    #[test]
    fn an_image_with_a_name_has_no_nameless_entry() {
        let mut entries = vec![entry(None, b"x")];
        insert(&mut entries, entry(None, b"x"));
        assert_eq!(entries.len(), 1);
        insert(&mut entries, entry(Some("a"), b"x"));
        insert(&mut entries, entry(Some("a"), b"x"));
        assert_eq!(entries, [entry(Some("a"), b"x")]);
    }
}
