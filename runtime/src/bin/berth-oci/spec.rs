//! `berth-oci spec`: a configuration to start from, as runc's.

use berth_runtime::error::{Attempt as _, Error, Result};
use oci_spec::runtime::{LinuxBuilder, LinuxNamespaceType, ProcessBuilder, RootBuilder, Spec};
use std::path::Path;

/// Writes `config.json` into a bundle, which must not have one.
pub fn write(bundle: &Path) -> Result<()> {
    let path = bundle.join("config.json");
    let mut spec = Spec::default();
    spec.set_version("1.1.0".to_owned());
    let invalid = |error: oci_spec::OciSpecError| Error::Invalid(error.to_string());
    let root = RootBuilder::default().path("rootfs").readonly(true).build().map_err(invalid)?;
    spec.set_root(Some(root)).set_hostname(Some("berth".to_owned()));
    let process = spec.process().clone().unwrap_or_default();
    let process = ProcessBuilder::default()
        .terminal(true)
        .user(process.user().clone())
        .args(vec!["sh".to_owned()])
        .env(process.env().clone().unwrap_or_default())
        .cwd(process.cwd().clone())
        .capabilities(process.capabilities().clone().unwrap_or_default())
        .rlimits(process.rlimits().clone().unwrap_or_default())
        .no_new_privileges(true)
        .build()
        .map_err(invalid)?;
    spec.set_process(Some(process));
    let linux = spec.linux().clone().unwrap_or_default();
    debug_assert!(linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == LinuxNamespaceType::Mount));
    let linux = LinuxBuilder::default()
        .namespaces(linux.namespaces().clone().unwrap_or_default())
        .resources(linux.resources().clone().unwrap_or_default())
        .masked_paths(linux.masked_paths().clone().unwrap_or_default())
        .readonly_paths(linux.readonly_paths().clone().unwrap_or_default())
        .build()
        .map_err(invalid)?;
    spec.set_linux(Some(linux));
    let text = serde_json::to_string_pretty(&spec).map_err(|error| Error::Invalid(error.to_string()))?;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
    file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .attempt(|| format!("write {}", path.display()))
}
