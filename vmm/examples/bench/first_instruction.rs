//! From opening `/dev/kvm` to the guest's first instruction: a machine, and the bare calls.

use std::fs::File;
use std::io::Write;
use std::os::fd::IntoRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_vmm::boot::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use berth_vmm::host;
use berth_vmm::machine::{Machine, MachineConfig};
use berth_vmm::vcpu::{cpuid, exits::Reason, msrs};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::kernel;

const MEMORY: usize = 32 << 20;
const ROUNDS: usize = 200;
/// Where the bare guest runs, in real mode, and `out 0x80, al`.
const CODE: usize = 0x1000;
const OUT: [u8; 2] = [0xe6, 0x80];
/// What a machine has besides memory and a vCPU: interrupts of the serial port and of the source of entropy, a doorbell.
const EVENTS: u32 = 2;

/// Prints both medians and their ratio; the two take turns, so that a busy moment of the host meets both.
pub fn run() -> Result<()> {
    let kernel = kernel::elf(&OUT);
    let (mut machines, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        machines.push(machine(&kernel)?);
        let start = Instant::now();
        let machine = Bare::new(MEMORY)?;
        bare.push(start.elapsed());
        drop(machine);
    }
    let (machine, bare) = (median(machines), median(bare));
    let ratio = machine.as_secs_f64() / bare.as_secs_f64();
    println!("machine {} µs, bare calls {} µs, ratio {ratio:.2}", machine.as_micros(), bare.as_micros());
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn machine(kernel: &[u8]) -> Result<Duration> {
    let mut file = tempfile::tempfile()?;
    file.write_all(kernel)?;
    let console = File::options().write(true).open("/dev/null")?;
    let start = Instant::now();
    let text = format!(
        r#"{{"kvm":{},"kernel":{},"memory":{MEMORY},"vcpus":1,"console":{}}}"#,
        host::open()?.into_raw_fd(),
        file.into_raw_fd(),
        console.into_raw_fd()
    );
    let config: MachineConfig = serde_json::from_str(&text)?;
    let mut machine = Machine::new(&config)?;
    let vcpu = machine.vcpus_mut().first_mut().context("the machine has no vCPU")?;
    vcpu.step();
    let elapsed = start.elapsed();
    ensure!(vcpu.counts().get(Reason::PortWrite) == 1, "the guest did not get to its first instruction");
    Ok(elapsed)
}

/// A machine of the same calls to KVM, one after the other, with nothing between.
pub struct Bare {
    /// In the order in which they may be closed.
    _parts: (VcpuFd, VmFd, Vec<EventFd>),
    memory: *mut libc::c_void,
    length: usize,
}

impl Drop for Bare {
    fn drop(&mut self) {
        // SAFETY: the vCPU does not run any more, and nothing else refers to the mapping.
        unsafe { libc::munmap(self.memory, self.length) };
    }
}

impl Bare {
    /// `length`: its memory, bytes. Its guest has run its first instruction.
    pub fn new(length: usize) -> Result<Self> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        vm.set_identity_map_address(KVM_IDENTITY_MAP)?;
        vm.set_tss_address(KVM_TSS as usize)?;
        vm.create_irq_chip()?;
        msrs::filter(&vm, msrs::DENIED)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, of the kernel's choice of address.
        let memory =
            unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        ensure!(memory != libc::MAP_FAILED, "mapping memory: {}", std::io::Error::last_os_error());
        // SAFETY: the code lies within the mapping, which nobody else knows.
        unsafe { std::ptr::copy_nonoverlapping(OUT.as_ptr(), memory.cast::<u8>().add(CODE), OUT.len()) };
        let region = kvm_userspace_memory_region {
            memory_size: length as u64,
            userspace_addr: memory as u64,
            ..Default::default()
        };
        // SAFETY: the mapping goes after the guest has run for the last time.
        unsafe { vm.set_user_memory_region(region) }?;
        let events = (0..EVENTS)
            .map(|line| {
                let event = EventFd::new(0)?;
                vm.register_irqfd(&event, 4 + line)?;
                Ok(event)
            })
            .collect::<Result<Vec<_>>>()?;
        vm.register_ioevent(&events[0], &kvm_ioctls::IoEventAddress::Mmio(0xd000_0050), 0u32)?;
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let mut vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&cpuid::template(&supported, 0, 1))?;
        msrs::initialise(&vcpu)?;
        let mut system = vcpu.get_sregs()?;
        (system.cs.base, system.cs.selector) = (0, 0);
        vcpu.set_sregs(&system)?;
        let mut general = vcpu.get_regs()?;
        general.rip = CODE as u64;
        vcpu.set_regs(&general)?;
        let exit = vcpu.run()?;
        if !matches!(exit, VcpuExit::IoOut(0x80, _)) {
            bail!("the bare guest did not get to its first instruction: {exit:?}");
        }
        Ok(Self { _parts: (vcpu, vm, events), memory, length })
    }
}
