//! What is in the store, for people: the list of images and the history of one.

use serde::Serialize;

use super::Store;
use crate::digest::Digest;
use crate::error::Result;
use crate::reference::Reference;

/// One line of `berth images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Summary {
    /// The name as docker shows it; `None` for an image that lost its name.
    pub repository: Option<String>,
    /// The tag; `None` for an image known by digest only.
    pub tag: Option<String>,
    /// Digest of the manifest.
    pub digest: Digest,
    /// Digest of the configuration.
    pub id: Digest,
    /// When it was made, RFC 3339, as the image says.
    pub created: Option<String>,
    /// Bytes of its unpacked layers; of its blobs where a layer is not unpacked.
    pub size: u64,
}

/// One step in the making of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HistoryEntry {
    /// Digest of the layer it made, uncompressed; `None` where it made none.
    pub diff_id: Option<Digest>,
    /// RFC 3339.
    pub created: Option<String>,
    /// The command.
    pub created_by: Option<String>,
    /// A remark.
    pub comment: Option<String>,
    /// Bytes of the layer it made.
    pub size: u64,
}

impl Store {
    /// All images, the newest first. One line a name.
    pub fn list(&self) -> Result<Vec<Summary>> {
        let mut list = Vec::new();
        for entry in self.entries()? {
            let image = match self.image(entry.manifest, &entry.media_type, String::new()) {
                Ok(image) => image,
                Err(error) => {
                    tracing::warn!("an image is left out: {error}");
                    continue;
                }
            };
            let unpacked: Option<u64> = image.layers.iter().map(|layer| self.layer_size(layer.chain_id)).sum();
            let reference = entry.reference.as_ref();
            list.push(Summary {
                repository: reference.map(Reference::familiar_name),
                tag: reference.and_then(Reference::tag).map(str::to_owned),
                digest: entry.manifest,
                id: image.id,
                created: image.config.created().clone(),
                size: unpacked.unwrap_or(image.size),
            });
        }
        list.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.repository.cmp(&b.repository)));
        Ok(list)
    }

    /// The names of all images, those that came last at the end.
    pub fn names(&self) -> Result<Vec<Reference>> {
        Ok(self.entries()?.into_iter().filter_map(|entry| entry.reference).collect())
    }

    /// How an image was made, the last step first.
    pub fn history(&self, reference: &str) -> Result<Vec<HistoryEntry>> {
        let image = self.resolve(reference)?;
        let mut layers = image.layers.iter();
        let mut history = Vec::new();
        for step in image.config.history().iter().flatten() {
            let layer = if step.empty_layer().unwrap_or(false) { None } else { layers.next() };
            history.push(HistoryEntry {
                diff_id: layer.map(|layer| layer.diff_id),
                created: step.created().clone(),
                created_by: step.created_by().clone(),
                comment: step.comment().clone(),
                size: layer.map_or(0, |layer| self.layer_size(layer.chain_id).unwrap_or(layer.size)),
            });
        }
        // An image may tell less history than it has layers.
        history.extend(layers.map(|layer| HistoryEntry {
            diff_id: Some(layer.diff_id),
            created: None,
            created_by: None,
            comment: None,
            size: self.layer_size(layer.chain_id).unwrap_or(layer.size),
        }));
        history.reverse();
        Ok(history)
    }
}
