//! The walker against tables written by hand, one property of the manual a test.

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use super::walk::End;
use super::{Access, Entry, ErrorCode, Fault, Level, Mode, Operation, PageSize, Privilege, Translation, access, walk};

const ALL: u64 = Entry::PRESENT | Entry::WRITABLE | Entry::USER;
/// PML4 at 0x1000, PDPT at 0x2000, PD at 0x3000, PT at 0x4000; the page at 0x5000 is mapped at `ADDRESS`.
const ADDRESS: u64 = 0xffff_8123_4567_8000;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000), (GuestAddress(0x10_0000), 0x1000)]).unwrap()
}

fn put(memory: &GuestMemoryMmap, table: u64, level: Level, entry: u64) {
    memory.write_obj(entry, GuestAddress(table + level.index(ADDRESS) * 8)).unwrap();
}

fn get(memory: &GuestMemoryMmap, table: u64, level: Level) -> Entry {
    Entry(memory.read_obj(GuestAddress(table + level.index(ADDRESS) * 8)).unwrap())
}

fn mapped(flags: u64) -> GuestMemoryMmap {
    let memory = memory();
    put(&memory, 0x1000, Level::Pml4, 0x2000 | ALL);
    put(&memory, 0x2000, Level::Pdpt, 0x3000 | ALL);
    put(&memory, 0x3000, Level::Pd, 0x4000 | ALL);
    put(&memory, 0x4000, Level::Pt, 0x5000 | flags);
    memory
}

fn code(memory: &GuestMemoryMmap, mode: &Mode, wanted: Access) -> Option<u32> {
    match access(memory, mode, ADDRESS + 0x123, wanted) {
        Ok(physical) => {
            assert_eq!(physical, 0x5123);
            None
        }
        Err(Fault::Page(ErrorCode(code))) => Some(code),
        Err(fault) => panic!("{fault}"),
    }
}

const READ: Operation = Operation::Read;
const WRITE: Operation = Operation::Write;
const FETCH: Operation = Operation::Fetch;

#[test]
fn user_and_writable_have_to_be_set_at_every_level() {
    let mode = Mode::long(0x1000);
    for (table, level, next) in [
        (0x1000, Level::Pml4, 0x2000),
        (0x2000, Level::Pdpt, 0x3000),
        (0x3000, Level::Pd, 0x4000),
        (0x4000, Level::Pt, 0x5000),
    ] {
        let memory = mapped(ALL);
        assert_eq!(code(&memory, &mode, Access::user(WRITE)), None);
        put(&memory, table, level, next | ALL & !Entry::USER);
        assert_eq!(code(&memory, &mode, Access::user(READ)), Some(0b00101), "{level}");
        assert_eq!(code(&memory, &mode, Access::supervisor(WRITE)), None, "{level}");
        put(&memory, table, level, next | ALL & !Entry::WRITABLE);
        assert_eq!(code(&memory, &mode, Access::user(WRITE)), Some(0b00111), "{level}");
        assert_eq!(code(&memory, &mode, Access::supervisor(WRITE)), Some(0b00011), "{level}");
        assert_eq!(code(&memory, &Mode { write_protect: false, ..mode }, Access::supervisor(WRITE)), None, "{level}");
        put(&memory, table, level, next | ALL | Entry::NO_EXECUTE);
        assert_eq!(code(&memory, &mode, Access::user(FETCH)), Some(0b10101), "{level}");
        assert_eq!(code(&memory, &mode, Access::user(READ)), None, "{level}");
        put(&memory, table, level, 0);
        assert_eq!(code(&memory, &mode, Access::user(FETCH)), Some(0b10100), "{level}");
    }
}

#[test]
fn smep_and_smap_keep_the_supervisor_off_user_pages() {
    let memory = mapped(ALL);
    let mode = Mode { smep: true, smap: true, ..Mode::long(0x1000) };
    assert_eq!(code(&memory, &mode, Access::supervisor(FETCH)), Some(0b10001));
    assert_eq!(code(&memory, &mode, Access::supervisor(READ)), Some(0b00001));
    let with_ac = Access { operation: WRITE, privilege: Privilege::Supervisor { alignment_check: true } };
    assert_eq!(code(&memory, &mode, with_ac), None);
    let memory = mapped(ALL & !Entry::USER);
    assert_eq!(code(&memory, &mode, Access::supervisor(FETCH)), None);
}

#[test]
fn reserved_bits_are_found_where_they_are() {
    let mode = Mode { physical_bits: 40, ..Mode::long(0x1000) };
    let expect = |memory: &GuestMemoryMmap, mode: &Mode| {
        assert_eq!(code(memory, mode, Access::user(READ)), Some(0b01101));
        assert_eq!(code(memory, mode, Access::supervisor(WRITE)), Some(0b01011));
    };
    expect(&mapped(ALL | 1 << 40), &mode);
    let without_nx = Mode { no_execute: false, ..mode };
    expect(&mapped(ALL | Entry::NO_EXECUTE), &without_nx);
    assert_eq!(code(&mapped(ALL), &without_nx, Access::user(FETCH)), None, "no NX, no fetch bit");
    let memory = mapped(ALL);
    put(&memory, 0x1000, Level::Pml4, 0x2000 | ALL | Entry::LARGE);
    expect(&memory, &mode);
    let memory = mapped(ALL);
    put(&memory, 0x3000, Level::Pd, 0x4000 | ALL | Entry::LARGE);
    expect(&memory, &mode);
    let memory = mapped(ALL);
    put(&memory, 0x2000, Level::Pdpt, ALL | Entry::LARGE);
    expect(&memory, &Mode { huge_pages: false, ..mode });
}

#[test]
fn flags_are_set_by_accesses_that_succeed_and_by_no_other() {
    let mode = Mode::long(0x1000);
    let memory = mapped(ALL & !Entry::WRITABLE);
    assert!(code(&memory, &mode, Access::user(WRITE)).is_some());
    assert!(!get(&memory, 0x1000, Level::Pml4).has(Entry::ACCESSED));
    assert!(code(&memory, &mode, Access::user(READ)).is_none());
    for (table, level) in [(0x1000, Level::Pml4), (0x2000, Level::Pdpt), (0x3000, Level::Pd), (0x4000, Level::Pt)] {
        assert!(get(&memory, table, level).has(Entry::ACCESSED));
        assert!(!get(&memory, table, level).has(Entry::DIRTY));
    }
    let memory = mapped(ALL);
    assert!(code(&memory, &mode, Access::user(WRITE)).is_none());
    assert!(get(&memory, 0x4000, Level::Pt).has(Entry::DIRTY | Entry::ACCESSED));
    assert!(!get(&memory, 0x3000, Level::Pd).has(Entry::DIRTY));
}

#[test]
fn large_pages_and_five_levels() {
    let memory = memory();
    let mode = Mode { five_level: true, ..Mode::long(0x7000) };
    put(&memory, 0x7000, Level::Pml5, 0x1000 | ALL);
    put(&memory, 0x1000, Level::Pml4, 0x2000 | ALL);
    put(&memory, 0x2000, Level::Pdpt, 0x4000_0000 | ALL | Entry::LARGE);
    let found = walk(&memory, &mode, ADDRESS);
    assert_eq!(found.physical(), Some(0x4000_0000 | ADDRESS & 0x3fff_ffff));
    assert!(matches!(found.end, End::Page(page) if page.size == PageSize::Huge));
    put(&memory, 0x2000, Level::Pdpt, 0x3000 | ALL);
    // Bit 12 of an entry that maps a large page belongs to the PAT.
    put(&memory, 0x3000, Level::Pd, 0x20_1000 | ALL | Entry::LARGE);
    assert_eq!(walk(&memory, &mode, ADDRESS).physical(), Some(0x20_0000 | ADDRESS & 0x1f_ffff));
}

#[test]
fn addresses_that_are_not_canonical_and_tables_that_are_not_there() {
    let memory = mapped(ALL);
    let mode = Mode::long(0x1000);
    let read = Access::user(READ);
    assert_eq!(access(&memory, &mode, 1 << 47, read), Err(Fault::NonCanonical));
    let five = Mode { five_level: true, ..mode };
    assert_ne!(access(&memory, &five, 1 << 47, read), Err(Fault::NonCanonical));
    assert_eq!(access(&memory, &five, 1 << 56, read), Err(Fault::NonCanonical));
    put(&memory, 0x2000, Level::Pdpt, 0xdead_0000 | ALL);
    let address = 0xdead_0000 + Level::Pd.index(ADDRESS) * 8;
    assert_eq!(access(&memory, &mode, ADDRESS, read), Err(Fault::OutsideMemory { level: Level::Pd, address }));
}

#[test]
fn a_translation_prints_every_level_and_survives_json() {
    let memory = mapped(ALL | Entry::NO_EXECUTE);
    let translation = Translation::of(&memory, &Mode::long(0x1000), ADDRESS + 8);
    let host = vm_memory::GuestMemoryBackend::get_host_address(&memory, GuestAddress(0x5008)).unwrap() as u64;
    assert_eq!(translation.host_virtual, Some(host));
    let text = translation.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "guest-virtual   0xffff812345678008");
    assert_eq!(lines[1], "LEVEL  INDEX  ENTRY AT            VALUE               FLAGS");
    assert_eq!(lines[2], "PML4     258  0x0000000000001810  0x0000000000002007  PWU-------");
    assert_eq!(lines[5], "PT       120  0x00000000000043c0  0x8000000000005007  PWU------N");
    assert_eq!(lines[6], "page            0x0000000000005000  4 KiB, user rw-, supervisor rw-");
    assert_eq!(lines[7], "guest-physical  0x0000000000005008");
    assert!(lines[8].starts_with("memory slot     0: 0x0 to 0x10000 at host 0x"), "{}", lines[8]);
    let json = serde_json::to_string(&translation).unwrap();
    assert_eq!(serde_json::from_str::<Translation>(&json).unwrap(), translation);
    put(&memory, 0x4000, Level::Pt, 0x20_0000 | ALL);
    let outside = Translation::of(&memory, &Mode::long(0x1000), ADDRESS);
    assert_eq!((outside.guest_physical, outside.host_virtual), (Some(0x20_0000), None));
}
