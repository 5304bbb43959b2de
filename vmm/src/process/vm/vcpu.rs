//! One vCPU, whose programs are in ring 3.

use core::arch::x86_64::{__cpuid_count, _xgetbv};
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    CpuId, KVM_MP_STATE_RUNNABLE, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_device_attr, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_xcr, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use super::supervisor::{self, About, Blocks, KERNEL_CS, MASKED_FLAGS, Supervisor};
use super::{VmError, layout};
use crate::vcpu::translate::{self, Checked};

/// Of `<linux/kvm.h>`; the crate has it for other processors only.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_FMASK: u32 = 0xc000_0084;
/// Selectors as programs on Linux find them.
pub const USER_CS: u16 = 0x33;
/// That of its stack and data.
pub const USER_SS: u16 = 0x2b;
/// Addresses from here on are no program's, and not all are addresses.
const PROGRAMS_END: u64 = 1 << 47;
/// The mark in CR2 that no page fault leaves: it is not canonical.
const NO_FAULT: u64 = 0xbe47_0000_0000_0000;

/// What XSAVE saves in ring 3, and how long that is.
///
/// It is what the host has enabled: PVM leaves XCR0 as it is, and where CPUID cannot be made to fault programs see the host's
/// and use all of it, AVX-512 too. Where KVM does switch XCR0 less is saved.
#[derive(Debug, Clone, Copy)]
pub struct ExtendedState {
    /// The components, as bits of XCR0.
    pub components: u64,
    /// The bytes of an area for them.
    pub bytes: usize,
}

impl ExtendedState {
    /// That of this machine.
    pub fn get() -> Self {
        static STATE: OnceLock<ExtendedState> = OnceLock::new();
        *STATE.get_or_init(|| {
            // Leaf 0xd: EBX is the size for XCR0 as it is (Intel SDM volume 1, 13.2).
            let bytes = __cpuid_count(0xd, 0).ebx as usize;
            // SAFETY: KVM needs a processor with XSAVE to give guests AVX, and Linux enables it.
            let components = unsafe { enabled_components() };
            Self { components, bytes }
        })
    }
}

/// XCR0.
#[target_feature(enable = "xsave")]
fn enabled_components() -> u64 {
    // SAFETY: register 0 is there wherever XSAVE is.
    unsafe { _xgetbv(0) }
}

/// Why ring 3 was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// A system call: its number is in RAX, where to go on in RCX.
    Syscall,
    /// The vector registers are restored, at the end of a signal handler.
    Restored,
    /// A page fault at this address.
    PageFault(u64),
    /// Another fault, at RIP: the number of its exception, where the processor tells.
    Fault(Option<u8>),
    /// A host signal, or a call of [`Kick::kick`].
    Interrupted,
    /// The host could not provide a page: a window's file is shorter now, or memory is short.
    NoPage,
}

/// A vCPU.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    index: u64,
    special: kvm_sregs,
    dirty_special: bool,
    /// Ring 0, where there is one.
    supervisor: Option<Supervisor>,
}

/// What vCPUs of a VM have in common.
#[derive(Debug)]
pub struct Model {
    /// What `cpuid` says.
    pub cpuid: CpuId,
    /// The memory for all vCPUs' ring 0, on machines with hardware virtualization. There `syscall` enters it; on a PVM host it
    /// stays in ring 3.
    pub blocks: Option<Blocks>,
}

/// Makes a vCPU leave the guest before its next instruction.
#[derive(Debug, Clone, Copy)]
pub struct Kick(*const AtomicU8);

// SAFETY: the pointer is into the vCPU's shared page, which KVM and any thread may write at any time.
unsafe impl Send for Kick {}
// SAFETY: as above; the byte is only used atomically.
unsafe impl Sync for Kick {}

impl Kick {
    /// The next or current run ends with [`Exit::Interrupted`] (a current one once a host signal arrives).
    pub fn set(self, value: bool) {
        // SAFETY: vCPUs are never dropped while their VM is in use; they go back to a pool.
        unsafe { &*self.0 }.store(u8::from(value), Ordering::SeqCst);
    }
}

impl Vcpu {
    /// A vCPU with this number, which nobody else has, to be [prepared](Self::prepare).
    pub(super) fn new(vm: &VmFd, index: u64) -> Result<Self, VmError> {
        let fd = vm.create_vcpu(index).map_err(|error| VmError::Kvm("create a vCPU", error))?;
        Ok(Self { fd, index, special: kvm_sregs::default(), dirty_special: true, supervisor: None })
    }

    /// Makes it one that runs programs. Where that fails it may be tried again.
    pub(super) fn prepare(&mut self, model: &Model) -> Result<(), VmError> {
        let failed = |what| move |error| VmError::Kvm(what, error);
        let fd = &mut self.fd;
        fd.set_cpuid2(&model.cpuid).map_err(failed("set CPUID"))?;
        let mut special = fd.get_sregs().map_err(failed("read a vCPU's registers"))?;
        let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, dpl: 3, ..Default::default() };
        special.cs = kvm_segment { selector: USER_CS, type_: 11, l: 1, ..flat };
        special.ss = kvm_segment { selector: USER_SS, type_: 3, db: 1, ..flat };
        let null = kvm_segment { unusable: 1, ..Default::default() };
        (special.ds, special.es, special.fs, special.gs) = (null, null, null, null);
        // KVM's own begins at address 0 and is present: what a program had there would be gates to ring 0.
        special.ldt = null;
        let supervisor = if let Some(blocks) = &model.blocks {
            let supervisor = Supervisor::new(self.index, blocks, &mut special);
            Some(supervisor.ok_or(VmError::Kvm("make so many vCPUs", kvm_ioctls::Error::new(libc::ENOSPC)))?)
        } else {
            let (base, limit) = (layout::TASK, 104 + 32);
            special.tr = kvm_segment { base, limit, selector: 0x40, type_: 11, present: 1, ..Default::default() };
            special.idt.limit = 0;
            None
        };
        // PE, MP, ET, NE, WP, AM, PG; PAE, OSFXSR, OSXMMEXCPT, OSXSAVE; SCE, LME, LMA, NXE.
        (special.cr0, special.cr2, special.cr4, special.efer) = (0x8005_0033, NO_FAULT, 0x4_0620, 0xd01);
        fd.set_sregs(&special).map_err(failed("set a vCPU's registers"))?;
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: 7, ..Default::default() };
        fd.set_xcrs(&xcrs).map_err(failed("enable AVX"))?;
        let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let star = u64::from(USER_CS - 16) << 48 | u64::from(KERNEL_CS) << 32;
        let mask = if supervisor.is_some() { MASKED_FLAGS } else { 0 };
        let msrs = Msrs::from_entries(&[msr(MSR_STAR, star), msr(MSR_LSTAR, layout::STUB), msr(MSR_FMASK, mask)])
            .expect("three entries fit");
        fd.set_msrs(&msrs).map_err(failed("set a vCPU's system call entry"))?;
        // With a local APIC of KVM's own all but the first vCPU would wait to be started by it.
        fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).map_err(failed("start a vCPU"))?;
        fd.set_sync_valid_reg(SyncReg::Register);
        (self.special, self.supervisor) = (special, supervisor);
        Ok(())
    }

    /// Makes the time-stamp counter the host's. KVM begins a hardware guest's at 0, and cannot change that before Linux 5.16; on
    /// PVM it is the host's anyway.
    pub(super) fn count_as_the_host(&self) -> bool {
        let offset = 0_u64;
        let attribute = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: KVM_VCPU_TSC_OFFSET.into(),
            addr: (&raw const offset) as u64,
            ..Default::default()
        };
        // SAFETY: the call reads the attribute and, where it points, the offset.
        let set = || unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) };
        self.supervisor.is_none() || set() == 0
    }

    /// The handle that makes this vCPU leave the guest.
    pub fn kick(&mut self) -> Kick {
        let run: *mut kvm_bindings::kvm_run = self.fd.get_kvm_run();
        // SAFETY: the pointer is valid, only the field's address is taken.
        Kick(unsafe { &raw const (*run).immediate_exit }.cast())
    }

    /// The general registers. Changes reach the guest with the next run.
    pub fn registers(&mut self) -> &mut kvm_regs {
        self.fd.set_sync_dirty_reg(SyncReg::Register);
        &mut self.fd.sync_regs_mut().regs
    }

    /// The base of FS.
    pub fn fs_base(&self) -> u64 {
        self.special.fs.base
    }

    /// Sets the base of FS.
    pub fn set_fs_base(&mut self, base: u64) {
        self.special.fs.base = base;
        self.dirty_special = true;
    }

    /// The base of GS.
    pub fn gs_base(&self) -> u64 {
        self.special.gs.base
    }

    /// Sets the base of GS.
    pub fn set_gs_base(&mut self, base: u64) {
        self.special.gs.base = base;
        self.dirty_special = true;
    }

    /// Chooses the page tables by their root.
    pub fn set_root(&mut self, root: u64) {
        self.special.cr3 = root;
        self.dirty_special = true;
    }

    /// The floating-point and vector state, in the layout of XSAVE.
    pub fn extended(&self) -> Result<Box<kvm_xsave>, VmError> {
        self.fd.get_xsave().map(Box::new).map_err(|error| VmError::Kvm("read a vCPU's vector registers", error))
    }

    /// Sets the floating-point and vector state.
    pub fn set_extended(&mut self, state: &kvm_xsave) -> Result<(), VmError> {
        // SAFETY: no state beyond XCR0's is enabled, so the plain layout is as long as KVM reads.
        unsafe { self.fd.set_xsave(state) }.map_err(|error| VmError::Kvm("set a vCPU's vector registers", error))
    }

    /// The floating-point and vector state a program starts with.
    pub fn reset_extended(&mut self) -> Result<(), VmError> {
        let mut state = Box::new(kvm_xsave::default());
        // The x87 control word, and MXCSR at byte 24: all exceptions masked.
        state.region[0] = 0x37f;
        state.region[6] = 0x1f80;
        self.set_extended(&state)
    }

    /// Follows an address through the page tables at `root`, as KVM does too.
    pub fn translate(&mut self, memory: &GuestMemoryMmap, root: u64, address: u64) -> Result<Checked, String> {
        self.special.cr3 = root;
        self.dirty_special = true;
        self.fd.set_sregs(&self.special).map_err(|error| format!("cannot set a vCPU's registers: {error}"))?;
        translate::checked(&self.fd, memory, address).map_err(|error| error.to_string())
    }

    /// Runs in ring 3 until something happens.
    pub fn run(&mut self) -> Result<Exit, VmError> {
        if let Some(supervisor) = &self.supervisor {
            let registers = &mut self.fd.sync_regs_mut().regs;
            // The processor would refuse to go there, in one way or another.
            if registers.rip >= PROGRAMS_END {
                return Ok(Exit::Fault(Some(supervisor::GENERAL_PROTECTION)));
            }
            if supervisor.enter(registers) {
                self.fd.set_sync_dirty_reg(SyncReg::Register);
            }
        }
        if self.dirty_special {
            let mut special = self.special;
            if let Some(supervisor) = &self.supervisor {
                supervisor.segments(&mut special);
            }
            self.fd.sync_regs_mut().sregs = special;
            self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
            self.dirty_special = false;
        }
        let left = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, _)) => Left::Port(port),
            Ok(VcpuExit::Shutdown) => Left::Shutdown,
            Ok(VcpuExit::Intr) => Left::Stopped(Exit::Interrupted),
            // Ports, privileged state, instructions that KVM would emulate and cannot: nothing a program may do.
            Ok(_) => Left::Stopped(Exit::Fault(None)),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                Left::Stopped(Exit::Interrupted)
            }
            Err(error) if error.errno() == libc::EFAULT => Left::Stopped(Exit::NoPage),
            Err(error) => return Err(VmError::Kvm("run a vCPU", error)),
        };
        if self.supervisor.is_some() { self.left_by_ring_0(left) } else { self.left_from_ring_3(left) }
    }

    /// Why ring 3 was left, where there is no other.
    fn left_from_ring_3(&mut self, left: Left) -> Result<Exit, VmError> {
        match left {
            Left::Port(layout::PORT) => Ok(Exit::Syscall),
            Left::Port(layout::RESTORED) => Ok(Exit::Restored),
            Left::Port(_) => Ok(Exit::Fault(None)),
            Left::Shutdown => {
                let found = self.special()?;
                // The registers have to be loaded again to leave the shutdown state.
                self.fd.set_sync_dirty_reg(SyncReg::Register);
                if found.cr2 == NO_FAULT {
                    return Ok(Exit::Fault(None));
                }
                self.dirty_special = true;
                Ok(Exit::PageFault(found.cr2))
            }
            Left::Stopped(exit) => Ok(exit),
        }
    }

    /// Why ring 3 was left, by way of ring 0 for the most part.
    fn left_by_ring_0(&mut self, left: Left) -> Result<Exit, VmError> {
        let stopped = if let Left::Stopped(_) = left { Some(self.special()?) } else { None };
        let Some(supervisor) = &mut self.supervisor else { return self.left_from_ring_3(left) };
        let registers = &mut self.fd.sync_regs_mut().regs;
        let number = match left {
            Left::Port(layout::PORT) => {
                supervisor.called();
                return Ok(Exit::Syscall);
            }
            Left::Port(port) => {
                supervisor.faulted(registers);
                (port.wrapping_sub(layout::FAULTS)) as u8
            }
            Left::Stopped(exit) => match stopped.and_then(|special| supervisor.stopped(&special, registers)) {
                Some(About::Call) => return Ok(Exit::Syscall),
                Some(About::Fault(number)) => number,
                None => return Ok(exit),
            },
            // No exception comes that has no gate.
            Left::Shutdown => return Err(VmError::Kvm("keep a vCPU running", kvm_ioctls::Error::new(libc::EIO))),
        };
        match number {
            supervisor::PAGE_FAULT => Ok(Exit::PageFault(self.special()?.cr2)),
            supervisor::GENERAL_PROTECTION if registers.rip == layout::RESTORE_END => Ok(Exit::Restored),
            number => Ok(Exit::Fault(Some(number))),
        }
    }

    fn special(&self) -> Result<kvm_sregs, VmError> {
        self.fd.get_sregs().map_err(|error| VmError::Kvm("read a vCPU's registers", error))
    }
}

/// How `KVM_RUN` ended.
#[derive(Debug, Clone, Copy)]
enum Left {
    /// By a port.
    Port(u16),
    /// By a fault that had nowhere to go.
    Shutdown,
    /// Where it happened to be.
    Stopped(Exit),
}
