//! One vCPU: its registers, its exits, its thread.

pub mod cpuid;
pub mod exits;
pub mod msrs;
pub mod registers;
pub mod state;
pub mod thread;
pub mod translate;

use std::sync::Arc;

use kvm_ioctls::{VcpuExit, VcpuFd};

use self::exits::{Counts, Reason};
use crate::devices::bus::Bus;
use crate::machine::control::{Control, Stop};

/// The ports and the memory behind which devices sit.
#[derive(Default)]
pub struct Buses {
    /// Port I/O.
    pub ports: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
}

/// One vCPU, on whichever thread runs it.
pub struct Vcpu {
    /// KVM's handle.
    pub fd: VcpuFd,
    buses: Arc<Buses>,
    control: Arc<Control>,
    counts: Arc<Counts>,
}

impl Vcpu {
    /// A vCPU whose accesses go to `buses` and whose end is told to `control`.
    pub fn new(fd: VcpuFd, buses: Arc<Buses>, control: Arc<Control>) -> Self {
        Self { fd, buses, control, counts: Arc::default() }
    }

    /// Its exits so far, counted by reason.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Lets the guest run until it needs something of the VMM, and serves that. Returns at once if the vCPU is kicked.
    pub fn step(&mut self) {
        let run = &raw const *self.fd.get_kvm_run();
        // SAFETY: read after an exit for a port, when this part of the page says which it was; the page is mapped for as long as
        // the vCPU is there.
        let width = || usize::from(unsafe { (*run).__bindgen_anon_1.io.size }.max(1));
        let reason = match self.fd.run() {
            // A string instruction brings many accesses of one port at once.
            Ok(VcpuExit::IoOut(port, data)) => {
                for access in data.chunks(width()) {
                    self.buses.ports.write(u64::from(port), access);
                }
                Reason::PortWrite
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                for access in data.chunks_mut(width()) {
                    self.buses.ports.read(u64::from(port), access);
                }
                Reason::PortRead
            }
            Ok(exit) => serve(exit, &self.buses, &self.control),
            Err(error) if error.errno() == libc::EINTR => Reason::Kick,
            // A vCPU that waits to be started by another; KVM_RUN says so when it is woken for nothing.
            Err(error) if error.errno() == libc::EAGAIN => Reason::Kick,
            Err(error) => {
                self.control.stop(Stop::Failed(format!("running a vCPU: {error}")));
                Reason::Failed
            }
        };
        self.counts.add(reason);
    }
}

/// Does what the guest stopped for, port accesses apart.
fn serve(exit: VcpuExit, buses: &Buses, control: &Control) -> Reason {
    match exit {
        VcpuExit::MmioRead(address, data) => {
            buses.mmio.read(address, data);
            Reason::MmioRead
        }
        VcpuExit::MmioWrite(address, data) => {
            buses.mmio.write(address, data);
            Reason::MmioWrite
        }
        VcpuExit::X86Rdmsr(exit) => {
            *exit.error = 1;
            Reason::MsrRead
        }
        VcpuExit::X86Wrmsr(exit) => {
            *exit.error = 1;
            Reason::MsrWrite
        }
        VcpuExit::Hlt => Reason::Halt,
        VcpuExit::Shutdown => {
            control.stop(Stop::TripleFault);
            Reason::Shutdown
        }
        VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN, _) => {
            control.stop(Stop::PowerOff);
            Reason::Shutdown
        }
        VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_RESET, _) => {
            control.stop(Stop::Reset);
            Reason::Shutdown
        }
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => Reason::Kick,
        VcpuExit::InternalError => {
            control.stop(Stop::Failed("KVM cannot emulate an instruction of the guest (internal error)".to_owned()));
            Reason::Failed
        }
        VcpuExit::FailEntry(reason, cpu) => {
            control.stop(Stop::Failed(format!("the processor refused to enter the guest: {reason:#x} on CPU {cpu}")));
            Reason::Failed
        }
        other => {
            control.stop(Stop::Failed(format!("an exit without meaning here: {other:?}")));
            Reason::Failed
        }
    }
}
