//! A whole machine, from its configuration to its end.
//!
//! ```text
//! MachineConfig ──► Machine::new      VM, memory, interrupt controller, devices, vCPUs; kernel loaded
//!                       │
//!                   Machine::start    a thread for each vCPU
//!                       │
//!                   Running::wait     events of devices, until the guest or the host ends it ──► Stop
//! ```

mod answers;
pub mod config;
mod confine;
pub mod control;
pub mod control_socket;
pub mod descriptor;
mod error;
mod events;
pub mod memory;
mod running;
pub mod slots;
mod virtio;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

use berth_runtime::span::{self, Phase};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::config::{MachineConfig, Report};
use self::control::Control;
pub use self::error::{Attempt, Error};
pub use self::running::Running;
use crate::boot::layout::{KVM_IDENTITY_MAP, KVM_TSS};
use crate::boot::{self, Entry, Images, acpi, command_line};
use crate::devices::mmio::MmioTransport;
use crate::devices::vsock::Vsock;
use crate::devices::{power, serial};
use crate::host;
use crate::vcpu::{Buses, Vcpu, cpuid, msrs, registers};

/// Below this no kernel gets as far as saying so.
pub const MEMORY_MIN: u64 = 16 << 20;

/// A machine that is ready to start.
pub struct Machine {
    vm: VmFd,
    memory: GuestMemoryMmap,
    vcpus: Vec<Vcpu>,
    devices: Vec<Arc<Mutex<MmioTransport>>>,
    control: Arc<Control>,
    control_socket: Option<UnixListener>,
}

impl Machine {
    /// Makes the machine `config` describes and loads its kernel. The descriptors are used up.
    pub fn new(config: &MachineConfig) -> Result<Self, Error> {
        let kvm = host::kvm(descriptor::take(config.kvm, "/dev/kvm")?)?;
        check(config, kvm.get_max_vcpus().min(acpi::VCPUS_MAX), host::memory())?;
        let kernel = File::from(descriptor::take(config.kernel, "the kernel")?);
        let initramfs = config.initramfs.map(|fd| descriptor::take(fd, "the initramfs")).transpose()?.map(File::from);
        let console = config.console.map(|fd| descriptor::take(fd, "the console")).transpose()?;
        let control_socket = config.control.map(|fd| descriptor::take(fd, "the control socket")).transpose()?;

        let devices = virtio::devices(config)?;
        let places = slots::places(devices.len())?;
        let platform = acpi::Platform { vcpus: config.vcpus, serial: console.is_some(), devices: places };
        span::mark(Phase::Memory);
        let memory = memory::map(config.memory)?;
        let images = Images {
            kernel: &kernel,
            initramfs: initramfs.as_ref(),
            protocol: config.protocol,
            command_line: &command_line::compose(console.is_some(), &config.command_line),
        };
        let entry = boot::load(&memory, config.memory, &images, &platform)?;

        span::mark(Phase::VmCreate);
        let vm = create_vm(&kvm)?;
        span::mark(Phase::Memory);
        memory::register(&vm, &memory)?;
        span::mark(Phase::VmCreate);
        let control = Arc::new(Control::new().attempt("creating an eventfd")?);
        let mut buses = buses(&vm, &control, console)?;
        let devices = devices
            .into_iter()
            .zip(&platform.devices)
            .map(|(device, place)| slots::attach(&vm, &mut buses.mmio, &memory, device, *place))
            .collect::<Result<_, _>>()?;
        let vcpus = vcpus(&kvm, &vm, config.vcpus, entry, &Arc::new(buses), &control)?;
        Ok(Self { vm, memory, vcpus, devices, control, control_socket: control_socket.map(UnixListener::from) })
    }

    /// The vCPUs, to be stepped by hand instead of started.
    pub fn vcpus_mut(&mut self) -> &mut [Vcpu] {
        &mut self.vcpus
    }

    /// By which the machine is told to stop.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// The stream of the guest's first connection to the host's vsock `port`. `None`: the machine has no vsock device.
    pub fn listen(&self, port: u32) -> Result<Option<UnixStream>, Error> {
        for device in &self.devices {
            let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(vsock) = device.device_as::<Vsock>() {
                return vsock.listen(port).attempt("making a stream for the guest").map(Some);
            }
        }
        Ok(None)
    }
}

/// All vCPUs: the first at `entry`, the others waiting for the guest to start them.
fn vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    count: u8,
    entry: Entry,
    buses: &Arc<Buses>,
    control: &Arc<Control>,
) -> Result<Vec<Vcpu>, Error> {
    let supported = cpuid::supported(kvm).attempt("asking KVM for the CPUID leaves it supports")?;
    (0..count)
        .map(|id| {
            let fd = vm.create_vcpu(u64::from(id)).attempt("creating a vCPU")?;
            fd.set_cpuid2(&cpuid::template(&supported, id, count)).attempt("setting a vCPU's CPUID leaves")?;
            msrs::initialise(&fd).attempt("setting a vCPU's MSRs")?;
            if id == 0 {
                registers::enter(&fd, entry).attempt("setting the first vCPU's registers")?;
            }
            Ok(Vcpu::new(fd, buses.clone(), control.clone()))
        })
        .collect()
}

fn check(config: &MachineConfig, vcpus_max: usize, memory_max: u64) -> Result<(), Error> {
    if config.vcpus == 0 || usize::from(config.vcpus) > vcpus_max {
        return Err(Error::Vcpus { asked: config.vcpus, max: vcpus_max });
    }
    if !(MEMORY_MIN..=memory_max).contains(&config.memory) || !config.memory.is_multiple_of(memory::PAGE) {
        return Err(Error::MemorySize { asked: config.memory, min: MEMORY_MIN, max: memory_max });
    }
    Ok(())
}

/// A VM with the interrupt controllers in the kernel.
fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    let vm = kvm.create_vm().attempt("creating the VM")?;
    vm.set_identity_map_address(KVM_IDENTITY_MAP).attempt("placing KVM's identity map")?;
    vm.set_tss_address(KVM_TSS as usize).attempt("placing KVM's task state segment")?;
    vm.create_irq_chip().attempt("creating the interrupt controllers")?;
    msrs::filter(&vm, msrs::DENIED).attempt("filtering MSRs")?;
    Ok(vm)
}

/// The devices that are no virtio ones.
fn buses(vm: &VmFd, control: &Arc<Control>, console: Option<OwnedFd>) -> Result<Buses, Error> {
    let mut buses = Buses::default();
    let ports = &mut buses.ports;
    ports.insert(u64::from(power::SLEEP_CONTROL_PORT), 3, Arc::new(Mutex::new(power::Sleep(control.clone()))))?;
    ports.insert(u64::from(power::PANIC_PORT), 1, Arc::new(Mutex::new(power::Panic(control.clone()))))?;
    ports.insert(u64::from(power::KEYBOARD_PORT), 1, Arc::new(Mutex::new(power::Keyboard(control.clone()))))?;
    if let Some(console) = console {
        let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).attempt("creating an eventfd")?;
        vm.register_irqfd(&line, serial::IRQ).attempt("connecting the serial port's interrupt")?;
        let port = serial::Serial::new(line, serial::Sink::File(File::from(console)));
        ports.insert(serial::PORT, serial::PORTS, Arc::new(Mutex::new(port)))?;
    }
    Ok(buses)
}
