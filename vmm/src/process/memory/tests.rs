use std::sync::Arc;

use nix::errno::Errno;

use super::area::{Protection, Source};
use super::{Memory, Place};
use crate::host as kvm;
use crate::paging::entry::PAGE_SIZE;
use crate::process::vm::Vm;

const DATA: Protection = Protection { read: true, write: true, execute: false };
/// Pages on both sides of where another page table begins.
const HERE: u64 = (1 << 30) - PAGE_SIZE;
const THERE: u64 = (1 << 40) - PAGE_SIZE;

/// Memory with two pages at `HERE` that have been written, in a machine that has none left, and what it had left.
fn full() -> Option<(Arc<Vm>, Memory, Vec<u64>)> {
    let Ok(device) = kvm::open() else {
        eprintln!("NOT TESTED, needs /dev/kvm: what happens where memory is short");
        return None;
    };
    let vm = Arc::new(Vm::new(&kvm::kvm(device).unwrap(), 256 * PAGE_SIZE).unwrap());
    let mut memory = Memory::new(vm.clone()).unwrap();
    memory.mmap(Place::Fixed(HERE), 2 * PAGE_SIZE, DATA, Source::Anonymous, false).unwrap();
    write(&mut memory, HERE, 1);
    let left = std::iter::from_fn(|| vm.allocate(1)).collect();
    Some((vm, memory, left))
}

fn write(memory: &mut Memory, at: u64, value: u8) {
    memory.write(at, &[value; 2 * PAGE_SIZE as usize]).unwrap();
}

fn holds(memory: &mut Memory, at: u64, value: u8) -> bool {
    memory.bytes(at, 2 * PAGE_SIZE) == Ok(vec![value; 2 * PAGE_SIZE as usize])
}

#[test]
fn what_cannot_be_moved_stays() {
    let Some((vm, mut memory, mut left)) = full() else { return };
    let mut failures = 0;
    loop {
        match memory.mremap(HERE, 2 * PAGE_SIZE, 2 * PAGE_SIZE, true, Some(THERE)) {
            Ok(at) => break assert_eq!(at, THERE),
            Err(error) => assert_eq!(error, Errno::ENOMEM),
        }
        failures += 1;
        assert!(holds(&mut memory, HERE, 1), "after {failures}");
        assert_eq!(memory.areas().map(|(start, _)| start).collect::<Vec<_>>(), [HERE]);
        write(&mut memory, HERE, 1);
        // One more for tables.
        vm.release(vec![left.pop().unwrap()]);
    }
    // Three tables for the first page, as many for the second.
    assert_eq!(failures, 6);
    assert!(holds(&mut memory, THERE, 1));
    let used = vm.set_limit(0).unwrap_err();
    memory.munmap(THERE, 2 * PAGE_SIZE).unwrap();
    assert_eq!(vm.set_limit(0).unwrap_err(), used - 2 * PAGE_SIZE);
}

#[test]
fn a_fork_that_fails_takes_nothing() {
    let Some((vm, mut memory, mut left)) = full() else { return };
    let mut failures = 0;
    let mut child = loop {
        match memory.fork() {
            Ok(child) => break child,
            Err(error) => assert_eq!(error, Errno::ENOMEM),
        }
        failures += 1;
        for (_, mapping) in memory.space().pages(vm.arena.memory(), HERE, HERE + 2 * PAGE_SIZE) {
            assert!(vm.is_sole(mapping.physical), "after {failures}");
        }
        write(&mut memory, HERE, 1);
        // One more than before for tables: those of a child that is gone are kept.
        vm.release(left.split_off(left.len() - failures));
    };
    assert!(failures > 4);
    vm.release(left);
    write(&mut memory, HERE, 2);
    assert!(holds(&mut child, HERE, 1) && holds(&mut memory, HERE, 2));
}
