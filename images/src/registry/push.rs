//! `berth push`: blobs the registry does not have yet, then the manifest.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Body, StatusCode, Url};

use super::client::Registry;
use super::pull::{PARALLEL, distinct};
use super::retry::Retry;
use super::{Connection, Event, Progress, run};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::store::{Image, Store};

/// Bytes handed to the network at a time.
const PIECE: usize = 128 << 10;

/// How an image is pushed.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// How the registry is reached.
    pub connection: Connection,
}

/// Sends an image to the registry its name says. Returns the digest of its manifest there.
pub fn push(store: &Store, reference: &str, options: &PushOptions, progress: &Arc<dyn Progress>) -> Result<Digest> {
    let name: Reference = reference.parse()?;
    let Some(tag) = name.tag() else {
        let reason = "a push needs a name with a tag";
        return Err(Error::InvalidReference { text: reference.to_owned(), reason });
    };
    let _guard = store.read_guard()?;
    let image = store.resolve(reference)?;
    run(async {
        let registry = Registry::connect(name.registry(), &options.connection, &**progress).await?;
        let push = Push { store, registry: &registry, name: &name, progress };
        let mut blobs: Vec<(Digest, u64)> = vec![(image.id, store.document(image.id)?.len() as u64)];
        blobs.extend(distinct(&image.layers).iter().map(|layer| (layer.digest, layer.size)));
        let others = push.other_repositories()?;
        stream::iter(blobs)
            .map(|(digest, size)| push.blob(digest, size, source_of(&others, digest)))
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<()>>()
            .await?;
        push.manifest(&image, tag).await
    })
}

/// A repository on the same registry that probably has the blob.
fn source_of(others: &[(String, Image)], digest: Digest) -> Option<String> {
    let has = |image: &Image| image.id == digest || image.layers.iter().any(|layer| layer.digest == digest);
    others.iter().find(|(_, image)| has(image)).map(|(repository, _)| repository.clone())
}

struct Push<'a> {
    store: &'a Store,
    registry: &'a Registry<'a>,
    name: &'a Reference,
    progress: &'a Arc<dyn Progress>,
}

impl Push<'_> {
    fn scope(&self, from: Option<&str>) -> String {
        let own = format!("repository:{}:pull,push", self.name.repository());
        match from {
            Some(from) => format!("{own} repository:{from}:pull"),
            None => own,
        }
    }

    /// Images of this store that are named after other repositories of the same registry.
    fn other_repositories(&self) -> Result<Vec<(String, Image)>> {
        let mut others = Vec::new();
        for entry in self.store.entries()? {
            let Some(reference) = entry.reference else {
                continue;
            };
            if reference.registry() != self.name.registry() || reference.repository() == self.name.repository() {
                continue;
            }
            // A damaged image is only no help.
            if let Ok(image) = self.store.image(entry.manifest, &entry.media_type, reference.familiar()) {
                others.push((reference.repository().to_owned(), image));
            }
        }
        Ok(others)
    }

    async fn blob(&self, digest: Digest, size: u64, from: Option<String>) -> Result<()> {
        let scope = self.scope(None);
        let url = self.registry.url(&format!("{}/blobs/{digest}", self.name.repository()))?;
        let head = self.registry.send(&scope, |http| Ok(http.head(url.clone()))).await?;
        if head.status().is_success() {
            self.progress.report(Event::Exists { digest });
            return Ok(());
        }
        let Some(mut session) = self.open_session(digest, from.as_deref()).await? else {
            self.progress.report(Event::Exists { digest });
            return Ok(());
        };
        self.progress.report(Event::Started { digest, size, done: 0 });
        let mut retry = Retry::new(self.registry.connection);
        while let Err(error) = self.upload(session, digest, size).await {
            let passing =
                matches!(error, Error::Connection { .. } | Error::Registry { status: 404 | 416 | 429 | 500.., .. });
            if !passing || !retry.again(&error.to_string(), None, &**self.progress).await {
                return Err(error);
            }
            self.progress.report(Event::Restarted { digest });
            // A session serves once.
            match self.open_session(digest, None).await? {
                Some(next) => session = next,
                None => break,
            }
        }
        self.progress.report(Event::Finished { digest });
        Ok(())
    }

    /// Where to upload; `None` when the registry took the blob from another repository.
    async fn open_session(&self, digest: Digest, from: Option<&str>) -> Result<Option<Url>> {
        let mut url = self.registry.url(&format!("{}/blobs/uploads/", self.name.repository()))?;
        if let Some(from) = from {
            url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
        }
        let scope = self.scope(from);
        let request = |http: &reqwest::Client| Ok(http.post(url.clone()).header(CONTENT_LENGTH, 0));
        let response = self.registry.send(&scope, request).await?;
        match response.status() {
            StatusCode::CREATED => Ok(None),
            StatusCode::ACCEPTED => self.registry.location(&url, &response).map(Some),
            _ => Err(self.registry.failure("accept a blob", response).await),
        }
    }

    /// The whole blob in one request.
    async fn upload(&self, mut url: Url, digest: Digest, size: u64) -> Result<()> {
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let path = self.store.blob_path(digest);
        let request = |http: &reqwest::Client| {
            let file = File::open(&path).map_err(Error::io("open", &path))?;
            let body = Body::wrap_stream(pieces(file, digest, Arc::clone(self.progress)));
            let request = http.put(url.clone()).header(CONTENT_LENGTH, size);
            Ok(request.header(CONTENT_TYPE, "application/octet-stream").body(body))
        };
        let response = self.registry.send_once(&self.scope(None), request).await?;
        if response.status() == StatusCode::CREATED {
            Ok(())
        } else {
            Err(self.registry.failure("take a blob", response).await)
        }
    }

    async fn manifest(&self, image: &Image, tag: &str) -> Result<Digest> {
        let url = self.registry.url(&format!("{}/manifests/{tag}", self.name.repository()))?;
        let text = self.store.document(image.manifest_digest)?;
        let request = |http: &reqwest::Client| {
            Ok(http.put(url.clone()).header(CONTENT_TYPE, &image.media_type).body(text.clone()))
        };
        let response = self.registry.send(&self.scope(None), request).await?;
        if response.status().is_success() {
            Ok(image.manifest_digest)
        } else {
            Err(self.registry.failure("take the manifest", response).await)
        }
    }
}

/// A file in pieces, as the network takes them.
fn pieces(
    file: File,
    digest: Digest,
    progress: Arc<dyn Progress>,
) -> impl futures_util::Stream<Item = std::io::Result<Vec<u8>>> {
    stream::try_unfold(file, move |mut file| {
        let progress = Arc::clone(&progress);
        async move {
            let mut piece = vec![0; PIECE];
            let read = file.read(&mut piece)?;
            piece.truncate(read);
            progress.report(Event::Moved { digest, bytes: read as u64 });
            Ok((read > 0).then_some((piece, file)))
        }
    })
}
