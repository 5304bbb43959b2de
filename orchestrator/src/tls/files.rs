//! Files with certificates, keys and other secrets.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::{Error, Role};

/// The largest file with a secret, in bytes.
const MOST: u64 = 1 << 20;

pub(super) const CERTIFICATE: &str = "CERTIFICATE";
pub(super) const KEY: &str = "PRIVATE KEY";

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |cause| Error::File { attempt, path: path.to_owned(), cause }
}

/// A certificate's file and its key's, of a role.
pub(super) fn names(role: Role) -> (String, String) {
    (format!("{}.pem", role.stem()), format!("{}-key.pem", role.stem()))
}

/// The textual encoding of RFC 7468.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("base64 is ASCII"));
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.collect::<Vec<_>>().join("\n"))
}

/// The certificates of a file, of which there is one at least.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = fs::read(path).map_err(failed("read", path))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(Error::Unusable { path: path.to_owned(), reason: "there is no certificate in it".to_owned() }),
        Err(error) => Err(Error::Unusable { path: path.to_owned(), reason: error.to_string() }),
    }
}

/// The private key of a file that nobody else may read.
pub(super) fn key(path: &Path) -> Result<PrivatePkcs8KeyDer<'static>, Error> {
    let text = private(path)?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes());
    key.map_err(|error| Error::Unusable { path: path.to_owned(), reason: error.to_string() })
}

/// What a file says that nobody but its owner, or root, may read.
pub(crate) fn private(path: &Path) -> Result<String, Error> {
    let mut file = File::open(path).map_err(failed("read", path))?;
    let metadata = file.metadata().map_err(failed("read", path))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(Error::Open(path.to_owned()));
    }
    let mut text = String::new();
    let read = (&mut file).take(MOST + 1).read_to_string(&mut text).map_err(failed("read", path))?;
    if read as u64 > MOST {
        let reason = format!("it has more than {MOST} bytes");
        return Err(Error::Unusable { path: path.to_owned(), reason });
    }
    Ok(text)
}

/// Keys are secret.
fn mode(name: &str) -> u32 {
    if name.ends_with("-key.pem") { 0o600 } else { 0o644 }
}

/// Puts files in the place of others, each at once.
pub(super) fn replace(directory: &Path, files: &[(String, String)]) -> Result<(), Error> {
    for (name, text) in files {
        let path = directory.join(name);
        let permissions = Permissions::from_mode(mode(name));
        let new = tempfile::Builder::new().prefix(".berth-tls-").permissions(permissions).tempfile_in(directory);
        let mut new = new.map_err(failed("write", &path))?;
        let written = new.write_all(text.as_bytes()).and_then(|()| new.as_file().sync_all());
        written.map_err(failed("write", &path))?;
        new.persist(&path).map_err(|error| failed("write", &path)(error.error))?;
    }
    Ok(())
}

/// Whether there is place for a directory: nothing, or an empty one.
pub(crate) fn expect_vacant(directory: &Path) -> Result<(), Error> {
    match fs::read_dir(directory).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(false) => Err(Error::Exists(directory.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(Error::Exists(directory.to_owned())),
        Err(error) => Err(failed("read", directory)(error)),
    }
}

/// Makes a directory with files: all of it or, if there is something in its place or anything fails, nothing. Only the owner
/// can enter it, and read what is secret.
pub(crate) fn install(directory: &Path, files: &[(String, String)]) -> Result<(), Error> {
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&parent).map_err(failed("make", &parent))?;
    // It is removed unless it gets its name in the end.
    let new = tempfile::Builder::new().prefix(".berth-tls-").tempdir_in(&parent).map_err(failed("make", directory))?;
    fs::set_permissions(new.path(), Permissions::from_mode(0o700)).map_err(failed("make", directory))?;
    for (name, text) in files {
        let path = new.path().join(name);
        let mode = mode(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(failed("write", &directory.join(name)))?;
    }
    // An empty directory is replaced, and nothing else is (rename(2)).
    fs::rename(new.path(), directory).map_err(|error| match error.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            Error::Exists(directory.to_owned())
        }
        _ => failed("make", directory)(error),
    })?;
    let _ = new.keep();
    File::open(&parent).and_then(|parent| parent.sync_all()).map_err(failed("write", &parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_whole_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("a/b");
        let files = [("x.pem".to_owned(), "public".to_owned()), ("x-key.pem".to_owned(), "secret".to_owned())];
        install(&directory, &files).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join("x-key.pem"))), (0o700, 0o600));
        let other = [("x.pem".to_owned(), "other".to_owned())];
        assert!(matches!(install(&directory, &other), Err(Error::Exists(_))));
        assert!(matches!(expect_vacant(&directory), Err(Error::Exists(_))));
        assert!(matches!(expect_vacant(&directory.join("x.pem")), Err(Error::Exists(_))));
        expect_vacant(&home.path().join("nothing")).unwrap();
        assert!(matches!(install(&directory.join("x.pem"), &other), Err(Error::Exists(_))));
        assert_eq!(fs::read_to_string(directory.join("x.pem")).unwrap(), "public");
        let impossible = [("x.pem".to_owned(), "other".to_owned()), ("no/such/place".to_owned(), String::new())];
        let nowhere = home.path().join("a/c");
        assert!(matches!(install(&nowhere, &impossible), Err(Error::File { attempt: "write", .. })));
        assert_eq!(fs::read_dir(home.path().join("a")).unwrap().count(), 1, "nothing is left of what failed");
    }

    #[test]
    fn secrets_that_others_can_read_are_none() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secret");
        fs::write(&path, "s").unwrap();
        for (mode, usable) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(private(&path).is_ok(), usable, "{mode:o}");
        }
    }
}
