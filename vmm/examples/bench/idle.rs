//! What a microVM costs the host that does nothing: many of them alive at once, each in a process of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use berth_vmm::host;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::kernel;

const MEMORY: usize = 128 << 20;
/// Says that it is there, and halts with interrupts off, from where nothing wakes it: `mov dx, 0x3f8; mov al, '.'; out dx, al; hlt`.
const GUEST: [u8; 8] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xf4];

/// A VMM, ended when it is dropped.
struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `count` machines of `vmm`, waits until all guests have run, and prints how much less memory the host then has
/// for each.
pub fn run(vmm: &str, count: u32) -> Result<()> {
    let kernel = kernel::elf(&GUEST);
    // The first brings the program into the page cache and KVM's module to life.
    drop(start(vmm, &kernel)?);
    let before = available()?;
    let machines = (0..count).map(|_| start(vmm, &kernel)).collect::<Result<Vec<_>>>()?;
    let each = f64::from(before.saturating_sub(available()?)) / 1024.0 / f64::from(count);
    println!("{} machines of {} MiB alive, {each:.2} MiB of the host each", machines.len(), MEMORY >> 20);
    Ok(())
}

/// A machine whose guest has run.
fn start(vmm: &str, kernel: &[u8]) -> Result<Vmm> {
    let kvm = File::from(host::open()?);
    let mut image = tempfile::tempfile()?;
    image.write_all(kernel)?;
    let config = format!(
        r#"{{"kvm":{},"kernel":{},"memory":{MEMORY},"vcpus":1,"console":1}}"#,
        kvm.as_raw_fd(),
        image.as_raw_fd()
    );
    let path = tempfile::NamedTempFile::new()?;
    fs::write(&path, config)?;
    for given in [kvm.as_fd(), image.as_fd()] {
        fcntl_setfd(given, FdFlags::empty())?;
    }
    let child = Command::new(vmm).arg("run").arg(path.path()).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut vmm = Vmm(child.context("starting the VMM")?);
    let mut mark = [0];
    let output = vmm.0.stdout.as_mut().context("the VMM's output is not a pipe")?;
    ensure!(output.read(&mut mark)? == 1, "the VMM ended before its guest ran");
    Ok(vmm)
}

/// KiB of memory that the host could still give away.
fn available() -> Result<u32> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .context("/proc/meminfo without MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
