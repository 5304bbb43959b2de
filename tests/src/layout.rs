//! OCI image layouts written by hand, so that any part of an image can be unusual or wrong.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// OCI manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, not compressed.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An OCI image layout in a folder.
pub struct Layout {
    dir: PathBuf,
}

/// A layer's blob and what the image says of it.
#[derive(Clone)]
pub struct Layer {
    /// The blob.
    pub bytes: Vec<u8>,
    /// What the manifest says it is.
    pub media_type: String,
    /// What the configuration says of its uncompressed content.
    pub diff_id: String,
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::from("sha256:"), |text, byte| text + &format!("{byte:02x}"))
}

impl Layer {
    /// A tar archive as it is.
    pub fn plain(tar: Vec<u8>) -> Self {
        Self { diff_id: digest(&tar), media_type: LAYER.into(), bytes: tar }
    }

    /// A tar archive compressed with gzip.
    pub fn gzip(tar: &[u8]) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(tar).expect("writing to memory");
        let bytes = encoder.finish().expect("writing to memory");
        Self { diff_id: digest(tar), media_type: format!("{LAYER}+gzip"), bytes }
    }

    /// A tar archive compressed with zstd.
    pub fn zstd(tar: &[u8]) -> Self {
        let bytes = zstd::encode_all(tar, 3).expect("writing to memory");
        Self { diff_id: digest(tar), media_type: format!("{LAYER}+zstd"), bytes }
    }
}

impl Layout {
    /// A new layout in the folder `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        fs::create_dir_all(dir.join("blobs/sha256")).expect("a folder for blobs");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
        let layout = Self { dir };
        layout.write_index(&[]);
        layout
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Where a blob is kept.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.strip_prefix("sha256:").expect("a sha256 digest"))
    }

    /// Adds a blob; returns its descriptor.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        fs::write(self.blob_path(&digest), bytes).expect("a blob can be written");
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Adds a configuration for `layers` with `config` as its `config` member; returns its descriptor.
    pub fn config(&self, layers: &[Layer], config: &Value) -> Value {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        self.blob(CONFIG, config.to_string().as_bytes())
    }

    /// Adds a manifest of a configuration and `layers`; returns its descriptor.
    pub fn manifest(&self, config: &Value, layers: &[Layer]) -> Value {
        let layers: Vec<_> = layers.iter().map(|layer| self.blob(&layer.media_type, &layer.bytes)).collect();
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        self.blob(MANIFEST, manifest.to_string().as_bytes())
    }

    /// Writes the layout's index: descriptors, each with its tag.
    pub fn write_index(&self, images: &[(&str, Value)]) {
        let manifests: Vec<_> = images
            .iter()
            .map(|(tag, descriptor)| {
                let mut descriptor = descriptor.clone();
                descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
                descriptor
            })
            .collect();
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        fs::write(self.dir.join("index.json"), index.to_string()).expect("the index can be written");
    }

    /// The whole of an image, as the layout's only one, with this tag; returns its manifest's descriptor.
    pub fn image(&self, tag: &str, layers: &[Layer], config: &Value) -> Value {
        let manifest = self.manifest(&self.config(layers, config), layers);
        self.write_index(&[(tag, manifest.clone())]);
        manifest
    }
}

/// This machine's architecture in the words of OCI.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
