//! The event loop: the one thread that serves all devices.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::control::Control;
use super::error::{Attempt, Error};
use crate::devices::mmio::MmioTransport;

/// What a descriptor becoming readable means.
#[derive(Clone, Copy)]
enum Source {
    /// The machine is to stop.
    Stop,
    /// The guest rang a queue's doorbell.
    Doorbell { device: usize, queue: u16 },
    /// The host has something for a device.
    Device(usize),
}

/// Everything that is watched; a source's place in the list is its token.
pub struct EventLoop {
    epoll: Epoll,
    sources: Vec<Source>,
    devices: Vec<Arc<Mutex<MmioTransport>>>,
    control: Arc<Control>,
}

/// How many events are taken at once.
const BATCH: usize = 16;

impl EventLoop {
    /// Watches `devices` and `control`.
    pub fn new(control: Arc<Control>, devices: Vec<Arc<Mutex<MmioTransport>>>) -> Result<Self, Error> {
        let epoll = Epoll::new().attempt("creating an epoll instance")?;
        let mut events = Self { epoll, sources: Vec::new(), devices: Vec::new(), control };
        events.watch(events.control.event().as_raw_fd(), Source::Stop)?;
        for (device, transport) in devices.iter().enumerate() {
            let transport = lock(transport);
            for (queue, bell) in (0..).zip(transport.doorbells()) {
                events.watch(bell.as_raw_fd(), Source::Doorbell { device, queue })?;
            }
            if let Some(descriptor) = transport.poll_fd() {
                events.watch(descriptor.as_raw_fd(), Source::Device(device))?;
            }
        }
        events.devices = devices;
        Ok(events)
    }

    /// The devices, in the order of their places.
    pub fn devices(&self) -> &[Arc<Mutex<MmioTransport>>] {
        &self.devices
    }

    /// Serves until the machine is to stop.
    pub fn run(&self) -> Result<(), Error> {
        let mut events = [EpollEvent::default(); BATCH];
        while self.control.stopped().is_none() {
            let ready = match self.epoll.wait(-1, &mut events) {
                Ok(ready) => ready,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).attempt("waiting for events"),
            };
            for event in &events[..ready] {
                self.serve(self.sources[event.data() as usize]);
            }
        }
        Ok(())
    }

    fn serve(&self, source: Source) {
        match source {
            Source::Stop => {}
            Source::Doorbell { device, queue } => {
                let mut transport = lock(&self.devices[device]);
                // Emptied first: what the guest queues from here on rings again.
                let _ = transport.doorbells()[usize::from(queue)].read();
                transport.notify(queue);
            }
            Source::Device(device) => lock(&self.devices[device]).poll(),
        }
    }

    fn watch(&mut self, descriptor: RawFd, source: Source) -> Result<(), Error> {
        let event = EpollEvent::new(EventSet::IN, self.sources.len() as u64);
        self.epoll.ctl(ControlOperation::Add, descriptor, event).attempt("watching a descriptor")?;
        self.sources.push(source);
        Ok(())
    }
}

fn lock(transport: &Mutex<MmioTransport>) -> MutexGuard<'_, MmioTransport> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}
