//! One entry of a paging structure, and the level it stands at (4.5, tables 4-14 to 4-20).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in a page, and in a paging structure.
pub const PAGE_SIZE: u64 = 4096;

/// Entries in a paging structure.
pub const ENTRIES: u64 = 512;

/// The level of a paging structure, counted from the last one a walk reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Page table: its entries map 4 KiB pages.
    Pt = 1,
    /// Page directory: its entries cover 2 MiB.
    Pd = 2,
    /// Page-directory-pointer table: its entries cover 1 GiB.
    Pdpt = 3,
    /// The root with 4-level paging: its entries cover 512 GiB.
    Pml4 = 4,
    /// The root with 5-level paging: its entries cover 256 TiB.
    Pml5 = 5,
}

impl Level {
    /// The level whose structures an entry of this level refers to; `None` below the page table.
    pub fn below(self) -> Option<Self> {
        match self {
            Self::Pt => None,
            Self::Pd => Some(Self::Pt),
            Self::Pdpt => Some(Self::Pd),
            Self::Pml4 => Some(Self::Pdpt),
            Self::Pml5 => Some(Self::Pml4),
        }
    }

    /// Bytes of address space that one entry covers.
    pub fn span(self) -> u64 {
        1 << (12 + 9 * (self as u32 - 1))
    }

    /// The entry that `address` selects in a structure of this level.
    pub fn index(self, address: u64) -> u64 {
        address / self.span() % ENTRIES
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pt => "PT",
            Self::Pd => "PD",
            Self::Pdpt => "PDPT",
            Self::Pml4 => "PML4",
            Self::Pml5 => "PML5",
        })
    }
}

/// The size of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PageSize {
    /// 4 KiB, mapped by an entry of a page table.
    #[serde(rename = "4KiB")]
    Small,
    /// 2 MiB, mapped by an entry of a page directory.
    #[serde(rename = "2MiB")]
    Large,
    /// 1 GiB, mapped by an entry of a page-directory-pointer table.
    #[serde(rename = "1GiB")]
    Huge,
}

impl PageSize {
    /// The level of the entries that map pages of this size.
    pub fn level(self) -> Level {
        match self {
            Self::Small => Level::Pt,
            Self::Large => Level::Pd,
            Self::Huge => Level::Pdpt,
        }
    }

    /// Size in bytes.
    pub fn bytes(self) -> u64 {
        self.level().span()
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Small => "4 KiB",
            Self::Large => "2 MiB",
            Self::Huge => "1 GiB",
        })
    }
}

/// What an entry refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A page of this size.
    Page(PageSize),
    /// A structure of this level.
    Table(Level),
}

/// An entry of a paging structure, as the processor reads it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Entry(pub u64);

impl Entry {
    /// The entry is valid (bit 0).
    pub const PRESENT: u64 = 1;
    /// Writes are allowed (bit 1).
    pub const WRITABLE: u64 = 1 << 1;
    /// User-mode accesses are allowed (bit 2).
    pub const USER: u64 = 1 << 2;
    /// Page-level write-through, an index into the PAT (bit 3).
    pub const WRITE_THROUGH: u64 = 1 << 3;
    /// Page-level cache disable, an index into the PAT (bit 4).
    pub const CACHE_DISABLE: u64 = 1 << 4;
    /// The processor has used the entry (bit 5).
    pub const ACCESSED: u64 = 1 << 5;
    /// The processor has written to the page the entry maps (bit 6).
    pub const DIRTY: u64 = 1 << 6;
    /// In a PD or PDPT: the entry maps a page rather than refers to a structure (bit 7).
    pub const LARGE: u64 = 1 << 7;
    /// The translation survives a load of CR3 where CR4.PGE is set (bit 8).
    pub const GLOBAL: u64 = 1 << 8;
    /// Instructions cannot be fetched (bit 63, where EFER.NXE is set).
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// Where the physical address stands (bits 51:12); what is above MAXPHYADDR is reserved.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    /// Whether every bit of `mask` is set.
    pub fn has(self, mask: u64) -> bool {
        self.0 & mask == mask
    }

    /// What the entry, if it is present at `level`, refers to.
    pub fn target(self, level: Level) -> Target {
        let large = self.has(Self::LARGE);
        match level {
            Level::Pt => Target::Page(PageSize::Small),
            Level::Pd if large => Target::Page(PageSize::Large),
            Level::Pd => Target::Table(Level::Pt),
            Level::Pdpt if large => Target::Page(PageSize::Huge),
            Level::Pdpt => Target::Table(Level::Pd),
            Level::Pml4 => Target::Table(Level::Pdpt),
            Level::Pml5 => Target::Table(Level::Pml4),
        }
    }

    /// Whether the entry, if it is present at `level`, maps a page.
    pub fn is_page(self, level: Level) -> bool {
        matches!(self.target(level), Target::Page(_))
    }

    /// The physical address of the structure the entry refers to.
    pub fn table(self) -> u64 {
        self.0 & Self::ADDRESS
    }

    /// The physical address of the page of `size` that the entry maps.
    pub fn page(self, size: PageSize) -> u64 {
        self.0 & Self::ADDRESS & !(size.bytes() - 1)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x} {self}", self.0)
    }
}

/// The flags as letters: `P`resent, `W`ritable, `U`ser, write-`T`hrough, `C`ache disable, `A`ccessed, `D`irty,
/// `L`arge, `G`lobal, `N`o-execute; a dash for what is clear.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LETTERS: [(u64, char); 10] = [
            (Entry::PRESENT, 'P'),
            (Entry::WRITABLE, 'W'),
            (Entry::USER, 'U'),
            (Entry::WRITE_THROUGH, 'T'),
            (Entry::CACHE_DISABLE, 'C'),
            (Entry::ACCESSED, 'A'),
            (Entry::DIRTY, 'D'),
            (Entry::LARGE, 'L'),
            (Entry::GLOBAL, 'G'),
            (Entry::NO_EXECUTE, 'N'),
        ];
        let text: String = LETTERS.iter().map(|&(bit, letter)| if self.has(bit) { letter } else { '-' }).collect();
        f.pad(&text)
    }
}
