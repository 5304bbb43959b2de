//! OCI image layouts, as skopeo, umoci and buildah write them.

use std::collections::HashMap;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, ImageManifestBuilder, MediaType};

use super::load::{LoadOptions, Loaded};
use super::source::Source;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{MAX_DOCUMENT, Store, descriptor, digest_of, layers, parse};
use crate::wasm;

/// The annotation with a name or tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation with a full reference that docker and containerd write.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// How deep image indexes may nest.
const MAX_NESTING: usize = 4;

impl Store {
    pub(super) fn load_layout(
        &self,
        source: &Source,
        stem: Option<&str>,
        options: &LoadOptions,
    ) -> Result<Vec<String>> {
        let index: ImageIndex = parse(&format!("index.json of {}", source.name()), &source.document("index.json")?)?;
        let mut names = Vec::new();
        for entry in index.manifests() {
            let reference = name(entry, stem).or_else(|| options.name.as_deref()?.parse().ok());
            let top = digest_of(entry)?;
            let chosen = choose(source, entry.clone(), options)?;
            let manifest = digest_of(&chosen)?;
            names.extend(self.load_manifest(source, &chosen, (top != manifest).then_some(top), reference)?);
        }
        if names.is_empty() {
            return Err(Error::invalid(source.name(), "its index.json names no image"));
        }
        Ok(names)
    }

    fn load_manifest(
        &self,
        source: &Source,
        chosen: &Descriptor,
        index: Option<Digest>,
        reference: Option<Reference>,
    ) -> Result<Vec<String>> {
        let digest = digest_of(chosen)?;
        let what = format!("manifest {digest} in {}", source.name());
        let text = source.document(&blob(digest))?;
        check_digest(&what, &text, digest)?;
        let manifest: ImageManifest = parse(&what, &text)?;
        let media_type = chosen.media_type().to_string();
        if !media::is_manifest(&media_type) {
            return Err(Error::MediaType { what, media_type });
        }
        let config = manifest.config();
        if !media::is_config(config.media_type().as_ref()) {
            let what = format!("the configuration of {what}");
            return Err(Error::MediaType { what, media_type: config.media_type().to_string() });
        }
        let config_digest = digest_of(config)?;
        self.take_blob(source, &blob(config_digest), config_digest, config.size().min(MAX_DOCUMENT))?;
        let what = format!("configuration {config_digest}");
        let configuration = wasm::configuration(&what, &manifest, &self.document(config_digest)?)?;
        let layers = layers(&manifest, &configuration)?;
        for layer in &layers {
            self.take_blob(source, &blob(layer.digest), layer.digest, layer.size)?;
        }
        self.put(&text)?;
        let references = reference.into_iter().collect();
        let size = text.len() as u64;
        self.enter(&Loaded { layers: &layers, manifest: digest, media_type: &media_type, size, index, references })
    }
}

fn check_digest(what: &str, text: &[u8], expected: Digest) -> Result<()> {
    let actual = Digest::of(text);
    if actual == expected { Ok(()) } else { Err(Error::DigestMismatch { what: what.to_owned(), expected, actual }) }
}

/// Goes down from an index to the manifest for the platform.
fn choose(source: &Source, mut at: Descriptor, options: &LoadOptions) -> Result<Descriptor> {
    let wanted = options.platform.clone().unwrap_or_else(Platform::host);
    for _ in 0..MAX_NESTING {
        if !media::is_index(at.media_type().as_ref()) {
            return Ok(at);
        }
        let digest = digest_of(&at)?;
        let what = format!("index {digest} in {}", source.name());
        let text = source.document(&blob(digest))?;
        check_digest(&what, &text, digest)?;
        let index: ImageIndex = parse(&what, &text)?;
        at = wanted.choose(index.manifests()).cloned().ok_or_else(|| Error::WrongPlatform {
            what,
            wanted: wanted.clone(),
            offered: Platform::offered(index.manifests()),
        })?;
    }
    Err(Error::invalid(source.name(), "its image indexes nest too deeply"))
}

fn blob(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// What an image in a layout is called: a full reference, or a tag of what the image or the layout itself is called.
fn name(entry: &Descriptor, stem: Option<&str>) -> Option<Reference> {
    let annotation = |key: &str| entry.annotations().as_ref().and_then(|all: &HashMap<_, _>| all.get(key));
    let full: Option<Reference> = annotation(CONTAINERD_NAME).and_then(|text| text.parse().ok());
    let Some(text) = annotation(REF_NAME) else {
        return full;
    };
    if text.contains(['/', ':', '@']) {
        return full.or_else(|| text.parse().ok());
    }
    let of = |name: &str| format!("{name}:{text}").parse().ok();
    // A layout's only names are often tags (umoci) and as often names (podman): a version is no name.
    let is_version = text == "latest" || text.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
    // umoci copies the full name to new tags as it was.
    let known = full.as_ref().and_then(|full| of(&full.name()));
    known.or_else(|| of(&stem.filter(|_| is_version)?.to_ascii_lowercase())).or_else(|| text.parse().ok())
}

/// Digest, bytes and media type of a blob.
pub type Blob = (Digest, u64, &'static str);

/// An OCI manifest of an image.
pub fn image_manifest(config: Blob, layers: &[Blob]) -> Result<Vec<u8>> {
    let describe = |(digest, size, media_type): &Blob| descriptor(media_type, *digest, *size);
    manifest(describe(&config)?, layers.iter().map(describe).collect::<Result<Vec<_>>>()?)
}

/// An OCI manifest.
pub fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Result<Vec<u8>> {
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers)
        .build()
        .map_err(|error| Error::invalid("the manifest", error))?;
    serde_json::to_vec(&manifest).map_err(|error| Error::invalid("the manifest", error))
}
