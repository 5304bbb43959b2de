//! Where things lie in guest-physical memory.
//!
//! ```text
//! 0x0000_0500  global descriptor table
//! 0x0000_6000  PVH start info, then module list and memory map
//! 0x0000_7000  zero page (struct boot_params)
//! 0x0000_9000  page tables of the 64-bit entry: PML4, PDPT, PD
//! 0x0002_0000  command line
//! 0x0009_fc00  end of low usable memory; ACPI tables from 0x000e_0000
//! 0x0010_0000  usable memory: the kernel where it asks to be, the initramfs at the end
//! 0xc000_0000  end of memory below 4 GiB; virtio-mmio devices from 0xd000_0000
//! 0xfec0_0000  I/O APIC, 0xfee0_0000 local APICs, KVM's own pages below 0xfffc_0000
//! 0x1_0000_0000  the rest of the memory
//! ```

/// The global descriptor table.
pub const GDT: u64 = 0x500;
/// PVH's `hvm_start_info`.
pub const START_INFO: u64 = 0x6000;
/// PVH's list of modules; there is one, the initramfs.
pub const MODULES: u64 = 0x6040;
/// PVH's memory map.
pub const MEMORY_MAP: u64 = 0x6100;
/// `struct boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// Three pages of page tables that map the first GiB to itself.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Room for it, its terminating zero included (`COMMAND_LINE_SIZE` of Linux on `x86_64`).
pub const COMMAND_LINE_SIZE: usize = 2048;
/// End of usable memory below 640 KiB.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// The ACPI tables, in the area where a BIOS would keep them.
pub const ACPI: u64 = 0xe_0000;
/// End of the room for them.
pub const ACPI_END: u64 = 0x10_0000;
/// Usable memory goes on here.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Memory ends here at the latest and goes on at [`HIGH_MEMORY_2`].
pub const GAP: u64 = 0xc000_0000;
/// First virtio-mmio device.
pub const MMIO: u64 = 0xd000_0000;
/// Room of one virtio-mmio device.
pub const MMIO_SIZE: u64 = 0x1000;
/// Where memory that does not fit below the gap goes on.
pub const HIGH_MEMORY_2: u64 = 0x1_0000_0000;
/// KVM's task state segment: three pages the guest does not see (Intel processors without unrestricted guest).
pub const KVM_TSS: u64 = 0xfffb_d000;
/// KVM's identity map page, likewise.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// The I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// First interrupt line of the virtio devices: those of a PC's own devices come before it.
pub const FIRST_IRQ: u32 = 5;
/// Last line of KVM's I/O APIC.
pub const LAST_IRQ: u32 = 23;

/// A stretch of guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Extent {
    /// One past the last address.
    pub fn end(self) -> u64 {
        self.start + self.length
    }
}

/// Where `memory` bytes of memory lie: from 0, with a gap below 4 GiB for devices.
pub fn extents(memory: u64) -> Vec<Extent> {
    let low = memory.min(GAP);
    let mut extents = vec![Extent { start: 0, length: low }];
    if memory > low {
        extents.push(Extent { start: HIGH_MEMORY_2, length: memory - low });
    }
    extents
}

/// What of it the guest's kernel may use: not the BIOS area, where the ACPI tables are.
pub fn usable(memory: u64) -> Vec<Extent> {
    let mut usable = vec![Extent { start: 0, length: LOW_MEMORY_END }];
    for extent in extents(memory) {
        let start = extent.start.max(HIGH_MEMORY);
        usable.push(Extent { start, length: extent.end() - start });
    }
    usable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_split_around_the_gap() {
        assert_eq!(extents(256 << 20), [Extent { start: 0, length: 256 << 20 }]);
        let split = extents(5 << 30);
        assert_eq!(split.iter().map(|extent| extent.length).sum::<u64>(), 5 << 30);
        assert_eq!(split[1].start, 4 << 30);
        assert_eq!(split[0].end(), GAP);
    }

    #[test]
    fn the_bios_area_is_not_usable() {
        for extent in usable(4 << 30) {
            assert!(extent.end() <= LOW_MEMORY_END || extent.start >= HIGH_MEMORY);
        }
    }
}
