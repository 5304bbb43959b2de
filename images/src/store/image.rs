//! From a reference to an image: the hot path of `berth run`. It reads the index, the manifest and the configuration.

use std::collections::HashMap;

use oci_spec::image::{ImageConfiguration, ImageManifest};
use serde::de::DeserializeOwned;

use super::{IndexEntry, Store};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media::{self, Compression};
use crate::reference::Reference;
use crate::wasm;

/// Most layers of an image: overlayfs stacks 500 directories, and each takes two descriptors while it is unpacked.
const MAX_LAYERS: usize = 400;

/// An image in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name as docker shows it; the digest for an image without a name.
    pub reference: String,
    /// Digest of its manifest.
    pub manifest_digest: Digest,
    /// Digest of its configuration.
    pub id: Digest,
    /// The configuration: environment, command, user and so on.
    pub config: ImageConfiguration,
    /// The annotations of its manifest.
    pub annotations: HashMap<String, String>,
    /// Its layers, lowest first.
    pub layers: Vec<Layer>,
    /// Bytes of all its blobs.
    pub size: u64,
    /// Media type of the manifest.
    pub(crate) media_type: String,
    /// Bytes of the manifest.
    pub(crate) manifest_size: u64,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Digest of this layer and all below it: what its directory is called.
    pub chain_id: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Media type of the blob.
    pub media_type: String,
}

impl Image {
    /// The Wasm module that this image is, if it is no file system.
    pub fn module(&self) -> Option<&Layer> {
        self.layers.first().filter(|layer| layer.is_module())
    }
}

impl Layer {
    /// Whether it is a Wasm module, which is not unpacked.
    pub(crate) fn is_module(&self) -> bool {
        self.media_type == media::WASM_LAYER
    }
}

impl Store {
    /// Finds an image by name, name and tag, name and digest, or an unambiguous prefix of its id or digest.
    pub fn resolve(&self, reference: &str) -> Result<Image> {
        let entries = self.entries()?;
        let entry = self.find(&entries, reference)?;
        let familiar = entry.reference.as_ref().map_or_else(|| entry.manifest.to_string(), Reference::familiar);
        self.image(entry.manifest, &entry.media_type, familiar)
    }

    /// The entry that `text` means. A name goes before an id.
    pub(crate) fn find<'a>(&self, entries: &'a [IndexEntry], text: &str) -> Result<&'a IndexEntry> {
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        let is_prefix = (2..=64).contains(&prefix.len())
            && prefix.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit));
        match text.parse::<Reference>() {
            Ok(wanted) => {
                if let Some(entry) = entries.iter().find(|entry| is_meant(entry, &wanted)) {
                    return Ok(entry);
                }
            }
            Err(error) if !is_prefix => return Err(error),
            Err(_) => {}
        }
        if is_prefix {
            return self.find_by_prefix(entries, text, prefix);
        }
        Err(Error::NotFound { reference: text.to_owned() })
    }

    fn find_by_prefix<'a>(&self, entries: &'a [IndexEntry], text: &str, prefix: &str) -> Result<&'a IndexEntry> {
        let mut found: Option<&IndexEntry> = None;
        let mut matches = Vec::new();
        for entry in entries {
            let mut hit = entry.manifest.hex().starts_with(prefix).then_some(entry.manifest);
            if hit.is_none() {
                // A damaged image must not keep the others from being found.
                let id = self.manifest(entry.manifest).and_then(|manifest| digest_of(manifest.config()));
                hit = id.ok().filter(|id| id.hex().starts_with(prefix));
            }
            let Some(digest) = hit else { continue };
            if found.is_none_or(|found| found.manifest != entry.manifest) {
                matches.push(digest.to_string());
            }
            found = found.or(Some(entry));
        }
        match (found, matches.len()) {
            (Some(entry), 1) => Ok(entry),
            (Some(_), _) => Err(Error::Ambiguous { prefix: text.to_owned(), matches }),
            (None, _) => Err(Error::NotFound { reference: text.to_owned() }),
        }
    }

    pub(crate) fn manifest(&self, digest: Digest) -> Result<ImageManifest> {
        parse(&format!("manifest {digest}"), &self.document(digest)?)
    }

    /// Reads the image with this manifest.
    pub(crate) fn image(&self, digest: Digest, media_type: &str, reference: String) -> Result<Image> {
        let missing = |part, digest| {
            let image = reference.clone();
            move |error| match error {
                Error::Io { error, .. } if error.kind() == std::io::ErrorKind::NotFound => {
                    Error::MissingBlob { image, part, digest }
                }
                other => other,
            }
        };
        let text = self.document(digest).map_err(missing("manifest", digest))?;
        let manifest: ImageManifest = parse(&format!("manifest {digest}"), &text)?;
        let id = digest_of(manifest.config())?;
        let config = self.document(id).map_err(missing("configuration", id))?;
        let config = wasm::configuration(&format!("configuration {id}"), &manifest, &config)?;
        let layers = layers(&manifest, &config)?;
        let size = layers.iter().map(|layer| layer.size).sum::<u64>() + manifest.config().size();
        Ok(Image {
            reference,
            manifest_digest: digest,
            id,
            config,
            annotations: manifest.annotations().clone().unwrap_or_default(),
            layers,
            size,
            media_type: media_type.to_owned(),
            manifest_size: text.len() as u64,
        })
    }
}

/// Whether `entry` is what a person calls `wanted`. A digest may be that of the manifest or of the index it came from.
fn is_meant(entry: &IndexEntry, wanted: &Reference) -> bool {
    let Some(have) = &entry.reference else {
        return false;
    };
    match wanted.digest() {
        Some(digest) => {
            have.name() == wanted.name()
                && (entry.manifest == digest || entry.index == Some(digest) || have.digest() == Some(digest))
        }
        None => have == wanted,
    }
}

/// The layers of an image, lowest first.
pub fn layers(manifest: &ImageManifest, config: &ImageConfiguration) -> Result<Vec<Layer>> {
    let diff_ids = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| text.parse().map_err(|error| Error::invalid("the image's configuration", error)))
        .collect::<Result<Vec<Digest>>>()?;
    if diff_ids.len() > MAX_LAYERS {
        let reason = format!("it has more than {MAX_LAYERS} layers");
        return Err(Error::invalid("the image", reason));
    }
    if diff_ids.len() != manifest.layers().len() {
        let counts =
            format!("the manifest has {} layers, the configuration {}", manifest.layers().len(), diff_ids.len());
        return Err(Error::invalid("the image", counts));
    }
    let is_artifact = manifest.config().media_type().to_string() == media::WASM_CONFIG;
    manifest
        .layers()
        .iter()
        .zip(diff_ids.iter().zip(chain_ids(&diff_ids)))
        .map(|(descriptor, (diff_id, chain_id))| {
            let media_type = descriptor.media_type().to_string();
            // A module is the layer of an artifact and of nothing else.
            if !(is_artifact && media_type == media::WASM_LAYER) {
                Compression::of_layer(&media_type)?;
            }
            let digest = digest_of(descriptor)?;
            Ok(Layer { digest, diff_id: *diff_id, chain_id, size: descriptor.size(), media_type })
        })
        .collect()
}

/// Chain ids, as the image specification's "Layer `ChainID`" defines them.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => *diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// The digest of a descriptor, which must be a sha256.
pub fn digest_of(descriptor: &oci_spec::image::Descriptor) -> Result<Digest> {
    descriptor.digest().as_ref().parse().map_err(|error| Error::invalid("a descriptor", error))
}

/// Parses a JSON document.
pub fn parse<T: DeserializeOwned>(what: &str, text: &[u8]) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| {
        let reason = error.to_string();
        // Some words of the type for digests do not say what they are about.
        let unclear = ["Empty algorithm", "Invalid algorithm", "Invalid encoded value"];
        if unclear.iter().any(|words| reason.starts_with(words)) {
            Error::invalid(what, format!("malformed digest: {reason}"))
        } else {
            Error::invalid(what, reason)
        }
    })
}
