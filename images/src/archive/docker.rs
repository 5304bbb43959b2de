//! `docker save` archives, as docker and podman write them: `manifest.json` names configurations and layer archives.

use serde::{Deserialize, Serialize};

use super::load::{LoadOptions, Loaded};
use super::source::Source;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media::{self, Compression};
use crate::reference::Reference;
use crate::store::{Store, layers, parse};

/// One image of `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerImage {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub layers: Vec<String>,
}

impl Store {
    pub(super) fn load_docker(&self, source: &Source, options: &LoadOptions) -> Result<Vec<String>> {
        let what = format!("manifest.json of {}", source.name());
        let images: Vec<DockerImage> = parse(&what, &source.document("manifest.json")?)?;
        let mut names = Vec::new();
        for image in &images {
            names.extend(self.load_docker_image(source, image, options)?);
        }
        if names.is_empty() {
            return Err(Error::invalid(what, "it names no image"));
        }
        Ok(names)
    }

    fn load_docker_image(&self, source: &Source, image: &DockerImage, options: &LoadOptions) -> Result<Vec<String>> {
        let what = format!("{} in {}", image.config, source.name());
        let text = source.document(&image.config)?;
        // The name tells the digest in every version of the format.
        let name = image.config.rsplit('/').next().unwrap_or(&image.config).trim_end_matches(".json");
        let actual = Digest::of(&text);
        if let Some(expected) = Digest::from_hex(name)
            && expected != actual
        {
            return Err(Error::DigestMismatch { what, expected, actual });
        }
        let configuration: oci_spec::image::ImageConfiguration = parse(&what, &text)?;
        let diff_ids = configuration.rootfs().diff_ids();
        if diff_ids.len() != image.layers.len() {
            let counts = format!("it has {} layers, the archive {}", diff_ids.len(), image.layers.len());
            return Err(Error::invalid(what, counts));
        }
        let mut blobs = Vec::new();
        for (path, diff_id) in image.layers.iter().zip(diff_ids) {
            let diff_id = diff_id.parse().map_err(|error| Error::invalid(&what, error))?;
            blobs.push(self.take_docker_layer(source, path, diff_id)?);
        }
        let config = (self.put(&text)?, text.len() as u64, media::OCI_CONFIG);
        let manifest = super::layout::image_manifest(config, &blobs)?;
        let digest = self.put(&manifest)?;
        let layers = layers(&parse("the manifest", &manifest)?, &configuration)?;
        let mut references = Vec::new();
        for tag in image.repo_tags.iter().flatten() {
            references.push(tag.parse::<Reference>()?);
        }
        if let (true, Some(name)) = (references.is_empty(), &options.name) {
            references.push(name.parse()?);
        }
        let size = manifest.len() as u64;
        self.enter(&Loaded {
            layers: &layers,
            manifest: digest,
            media_type: media::OCI_MANIFEST,
            size,
            index: None,
            references,
        })
    }

    fn take_docker_layer(&self, source: &Source, path: &str, diff_id: Digest) -> Result<super::layout::Blob> {
        let what = format!("{path} in {}", source.name());
        let mut start = [0; 4];
        let mut known = 0;
        let mut reader = source.open(path)?;
        while known < start.len() {
            match reader.read(&mut start[known..]).map_err(Error::io("read", path))? {
                0 => break,
                read => known += read,
            }
        }
        drop(reader);
        let compression = Compression::sniff(&start[..known]);
        let mut blob = self.write_blob()?;
        blob.fill(&what, source.open(path)?, self.limits().max_unpacked)?;
        let expected = (compression == Compression::None).then_some((what.as_str(), diff_id));
        let (digest, size) = blob.commit(self, expected)?;
        Ok((digest, size, compression.layer_media_type()))
    }
}
