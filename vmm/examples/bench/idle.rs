//! What a microVM costs the host that does nothing: many of them alive at once, each in a process of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use berth_vmm::host;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::first_instruction::Bare;
use crate::kernel;

const MEMORY: usize = 128 << 20;
const ROUNDS: usize = 5;
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
/// for each; and the same of processes that do nothing but make a machine by the bare calls to KVM: what the kernel needs.
pub fn run(vmm: &str, count: u32) -> Result<()> {
    let kernel = kernel::elf(&GUEST);
    let (mut machines, mut bare) = (Vec::new(), Vec::new());
    // The host gives memory back late and for others too: the two take turns.
    for _ in 0..ROUNDS {
        machines.push(cost(count, || start(vmm, &kernel))?);
        bare.push(cost(count, start_bare)?);
    }
    let (each, bare) = (median(machines), median(bare));
    println!(
        "{count} machines of {} MiB alive, {each:.2} MiB of the host each, bare calls {bare:.2} MiB",
        MEMORY >> 20
    );
    Ok(())
}

fn median(mut costs: Vec<f64>) -> f64 {
    costs.sort_by(f64::total_cmp);
    costs[costs.len() / 2]
}

/// What each of many costs, MiB.
fn cost(count: u32, start: impl Fn() -> Result<Vmm>) -> Result<f64> {
    // The first brings the program into the page cache and KVM's module to life.
    drop(start()?);
    let before = available()?;
    let machines = (0..count).map(|_| start()).collect::<Result<Vec<_>>>()?;
    let each = f64::from(before.saturating_sub(available()?)) / 1024.0 / f64::from(count);
    drop(machines);
    Ok(each)
}

/// A machine of bare calls, in a process that then waits for its end.
pub fn bare() -> Result<()> {
    let machine = Bare::new(MEMORY)?;
    println!(".");
    std::thread::park();
    drop(machine);
    Ok(())
}

fn start_bare() -> Result<Vmm> {
    let child = Command::new(std::env::current_exe()?).arg("bare").stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    Vmm(child.context("starting a bare machine")?).wait()
}

impl Vmm {
    /// Waits until its guest has run.
    fn wait(mut self) -> Result<Self> {
        let mut mark = [0];
        let output = self.0.stdout.as_mut().context("its output is not a pipe")?;
        ensure!(output.read(&mut mark)? == 1, "it ended before its guest ran");
        Ok(self)
    }
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
    Vmm(child.context("starting the VMM")?).wait()
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
