//! Names of containers: each is a symlink `DATA/names/<name>` to an id, so a name is taken by making it.
//!
//! The id is there in base 64: up to 59 bytes fit into the inode of a symlink on ext4, and 64 digits would not.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::{Attempt as _, Error, Result};
use crate::id::short;
use crate::lock;
use crate::paths::{PRIVATE, Roots, make_dir};

/// Longest name; it becomes a file name and a host name's default is not taken from it.
const MAX_NAME: usize = 128;
/// Digits of an id.
const ID_DIGITS: usize = 64;

const ADJECTIVES: &str = "\
    agile amber ancient autumn bold brave bright brisk calm clever copper coral crimson \
    curious daring deep eager early fair fast fearless fresh frosty gentle golden grand happy \
    hidden humble icy jolly keen kind lively lucky lunar mellow merry mighty misty neat nimble \
    noble patient plucky polite proud quick quiet rapid royal rustic salty serene sharp shiny \
    silent silver sleek smooth snowy solar steady stormy sunny swift tidal tidy vivid warm \
    wild windy wise young zesty";

const NOUNS: &str = "\
    anchor barge bay beacon bell boat bow breeze bridge buoy cabin canal canoe cape captain \
    cargo chart clipper coast compass coral cove crane current cutter deck delta dock dolphin \
    ferry fjord fleet foam galley gull harbor heron hull island jetty kayak keel kelp lagoon \
    lantern ledger lighthouse marina mast narwhal oar ocean otter paddle pelican pier pilot \
    port quay raft reef rudder sail schooner seal sextant shoal shore skiff sloop spar strait \
    tide trawler tug wave wharf whale yacht";

/// A fresh id: 64 hexadecimal digits from the kernel's random numbers.
pub(crate) fn new_id() -> Result<String> {
    Ok(hex(&random_bytes::<{ ID_DIGITS / 2 }>()?))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whether this could be an id.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && is_hex(text)
}

/// `N` random bytes; the kernel gives up to 256 at once.
fn random_bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom(&mut bytes, GetRandomFlags::empty()).attempt(|| "get random bytes")?;
    Ok(bytes)
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Checks the form of a name: letters, digits and `_.-`, a letter or digit first.
pub fn check(name: &str) -> Result<()> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    let begins = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if plain && begins && name.len() <= MAX_NAME && !is_id(name) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "`{name}` is no name for a container; use up to {MAX_NAME} letters, digits and any of `_.-`, a letter or digit first"
    )))
}

/// Gives the name to the container, whose lock the caller holds.
pub(crate) fn claim(roots: &Roots, name: &str, id: &str) -> Result<()> {
    check(name)?;
    let path = roots.names().join(name);
    let attempt = || format!("claim the name {name} ({})", path.display());
    loop {
        match symlink(target_of(id), &path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_dir(&roots.names(), PRIVATE)?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let Some(holder) = holder(roots, name) else {
                    continue;
                };
                if exists(roots, &holder) || lock::is_held(roots, &holder) {
                    return Err(Error::NameTaken { name: name.to_owned(), holder: short(&holder).to_owned() });
                }
                // Left behind by a crash.
                release(roots, name, &holder)?;
            }
            Err(error) => return Err(error).attempt(attempt),
        }
    }
}

/// Gives a random name to the container and returns it.
pub(crate) fn claim_random(roots: &Roots, id: &str) -> Result<String> {
    for attempt in 0_u32.. {
        let [a, b, c, d] = random_bytes::<4>()?;
        let adjective = word(ADJECTIVES, u16::from_le_bytes([a, b]));
        let noun = word(NOUNS, u16::from_le_bytes([c, d]));
        // Thousands of containers use up the words; a number then makes room.
        let number = if attempt < 4 { String::new() } else { (usize::from(a) * attempt as usize).to_string() };
        let name = format!("{adjective}_{noun}{number}");
        match claim(roots, &name, id) {
            Err(Error::NameTaken { .. }) => {}
            other => return other.map(|()| name),
        }
    }
    unreachable!("there is always a larger number")
}

/// One of the words.
fn word(words: &'static str, number: u16) -> &'static str {
    let count = words.split(' ').count();
    words.split(' ').nth(usize::from(number) % count).unwrap_or(words)
}

/// Takes the name away again if it still belongs to this id.
pub(crate) fn release(roots: &Roots, name: &str, id: &str) -> Result<()> {
    if holder(roots, name).as_deref() != Some(id) {
        return Ok(());
    }
    let path = roots.names().join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).attempt(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The id a name points to.
pub(crate) fn holder(roots: &Roots, name: &str) -> Option<String> {
    let target = fs::read_link(roots.names().join(name)).ok()?;
    let bytes = BASE64.decode(target.as_os_str().as_encoded_bytes()).ok()?;
    Some(hex(&bytes)).filter(|id| is_id(id))
}

/// What the symlinks of an id's names contain.
fn target_of(id: &str) -> String {
    let digits = id.as_bytes().chunks_exact(2).filter_map(|pair| std::str::from_utf8(pair).ok());
    BASE64.encode(digits.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect::<Vec<u8>>())
}

/// All names, each with the id it points to.
pub(crate) fn all(roots: &Roots) -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(roots.names()) else {
        return Vec::new();
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| holder(roots, &name).map(|id| (name, id))).collect()
}

/// The ids of all container directories, whole or not.
pub(crate) fn ids(roots: &Roots) -> Result<Vec<String>> {
    directory_ids(&roots.containers())
}

/// The entries of a directory that are ids; none where it does not exist.
pub(crate) fn directory_ids(dir: &Path) -> Result<Vec<String>> {
    let attempt = || format!("list {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).attempt(attempt),
    };
    let names = entries.filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose());
    let names = names.collect::<io::Result<Vec<String>>>().attempt(attempt)?;
    Ok(names.into_iter().filter(|name| is_id(name)).collect())
}

/// Finds the id a person means: a name, an id, or the beginning of an id.
pub fn resolve(roots: &Roots, reference: &str) -> Result<String> {
    let not_found = || Error::NotFound(reference.to_owned());
    // A reference becomes a path below; whatever is not made like a name or an id is nothing.
    if reference.is_empty() || reference.contains('/') || reference.starts_with('.') {
        return Err(not_found());
    }
    if let Some(id) = holder(roots, reference).filter(|id| exists(roots, id)) {
        return Ok(id);
    }
    if !is_hex(reference) {
        return Err(not_found());
    }
    if is_id(reference) {
        return exists(roots, reference).then(|| reference.to_owned()).ok_or_else(not_found);
    }
    let mut fits: Vec<String> =
        ids(roots)?.into_iter().filter(|id| id.starts_with(reference) && exists(roots, id)).collect();
    fits.sort();
    match fits.as_slice() {
        [] => Err(not_found()),
        [_] => Ok(fits.remove(0)),
        _ => {
            let digits = (reference.len() + 4).max(12);
            let candidates: Vec<&str> = fits.iter().take(5).map(|id| &id[..digits.min(id.len())]).collect();
            let more = if fits.len() > 5 { ", …" } else { "" };
            Err(Error::Ambiguous { reference: reference.to_owned(), candidates: candidates.join(", ") + more })
        }
    }
}

/// Whether the id is a container's: it has a record, damaged or not.
fn exists(roots: &Roots, id: &str) -> bool {
    roots.container(id).join("container.json").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots() -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(&dir.path().join("data"), &dir.path().join("state")).unwrap();
        (dir, roots)
    }

    fn container(roots: &Roots, id: &str) -> String {
        let id = format!("{id:0<64}");
        fs::create_dir_all(roots.container(&id)).unwrap();
        fs::write(roots.container(&id).join("container.json"), "{}").unwrap();
        id
    }

    #[test]
    fn names_have_a_form() {
        for good in ["a", "web-1", "A.b_c", "0"] {
            check(good).unwrap();
        }
        for bad in ["", "-a", ".a", "..", "a/b", "a b", "ä", &"a".repeat(129), &"a".repeat(64)] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_unique_until_released() {
        let (_dir, roots) = roots();
        let (one, two) = (container(&roots, "1"), container(&roots, "2"));
        claim(&roots, "web", &one).unwrap();
        let error = claim(&roots, "web", &two).unwrap_err();
        assert!(matches!(&error, Error::NameTaken { holder, .. } if one.starts_with(holder)), "{error}");
        release(&roots, "web", &two).unwrap();
        assert_eq!(holder(&roots, "web"), Some(one.clone()), "only its holder gives a name up");
        release(&roots, "web", &one).unwrap();
        claim(&roots, "web", &two).unwrap();
    }

    #[test]
    fn a_name_left_behind_is_free() {
        let (_dir, roots) = roots();
        claim(&roots, "web", &"d".repeat(64)).unwrap();
        claim(&roots, "web", &container(&roots, "1")).unwrap();
    }

    #[test]
    fn a_name_of_a_container_in_the_making_is_taken() {
        let (_dir, roots) = roots();
        let id = "d".repeat(64);
        let lock = lock::Lock::try_take(&roots, &id).unwrap();
        claim(&roots, "web", &id).unwrap();
        assert!(claim(&roots, "web", &container(&roots, "1")).is_err());
        drop(lock);
    }

    #[test]
    fn random_names_are_names() {
        let (_dir, roots) = roots();
        let id = container(&roots, "1");
        let names: std::collections::HashSet<String> = (0..50).map(|_| claim_random(&roots, &id).unwrap()).collect();
        assert_eq!(names.len(), 50);
    }

    #[test]
    fn references_are_names_ids_or_beginnings() {
        let (_dir, roots) = roots();
        let (one, two) = (container(&roots, "abc1"), container(&roots, "abc2"));
        claim(&roots, "web", &one).unwrap();
        claim(&roots, "abc2", &one).unwrap();
        assert_eq!(resolve(&roots, "web").unwrap(), one);
        assert_eq!(resolve(&roots, "abc1").unwrap(), one);
        assert_eq!(resolve(&roots, "abc2").unwrap(), one, "a name wins over the beginning of an id");
        assert_eq!(resolve(&roots, &two).unwrap(), two);
        assert!(matches!(resolve(&roots, "abc").unwrap_err(), Error::Ambiguous { .. }));
        for nothing in ["", ".", "..", "../names", "web2", "abd", "ABC1", &"f".repeat(64)] {
            assert!(matches!(resolve(&roots, nothing).unwrap_err(), Error::NotFound(_)), "{nothing}");
        }
    }
}
