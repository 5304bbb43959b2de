//! `berth import`: a root file system becomes an image of one layer.

use std::io::Read;

use oci_spec::image::{Arch, Config, History, ImageConfiguration, Os, RootFs};

use super::Change;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media::{self, Compression};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{Image, IndexEntry, Store};

/// How `import` makes the image.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Changes to the configuration, in order.
    pub changes: Vec<Change>,
    /// A remark for the history.
    pub message: Option<String>,
    /// What it runs on; this machine's platform by default.
    pub platform: Option<Platform>,
}

impl Store {
    /// Makes an image from a root file system in a tar archive, plain or compressed with gzip or zstd, and gives it the
    /// name, if one is given. The archive is kept as it is: its digest is the layer's.
    pub fn import(&self, archive: impl Read, reference: Option<&str>, options: &ImportOptions) -> Result<Image> {
        let reference = reference.map(str::parse::<Reference>).transpose()?;
        let _guard = self.read_guard()?;
        let mut blob = self.write_blob()?;
        blob.fill("the archive", archive, self.limits().max_unpacked)?;
        let blob = blob.seal();
        if blob.size == 0 {
            return Err(Error::invalid("the archive", "it is empty"));
        }
        let mut start = [0; 4];
        let known = blob.open()?.read(&mut start).map_err(Error::io("read", "the archive"))?;
        let media_type = Compression::sniff(&start[..known]).layer_media_type();
        let layer = (blob.digest, blob.size, media_type);
        let diff_id = self.unpack_unknown(blob.open()?, blob.digest)?;
        blob.publish(self)?;
        let config = serde_json::to_vec(&configuration(diff_id, options))
            .map_err(|error| Error::invalid("the image's configuration", error))?;
        let config = (self.put(&config)?, config.len() as u64, media::OCI_CONFIG);
        let manifest = super::layout::image_manifest(config, &[layer])?;
        let digest = self.put(&manifest)?;
        self.set_entry(IndexEntry {
            reference: reference.clone(),
            manifest: digest,
            media_type: media::OCI_MANIFEST.to_owned(),
            size: manifest.len() as u64,
            index: None,
        })?;
        let familiar = reference.as_ref().map_or_else(|| digest.to_string(), Reference::familiar);
        self.image(digest, media::OCI_MANIFEST, familiar)
    }
}

fn configuration(diff_id: Digest, options: &ImportOptions) -> ImageConfiguration {
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let created = jiff::Timestamp::now().to_string();
    let mut config = Config::default();
    for change in &options.changes {
        change.apply(&mut config);
    }
    let mut rootfs = RootFs::default();
    rootfs.set_diff_ids(vec![diff_id.to_string()]);
    rootfs.set_typ("layers".to_owned());
    let mut history = History::default();
    history.set_created(Some(created.clone()));
    history.set_comment(Some(options.message.clone().unwrap_or_else(|| "Imported root file system".to_owned())));
    let mut configuration = ImageConfiguration::default();
    configuration
        .set_created(Some(created))
        .set_architecture(Arch::from(platform.architecture.as_str()))
        .set_os(Os::from(platform.os.as_str()))
        .set_variant(platform.variant)
        .set_config(Some(config))
        .set_rootfs(rootfs)
        .set_history(Some(vec![history]));
    configuration
}
