//! `berth-vmm vmlinux`: unpacks a kernel for VMMs that take it no other way, as `berth bench startup --peers` compares with.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Write as _, stdout};

use anyhow::{Context as _, Result};
use berth_vmm::boot;

/// Writes `kernel`, a vmlinux or a bzImage with one, to standard output.
pub fn run(kernel: &OsStr) -> Result<()> {
    let doing = || format!("unpacking the kernel {}", kernel.display());
    let mut file = File::open(kernel).with_context(doing)?;
    let mut output = stdout().lock();
    boot::write_vmlinux(&mut file, &mut output).with_context(doing)?;
    output.flush().context("writing to standard output")
}
