//! Manifests and image indexes from a registry.

use oci_spec::image::{ImageIndex, ImageManifest};
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde::Deserialize;

use super::client::Registry;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{MAX_DOCUMENT, digest_of, parse};

/// How deep image indexes may nest.
const MAX_NESTING: usize = 4;

/// The manifest of one image.
pub struct Manifest {
    pub digest: Digest,
    pub media_type: String,
    pub text: Vec<u8>,
    pub content: ImageManifest,
    /// Digest of the image index it was chosen from.
    pub index: Option<Digest>,
}

/// A document and what it is.
struct Document {
    digest: Digest,
    media_type: String,
    text: Vec<u8>,
}

/// What a token must allow to read a repository.
pub fn pull_scope(reference: &Reference) -> String {
    format!("repository:{}:pull", reference.repository())
}

/// Fetches the manifest of the image for the platform.
pub async fn fetch(registry: &Registry<'_>, reference: &Reference, platform: &Platform) -> Result<Manifest> {
    let name = reference.familiar();
    let mut index = None;
    let mut document = fetch_document(registry, reference, reference.digest()).await?;
    for _ in 0..MAX_NESTING {
        if media::is_manifest(&document.media_type) {
            let Document { digest, media_type, text } = document;
            let content = parse(&format!("the manifest of {name}"), &text)?;
            return Ok(Manifest { digest, media_type, text, content, index });
        }
        if !media::is_index(&document.media_type) {
            let what = format!("the manifest of {name}");
            return Err(Error::MediaType { what, media_type: document.media_type });
        }
        let content: ImageIndex = parse(&format!("the image index of {name}"), &document.text)?;
        let entries = content.manifests();
        let chosen = platform.choose(entries).ok_or_else(|| Error::WrongPlatform {
            what: name.clone(),
            wanted: platform.clone(),
            offered: Platform::offered(entries),
        })?;
        index.get_or_insert(document.digest);
        document = fetch_document(registry, reference, Some(digest_of(chosen)?)).await?;
    }
    Err(Error::invalid(name, "its image indexes nest too deeply"))
}

async fn fetch_document(registry: &Registry<'_>, reference: &Reference, digest: Option<Digest>) -> Result<Document> {
    let version = match digest {
        Some(digest) => digest.to_string(),
        None => reference.tag().unwrap_or("latest").to_owned(),
    };
    let url = registry.url(&format!("{}/manifests/{version}", reference.repository()))?;
    let accept = [media::OCI_INDEX, media::OCI_MANIFEST, media::DOCKER_INDEX, media::DOCKER_MANIFEST].join(", ");
    let scope = pull_scope(reference);
    let response = registry.send(&scope, |http| Ok(http.get(url.clone()).header(ACCEPT, &accept))).await?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => {
            return Err(Error::NotOnRegistry { reference: reference.familiar(), registry: registry.name.clone() });
        }
        _ => return Err(registry.failure("give the manifest", response).await),
    }
    let header = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let header = header.map(|value| value.split(';').next().unwrap_or(value).trim().to_owned());
    let text = registry.body(response, MAX_DOCUMENT).await?;
    let actual = Digest::of(&text);
    let what = format!("the manifest of {}", reference.familiar());
    if let Some(expected) = digest
        && expected != actual
    {
        return Err(Error::DigestMismatch { what, expected, actual });
    }
    Ok(Document { digest: actual, media_type: media_type(&what, header, &text)?, text })
}

/// The type a document says it has goes before what the server says.
fn media_type(what: &str, header: Option<String>, text: &[u8]) -> Result<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let typed: Typed = parse(what, text)?;
    Ok(typed.media_type.or(header).unwrap_or_else(|| "none".to_owned()))
}
