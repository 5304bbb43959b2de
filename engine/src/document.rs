//! JSON documents in files: read with a bound, replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Attempt as _, Error, Result};

/// A larger document is refused: it is read into memory before it is parsed.
const MAX_BYTES: u64 = 16 << 20;

/// Reads a document; `None` where there is none. `advice` says what to do about a damaged one.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, advice: &str) -> Result<Option<T>> {
    let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason, advice: advice.to_owned() };
    // Without waiting for whoever is to open the other end, should it be a fifo.
    let file = match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).attempt(|| format!("open {}", path.display())),
    };
    if !file.metadata().attempt(|| format!("examine {}", path.display()))?.is_file() {
        return Err(damaged("it is no file".to_owned()));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text).attempt(|| format!("read {}", path.display()))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(damaged(format!("larger than {MAX_BYTES} bytes")));
    }
    serde_json::from_slice(&text).map(Some).map_err(|error| damaged(error.to_string()))
}

/// Writes a document that is not there yet and that nobody reads as yet.
pub(crate) fn create<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(io::Error::from);
    text.and_then(|text| fs::write(path, text)).attempt(|| format!("write {}", path.display()))
}

/// Replaces a document by rename: a reader sees the old text or the new one, never a part.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let text = serde_json::to_vec(value).map_err(io::Error::from);
    text.and_then(|text| fs::write(&temporary, text))
        .and_then(|()| fs::rename(&temporary, path))
        .attempt(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_missing_whole_or_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        assert!(read::<Vec<u32>>(&path, "").unwrap().is_none());
        write(&path, &vec![1, 2]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path, "").unwrap(), Some(vec![1, 2]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        fs::write(&path, "[1,").unwrap();
        let error = read::<Vec<u32>>(&path, "remove it").unwrap_err().to_string();
        assert!(error.contains("a.json") && error.contains("remove it"), "{error}");
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        for no_file in [dir.path(), &fifo] {
            assert!(matches!(read::<Vec<u32>>(no_file, ""), Err(Error::Damaged { .. })));
        }
    }
}
