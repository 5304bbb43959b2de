use std::collections::BTreeMap;

use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{AddressSpace, EditError, FramePool, Rights};
use crate::paging::walk::End;
use crate::paging::{Access, Level, Mode, Operation, PageSize, access, walk};

const RW: Rights = Rights { user: true, write: true, execute: false };
const R: Rights = Rights { user: true, write: false, execute: false };

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 12)]).unwrap()
}

#[test]
fn boot_tables_use_the_largest_pages_that_fit() {
    let (memory, mut frames) = (memory(), FramePool::new(0x1000, 64 << 12));
    let mut space = AddressSpace::new(&memory, &mut frames, false, true).unwrap();
    let length = (1 << 30) + (2 << 20) + 0x3000;
    space.map_range(&memory, &mut frames, (0, 0, length), PageSize::Huge, Rights::SUPERVISOR).unwrap();
    let mode = Mode::long(space.root());
    for (address, size) in
        [(0, PageSize::Huge), (1 << 30, PageSize::Large), ((1 << 30) + (2 << 20) + 0x2000, PageSize::Small)]
    {
        let walk = walk(&memory, &mode, address + 0x10);
        assert_eq!(walk.physical(), Some(address + 0x10));
        assert!(matches!(walk.end, End::Page(page) if page.size == size && page.executable && !page.user));
    }
    assert_eq!(walk(&memory, &mode, length).physical(), None);
    assert_eq!(space.structures(), 4);
}

#[test]
fn what_cannot_be_mapped_is_refused_and_changes_nothing() {
    let (memory, mut frames) = (memory(), FramePool::new(0x1000, 6 << 12));
    let mut space = AddressSpace::new(&memory, &mut frames, false, false).unwrap();
    let mut map = |at, size| space.map(&memory, &mut frames, at, size, RW).map(|_| ());
    assert!(matches!(map((0x1001, 0), PageSize::Small), Err(EditError::Address { .. })));
    assert!(matches!(map((0x1000, 0), PageSize::Large), Err(EditError::Address { .. })));
    assert!(matches!(map((1 << 47, 0), PageSize::Small), Err(EditError::Address { .. })));
    assert_eq!(map((0x1000, 0x2000), PageSize::Small), Ok(()));
    assert_eq!(map((0, 0), PageSize::Large), Err(EditError::Occupied(0)));
    assert_eq!(map((0xffff_8000_0000_0000, 0), PageSize::Small), Err(EditError::NoFrame(0xffff_8000_0000_0000)));
    let mut outside = FramePool::new(1 << 30, 2 << 30);
    assert!(matches!(AddressSpace::new(&memory, &mut outside, false, false), Err(EditError::OutsideMemory(_))));
}

#[test]
fn edits_say_when_they_take_something_away() {
    let (memory, mut frames) = (memory(), FramePool::new(0x1000, 64 << 12));
    let mut space = AddressSpace::new(&memory, &mut frames, false, true).unwrap();
    let given = space.map(&memory, &mut frames, (0x5000, 0x7000), PageSize::Small, R).unwrap();
    assert!(!given.takes_away());
    assert!(!space.protect(&memory, 0x5fff, RW).unwrap().takes_away());
    assert!(space.protect(&memory, 0x5000, R).unwrap().takes_away());
    let executable = Rights { execute: true, ..R };
    assert!(!space.protect(&memory, 0x5000, executable).unwrap().takes_away());
    assert!(space.protect(&memory, 0x5000, R).unwrap().takes_away());
    assert!(space.map(&memory, &mut frames, (0x5000, 0x8000), PageSize::Small, R).unwrap().takes_away());
    assert!(space.unmap(&memory, 0x5000).unwrap().takes_away());
    assert!(space.unmap(&memory, 0x5000).is_none() && space.lookup(&memory, 0x5000).is_none());
}

#[test]
fn every_frame_comes_back() {
    let (memory, mut frames) = (memory(), FramePool::new(0x1000, 64 << 12));
    let before = frames.available();
    let mut space = AddressSpace::new(&memory, &mut frames, true, true).unwrap();
    for address in [0, 1 << 40, 0xff80_0000_0000_0000, 0xffff_ffff_ffff_f000] {
        let _ = space.map(&memory, &mut frames, (address, 0), PageSize::Small, RW).unwrap();
    }
    let pages = |space: &AddressSpace, start, end| -> Vec<u64> {
        space.pages(&memory, start, end).into_iter().map(|(address, _)| address).collect()
    };
    assert_eq!(pages(&space, 0, 0), [0, 1 << 40, 0xff80_0000_0000_0000, 0xffff_ffff_ffff_f000]);
    assert_eq!(pages(&space, 1, 1 << 40), [0]);
    assert_eq!(pages(&space, 0x1000, (1 << 40) + 1), [1 << 40]);
    assert_eq!(pages(&space, 1 << 41, 0), [0xff80_0000_0000_0000, 0xffff_ffff_ffff_f000]);
    assert_eq!(before - frames.available(), space.structures());
    space.give_up(&memory, &mut frames);
    assert_eq!(frames.available(), before);
}

#[derive(Debug, Clone)]
enum Edit {
    Map(u64, u64, Rights),
    Unmap(u64),
    Protect(u64, Rights),
}

fn edit() -> impl Strategy<Value = Edit> {
    let page = (0..6u64, 0..2u64, 0..2u64)
        .prop_map(|(low, middle, high)| (low << 12) | (middle * Level::Pd.span()) | (high * 0xffff_ff80_0000_0000));
    let rights = any::<[bool; 3]>().prop_map(|[user, write, execute]| Rights { user, write, execute });
    prop_oneof![
        (page.clone(), 0..40u64, rights.clone()).prop_map(|(page, to, rights)| Edit::Map(page, to << 12, rights)),
        page.clone().prop_map(Edit::Unmap),
        (page, rights).prop_map(|(page, rights)| Edit::Protect(page, rights)),
    ]
}

proptest! {
    /// The walker sees exactly what a plain map of pages says.
    #[test]
    fn the_walker_agrees(edits in proptest::collection::vec(edit(), 0..60)) {
        let (memory, mut frames) = (memory(), FramePool::new(0x1000, 64 << 12));
        let mut space = AddressSpace::new(&memory, &mut frames, false, false).unwrap();
        let mut model: BTreeMap<u64, (u64, Rights)> = BTreeMap::new();
        for edit in edits {
            match edit {
                Edit::Map(page, to, rights) => {
                    let _ = space.map(&memory, &mut frames, (page, to), PageSize::Small, rights).unwrap();
                    model.insert(page, (to, rights));
                }
                Edit::Unmap(page) => {
                    prop_assert_eq!(space.unmap(&memory, page).is_some(), model.remove(&page).is_some());
                }
                Edit::Protect(page, rights) => {
                    let known = model.get_mut(&page).map(|entry| entry.1 = rights);
                    prop_assert_eq!(space.protect(&memory, page, rights).is_some(), known.is_some());
                }
            }
        }
        let mode = Mode::long(space.root());
        for page in (0..6).flat_map(|low| [low << 12, low << 12 | Level::Pd.span(), low << 12 | 0xffff_ff80_0000_0000]) {
            let known = model.get(&page);
            let reach = |operation| access(&memory, &mode, page, Access::user(operation)).ok();
            prop_assert_eq!(reach(Operation::Read), known.filter(|(_, rights)| rights.user).map(|(to, _)| *to));
            let write = known.filter(|(_, rights)| rights.user && rights.write).map(|(to, _)| *to);
            prop_assert_eq!(reach(Operation::Write), write);
            let fetch = known.filter(|(_, rights)| rights.user && rights.execute).map(|(to, _)| *to);
            prop_assert_eq!(reach(Operation::Fetch), fetch);
        }
    }
}
