//! The thread a vCPU runs on, and how others get its attention.
//!
//! A request is a closure put into the thread's queue. To have it run, the vCPU is kicked out of the guest: `immediate_exit`
//! in its `kvm_run` page makes a `KVM_RUN` that has not begun return at once, a signal ends one that has.

use std::collections::VecDeque;
use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Vcpu;
use super::exits::Counts;
use crate::machine::control::Control;

/// How long [`VcpuThread::call`] waits: a vCPU leaves the guest within microseconds, but its thread may be writing the guest's
/// console to somebody who does not read.
const PATIENCE: Duration = Duration::from_secs(5);
/// The thread's own work needs little; guests choose no recursion.
const STACK: usize = 64 << 10;

type Request = Box<dyn FnOnce(&mut Vcpu) + Send>;

/// Where `immediate_exit` of a vCPU's `kvm_run` page is.
#[derive(Clone, Copy)]
struct ImmediateExit(*mut u8);

// SAFETY: the byte is only ever accessed atomically through this type, and by the kernel.
unsafe impl Send for ImmediateExit {}
// SAFETY: likewise.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    fn set(self, value: u8) {
        // SAFETY: the page is mapped for as long as the `Vcpu` is, which its thread owns; `VcpuThread` uses the pointer
        // before the thread is joined only.
        unsafe { AtomicU8::from_ptr(self.0) }.store(value, Ordering::Release);
    }
}

/// A running vCPU.
pub struct VcpuThread {
    thread: JoinHandle<Vcpu>,
    requests: Arc<Mutex<VecDeque<Request>>>,
    immediate_exit: ImmediateExit,
    counts: Arc<Counts>,
}

/// The signal that kicks. It has a handler that does nothing, so that it interrupts `KVM_RUN` and no more.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Installs the kick's handler, once for the process.
pub fn install_kick_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    vmm_sys_util::signal::register_signal_handler(kick_signal(), nothing)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

impl VcpuThread {
    /// Starts `vcpu` on a thread of its own, which stops when `control` says so.
    pub fn spawn(mut vcpu: Vcpu, number: u8, control: Arc<Control>) -> io::Result<Self> {
        let requests = Arc::new(Mutex::new(VecDeque::<Request>::new()));
        let immediate_exit = ImmediateExit(&raw mut vcpu.fd.get_kvm_run().immediate_exit);
        let counts = vcpu.counts().clone();
        let queue = requests.clone();
        let thread = std::thread::Builder::new().name(format!("vcpu{number}")).stack_size(STACK).spawn(move || {
            let immediate_exit = immediate_exit;
            while control.stopped().is_none() {
                vcpu.step();
                immediate_exit.set(0);
                // A kick that came before this line finds its request here; a later one sets the byte again.
                while let Some(request) = lock(&queue).pop_front() {
                    request(&mut vcpu);
                }
            }
            vcpu
        })?;
        Ok(Self { thread, requests, immediate_exit, counts })
    }

    /// Its exits so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Gets the vCPU out of the guest.
    pub fn kick(&self) {
        self.immediate_exit.set(1);
        // SAFETY: the thread has not been joined: that takes `self`.
        unsafe { libc::pthread_kill(self.thread.as_pthread_t(), kick_signal()) };
    }

    /// Runs `work` on the vCPU's thread while its guest code stands still; `None` if the vCPU has ended, or does
    /// not come to it within [`PATIENCE`].
    pub fn call<T: Send + 'static>(&self, work: impl FnOnce(&mut Vcpu) -> T + Send + 'static) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        lock(&self.requests).push_back(Box::new(move |vcpu| {
            // Nobody waits any more if the caller was ended; that is its affair.
            let _ = sender.send(work(vcpu));
        }));
        self.kick();
        let deadline = Instant::now() + PATIENCE;
        // A thread that ends drops its queue only with the last owner, so look whether it still runs.
        loop {
            match receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(value) => return Some(value),
                Err(mpsc::RecvTimeoutError::Timeout) if !self.thread.is_finished() && Instant::now() < deadline => {}
                Err(_) => return receiver.try_recv().ok(),
            }
        }
    }

    /// Waits for the vCPU's end, which [`Control::stop`] must have asked for.
    pub fn join(self) -> Option<Vcpu> {
        self.kick();
        self.thread.join().ok()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
