//! Wasm modules as images: the CNCF's Wasm OCI artifact, whose only layer is the module itself. Inside this crate its configuration
//! is read as an image's, so that all that is done with images can be done with it.

use oci_spec::image::{Arch, Config, Descriptor, ImageConfiguration, ImageManifest, Os, RootFs};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media;
use crate::store::{digest_of, parse};

/// The architecture of every module.
const ARCHITECTURE: &str = "wasm";
/// The annotation of a layer with the name its file had.
pub const TITLE: &str = "org.opencontainers.image.title";
/// What a module without a title is called.
const NAMELESS: &str = "module.wasm";

/// The configuration of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModuleConfig {
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    pub architecture: String,
    /// `wasip1`: a core module, `wasip2`: a component.
    pub os: String,
    pub layer_digests: Vec<Digest>,
    /// Of components.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub component: Option<Interfaces>,
}

/// What a component offers and needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interfaces {
    /// Names of interfaces and functions.
    #[serde(default)]
    pub exports: Vec<String>,
    /// Names of interfaces and functions.
    #[serde(default)]
    pub imports: Vec<String>,
}

impl ModuleConfig {
    /// Of the module with this digest, which begins with the bytes `start`.
    pub fn new(module: Digest, start: &[u8], created: Option<String>, interfaces: Option<Interfaces>) -> Result<Self> {
        // The component model's binary format tells components from core modules in the second half of the version.
        let is_component = match start {
            [0, b'a', b's', b'm', _, _, layer, 0, ..] => *layer == 1,
            _ => return Err(Error::invalid("the module", "it does not begin with the bytes of a Wasm module")),
        };
        Ok(Self {
            created,
            author: None,
            architecture: ARCHITECTURE.to_owned(),
            os: if is_component { "wasip2" } else { "wasip1" }.to_owned(),
            layer_digests: vec![module],
            component: is_component.then(|| interfaces.unwrap_or_default()),
        })
    }
}

/// An image's configuration from the text of it, or of an artifact's.
pub fn configuration(what: &str, manifest: &ImageManifest, text: &[u8]) -> Result<ImageConfiguration> {
    let media_type = manifest.config().media_type().to_string();
    if media_type != media::WASM_CONFIG {
        return parse(what, text);
    }
    let config: ModuleConfig = parse(what, text)?;
    let layer = module(manifest).map_err(|reason| Error::invalid("the Wasm artifact", reason))?;
    let digest = digest_of(layer)?;
    if config.architecture != ARCHITECTURE {
        return Err(Error::invalid(what, format!("its architecture is '{}', not {ARCHITECTURE}", config.architecture)));
    }
    if config.layer_digests != [digest] {
        return Err(Error::invalid(what, format!("it is not about the module {digest}")));
    }
    let title = layer.annotations().as_ref().and_then(|all| all.get(TITLE)).filter(|title| !title.is_empty());
    let mut process = Config::default();
    process.set_entrypoint(Some(vec![title.map_or(NAMELESS, String::as_str).to_owned()]));
    let mut rootfs = RootFs::default();
    rootfs.set_typ("layers".to_owned()).set_diff_ids(vec![digest.to_string()]);
    let mut image = ImageConfiguration::default();
    image
        .set_created(config.created)
        .set_author(config.author)
        .set_architecture(Arch::from(config.architecture.as_str()))
        .set_os(Os::from(config.os.as_str()))
        .set_config(Some(process))
        .set_rootfs(rootfs);
    Ok(image)
}

/// The only layer of an artifact.
fn module(manifest: &ImageManifest) -> Result<&Descriptor, String> {
    match manifest.layers().as_slice() {
        [layer] if layer.media_type().to_string() == media::WASM_LAYER => Ok(layer),
        [layer] => Err(format!("its layer has the media type '{}', not {}", layer.media_type(), media::WASM_LAYER)),
        layers => Err(format!("it has {} layers; berth runs those with one module", layers.len())),
    }
}

/// Reads a manifest and, after a zero byte, its configuration, as a registry or an archive might send them: whatever they are, the
/// result is an image of one module or an error.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz_artifact(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let (manifest, config) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Ok(manifest) = parse::<ImageManifest>("the manifest", manifest) else { return };
    let Ok(configuration) = configuration("the configuration", &manifest, config) else { return };
    let Ok(layers) = crate::store::layers(&manifest, &configuration) else { return };
    if manifest.config().media_type().to_string() == media::WASM_CONFIG {
        assert_eq!(layers.len(), 1);
        assert_eq!(layers[0].digest, layers[0].chain_id, "the module is what the image is named by");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A manifest and a configuration that belong together.
    fn artifact() -> Vec<u8> {
        let digest = Digest::of(b"");
        let config = ModuleConfig::new(digest, b"\0asm\x01\0\0\0", None, None).unwrap();
        let describe = |media_type: &str| serde_json::json!({ "mediaType": media_type, "digest": digest, "size": 1 });
        let manifest = serde_json::json!({
            "schemaVersion": 2, "config": describe(media::WASM_CONFIG), "layers": [describe(media::WASM_LAYER)],
        });
        [manifest.to_string().into_bytes(), vec![0], serde_json::to_vec(&config).unwrap()].concat()
    }

    #[test]
    fn an_artifact_is_an_image_with_its_module_as_the_command() {
        let data = artifact();
        let mut parts = data.splitn(2, |byte| *byte == 0);
        let manifest = parse("", parts.next().unwrap()).unwrap();
        let image = configuration("", &manifest, parts.next().unwrap()).unwrap();
        assert_eq!((image.os().to_string(), image.architecture().to_string()), ("wasip1".into(), "wasm".into()));
        assert_eq!(image.config().as_ref().unwrap().entrypoint().as_ref().unwrap(), &["module.wasm"]);
    }

    #[test]
    fn only_modules_are_described() {
        let os = |start: &[u8]| ModuleConfig::new(Digest::of(b""), start, None, None).map(|config| config.os);
        assert_eq!(os(b"\0asm\x01\0\0\0").unwrap(), "wasip1");
        assert_eq!(os(b"\0asm\x0d\0\x01\0").unwrap(), "wasip2");
        for start in [&b""[..], b"\0asm", b"(module)", b"#!/bin/s"] {
            os(start).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn anything_is_an_image_or_an_error(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8)) {
            let mut data = artifact();
            for (place, byte) in changes {
                let place = place.index(data.len());
                data[place] = byte;
            }
            fuzz_artifact(&data);
        }
    }
}
