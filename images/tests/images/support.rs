//! Builders of layers and images, and a store in a directory of its own.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use berth_images::{Digest, Image, LoadOptions, Store, Unpacker};
use tempfile::TempDir;

pub struct TestStore {
    pub store: Store,
    pub dir: TempDir,
}

impl TestStore {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap().with_unpacker(Unpacker::InProcess);
        Self { store, dir }
    }

    /// Loads an image of these layers as `test` and returns its directories, lowest first.
    pub fn unpack(&self, layers: &[Vec<u8>]) -> berth_images::Result<Vec<PathBuf>> {
        let image = self.load(layers)?;
        let mut directories = self.store.lower_dirs(&image)?;
        directories.reverse();
        Ok(directories)
    }

    pub fn load(&self, layers: &[Vec<u8>]) -> berth_images::Result<Image> {
        let folder = tempfile::tempdir().unwrap();
        write_layout(folder.path(), "test:latest", layers);
        self.store.load(folder.path(), &LoadOptions::default())?;
        self.store.resolve("test")
    }

    pub fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    /// Whether nothing is left of a failed operation.
    pub fn assert_untouched(&self) {
        for directory in ["ingest", "layers"] {
            let left: Vec<_> = std::fs::read_dir(self.images().join(directory)).unwrap().collect();
            assert!(left.is_empty(), "left in {directory}: {left:?}");
        }
        assert_eq!(self.store.list().unwrap(), []);
    }
}

/// An OCI layout with one image; layers may be compressed.
pub fn write_layout(folder: &Path, name: &str, layers: &[Vec<u8>]) {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |content: &[u8], media_type: &str| {
        let digest = Digest::of(content);
        std::fs::write(blobs.join(digest.hex()), content).unwrap();
        serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": content.len() })
    };
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(&plain(layer)).to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            let suffix = match layer.get(..2) {
                Some([0x1f, 0x8b]) => "+gzip",
                Some([0x28, 0xb5]) => "+zstd",
                _ => "",
            };
            put(layer, &format!("application/vnd.oci.image.layer.v1.tar{suffix}"))
        })
        .collect();
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut entry = put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    entry["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": name });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
    std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// The uncompressed archive; damaged input as it is.
fn plain(layer: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let result = match layer.get(..2) {
        Some([0x1f, 0x8b]) => flate2::read::MultiGzDecoder::new(layer).read_to_end(&mut out).map(drop),
        Some([0x28, 0xb5]) => zstd::Decoder::new(layer).and_then(|mut decoder| decoder.read_to_end(&mut out).map(drop)),
        _ => Err(std::io::ErrorKind::Other.into()),
    };
    if result.is_ok() { out } else { layer.to_vec() }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd_frame(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 3).unwrap()
}

/// A tar archive, built entry by entry with any names, however hostile.
#[derive(Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn done(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(path, b'0', "", 0o644, content.as_ref())
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(path, b'5', "", 0o755, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, b'2', target, 0o777, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(path, b'1', target, 0o644, b"")
    }

    pub fn entry(self, path: &str, kind: u8, link: &str, mode: u32, content: &[u8]) -> Self {
        self.with(path, kind, link, content, |header| header.set_mode(mode))
    }

    /// An entry whose header is changed at will.
    pub fn with(
        mut self,
        path: &str,
        kind: u8,
        link: &str,
        content: &[u8],
        change: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_device_major(0).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_entry_type(tar::EntryType::new(kind));
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        change(&mut header);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.data(content)
    }

    /// A PAX header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend(format!("{length} {key}=").bytes());
            body.extend(*value);
            body.push(b'\n');
        }
        self.entry("pax", b'x', "", 0o644, &body)
    }

    /// Raw bytes, padded to whole blocks.
    pub fn data(mut self, content: &[u8]) -> Self {
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
}

/// Whether a program the test needs is missing; then says so.
pub fn missing_program(names: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = names.iter().find(|name| !std::env::split_paths(&path).any(|folder| folder.join(name).exists()));
    if let Some(name) = missing {
        println!("not run: this host has no `{name}`");
    }
    missing.is_some()
}
