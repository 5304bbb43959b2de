//! What a machine at work says of itself, and does, when the control socket is asked.

use std::sync::PoisonError;

use vm_memory::GuestMemoryBackend as _;

use super::control_socket::{Answer, BalloonSize, Request, State};
use super::memory::PAGE;
use super::{MEMORY_MIN, Running};
use crate::devices::VirtioDevice as _;
use crate::devices::balloon::Balloon;
use crate::vcpu::translate::{self, Checked};

impl Running {
    /// Answers a request of the control socket.
    pub fn answer(&self, request: Request) -> Answer {
        let answer = match request {
            Request::Translate { vcpu, address } => self.translate(vcpu, address).map(|checked| {
                let text = checked.to_string();
                Answer::Translation { checked: Box::new(checked), text }
            }),
            Request::Balloon { bytes } => self.resize(bytes).map(|()| Answer::State(self.state())),
            Request::Exits => Ok(Answer::Exits(self.exits())),
            Request::State => Ok(Answer::State(self.state())),
        };
        answer.unwrap_or_else(Answer::Error)
    }

    fn translate(&self, vcpu: u8, address: u64) -> Result<Checked, String> {
        let all = self.vcpus();
        let Some(thread) = all.get(usize::from(vcpu)) else {
            return Err(format!("there is no vCPU {vcpu}: the microVM has {}, counted from 0", all.len()));
        };
        let memory = self.memory().clone();
        let answer = thread.call(move |vcpu| translate::checked(&vcpu.fd, &memory, address));
        answer.ok_or_else(|| format!("vCPU {vcpu} does not answer"))?.map_err(|error| error.to_string())
    }

    /// Bytes of memory the machine was made with.
    fn memory_size(&self) -> u64 {
        self.memory().iter().map(vm_memory::GuestMemoryRegion::len).sum()
    }

    fn resize(&self, bytes: u64) -> Result<(), String> {
        let size = self.memory_size();
        if !(MEMORY_MIN..=size).contains(&bytes) {
            return Err(format!("the guest cannot keep {bytes} bytes: it can keep {MEMORY_MIN} to {size}, its memory"));
        }
        let pages = (size - bytes) / PAGE;
        let done = self.with_balloon(|balloon| balloon.set_target(pages as u32));
        done.ok_or_else(|| "the microVM has no balloon".to_owned())
    }

    fn state(&self) -> State {
        let memory = self.memory_size();
        let rest = |pages: u32| memory.saturating_sub(u64::from(pages) * PAGE);
        let balloon = self.with_balloon(|balloon| {
            let (target, actual) = balloon.pages();
            BalloonSize { wanted: rest(target), kept: rest(actual), has_driver: balloon.activation().is_some() }
        });
        State { memory, vcpus: self.vcpus().len(), balloon }
    }

    fn with_balloon<T>(&self, act: impl FnOnce(&mut Balloon) -> T) -> Option<T> {
        for transport in self.devices() {
            let mut transport = transport.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(balloon) = transport.device_as::<Balloon>() {
                return Some(act(balloon));
            }
        }
        None
    }
}
