//! What a system call costs in a process guest, and what it cannot cost less than: leaving ring 3 and coming back.
//!
//! `null_call bare` runs a loop of `syscall` in a VM whose VMM does nothing but go on. `null_call calls` asks for its
//! parent's id, and is made to be the program of a process guest. Each prints the median of its rounds, in microseconds
//! for one call.

use std::fs::File;
use std::time::Instant;

use berth_vmm::host;
use berth_vmm::paging::PageSize;
use berth_vmm::paging::tables::Rights;
use berth_vmm::process::vm::Vm;
use berth_vmm::process::vm::vcpu::Exit;
use vm_memory::{Bytes as _, GuestAddress};

const ROUNDS: usize = 51;
const CALLS: u32 = 400;
/// Where the loop stands.
const CODE: u64 = 0x10_0000;

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("bare") => bare(),
        Some("calls") => {
            report(|| {
                // SAFETY: a call without arguments.
                unsafe { libc::syscall(libc::SYS_getppid) };
                Ok(())
            })
        }
        _ => anyhow::bail!("usage: null_call bare|calls"),
    }
}

fn bare() -> anyhow::Result<()> {
    let kvm = host::kvm(File::options().read(true).write(true).open("/dev/kvm")?.into())?;
    let vm = Vm::new(&kvm, 64 << 20)?;
    let mut space = vm.space()?;
    let frame = vm.allocate(1).ok_or_else(|| anyhow::anyhow!("no frame is left"))?;
    // syscall; jmp to it
    vm.arena.memory().write_slice(&[0x0f, 0x05, 0xeb, 0xfc], GuestAddress(frame))?;
    let rights = Rights { user: true, write: false, execute: true };
    let _ = space.map(vm.arena.memory(), &mut &vm, (CODE, frame), PageSize::Small, rights)?;
    let mut vcpu = vm.vcpu()?;
    vcpu.set_root(space.root());
    let registers = vcpu.registers();
    (registers.rip, registers.rflags) = (CODE, 2);
    report(|| {
        let exit = vcpu.run()?;
        anyhow::ensure!(exit == Exit::Syscall, "the loop has ended: {exit:?}");
        let registers = vcpu.registers();
        (registers.rip, registers.rflags) = (registers.rcx, registers.r11 | 2);
        Ok(())
    })
}

/// Times `call`.
fn report(mut call: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        for _ in 0..CALLS {
            call()?;
        }
        rounds.push(begin.elapsed() / CALLS);
    }
    rounds.sort_unstable();
    println!("{:.2}", rounds[ROUNDS / 2].as_secs_f64() * 1e6);
    Ok(())
}
