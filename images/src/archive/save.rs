//! `berth save`: images as a `docker save` archive or an OCI layout, for other tools to read.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use super::docker::DockerImage;
use super::layout::{CONTAINERD_NAME, REF_NAME};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media::Compression;
use crate::reference::Reference;
use crate::store::{Image, Layer, Store, Work, descriptor};

/// Kind of archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// `docker save`
    #[default]
    Docker,
    /// OCI image layout
    Oci,
}

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

impl Store {
    /// Writes images as one tar archive.
    pub fn save(&self, references: &[String], out: impl Write, format: Format) -> Result<()> {
        let _guard = self.read_guard()?;
        let images = self.resolve_all(references)?;
        let mut tar = tar_writer(out);
        match format {
            Format::Docker => self.save_docker(&images, &mut tar)?,
            Format::Oci => {
                append(&mut tar, "oci-layout", LAYOUT)?;
                let mut written = HashSet::new();
                for digest in images.iter().flat_map(|(image, _)| blobs(image)) {
                    if written.insert(digest) {
                        let path = self.blob_path(digest);
                        let blob = File::open(&path).map_err(Error::io("open", &path))?;
                        append_file(&mut tar, &format!("blobs/sha256/{}", digest.hex()), blob)?;
                    }
                }
                append(&mut tar, "index.json", &index(&images)?)?;
            }
        }
        tar.into_inner().and_then(|mut out| out.flush()).map_err(Error::io("write", "the archive"))
    }

    /// Writes images as an OCI layout into a folder, which must be empty or new.
    pub fn save_folder(&self, references: &[String], folder: &Path) -> Result<()> {
        let _guard = self.read_guard()?;
        let images = self.resolve_all(references)?;
        let blob_folder = folder.join("blobs/sha256");
        if std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Error::invalid(folder.display().to_string(), "it is not empty"));
        }
        std::fs::create_dir_all(&blob_folder).map_err(Error::io("create", &blob_folder))?;
        for digest in images.iter().flat_map(|(image, _)| blobs(image)) {
            let target = blob_folder.join(digest.hex());
            std::fs::copy(self.blob_path(digest), &target).map_err(Error::io("write", &target))?;
            let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
            std::fs::set_permissions(&target, readable).map_err(Error::io("write", &target))?;
        }
        for (name, content) in [("oci-layout", LAYOUT), ("index.json", &index(&images)?)] {
            let path = folder.join(name);
            std::fs::write(&path, content).map_err(Error::io("write", path))?;
        }
        Ok(())
    }

    /// Each image once, with the names it was asked for by.
    fn resolve_all(&self, references: &[String]) -> Result<Vec<(Image, Vec<Reference>)>> {
        let mut images: Vec<(Image, Vec<Reference>)> = Vec::new();
        for text in references {
            let image = self.resolve(text)?;
            // By id, it is saved without a name, as docker does.
            let name = text
                .parse::<Reference>()
                .ok()
                .filter(|name| name.tag().is_some() && name.familiar() == image.reference);
            match images.iter_mut().find(|(other, _)| other.manifest_digest == image.manifest_digest) {
                Some((_, names)) => names.extend(name),
                None => images.push((image, name.into_iter().collect())),
            }
        }
        Ok(images)
    }

    fn save_docker<W: Write>(&self, images: &[(Image, Vec<Reference>)], tar: &mut tar::Builder<W>) -> Result<()> {
        let mut written = HashSet::new();
        let mut manifest = Vec::new();
        for (image, names) in images {
            if image.module().is_some() {
                let reason = "it is a Wasm module, which `docker save` archives cannot hold; save it as an OCI layout";
                return Err(Error::invalid(&image.reference, reason));
            }
            let config = format!("{}.json", image.id.hex());
            if written.insert(image.id) {
                append(tar, &config, &self.document(image.id)?)?;
            }
            let mut layers = Vec::new();
            for layer in &image.layers {
                let path = format!("{}.tar", layer.diff_id.hex());
                if written.insert(layer.diff_id) {
                    append_file(tar, &path, self.plain_layer(layer)?)?;
                }
                layers.push(path);
            }
            // In full: short names mean something else to podman.
            let repo_tags = (!names.is_empty()).then(|| names.iter().map(Reference::to_string).collect());
            manifest.push(DockerImage { config, repo_tags, layers });
        }
        let text = serde_json::to_vec(&manifest).map_err(|error| Error::invalid("manifest.json", error))?;
        append(tar, "manifest.json", &text)
    }

    /// The layer's uncompressed archive.
    fn plain_layer(&self, layer: &Layer) -> Result<File> {
        let path = self.blob_path(layer.digest);
        let mut blob = File::open(&path).map_err(Error::io("open", &path))?;
        let mut start = [0; 4];
        let known = blob.read(&mut start).map_err(Error::io("read", &path))?;
        blob.seek(SeekFrom::Start(0)).map_err(Error::io("read", &path))?;
        let mut decoder: Box<dyn Read> = match Compression::sniff(&start[..known]) {
            Compression::None => return Ok(blob),
            Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 17, blob))),
            Compression::Zstd => Box::new(zstd::Decoder::new(blob).map_err(Error::io("read", &path))?),
        };
        // Its length comes before its content: it has to be written down once.
        let work = Work::file(self)?;
        let mut plain = work.open_file()?;
        std::io::copy(&mut decoder, &mut plain).map_err(Error::io("unpack", &path))?;
        plain.seek(SeekFrom::Start(0)).map_err(Error::io("unpack", &path))?;
        Ok(plain)
    }
}

fn tar_writer<W: Write>(out: W) -> tar::Builder<W> {
    let mut builder = tar::Builder::new(out);
    builder.mode(tar::HeaderMode::Deterministic);
    builder
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, content: &[u8]) -> Result<()> {
    tar.append_data(&mut header(content.len() as u64), path, content).map_err(Error::io("write", "the archive"))
}

fn append_file<W: Write>(tar: &mut tar::Builder<W>, path: &str, file: File) -> Result<()> {
    let size = file.metadata().map_err(Error::io("examine", path))?.len();
    tar.append_data(&mut header(size), path, file.take(size)).map_err(Error::io("write", "the archive"))
}

fn blobs(image: &Image) -> impl Iterator<Item = Digest> {
    [image.manifest_digest, image.id].into_iter().chain(image.layers.iter().map(|layer| layer.digest))
}

/// `index.json`. The name is the tag alone, which umoci and skopeo can spell, unless two images have the same tag.
fn index(images: &[(Image, Vec<Reference>)]) -> Result<Vec<u8>> {
    let tags: Vec<_> = images.iter().flat_map(|(_, names)| names.iter().filter_map(Reference::tag)).collect();
    let unique = tags.iter().collect::<HashSet<_>>().len() == tags.len();
    let mut manifests = Vec::new();
    for (image, names) in images {
        let size = image.manifest_size;
        if names.is_empty() {
            manifests.push(descriptor(&image.media_type, image.manifest_digest, size)?);
        }
        for name in names {
            let mut entry = descriptor(&image.media_type, image.manifest_digest, size)?;
            let tag = name.tag().filter(|_| unique).map_or_else(|| name.familiar(), str::to_owned);
            let annotations = [(REF_NAME.to_owned(), tag), (CONTAINERD_NAME.to_owned(), name.to_string())];
            entry.set_annotations(Some(HashMap::from(annotations)));
            manifests.push(entry);
        }
    }
    crate::store::index_json(manifests)
}
