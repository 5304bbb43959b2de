//! The property the model exists for: whatever the guest does, an access through the shadow ends as the walker says,
//! and leaves the guest's memory, accessed and dirty flags included, as the walker leaves it.

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

use super::{Reached, Shadow};
use crate::paging::tables::{AddressSpace, FramePool, Rights};
use crate::paging::{Access, Entry, Fault, Mode, Operation, PageSize, Privilege, access, walk};

/// Frames of the first slot; any may serve as table of any level and as data at the same time.
const FRAMES: u64 = 10;
/// A second slot, behind a hole.
const SECOND: u64 = 12 << 12;
/// Table indices that are used: few, so that walks meet.
const INDICES: [u64; 2] = [0, 511];

fn memory() -> GuestMemoryMmap {
    let ranges = [(GuestAddress(0), (FRAMES << 12) as usize), (GuestAddress(SECOND), 1 << 12)];
    GuestMemoryMmap::from_ranges(&ranges).unwrap()
}

#[derive(Debug, Clone)]
enum Step {
    Read(u64, Privilege),
    Write(u64, Privilege, u64),
    Fetch(u64, Privilege),
    /// The VMM writes and tells the shadow.
    HostWrite(u64, u64),
    ForgetBacking(u64),
    LoadMode(Mode),
    Invalidate(u64),
}

fn entry() -> impl Strategy<Value = u64> {
    let frame = prop_oneof![9 => 0..FRAMES, 1 => FRAMES..14];
    let flag = |bit: u64, odds: f64| proptest::bool::weighted(odds).prop_map(move |set| if set { bit } else { 0 });
    let flags = (
        flag(Entry::PRESENT, 0.95),
        flag(Entry::WRITABLE, 0.95),
        flag(Entry::USER, 0.95),
        flag(Entry::ACCESSED, 0.5),
        flag(Entry::DIRTY, 0.5),
        flag(Entry::NO_EXECUTE, 0.1),
        flag(1 << 50, 0.02),
    );
    (frame, flags, proptest::bool::weighted(0.1)).prop_map(|(frame, (p, w, u, a, d, n, r), large)| {
        // Large pages start at zero: any other frame would set reserved bits.
        let target = if large { Entry::LARGE } else { frame << 12 };
        target | p | w | u | a | d | n | r
    })
}

fn index() -> impl Strategy<Value = u64> {
    proptest::sample::select(&INDICES[..])
}

fn address() -> impl Strategy<Value = u64> {
    [index(), index(), index(), index(), index()].prop_map(virtual_address)
}

fn virtual_address([pml4, pdpt, pd, pt, word]: [u64; 5]) -> u64 {
    let high = if pml4 >= 256 { 0xffff << 48 } else { 0 };
    high | pml4 << 39 | pdpt << 30 | pd << 21 | pt << 12 | word << 3
}

fn privilege() -> impl Strategy<Value = Privilege> {
    prop_oneof![
        Just(Privilege::User),
        any::<bool>().prop_map(|alignment_check| Privilege::Supervisor { alignment_check })
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    let bits = (proptest::bool::weighted(0.8), proptest::bool::weighted(0.9), any::<bool>(), any::<bool>());
    (0..FRAMES, bits).prop_map(|(root, (write_protect, no_execute, smep, smap))| Mode {
        write_protect,
        no_execute,
        smep,
        smap,
        ..Mode::long(root << 12)
    })
}

fn physical() -> impl Strategy<Value = u64> {
    (0..FRAMES, index()).prop_map(|(frame, word)| frame << 12 | word << 3)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (address(), privilege()).prop_map(|(at, who)| Step::Read(at, who)),
        10 => (address(), privilege(), entry()).prop_map(|(at, who, value)| Step::Write(at, who, value)),
        2 => (address(), privilege()).prop_map(|(at, who)| Step::Fetch(at, who)),
        2 => (physical(), entry()).prop_map(|(at, value)| Step::HostWrite(at, value)),
        1 => (0..FRAMES).prop_map(|frame| Step::ForgetBacking(frame << 12)),
        1 => mode().prop_map(Step::LoadMode),
        1 => address().prop_map(Step::Invalidate),
    ]
}

/// The same guest twice: once behind a shadow, once with the walker as its processor.
struct Pair {
    shadowed: GuestMemoryMmap,
    plain: GuestMemoryMmap,
    shadow: Shadow,
    mode: Mode,
}

impl Pair {
    fn new(mode: Mode, tables: &[u64], pages: u64) -> Self {
        let (shadowed, plain) = (memory(), memory());
        for memory in [&shadowed, &plain] {
            for (at, entry) in tables.iter().enumerate() {
                let (frame, index) = (at as u64 / 2, INDICES[at % 2]);
                memory.write_obj(*entry, GuestAddress(frame << 12 | index << 3)).unwrap();
            }
        }
        Self { shadowed, plain, shadow: Shadow::new(mode, pages).unwrap(), mode }
    }

    /// What the walker says of an access.
    fn plain(&self, at: u64, operation: Operation, privilege: Privilege) -> Result<GuestAddress, Fault> {
        access(&self.plain, &self.mode, at, Access { operation, privilege }).map(GuestAddress)
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Read(at, who) => {
                let expected =
                    self.plain(at, Operation::Read, who).map(|at| self.plain.read_obj(at).unwrap_or(u64::MAX));
                prop_assert_eq!(self.shadow.read(&self.shadowed, at, who), expected);
            }
            Step::Write(at, who, value) => {
                let expected = self.plain(at, Operation::Write, who).map(|at| {
                    let _ = self.plain.write_obj(value, at);
                });
                prop_assert_eq!(self.shadow.write(&self.shadowed, at, who, value), expected);
            }
            Step::Fetch(at, privilege) => {
                let operation = Operation::Fetch;
                let expected = self.plain(at, operation, privilege);
                let reached = self.shadow.reach(&self.shadowed, at, Access { operation, privilege });
                match (expected, reached) {
                    (Err(fault), reached) => prop_assert_eq!(reached, Err(fault)),
                    (Ok(expected), Ok(Reached::Emulated(physical))) => prop_assert_eq!(physical, expected.0),
                    (Ok(expected), reached) => {
                        let host = self.shadowed.get_host_address(expected).unwrap();
                        prop_assert_eq!(reached, Ok(Reached::Host(host as u64)));
                    }
                }
            }
            Step::HostWrite(at, value) => {
                self.plain.write_obj(value, GuestAddress(at)).unwrap();
                self.shadowed.write_obj(value, GuestAddress(at)).unwrap();
                self.shadow.table_written(at);
            }
            Step::ForgetBacking(frame) => self.shadow.forget_backing(frame),
            Step::LoadMode(mode) => {
                self.mode = mode;
                self.shadow.load_mode(mode);
            }
            Step::Invalidate(at) => self.shadow.invalidate(at),
        }
        for frame in (0..FRAMES).map(|frame| GuestAddress(frame << 12)) {
            let (mut left, mut right) = ([0; 4096], [0; 4096]);
            self.shadowed.read_slice(&mut left, frame).unwrap();
            self.plain.read_slice(&mut right, frame).unwrap();
            prop_assert!(left == right, "frame {:#x} differs after {:?}", frame.0, step);
        }
        self.allows_no_more()
    }

    /// Whatever the processor can do through the shadow, the guest's tables allow, it leads to the same byte, and no
    /// flag is left to set.
    fn allows_no_more(&self) -> Result<(), TestCaseError> {
        for bits in 0..16u64 {
            let index = |bit: u64| if bits >> bit & 1 == 0 { 0 } else { 511 };
            let at = virtual_address([index(3), index(2), index(1), index(0), 0]);
            for operation in [Operation::Read, Operation::Write, Operation::Fetch] {
                for access in [Access::user(operation), Access::supervisor(operation)] {
                    let Some(host) = self.shadow.by_hardware(at, access) else { continue };
                    let walk = walk(&self.shadowed, &self.mode, at);
                    let physical = walk.check(&self.mode, access);
                    let expected = physical.map(|at| self.shadowed.get_host_address(GuestAddress(at)).unwrap() as u64);
                    prop_assert_eq!(expected, Ok(host), "{:?} {:#x}", access, at);
                    prop_assert!(walk.steps.iter().all(|step| step.entry.has(Entry::ACCESSED)));
                    let written = operation == Operation::Write;
                    prop_assert!(!written || walk.steps.last().unwrap().entry.has(Entry::DIRTY));
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
    #[test]
    fn the_shadow_is_the_walker(
        start in mode(),
        tables in proptest::collection::vec(entry(), 2 * FRAMES as usize),
        pages in prop_oneof![Just(8u64), Just(12), Just(64)],
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut pair = Pair::new(start, &tables, pages);
        for step in &steps {
            pair.step(step)?;
        }
    }
}

/// A guest with one page mapped at 0x5000, by tables of the editor.
fn one_page() -> (GuestMemoryMmap, AddressSpace, Shadow) {
    let (memory, mut frames) = (memory(), FramePool::new(0, FRAMES << 12));
    let mut space = AddressSpace::new(&memory, &mut frames, false, false).unwrap();
    let rights = Rights { user: true, write: true, execute: false };
    let _ = space.map(&memory, &mut frames, (0x5000, SECOND), PageSize::Small, rights).unwrap();
    let shadow = Shadow::new(Mode::long(space.root()), 16).unwrap();
    (memory, space, shadow)
}

#[test]
fn a_page_in_use_costs_nothing_and_its_first_write_a_fault() {
    let (memory, _, mut shadow) = one_page();
    for _ in 0..3 {
        shadow.read(&memory, 0x5000, Privilege::User).unwrap();
    }
    assert_eq!(shadow.counters().shadow_faults, 1);
    for value in 0..3 {
        shadow.write(&memory, 0x5008, Privilege::User, value).unwrap();
    }
    assert_eq!(shadow.counters().shadow_faults, 2, "the dirty flag has to be set once");
    assert_eq!(shadow.counters().emulated, 0);
}

#[test]
fn an_edit_of_the_vmm_shows_only_once_the_backing_is_forgotten() {
    let (memory, mut space, mut shadow) = one_page();
    shadow.write(&memory, 0x5000, Privilege::User, 1).unwrap();
    assert!(space.unmap(&memory, 0x5000).unwrap().takes_away());
    shadow.load_mode(Mode::long(space.root()));
    assert_eq!(shadow.read(&memory, 0x5000, Privilege::User), Ok(1), "nobody told the shadow");
    shadow.forget_backing(SECOND);
    assert!(matches!(shadow.read(&memory, 0x5000, Privilege::User), Err(Fault::Page(_))));
}
