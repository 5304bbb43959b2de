//! `berth image inspect`: an image with the names docker's JSON has.

use oci_spec::image::Config;
use serde::Serialize;

use super::Store;
use crate::digest::Digest;
use crate::error::Result;

/// Everything there is to know of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Description {
    /// Digest of the configuration.
    pub id: Digest,
    /// Digest of the manifest.
    pub digest: Digest,
    /// Names with a tag.
    pub repo_tags: Vec<String>,
    /// Names with the digest that a registry knows the image by.
    pub repo_digests: Vec<String>,
    /// Remark on the last step of its making.
    pub comment: String,
    /// When it was made, RFC 3339.
    pub created: Option<String>,
    /// Who made it.
    pub author: String,
    /// In Go's words.
    pub architecture: String,
    /// In Go's words.
    pub os: String,
    /// Of the architecture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Bytes of its blobs.
    pub size: u64,
    /// Bytes of its unpacked layers, where all are.
    pub unpacked_size: Option<u64>,
    /// What containers of it get when nothing else is asked for.
    pub config: Config,
    /// Its layers.
    #[serde(rename = "RootFS")]
    pub root_fs: RootFs,
}

/// The layers of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RootFs {
    /// `layers`
    pub r#type: String,
    /// Digests of the uncompressed layers, lowest first.
    pub layers: Vec<Digest>,
}

impl Store {
    /// Describes an image.
    pub fn describe(&self, reference: &str) -> Result<Description> {
        let image = self.resolve(reference)?;
        let (mut repo_tags, mut repo_digests) = (Vec::new(), Vec::new());
        for entry in self.entries()? {
            let Some(name) = entry.reference.filter(|_| entry.manifest == image.manifest_digest) else {
                continue;
            };
            if name.tag().is_some() {
                repo_tags.push(name.familiar());
            }
            let digest = name.at(entry.index.unwrap_or(entry.manifest)).familiar();
            if !repo_digests.contains(&digest) {
                repo_digests.push(digest);
            }
        }
        let config = &image.config;
        let comment = config.history().iter().flatten().next_back();
        Ok(Description {
            id: image.id,
            digest: image.manifest_digest,
            repo_tags,
            repo_digests,
            comment: comment.and_then(|step| step.comment().clone()).unwrap_or_default(),
            created: config.created().clone(),
            author: config.author().clone().unwrap_or_default(),
            architecture: config.architecture().to_string(),
            os: config.os().to_string(),
            variant: config.variant().clone(),
            size: image.size,
            unpacked_size: image.layers.iter().map(|layer| self.layer_size(layer.chain_id)).sum(),
            config: config.config().clone().unwrap_or_default(),
            root_fs: RootFs {
                r#type: "layers".to_owned(),
                layers: image.layers.iter().map(|layer| layer.diff_id).collect(),
            },
        })
    }
}
