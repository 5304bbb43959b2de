//! `berth-vmm initramfs`: finds the kernel for a Linux guest, if this host can run one, and makes what it boots with. Runs outside the sandbox, for whoever
//! prepares one; nothing of an image is read.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use berth_vmm::guest::initramfs::{self, Kernel};
use berth_vmm::host;
use serde_json::json;

const USAGE: &str = "usage: berth-vmm initramfs CACHE [--kernel FILE] [--init FILE] [--network]";

/// Prints as JSON: the paths of the kernel, unpacked, and the initramfs, whether one of them is new, and which file system the image's disk must have.
pub fn run(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    host::kvm(host::open()?)?;
    host::runs_linux()?;
    let cache = PathBuf::from(arguments.next().context(USAGE)?);
    let (mut kernel, mut init, mut with_network) = (None, None, false);
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--kernel") => kernel = Some(PathBuf::from(arguments.next().context(USAGE)?)),
            Some("--init") => init = Some(PathBuf::from(arguments.next().context(USAGE)?)),
            Some("--network") => with_network = true,
            _ => bail!(USAGE),
        }
    }
    let modules = Path::new("/lib/modules");
    let kernel = match kernel {
        Some(path) => Kernel::at(&path, modules)?,
        None => Kernel::newest(Path::new("/boot"), modules)?,
    };
    // It lies beside this program.
    let init = match init {
        Some(init) => init,
        None => std::env::current_exe().context("finding this program")?.with_file_name("berth-guest-init"),
    };
    let made = initramfs::open(&kernel, &init, with_network, &cache)?;
    let (image, is_unpacked_now) = kernel.unpacked(&cache)?;
    let document = json!({
        "kernel": image, "version": kernel.version, "initramfs": made.path, "is_new": made.is_new || is_unpacked_now,
        "root_format": made.root_format,
    });
    println!("{document}");
    Ok(())
}
