//! The walker and the table editor against KVM's own answer: a guest without a kernel whose page tables the editor
//! wrote makes every kind of access for real, from ring 3 and ring 0. Its interrupt table is empty, so that a fault ends
//! in a shutdown exit with CR2 and RIP as the fault left them.
//!
//! Prints the back end it ran on (`cargo test -- --nocapture`). Without `/dev/kvm` there is nothing to compare with.

use std::path::Path;

use berth_vmm::paging::tables::{AddressSpace, FramePool, Rights};
use berth_vmm::paging::{Access, Entry, Fault, Level, Mode, Operation, PageSize, Privilege, access, walk};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

const MEMORY: u64 = 8 << 20;
/// Guest-physical and, mapped for ring 3, guest-virtual address of the code; the task segment follows it.
const CODE: u64 = 0x1000;
const TASK: u64 = 0x2000;
/// The page all small test mappings lead to.
const DATA: u64 = 0x3000;
/// Guest-physical start of the 2 MiB test page.
const LARGE: u64 = 4 << 20;
/// Where test mappings start, and how far apart they are: 512 GiB, so that each has tables of its own.
const BASE: u64 = 0x0100_0000_0000;
const APART: u64 = 1 << 39;
const PORT: u8 = 0x10;

/// `mov (%rdi),%al; out %al,$PORT`
const READ: [u8; 4] = [0x8a, 0x07, 0xe6, PORT];
/// `mov %al,(%rdi); out %al,$PORT`
const WRITE: [u8; 4] = [0x88, 0x07, 0xe6, PORT];
/// `jmp *%rdi`, to a page that holds `out %al,$PORT`
const JUMP: [u8; 2] = [0xff, 0xe7];
const OUT: [u8; 2] = [0xe6, PORT];

const RIGHTS: [Rights; 8] = {
    let mut all = [Rights { user: false, write: false, execute: false }; 8];
    let mut at = 0;
    while at < 8 {
        all[at] = Rights { user: at & 1 != 0, write: at & 2 != 0, execute: at & 4 != 0 };
        at += 1;
    }
    all
};

/// What KVM runs on, as the modules say.
fn back_end() -> String {
    let loaded: Vec<&str> = ["kvm_pvm", "kvm_intel", "kvm_amd"]
        .into_iter()
        .filter(|name| Path::new("/sys/module").join(name).exists())
        .collect();
    if loaded.is_empty() { "unknown (no kvm_intel, kvm_amd or kvm_pvm module)".into() } else { loaded.join(", ") }
}

struct Guest {
    memory: GuestMemoryMmap,
    mode: Mode,
    vcpu: VcpuFd,
    _vm: VmFd,
}

impl Guest {
    /// The guest and the addresses worth a try.
    fn new(kvm: &Kvm) -> (Self, Vec<u64>) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let mut frames = FramePool::new(0x10_0000, 0x20_0000);
        let mut space = AddressSpace::new(&memory, &mut frames, false, false).unwrap();
        let code = Rights { user: true, write: false, execute: true };
        let task = Rights { user: false, write: true, execute: false };
        for (page, rights) in [(CODE, code), (TASK, task)] {
            let _ = space.map(&memory, &mut frames, (page, page), PageSize::Small, rights).unwrap();
        }
        for (at, instructions) in [(0, &READ[..]), (0x10, &WRITE), (0x20, &JUMP)] {
            memory.write_slice(instructions, GuestAddress(CODE + at)).unwrap();
        }
        memory.write_slice(&OUT, GuestAddress(DATA)).unwrap();
        memory.write_slice(&OUT, GuestAddress(LARGE)).unwrap();
        // The task segment: an I/O permission bitmap of zeroes at 104, as the word at 102 says.
        memory.write_obj(104u16, GuestAddress(TASK + 102)).unwrap();

        let mut addresses = Vec::new();
        let mut next = || {
            let address = BASE + addresses.len() as u64 * APART;
            addresses.push(address);
            address
        };
        for rights in RIGHTS {
            let _ = space.map(&memory, &mut frames, (next(), DATA), PageSize::Small, rights).unwrap();
            let _ = space.map(&memory, &mut frames, (next(), LARGE), PageSize::Large, rights).unwrap();
        }
        let mode = Mode { physical_bits: 52, ..Mode::long(space.root()) };
        let everything = Rights { user: true, write: true, execute: true };
        for level in [Level::Pt, Level::Pd, Level::Pdpt, Level::Pml4] {
            for flag in [Entry::USER, Entry::WRITABLE, Entry::NO_EXECUTE, Entry::PRESENT] {
                let address = next();
                let _ = space.map(&memory, &mut frames, (address, DATA), PageSize::Small, everything).unwrap();
                let steps = walk(&memory, &mode, address).steps;
                let step = steps.iter().find(|step| step.level == level).unwrap();
                memory.write_obj(step.entry.0 ^ flag, GuestAddress(step.address)).unwrap();
            }
        }
        next();

        let vm = kvm.create_vm().unwrap();
        let host = memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        let slot = kvm_userspace_memory_region { memory_size: MEMORY, userspace_addr: host, ..Default::default() };
        // SAFETY: the memory is kept as long as the VM, in one struct, and is dropped after the vCPU has stopped.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        (Self { memory, mode, vcpu, _vm: vm }, addresses)
    }

    /// Makes one access at `address` and gives CR2 if it faults.
    fn try_access(&mut self, address: u64, access: Access) -> Result<(), u64> {
        let ring = if access.privilege == Privilege::User { 3 } else { 0 };
        let mut special = self.vcpu.get_sregs().unwrap();
        let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, dpl: ring, ..Default::default() };
        let selector = |index: u16| index << 3 | u16::from(ring);
        special.cs = kvm_segment { selector: selector(2), type_: 11, l: 1, ..flat };
        special.ss = kvm_segment { selector: selector(3), type_: 3, db: 1, ..flat };
        (special.ds, special.es) = (special.ss, special.ss);
        special.tr =
            kvm_segment { base: TASK, limit: 104 + 32, selector: 4 << 3, type_: 11, present: 1, ..Default::default() };
        special.idt.limit = 0;
        (special.cr0, special.cr2, special.cr3, special.cr4) = (0x8001_0033, 0, self.mode.root, 0x620);
        special.efer = 0xd00;
        self.vcpu.set_sregs(&special).unwrap();
        let entry = match access.operation {
            Operation::Read => 0,
            Operation::Write => 0x10,
            Operation::Fetch => 0x20,
        };
        // What a write writes is what stands there: later fetches find their instruction.
        let rax = u64::from(OUT[0]);
        let registers = kvm_regs { rip: CODE + entry, rdi: address, rax, rflags: 2, ..Default::default() };
        self.vcpu.set_regs(&registers).unwrap();
        match self.vcpu.run().unwrap() {
            VcpuExit::IoOut(port, _) if port == u16::from(PORT) => {
                // The instruction is complete only once the vCPU is entered again.
                self.vcpu.set_kvm_immediate_exit(1);
                assert_eq!(self.vcpu.run().map(|_| ()).unwrap_err().errno(), libc::EINTR);
                self.vcpu.set_kvm_immediate_exit(0);
                Ok(())
            }
            VcpuExit::Shutdown => Err(self.vcpu.get_sregs().unwrap().cr2),
            exit => panic!("{access:?} at {address:#x}: {exit:?}"),
        }
    }

    /// The flags of every entry on the way to `address`.
    fn entries(&self, address: u64) -> Vec<Entry> {
        walk(&self.memory, &self.mode, address).steps.iter().map(|step| step.entry).collect()
    }
}

#[test]
fn kvm_agrees_with_the_walker() {
    let Ok(kvm) = Kvm::new() else {
        println!("skipped: /dev/kvm cannot be opened");
        return;
    };
    let back_end = back_end();
    println!("back end: {back_end}");
    let (mut guest, addresses) = Guest::new(&kvm);
    let mut reached = [0, 0];
    for address in addresses {
        for privilege in [Privilege::User, Privilege::SUPERVISOR] {
            for operation in [Operation::Read, Operation::Write, Operation::Fetch] {
                let wanted = Access { operation, privilege };
                let context = format!("{wanted:?} at {address:#x}, entries {:?}", guest.entries(address));
                let (mode, before) = (guest.mode, guest.entries(address));
                let expected = walk(&guest.memory, &mode, address).check(&mode, wanted);
                let found = guest.try_access(address, wanted);
                match (expected, found) {
                    (Ok(_), Ok(())) => {
                        reached[0] += 1;
                        let by_kvm = guest.entries(address);
                        access(&guest.memory, &mode, address, wanted).unwrap();
                        assert_eq!(by_kvm, guest.entries(address), "accessed and dirty flags: {context}");
                    }
                    (Err(Fault::Page(_)), Err(cr2)) => {
                        reached[1] += 1;
                        // kvm_amd resets a vCPU that shuts down, CR2 included.
                        assert!(cr2 == address || back_end.contains("amd"), "CR2 {cr2:#x}: {context}");
                        // A processor may set accessed flags on the way to a fault, but never a dirty flag.
                        let dirty = |entries: &[Entry]| entries.iter().filter(|entry| entry.has(Entry::DIRTY)).count();
                        assert_eq!(dirty(&before), dirty(&guest.entries(address)), "{context}");
                    }
                    (expected, found) => panic!("expected {expected:?}, KVM says {found:?}: {context}"),
                }
            }
        }
        // KVM translates as a supervisor's read.
        let translation = guest.vcpu.translate_gva(address + 8).unwrap();
        let expected =
            walk(&guest.memory, &guest.mode, address + 8).check(&guest.mode, Access::supervisor(Operation::Read)).ok();
        let found = (translation.valid != 0).then_some(translation.physical_address);
        assert_eq!(found, expected, "KVM_TRANSLATE of {address:#x}");
    }
    println!("{} accesses that succeed, {} that fault", reached[0], reached[1]);
    assert!(reached.iter().all(|&count| count > 50));
}
