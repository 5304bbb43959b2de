//! A machine at work: its threads and its event loop.

use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryMmap;

use super::confine::confine;
use super::control::{Control, Stop};
use super::control_socket;
use super::error::{Attempt, Error};
use super::events::EventLoop;
use super::{Machine, Report};
use crate::devices::mmio::MmioTransport;
use crate::vcpu::exits::Exits;
use crate::vcpu::thread::{VcpuThread, install_kick_handler};

/// A started machine.
pub struct Running {
    threads: Vec<VcpuThread>,
    control: Arc<Control>,
    events: EventLoop,
    control_socket: Option<UnixListener>,
    // Dropped last: the VM's slots point into the memory.
    _vm: VmFd,
    memory: GuestMemoryMmap,
}

impl Machine {
    /// Confines this thread, and those that follow, to what a machine at work needs, and starts the vCPUs.
    pub fn start(self) -> Result<Running, Error> {
        install_kick_handler().attempt("installing the handler of the kick signal")?;
        let Self { vm, memory, vcpus, devices, control, control_socket } = self;
        let events = EventLoop::new(control.clone(), devices)?;
        confine()?;
        let mut running = Running { threads: Vec::new(), control, events, control_socket, _vm: vm, memory };
        for (number, vcpu) in (0..).zip(vcpus) {
            match VcpuThread::spawn(vcpu, number, running.control.clone()) {
                Ok(thread) => running.threads.push(thread),
                Err(error) => {
                    running.control.stop(Stop::Asked);
                    running.end();
                    return Err(error).attempt("starting a vCPU's thread");
                }
            }
        }
        Ok(running)
    }
}

impl Running {
    /// The exits of all vCPUs so far.
    pub fn exits(&self) -> Exits {
        Exits::sum(self.threads.iter().map(VcpuThread::counts))
    }

    /// The vCPUs, in the order of their numbers.
    pub fn vcpus(&self) -> &[VcpuThread] {
        &self.threads
    }

    /// The virtio devices, for what only one kind can do: a stream into the guest, a balloon's size.
    pub fn devices(&self) -> &[Arc<Mutex<MmioTransport>>] {
        self.events.devices()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// By which the machine is told to stop.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Serves the devices, and whoever comes to the control socket, until the machine stops; what there is to say of it.
    pub fn wait(mut self) -> Result<Report, Error> {
        let served = thread::scope(|scope| {
            let served = match &self.control_socket {
                // A thread of its own: no question about the machine keeps the guest's devices waiting.
                Some(listener) => thread::Builder::new()
                    .name("control".to_owned())
                    .stack_size(control_socket::STACK)
                    .spawn_scoped(scope, || control_socket::serve(listener, self.control.event(), |it| self.answer(it)))
                    .attempt("starting the control socket's thread")
                    .and_then(|_| self.events.run()),
                None => self.events.run(),
            };
            // Without its event loop a machine is of no use: whatever the reason, it ends here.
            self.control.stop(Stop::Asked);
            served
        });
        // What ended the machine is counted after it has done so.
        let exits = self.end();
        served?;
        Ok(Report { stop: self.control.stopped().cloned().unwrap_or(Stop::Asked), exits })
    }

    /// Ends the vCPUs; their exits.
    fn end(&mut self) -> Exits {
        let ended: Vec<_> = self.threads.drain(..).filter_map(VcpuThread::join).collect();
        Exits::sum(ended.iter().map(|vcpu| &**vcpu.counts()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.control.stop(Stop::Asked);
        self.end();
    }
}
