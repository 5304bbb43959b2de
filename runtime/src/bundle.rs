//! An OCI bundle: a directory with `config.json`, checked before anything is made from it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, LinuxResources, Process, Spec};

use crate::error::{Attempt as _, Error, Result};

/// A larger `config.json` is refused: it is read into memory before it is parsed.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A bundle whose configuration has been read and checked.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The bundle's directory, absolute.
    pub dir: PathBuf,
    /// The configuration.
    pub spec: Spec,
}

impl Bundle {
    /// Reads `config.json` in `dir`.
    pub fn load(dir: &Path) -> Result<Self> {
        let dir = dir.canonicalize().attempt(|| format!("open bundle {}", dir.display()))?;
        let path = dir.join("config.json");
        let spec: Spec = read_json(&path)?;
        let bundle = Self { dir, spec };
        bundle.check()?;
        Ok(bundle)
    }

    fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::Invalid(format!("{}/config.json: {what}", self.dir.display())));
        let version = self.spec.version();
        if !version.starts_with("1.") {
            return refuse(&format!("ociVersion `{version}` is not supported; this runtime implements 1.0 to 1.3"));
        }
        if self.spec.root().is_none() {
            return refuse("`root` is missing");
        }
        if let Some(process) = self.spec.process() {
            check_process(process).or_else(|error| refuse(&error.to_string()))?;
        }
        let Some(linux) = self.spec.linux() else {
            return refuse("`linux` is missing");
        };
        let mut seen = Vec::new();
        for namespace in self.namespaces() {
            if seen.contains(&namespace.typ()) {
                return refuse(&format!("namespace `{}` is named twice", namespace.typ()));
            }
            seen.push(namespace.typ());
        }
        if !seen.contains(&LinuxNamespaceType::Mount) {
            return refuse("a sandbox needs a mount namespace of its own");
        }
        if seen.contains(&LinuxNamespaceType::Time) {
            return refuse("time namespaces are not supported yet");
        }
        if self.has_new(LinuxNamespaceType::User) {
            for (key, maps) in [("uidMappings", linux.uid_mappings()), ("gidMappings", linux.gid_mappings())] {
                if !maps.iter().flatten().any(|map| map.container_id() == 0 && map.size() > 0) {
                    return refuse(&format!(
                        "a new user namespace needs an id for its root: `linux.{key}` has none for 0"
                    ));
                }
            }
        }
        if linux.intel_rdt().is_some() {
            return refuse("`linux.intelRdt` is not supported");
        }
        if linux.memory_policy().is_some() {
            return refuse("`linux.memoryPolicy` is not supported");
        }
        Ok(())
    }

    /// The namespaces the configuration names.
    pub fn namespaces(&self) -> &[LinuxNamespace] {
        self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default()
    }

    /// The configuration of one kind of namespace: `None` is the caller's own.
    pub fn namespace(&self, kind: LinuxNamespaceType) -> Option<&LinuxNamespace> {
        self.namespaces().iter().find(|namespace| namespace.typ() == kind)
    }

    /// Whether the sandbox gets a new namespace of this kind.
    pub fn has_new(&self, kind: LinuxNamespaceType) -> bool {
        self.namespace(kind).is_some_and(|namespace| namespace.path().is_none())
    }

    /// The root filesystem's directory, absolute.
    pub fn rootfs(&self) -> PathBuf {
        let root = self.spec.root().as_ref().map_or_else(|| Path::new("rootfs"), |root| root.path().as_path());
        self.dir.join(root)
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.spec.annotations().as_ref()?.get(key).map(String::as_str)
    }

    /// The control group's path: `linux.cgroupsPath`, or `/berth/<id>`.
    pub fn cgroups_path(&self, id: &str) -> String {
        let given = self.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
        given.map_or_else(|| format!("/berth/{id}"), |path| path.to_string_lossy().into_owned())
    }

    /// The limits.
    pub fn resources(&self) -> LinuxResources {
        self.spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default()
    }
}

/// Checks what every process needs, the first one and those of `exec`.
pub fn check_process(process: &Process) -> Result<()> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Error::Invalid("`process.args` is empty: there is no command to run".into()));
    }
    if !process.cwd().is_absolute() {
        let cwd = process.cwd().display();
        return Err(Error::Invalid(format!("the working directory `{cwd}` is not an absolute path")));
    }
    if let Some(bad) = process.env().iter().flatten().find(|entry| entry.starts_with('=') || entry.contains('\0')) {
        return Err(Error::Invalid(format!("`{bad}` in the environment has no name")));
    }
    if process.args().iter().flatten().any(|argument| argument.contains('\0')) {
        return Err(Error::Invalid("an argument of the command contains a zero byte".into()));
    }
    Ok(())
}

/// Reads a JSON file of bounded size.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text));
    read.attempt(|| format!("read {}", path.display()))?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(Error::Invalid(format!("{} is larger than {MAX_CONFIG_BYTES} bytes", path.display())));
    }
    serde_json::from_slice(&text).map_err(|error| Error::Invalid(format!("{} is not valid: {error}", path.display())))
}
