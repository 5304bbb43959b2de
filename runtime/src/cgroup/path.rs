//! `linux.cgroupsPath` of the OCI configuration as a path below a hierarchy's mount point.

use std::path::PathBuf;

use super::{Error, Result};

/// `NAME_MAX`: what the kernel bounds a group's name by.
const MAX_NAME: usize = 255;

/// The relative path `cgroups_path` stands for.
pub(super) fn relative(cgroups_path: &str) -> Result<PathBuf> {
    let invalid = |reason| Error::Path { path: cgroups_path.to_owned(), reason };
    let parts = match cgroups_path.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] if !cgroups_path.contains('/') => {
            if name.is_empty() {
                return Err(invalid("the name after the second colon is empty"));
            }
            let mut parts = slices(slice).ok_or_else(|| invalid("the slice is not one systemd would name so"))?;
            parts.push(if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") });
            parts
        }
        _ => cgroups_path.split('/').filter(|part| !matches!(*part, "" | ".")).map(str::to_owned).collect(),
    };
    if parts.is_empty() {
        return Err(invalid("it names the root of the hierarchy"));
    }
    if parts.iter().any(|part| part == "..") {
        return Err(invalid("'..' is not allowed in it"));
    }
    if parts.iter().any(|part| part.len() > MAX_NAME || part.contains(['\0', '\n'])) {
        return Err(invalid("a name in it is too long or has a control character"));
    }
    Ok(parts.iter().collect())
}

/// The nested slices systemd keeps `slice` in: `a-b.slice` is in `a.slice` (systemd.slice(5)).
fn slices(slice: &str) -> Option<Vec<String>> {
    let name = match slice {
        "" => "system",
        "-.slice" => return Some(Vec::new()),
        slice => slice.strip_suffix(".slice")?,
    };
    let mut path = Vec::new();
    let mut so_far = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return None;
        }
        if !so_far.is_empty() {
            so_far.push('-');
        }
        so_far.push_str(part);
        path.push(format!("{so_far}.slice"));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(cgroups_path: &str) -> String {
        relative(cgroups_path).map_or_else(|error| error.to_string(), |path| path.display().to_string())
    }

    #[test]
    fn paths_are_relative_to_the_mount_point() {
        assert_eq!(text("/berth/abc"), "berth/abc");
        assert_eq!(text("berth//./abc/"), "berth/abc");
        assert_eq!(text("/a:b:c"), "a:b:c");
    }

    #[test]
    fn systemd_names_become_their_scope() {
        assert_eq!(text("system.slice:berth:abc"), "system.slice/berth-abc.scope");
        assert_eq!(text(":berth:abc"), "system.slice/berth-abc.scope");
        assert_eq!(text("user-1000.slice::abc"), "user.slice/user-1000.slice/abc.scope");
        assert_eq!(text("-.slice:p:n"), "p-n.scope");
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let long = "x".repeat(256);
        for path in ["", "/", "/berth/../other", "..", "a-.slice:p:n", "nope:p:n", "a.slice:p:", "a\0b", long.as_str()]
        {
            assert!(matches!(relative(path), Err(Error::Path { .. })), "{path:?}");
        }
    }
}
