//! One vCPU with a freestanding guest on this host's KVM: what exits, and what is counted.

mod common;

use std::sync::{Arc, Mutex};

use berth_vmm::boot::{self, Images, Protocol, acpi};
use berth_vmm::devices::bus::BusDevice;
use berth_vmm::machine::control::{Control, Stop};
use berth_vmm::machine::memory;
use berth_vmm::vcpu::exits::Exits;
use berth_vmm::vcpu::state::VcpuState;
use berth_vmm::vcpu::thread::{VcpuThread, install_kick_handler};
use berth_vmm::vcpu::{Buses, Vcpu, cpuid, msrs, registers};
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::GuestMemoryMmap;

const MEMORY: u64 = 16 << 20;
const PORT: u16 = 0x80;

/// Remembers what was written, answers reads with 0x5a.
#[derive(Default)]
struct Recorder(Vec<u8>);

impl BusDevice for Recorder {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0x5a);
    }
    fn write(&mut self, _: u64, data: &[u8]) {
        self.0.extend(data);
    }
}

struct Guest {
    vcpu: Vcpu,
    control: Arc<Control>,
    recorder: Arc<Mutex<Recorder>>,
    vm: VmFd,
    _memory: GuestMemoryMmap,
}

/// A VM without interrupt controllers, so that `hlt` comes out, with `code` at its entry point.
fn guest(kvm: &Kvm, code: &[u8]) -> Guest {
    let memory = memory::map(MEMORY).unwrap();
    let kernel = common::file(&common::elf(code));
    let images = Images { kernel: &kernel, initramfs: None, protocol: Some(Protocol::Linux64), command_line: "" };
    let entry = boot::load(&memory, MEMORY, &images, &acpi::Platform::default()).unwrap();
    let vm = kvm.create_vm().unwrap();
    memory::register(&vm, &memory).unwrap();
    let recorder = Arc::new(Mutex::new(Recorder::default()));
    let mut buses = Buses::default();
    buses.ports.insert(u64::from(PORT), 1, recorder.clone()).unwrap();
    buses.mmio.insert(0xd000_0000, 0x1000, recorder.clone()).unwrap();
    let fd = vm.create_vcpu(0).unwrap();
    fd.set_cpuid2(&cpuid::template(&cpuid::supported(kvm).unwrap(), 0, 1)).unwrap();
    registers::enter(&fd, entry).unwrap();
    let control = Arc::new(Control::new().unwrap());
    Guest { vcpu: Vcpu::new(fd, Arc::new(buses), control.clone()), control, recorder, vm, _memory: memory }
}

/// Steps until the guest halts or stops; the exits it took.
fn run(guest: &mut Guest) -> Exits {
    loop {
        guest.vcpu.step();
        let exits = Exits::sum([&**guest.vcpu.counts()]);
        if exits.halts > 0 || guest.control.stopped().is_some() {
            return exits;
        }
    }
}

#[test]
fn the_first_instruction_is_the_kernels_entry_point() {
    let Some(kvm) = common::kvm() else { return };
    let mut guest = guest(&kvm, &common::HLT);
    assert_eq!(run(&mut guest), Exits { halts: 1, ..Exits::default() });
    assert_eq!(guest.vcpu.fd.get_regs().unwrap().rip, common::CODE + 0x1001);
}

#[test]
fn port_accesses_reach_their_device_and_are_counted() {
    let Some(kvm) = common::kvm() else { return };
    let code = [&common::out8(PORT, 1)[..], &common::out8(PORT, 2), &common::in8(PORT), &common::HLT].concat();
    let mut guest = guest(&kvm, &code);
    assert_eq!(run(&mut guest), Exits { port_writes: 2, port_reads: 1, halts: 1, ..Exits::default() });
    assert_eq!(guest.recorder.lock().unwrap().0, [1, 2]);
    assert_eq!(guest.vcpu.fd.get_regs().unwrap().rax & 0xff, 0x5a);
}

#[test]
fn a_filtered_register_leaves_the_guest_and_another_does_not() {
    let Some(kvm) = common::kvm() else { return };
    // The time stamp counter is open, the first performance counter is not: its #GP finds no handler.
    let code = [&common::rdmsr(0x10)[..], &common::out8(PORT, 7), &common::rdmsr(0xc1), &common::HLT].concat();
    let mut guest = guest(&kvm, &code);
    msrs::filter(&guest.vm, msrs::DENIED).unwrap();
    let exits = run(&mut guest);
    assert_eq!((exits.msr_reads, exits.port_writes, exits.halts), (1, 1, 0));
    assert_eq!(guest.control.stopped(), Some(&Stop::TripleFault));
}

#[test]
fn loading_cr3_is_done_by_the_processor_or_kvm_without_the_vmm() {
    let Some(kvm) = common::kvm() else { return };
    let code = [&common::RELOAD_CR3[..], &common::HLT].concat();
    let mut guest = guest(&kvm, &code);
    assert_eq!(run(&mut guest), Exits { halts: 1, ..Exits::default() });
    assert_eq!(guest.vcpu.fd.get_regs().unwrap().rax, boot::layout::PAGE_TABLES);
}

#[test]
fn a_vcpu_that_spins_is_reached_and_stopped() {
    let Some(kvm) = common::kvm() else { return };
    install_kick_handler().unwrap();
    let Guest { vcpu, control, vm: _vm, _memory, .. } = guest(&kvm, &common::SPIN);
    let thread = VcpuThread::spawn(vcpu, 0, control.clone()).unwrap();
    for _ in 0..10 {
        assert_eq!(thread.call(|vcpu| vcpu.fd.get_regs().unwrap().rip), Some(common::CODE + 0x1000));
    }
    assert!(Exits::sum([thread.counts()]).kicks > 0);
    control.stop(Stop::Asked);
    assert!(thread.join().is_some());
}

#[test]
fn a_saved_vcpu_goes_on_in_another_machine() {
    let Some(kvm) = common::kvm() else { return };
    let code = [&common::out8(PORT, 1)[..], &common::HLT, &common::out8(PORT, 2), &common::HLT].concat();
    let mut first = guest(&kvm, &code);
    run(&mut first);
    let state = VcpuState::save(&kvm, &first.vcpu.fd).unwrap();
    let text = serde_json::to_string(&state).unwrap();
    let state: VcpuState = serde_json::from_str(&text).unwrap();
    let mut second = guest(&kvm, &code);
    state.restore(&second.vcpu.fd).unwrap();
    run(&mut second);
    assert_eq!(first.recorder.lock().unwrap().0, [1]);
    assert_eq!(second.recorder.lock().unwrap().0, [2]);
}
