//! Blobs: `blobs/sha256/<hex>`, each visible only after its content was checked.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use super::{MAX_DOCUMENT, Store, Work};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};

/// A blob being written.
pub struct BlobWriter {
    work: Work,
    out: Hashing<File>,
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobWriter {
    /// Makes the blob visible and returns digest and size. With `expected`, the content must have that digest.
    pub fn commit(self, store: &Store, expected: Option<(&str, Digest)>) -> Result<(Digest, u64)> {
        let sealed = self.seal();
        if let Some((what, expected)) = expected
            && expected != sealed.digest
        {
            return Err(Error::DigestMismatch { what: what.to_owned(), expected, actual: sealed.digest });
        }
        let result = (sealed.digest, sealed.size);
        sealed.publish(store)?;
        Ok(result)
    }

    /// Ends the content.
    pub fn seal(self) -> SealedBlob {
        let (_, digest, size) = self.out.finish();
        SealedBlob { work: self.work, digest, size }
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.out.count()
    }

    /// Where the content is until then.
    pub fn path(&self) -> PathBuf {
        self.work.path().to_owned()
    }

    /// Copies all of `source`; more than `limit` bytes are refused.
    pub fn fill(&mut self, what: &str, source: impl Read, limit: u64) -> Result<()> {
        let path = self.path();
        io::copy(&mut source.take(limit.saturating_add(1)), self).map_err(Error::io("write", path))?;
        let actual = self.out.count();
        if actual > limit {
            Err(Error::SizeMismatch { what: what.to_owned(), expected: limit, actual })
        } else {
            Ok(())
        }
    }
}

/// A whole blob that is not visible yet.
pub struct SealedBlob {
    work: Work,
    pub digest: Digest,
    pub size: u64,
}

impl SealedBlob {
    /// The content, from its start.
    pub fn open(&self) -> Result<File> {
        File::open(self.work.path()).map_err(Error::io("open", self.work.path()))
    }

    /// Makes it visible.
    pub fn publish(self, store: &Store) -> Result<()> {
        let path = self.work.path().to_owned();
        self.work.open_file()?.sync_data().map_err(Error::io("write", path))?;
        self.work.rename(&store.blob_path(self.digest))
    }
}

impl Store {
    /// Where the blob is, or would be.
    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn has_blob(&self, digest: Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// Whether the blob is here: then it has the length that its descriptor gives. `what` names it in the error.
    pub(crate) fn holds(&self, what: &str, digest: Digest, size: u64) -> Result<bool> {
        let path = self.blob_path(digest);
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.len() == size => Ok(true),
            Ok(metadata) => Err(Error::SizeMismatch { what: what.to_owned(), expected: size, actual: metadata.len() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("examine", &path)(error)),
        }
    }

    pub(crate) fn write_blob(&self) -> Result<BlobWriter> {
        let work = Work::file(self)?;
        let out = Hashing::new(work.open_file()?);
        Ok(BlobWriter { work, out })
    }

    /// Stores a small blob.
    pub(crate) fn put(&self, content: &[u8]) -> Result<Digest> {
        let digest = Digest::of(content);
        if !self.has_blob(digest) {
            let work = Work::file(self)?;
            work.write(content)?;
            work.rename(&self.blob_path(digest))?;
        }
        Ok(digest)
    }

    /// Reads a small blob and checks it.
    pub(crate) fn document(&self, digest: Digest) -> Result<Vec<u8>> {
        let path = self.blob_path(digest);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let mut content = Vec::new();
        file.take(MAX_DOCUMENT + 1).read_to_end(&mut content).map_err(Error::io("read", &path))?;
        let what = || format!("the stored blob {}", path.display());
        if content.len() as u64 > MAX_DOCUMENT {
            return Err(Error::invalid(what(), format!("it is longer than {MAX_DOCUMENT} bytes")));
        }
        let actual = Digest::of(&content);
        if actual == digest {
            Ok(content)
        } else {
            Err(Error::DigestMismatch { what: what(), expected: digest, actual })
        }
    }
}
