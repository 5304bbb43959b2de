//! `--volume`, `--mount` and `--tmpfs`: docker's three ways to say what the container sees where.

use std::path::{Path, PathBuf};

use berth_engine::options::{Filesystem, Mount, MountSource};
use berth_engine::{size, spec, volumes};
use csv::StringRecord;

const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];
/// Options of `--tmpfs` without and with a value, see tmpfs(5) and mount(8).
const TMPFS_FLAGS: [&str; 16] = [
    "ro",
    "rw",
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "sync",
    "async",
    "dirsync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
];
const TMPFS_VALUES: [&str; 7] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge"];

/// `--volume [SOURCE:]TARGET[:OPTIONS]`
pub fn volume(text: &str) -> Result<Mount, String> {
    let example = "give SOURCE:TARGET[:ro], for example /srv/data:/data or cache:/var/cache";
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [target] => (None, target, ""),
        [source, target] => (Some(source), target, ""),
        [source, target, options] => (Some(source), target, options),
        _ => return Err(format!("too many ':'; {example}")),
    };
    let target = self::target(target).map_err(|error| format!("{error}; {example}"))?;
    let mut read_only = false;
    let mut no_copy = false;
    let mut propagation = None;
    let mut idmap = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "nocopy" => no_copy = true,
            "idmap" => idmap = true,
            // Nothing to do: writing is the default, there are no SELinux labels to change, and nothing is cached.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            name if PROPAGATIONS.contains(&name) => propagation = Some(name.to_owned()),
            name => {
                return Err(format!(
                    "unknown option '{name}'; known are ro, rw, nocopy, idmap, {}; {example}",
                    PROPAGATIONS.join(", ")
                ));
            }
        }
    }
    let source = match source {
        Some("") => return Err(format!("the part before ':' is empty; {example}")),
        Some(path) if path.starts_with(['/', '.']) => {
            if no_copy {
                return Err(format!("'nocopy' is for volumes, and '{path}' is a directory; {example}"));
            }
            MountSource::Bind { path: absolute(path)?, create: true, propagation, idmap }
        }
        name => {
            if let Some(propagation) = propagation {
                return Err(format!("'{propagation}' is for directories of the host, not for volumes; {example}"));
            }
            if let Some(name) = name {
                volumes::check_name(name).map_err(|error| error.to_string())?;
            }
            MountSource::Volume { name: name.map(str::to_owned), no_copy }
        }
    };
    Ok(Mount { target, source, read_only })
}

/// `--tmpfs TARGET[:OPTIONS]`
pub fn tmpfs(text: &str) -> Result<Mount, String> {
    let example = "give TARGET[:OPTIONS], for example /run:size=64m,mode=755";
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let target = self::target(target).map_err(|error| format!("{error}; {example}"))?;
    let mut kept = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        kept.push(tmpfs_option(option).map_err(|error| format!("{error}; {example}"))?);
    }
    let read_only = kept.iter().any(|option| option == "ro");
    Ok(Mount { target, source: MountSource::Tmpfs { options: kept }, read_only })
}

fn tmpfs_option(option: &str) -> Result<String, String> {
    match option.split_once('=') {
        None if TMPFS_FLAGS.contains(&option) => Ok(option.to_owned()),
        // tmpfs knows a share of the memory too, which is passed on as it is.
        Some(("size", size)) if !size.ends_with('%') => Ok(format!("size={}", size::some_bytes(size)?)),
        Some(("mode", mode)) => Ok(format!("mode={}", octal(mode)?)),
        Some((key, value)) if TMPFS_VALUES.contains(&key) && is_word(value) => Ok(option.to_owned()),
        _ => Err(format!("unknown tmpfs option '{option}'")),
    }
}

/// The keys of one `--mount`.
#[derive(Default)]
struct Keys<'a> {
    kind: Option<&'a str>,
    source: Option<&'a str>,
    target: Option<&'a str>,
    read_only: bool,
    propagation: Option<&'a str>,
    idmap: bool,
    no_copy: bool,
    tmpfs: Vec<String>,
}

/// `--mount type=bind|volume|tmpfs|ext4|erofs,source=…,target=…,…`
pub fn mount(text: &str) -> Result<Mount, String> {
    let example = "for example type=bind,source=/srv/data,target=/data,readonly";
    parse_mount(text).map_err(|error| format!("{error}; {example}"))
}

fn parse_mount(text: &str) -> Result<Mount, String> {
    let fields = fields(text)?;
    let keys = keys(&fields)?;
    let target = target(keys.target.ok_or("'target' is missing")?)?;
    let kind = keys.kind.unwrap_or("volume");
    let misplaced = [
        (keys.propagation.is_some(), "bind", "bind-propagation"),
        (keys.idmap, "bind", "idmap"),
        (keys.no_copy, "volume", "volume-nocopy"),
        (!keys.tmpfs.is_empty(), "tmpfs", "tmpfs-size and tmpfs-mode"),
    ];
    if let Some((_, of, key)) = misplaced.into_iter().find(|(is_set, of, _)| *is_set && *of != kind) {
        return Err(format!("{key} goes with type={of}, not type={kind}"));
    }
    let disk = |path: Option<&str>, filesystem| {
        let path = path.ok_or("'source' is missing: a file or block device with the filesystem in it")?;
        Ok::<_, String>(MountSource::Disk { path: absolute(path)?, filesystem })
    };
    let source = match (kind, keys.source.filter(|source| !source.is_empty())) {
        ("bind", Some(path)) => MountSource::Bind {
            path: absolute(path)?,
            create: false,
            propagation: keys.propagation.map(str::to_owned),
            idmap: keys.idmap,
        },
        ("bind", None) => {
            return Err(String::from("'source' is missing: a directory or file of the host"));
        }
        ("volume", name) => {
            if let Some(name) = name {
                volumes::check_name(name).map_err(|error| error.to_string())?;
            }
            MountSource::Volume { name: name.map(str::to_owned), no_copy: keys.no_copy }
        }
        ("tmpfs", None) => MountSource::Tmpfs { options: keys.tmpfs },
        ("tmpfs", Some(_)) => return Err(String::from("a tmpfs begins empty and has no 'source'")),
        ("ext4", path) => disk(path, Filesystem::Ext4)?,
        ("erofs", path) => disk(path, Filesystem::Erofs)?,
        (other, _) => {
            return Err(format!("unknown type '{other}': one of bind, volume, tmpfs, ext4, erofs"));
        }
    };
    Ok(Mount { target, source, read_only: keys.read_only || kind == "erofs" })
}

/// The fields, separated by commas; one with a comma in it is quoted, as in docker: `"source=/srv/a,b"`.
fn fields(text: &str) -> Result<StringRecord, String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
    let mut record = StringRecord::new();
    reader.read_record(&mut record).map_err(|error| format!("not a list of fields: {error}"))?;
    Ok(record)
}

fn keys(fields: &StringRecord) -> Result<Keys<'_>, String> {
    let mut keys = Keys::default();
    for field in fields {
        let (key, value) = field.split_once('=').map_or((field, None), |(key, value)| (key, Some(value)));
        let needed = || value.ok_or_else(|| format!("'{key}' has no value"));
        match key {
            "type" => keys.kind = Some(needed()?),
            "source" | "src" => keys.source = Some(needed()?),
            "target" | "dst" | "destination" => keys.target = Some(needed()?),
            "readonly" | "ro" => keys.read_only = switch(key, value)?,
            "idmap" => keys.idmap = switch(key, value)?,
            "volume-nocopy" => keys.no_copy = switch(key, value)?,
            "tmpfs-size" => keys.tmpfs.push(format!("size={}", size::some_bytes(needed()?)?)),
            "tmpfs-mode" => keys.tmpfs.push(format!("mode={}", octal(needed()?)?)),
            "bind-propagation" => {
                let kind = needed()?;
                if !PROPAGATIONS.contains(&kind) {
                    return Err(format!("unknown bind-propagation '{kind}': one of {}", PROPAGATIONS.join(", ")));
                }
                keys.propagation = Some(kind);
            }
            _ => {
                return Err(format!(
                    "unknown key '{key}': known are type, source, target, readonly, bind-propagation, idmap, \
                     volume-nocopy, tmpfs-size, tmpfs-mode"
                ));
            }
        }
    }
    Ok(keys)
}

fn switch(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => Err(format!("'{key}' is true or false, not '{other}'")),
    }
}

/// Permission bits, kept as octal digits.
fn octal(text: &str) -> Result<String, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && !text.starts_with('+') => Ok(format!("{mode:o}")),
        _ => Err(format!("'{text}' is no mode: give octal digits, for example 1777")),
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'%' || byte == b'_')
}

fn target(text: &str) -> Result<String, String> {
    spec::clean_target(text)
        .map(|path| path.to_string_lossy().into_owned())
        .map_err(|_| format!("'{text}' is no place in the container: it must be absolute and not '/'"))
}

/// Against the caller's directory; the path need not exist yet.
fn absolute(path: &str) -> Result<PathBuf, String> {
    std::path::absolute(Path::new(path)).map_err(|error| format!("'{path}': {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &str, create: bool, propagation: Option<&str>) -> MountSource {
        MountSource::Bind { path: path.into(), create, propagation: propagation.map(str::to_owned), idmap: false }
    }

    fn named(name: Option<&str>, no_copy: bool) -> MountSource {
        MountSource::Volume { name: name.map(str::to_owned), no_copy }
    }

    fn memory(options: &[&str]) -> MountSource {
        MountSource::Tmpfs { options: options.iter().map(|option| (*option).to_owned()).collect() }
    }

    fn disk(path: &str, filesystem: Filesystem) -> MountSource {
        MountSource::Disk { path: path.into(), filesystem }
    }

    fn at(target: &str, source: MountSource, read_only: bool) -> Mount {
        Mount { target: target.to_owned(), source, read_only }
    }

    #[test]
    fn volume_forms() {
        let here = std::env::current_dir().unwrap();
        let cases = [
            ("/data", at("/data", named(None, false), false)),
            ("cache:/c", at("/c", named(Some("cache"), false), false)),
            ("cache:/c/../d//e/:ro,nocopy", at("/d/e", named(Some("cache"), true), true)),
            ("/srv:/data", at("/data", bind("/srv", true, None), false)),
            ("/srv:/data:rw,Z", at("/data", bind("/srv", true, None), false)),
            ("/srv:/data:ro,rslave", at("/data", bind("/srv", true, Some("rslave")), true)),
            (
                "/srv:/data:idmap",
                at(
                    "/data",
                    MountSource::Bind { path: "/srv".into(), create: true, propagation: None, idmap: true },
                    false,
                ),
            ),
            ("./x:/data", at("/data", bind(here.join("x").to_str().unwrap(), true, None), false)),
        ];
        for (text, expected) in cases {
            assert_eq!(volume(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn mount_forms() {
        let cases = [
            ("type=bind,source=/srv,target=/data", at("/data", bind("/srv", false, None), false)),
            ("type=bind,src=/srv,dst=/data,ro", at("/data", bind("/srv", false, None), true)),
            ("type=bind,\"src=/a,b\",dst=/data", at("/data", bind("/a,b", false, None), false)),
            (
                "type=bind,src=/s,destination=/d,readonly=false,bind-propagation=shared",
                at("/d", bind("/s", false, Some("shared")), false),
            ),
            (
                "type=bind,source=/s,target=/d,idmap",
                at("/d", MountSource::Bind { path: "/s".into(), create: false, propagation: None, idmap: true }, false),
            ),
            ("target=/d", at("/d", named(None, false), false)),
            ("type=volume,src=cache,target=/d,volume-nocopy,readonly=true", at("/d", named(Some("cache"), true), true)),
            ("type=ext4,source=/d.img,target=/d", at("/d", disk("/d.img", Filesystem::Ext4), false)),
            ("type=ext4,source=/d.img,target=/d,readonly", at("/d", disk("/d.img", Filesystem::Ext4), true)),
            ("type=erofs,source=/dev/vdb,target=/d", at("/d", disk("/dev/vdb", Filesystem::Erofs), true)),
            (
                "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770",
                at("/t", memory(&["size=1048576", "mode=1770"]), false),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(mount(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn tmpfs_forms() {
        let cases = [
            ("/run", at("/run", memory(&[]), false)),
            ("/run:size=64m,mode=0755,exec", at("/run", memory(&["size=67108864", "mode=755", "exec"]), false)),
            ("/run:ro,size=50%,uid=1000", at("/run", memory(&["ro", "size=50%", "uid=1000"]), true)),
        ];
        for (text, expected) in cases {
            assert_eq!(tmpfs(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_values_are_errors_with_an_example() {
        for text in [
            "",
            ":",
            "/",
            "/..",
            "data",
            "a:/x",
            "/a:/b:ro:x",
            ":/x",
            "/a:b",
            "/a:/b:huh",
            "/a:/b:nocopy",
            "cache:/c:shared",
            "a/b:/c",
            "ca che:/x",
            "-x:/y",
            "é:/x",
        ] {
            let error = volume(text).unwrap_err();
            assert!(error.contains("for example"), "{text}: {error}");
        }
        let huge = "x".repeat(100_000);
        let bad_mounts = [
            "",
            "type=bind",
            "type=bind,target=/x",
            "type=ext4,target=/x",
            "type=erofs,source=/a,target=/x,tmpfs-size=1m",
            "source=/a,target=/x",
            "type=huh,target=/x",
            "type=bind,source,target=/x",
            "type=bind,source=/a,target=x",
            "type=bind,source=/a,target=/x,ro=maybe",
            "type=bind,source=/a,target=/x,volume-nocopy",
            "type=volume,source=ab,target=/x,idmap",
            "type=bind,source=/a,target=/x,bind-propagation=wide",
            "type=tmpfs,source=/a,target=/x",
            "type=tmpfs,target=/x,tmpfs-mode=9",
            "type=tmpfs,target=/x,tmpfs-size=0",
            "target=/x,tmpfs-size=1m",
            "target=/x,color=red",
            ",",
            "=",
            huge.as_str(),
        ];
        for text in bad_mounts {
            let error = mount(text).unwrap_err();
            assert!(error.contains("for example"), "{text}: {error}");
        }
        for text in [
            "",
            "run",
            "/",
            "/run:huh",
            "/run:size=x",
            "/run:size=0",
            "/run:mode=abc",
            "/run:mode=77777",
            "/run:uid=",
            "/run:uid=a/b",
        ] {
            let error = tmpfs(text).unwrap_err();
            assert!(error.contains("for example"), "{text}: {error}");
        }
    }
}
