//! One vCPU, in ring 3 for good.

use core::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    CpuId, KVM_MP_STATE_RUNNABLE, Msrs, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_xcr,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd, VmFd};
use vm_memory::GuestMemoryMmap;

use super::{VmError, layout};
use crate::vcpu::translate::{self, Checked};

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_FMASK: u32 = 0xc000_0084;
/// Selectors as programs on Linux find them.
const USER_CS: u16 = 0x33;
const USER_SS: u16 = 0x2b;
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
    /// Another fault, at RIP.
    Fault,
    /// A host signal, or a call of [`Kick::kick`].
    Interrupted,
    /// The host could not provide a page: a window's file is shorter now, or memory is short.
    NoPage,
}

/// A vCPU.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    special: kvm_sregs,
    dirty_special: bool,
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
    pub(super) fn new(vm: &VmFd, index: u64, cpuid: &CpuId) -> Result<Self, VmError> {
        let failed = |what| move |error| VmError::Kvm(what, error);
        let mut fd = vm.create_vcpu(index).map_err(failed("create a vCPU"))?;
        fd.set_cpuid2(cpuid).map_err(failed("set CPUID"))?;
        let mut special = fd.get_sregs().map_err(failed("read a vCPU's registers"))?;
        let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, dpl: 3, ..Default::default() };
        special.cs = kvm_segment { selector: USER_CS, type_: 11, l: 1, ..flat };
        special.ss = kvm_segment { selector: USER_SS, type_: 3, db: 1, ..flat };
        let null = kvm_segment { unusable: 1, ..Default::default() };
        (special.ds, special.es, special.fs, special.gs) = (null, null, null, null);
        let limit = 104 + 32;
        special.tr =
            kvm_segment { base: layout::TASK, limit, selector: 0x40, type_: 11, present: 1, ..Default::default() };
        special.idt.limit = 0;
        // PE, MP, ET, NE, WP, AM, PG; PAE, OSFXSR, OSXMMEXCPT, OSXSAVE; SCE, LME, LMA, NXE.
        (special.cr0, special.cr2, special.cr4, special.efer) = (0x8005_0033, NO_FAULT, 0x4_0620, 0xd01);
        fd.set_sregs(&special).map_err(failed("set a vCPU's registers"))?;
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: 7, ..Default::default() };
        fd.set_xcrs(&xcrs).map_err(failed("enable AVX"))?;
        let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let star = u64::from(USER_CS - 16) << 48 | 0x10 << 32;
        let msrs = Msrs::from_entries(&[msr(MSR_STAR, star), msr(MSR_LSTAR, layout::STUB), msr(MSR_FMASK, 0)])
            .expect("three entries fit");
        fd.set_msrs(&msrs).map_err(failed("set a vCPU's system call entry"))?;
        // With a local APIC of KVM's own all but the first vCPU would wait to be started by it.
        fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).map_err(failed("start a vCPU"))?;
        fd.set_sync_valid_reg(SyncReg::Register);
        Ok(Self { fd, special, dirty_special: true })
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
        if self.dirty_special {
            self.fd.sync_regs_mut().sregs = self.special;
            self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
            self.dirty_special = false;
        }
        match self.fd.run() {
            Ok(VcpuExit::IoOut(layout::PORT, _)) => Ok(Exit::Syscall),
            Ok(VcpuExit::IoOut(layout::RESTORED, _)) => Ok(Exit::Restored),
            Ok(VcpuExit::Shutdown) => {
                let found = self.fd.get_sregs().map_err(|error| VmError::Kvm("read a vCPU's registers", error))?;
                // The registers have to be loaded again to leave the shutdown state.
                self.fd.set_sync_dirty_reg(SyncReg::Register);
                if found.cr2 == NO_FAULT {
                    return Ok(Exit::Fault);
                }
                self.dirty_special = true;
                Ok(Exit::PageFault(found.cr2))
            }
            // Ports, privileged state, instructions that KVM would emulate and cannot: nothing a program may do.
            Ok(VcpuExit::Intr) => Ok(Exit::Interrupted),
            Ok(_) => Ok(Exit::Fault),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => Ok(Exit::Interrupted),
            Err(error) if error.errno() == libc::EFAULT => Ok(Exit::NoPage),
            Err(error) => Err(VmError::Kvm("run a vCPU", error)),
        }
    }
}
