//! The archive itself: cpio in the form the kernel unpacks (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use cpio::newc::{Builder, ModeFileType, trailer};

use super::{Error, MODULES, ORDER};

/// Directories that the init mounts something on, or finds something in.
const DIRECTORIES: [&str; 7] = ["dev", "proc", "sys", "lower", "memory", "root", MODULES];
/// Largest module, bytes, unpacked.
const MAX_MODULE: u64 = 64 << 20;

/// The archive's bytes. Modules are unpacked, since not every kernel can do that itself.
pub fn build(init: &Path, modules: &[PathBuf]) -> Result<Vec<u8>, Error> {
    let memory = |error| Error::Io { attempt: "write", path: "the initramfs".into(), error };
    let mut archive = Vec::new();
    for name in DIRECTORIES {
        let entry = Builder::new(name).mode(0o755).nlink(2).set_mode_file_type(ModeFileType::Directory);
        entry.write(&mut archive, 0).finish().map_err(memory)?;
    }
    // The kernel opens it as the init's standard streams.
    let console = Builder::new("dev/console").mode(0o600).rdev_major(5).rdev_minor(1);
    let console = console.set_mode_file_type(ModeFileType::Char);
    console.write(&mut archive, 0).finish().map_err(memory)?;
    let program = fs::read(init).map_err(Error::io("read", init))?;
    add(&mut archive, "init", 0o755, &program).map_err(memory)?;
    let mut order = String::new();
    for path in modules {
        let (name, content) = unpack(path)?;
        add(&mut archive, &format!("{MODULES}/{name}"), 0o600, &content).map_err(memory)?;
        order.push_str(&name);
        order.push('\n');
    }
    add(&mut archive, ORDER, 0o600, order.as_bytes()).map_err(memory)?;
    trailer(&mut archive).map_err(memory)?;
    Ok(archive)
}

fn add(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len()).map_err(io::Error::other)?;
    let entry = Builder::new(name).mode(mode).nlink(1).set_mode_file_type(ModeFileType::Regular);
    let mut writer = entry.write(archive, length);
    writer.write_all(content)?;
    writer.finish().map(drop)
}

/// The name and content of a module, without its compression.
fn unpack(path: &Path) -> Result<(String, Vec<u8>), Error> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let wrong = |reason: String| Error::Compressed { path: path.to_owned(), reason };
    let content = fs::read(path).map_err(Error::io("read", path))?;
    let (stem, unpacked) = match name.rsplit_once('.') {
        Some((_, "ko")) => return Ok((name.to_owned(), content)),
        Some((stem, "gz")) => (stem, read(flate2::read::GzDecoder::new(&content[..]))),
        Some((stem, "xz")) => (stem, unpack_xz(&content)),
        Some((stem, "zst")) => (stem, zstd::Decoder::new(&content[..]).and_then(read)),
        Some((_, other)) => return Err(wrong(format!("berth does not know the compression .{other}"))),
        None => return Err(wrong("it has no suffix".to_owned())),
    };
    Ok((stem.to_owned(), unpacked.map_err(|error| wrong(error.to_string()))?))
}

fn unpack_xz(mut content: &[u8]) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    lzma_rs::xz_decompress(&mut content, &mut unpacked).map_err(|error| io::Error::other(format!("{error:?}")))?;
    Ok(unpacked)
}

fn read(decoder: impl Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    decoder.take(MAX_MODULE).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_in_it_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("init"), "program").unwrap();
        fs::write(path("a.ko"), "module a").unwrap();
        fs::write(path("b.ko.zst"), zstd::encode_all(&b"module b"[..], 1).unwrap()).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"module c").unwrap();
        fs::write(path("c.ko.gz"), gzip.finish().unwrap()).unwrap();
        let mut xz = Vec::new();
        lzma_rs::xz_compress(&mut &b"module d"[..], &mut xz).unwrap();
        fs::write(path("d.ko.xz"), xz).unwrap();
        let archive = build(&path("init"), &["a.ko", "b.ko.zst", "c.ko.gz", "d.ko.xz"].map(path)).unwrap();
        let mut rest = &archive[..];
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            found.push((name, mode, content));
            rest = reader.finish().unwrap();
        }
        let files: Vec<_> = found.iter().filter(|(_, mode, _)| mode & 0o170_000 == 0o100_000).collect();
        let files: Vec<_> = files.iter().map(|(name, _, content)| (name.as_str(), content.as_str())).collect();
        assert_eq!(
            files,
            [
                ("init", "program"),
                ("modules/a.ko", "module a"),
                ("modules/b.ko", "module b"),
                ("modules/c.ko", "module c"),
                ("modules/d.ko", "module d"),
                ("modules/order", "a.ko\nb.ko\nc.ko\nd.ko\n"),
            ]
        );
        assert!(found.iter().any(|(name, mode, _)| name == "dev/console" && mode & 0o170_000 == 0o020_000));
    }

    #[test]
    fn what_cannot_be_unpacked_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (name, reason) in [("x.ko.lzo", "the compression .lzo"), ("x.ko.zst", "x.ko.zst"), ("x.ko.xz", "x.ko.xz")] {
            let path = dir.path().join(name);
            fs::write(&path, "nonsense").unwrap();
            let error = unpack(&path).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
