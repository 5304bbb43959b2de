//! Download of one blob: resumed where an earlier try stopped, in this process or another.

use std::io::{Read, Write};

use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Response, StatusCode};
use sha2::{Digest as _, Sha256};

use super::client::Registry;
use super::retry::Retry;
use super::{Event, manifest};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::store::{PartialBlob, Store};

/// Bytes that a stretch must bring to count as progress: a registry that hangs up at once would keep us for ever.
const PROGRESS: u64 = 64 << 10;

/// A blob on its way in.
struct Download<'a> {
    registry: &'a Registry<'a>,
    reference: &'a Reference,
    digest: Digest,
    size: u64,
    partial: PartialBlob,
    /// Of what is there.
    hash: Sha256,
    done: u64,
    /// How much was there when failures last began to count: going round in circles is no progress.
    best: u64,
}

/// How a stretch of a download ended.
enum Stretch {
    Complete,
    /// For a reason that may pass.
    Broken(Error),
}

/// Brings the blob into the store.
pub async fn download(
    store: &Store,
    registry: &Registry<'_>,
    reference: &Reference,
    digest: Digest,
    size: u64,
) -> Result<()> {
    let what = download_name(reference, digest);
    if store.holds(&what, digest, size)? {
        registry.progress.report(Event::Exists { digest });
        return Ok(());
    }
    // Another process may be downloading it; then this one waits, and finds it whole or carries on.
    let opened = {
        let store = store.clone();
        tokio::task::spawn_blocking(move || PartialBlob::open(&store, digest)).await
    };
    let partial = opened.map_err(|error| Error::io("open", "a partial download")(std::io::Error::other(error)))??;
    if store.holds(&what, digest, size)? {
        partial.discard();
        registry.progress.report(Event::Exists { digest });
        return Ok(());
    }
    let mut download = Download { registry, reference, digest, size, partial, hash: Sha256::new(), done: 0, best: 0 };
    download.rehash()?;
    registry.progress.report(Event::Started { digest, size, done: download.done });
    let resumed = download.done > 0;
    let mut actual = download.run().await?;
    if actual != digest && resumed {
        // The old part may be what is wrong.
        download.restart()?;
        actual = download.run().await?;
    }
    if actual != digest {
        download.partial.discard();
        return Err(Error::DigestMismatch { what, expected: digest, actual });
    }
    download.partial.publish(&store.blob_path(digest))?;
    registry.progress.report(Event::Finished { digest });
    Ok(())
}

fn download_name(reference: &Reference, digest: Digest) -> String {
    format!("blob {digest} of {}", reference.familiar())
}

impl Download<'_> {
    /// Takes account of what an earlier try left.
    fn rehash(&mut self) -> Result<()> {
        let path = self.partial.path();
        let mut buffer = vec![0; 128 << 10];
        loop {
            let read = self.partial.file().read(&mut buffer).map_err(Error::io("read", &path))?;
            if read == 0 {
                break;
            }
            self.hash.update(&buffer[..read]);
            self.done += read as u64;
        }
        if self.done > self.size { self.restart() } else { Ok(()) }
    }

    fn restart(&mut self) -> Result<()> {
        self.partial.reset()?;
        self.hash = Sha256::new();
        self.done = 0;
        self.registry.progress.report(Event::Restarted { digest: self.digest });
        Ok(())
    }

    /// Downloads what is missing; returns the digest of the whole.
    async fn run(&mut self) -> Result<Digest> {
        let connection = self.registry.connection;
        let mut retry = Retry::new(connection);
        self.best = self.done;
        while self.done < self.size {
            let error = match self.stretch().await? {
                Stretch::Complete => break,
                Stretch::Broken(error) => error,
            };
            if self.done >= self.best + PROGRESS {
                self.best = self.done;
                retry.reset();
            }
            if !retry.again(&error.to_string(), None, self.registry.progress).await {
                return Err(error);
            }
        }
        let hash: [u8; 32] = self.hash.clone().finalize().into();
        Ok(hash.into())
    }

    /// One request, from where the last one stopped.
    async fn stretch(&mut self) -> Result<Stretch> {
        let path = format!("{}/blobs/{}", self.reference.repository(), self.digest);
        let url = self.registry.url(&path)?;
        let (scope, from) = (manifest::pull_scope(self.reference), self.done);
        let request = |http: &reqwest::Client| {
            let request = http.get(url.clone());
            Ok(if from > 0 { request.header(RANGE, format!("bytes={from}-")) } else { request })
        };
        let mut response = self.registry.send(&scope, request).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if range_start(&response) == Some(from) => {}
            StatusCode::OK if from == 0 => {}
            // The server does not resume, or not there.
            StatusCode::OK => self.restart()?,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                self.restart()?;
                return Ok(Stretch::Broken(self.wrong_size(from)));
            }
            StatusCode::NOT_FOUND => {
                let what = download_name(self.reference, self.digest);
                return Err(Error::NotOnRegistry { reference: what, registry: self.registry.name.clone() });
            }
            _ => return Err(self.registry.failure("give a blob", response).await),
        }
        if let Some(length) = response.content_length()
            && self.done + length != self.size
        {
            return Err(self.wrong_size(self.done + length));
        }
        loop {
            match response.chunk().await {
                Ok(Some(piece)) => self.take(&piece)?,
                Ok(None) if self.done == self.size => return Ok(Stretch::Complete),
                Ok(None) => return Ok(Stretch::Broken(self.wrong_size(self.done))),
                Err(error) => {
                    return Ok(Stretch::Broken(Error::connection(&self.registry.name, &error)));
                }
            }
        }
    }

    fn take(&mut self, piece: &[u8]) -> Result<()> {
        let done = self.done + piece.len() as u64;
        if done > self.size {
            self.partial.reset()?;
            let what = download_name(self.reference, self.digest);
            return Err(Error::SizeMismatch { what, expected: self.size, actual: done });
        }
        let path = self.partial.path();
        self.partial.file().write_all(piece).map_err(Error::io("write", path))?;
        self.hash.update(piece);
        self.done = done;
        self.registry.progress.report(Event::Moved { digest: self.digest, bytes: piece.len() as u64 });
        Ok(())
    }

    fn wrong_size(&self, actual: u64) -> Error {
        Error::SizeMismatch { what: download_name(self.reference, self.digest), expected: self.size, actual }
    }
}

/// Where the answer to a range request starts: `bytes START-END/SIZE`.
fn range_start(response: &Response) -> Option<u64> {
    let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
