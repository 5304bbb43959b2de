//! ACPI tables: how the guest learns of its vCPUs and devices.
//!
//! The machine is a "hardware-reduced" one (ACPI 6.5, 4.1): it has no power-management timer, no legacy interrupt
//! controller or timer, no CMOS clock, and the kernel probes for none of them. Virtio devices are found by the driver for
//! `LNRO0005`; distribution kernels do not take them from the command line.

use acpi_tables::Aml;
use acpi_tables::aml::{self, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, PackageBuilder, ResourceTemplate};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::{GenericAddress, Sdt};
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Error;
use super::layout::{ACPI, ACPI_END, IO_APIC, LOCAL_APIC, MMIO_SIZE};
use crate::devices::{power, serial};

const OEM: [u8; 6] = *b"BERTH ";
const OEM_TABLE: [u8; 8] = *b"BERTHVM ";
const OEM_REVISION: u32 = 1;

/// Offsets in the FADT, ACPI 6.5 table 5.9.
mod fadt {
    pub const LENGTH: u32 = 276;
    pub const REVISION: u8 = 6;
    pub const MINOR_REVISION: (usize, u8) = (131, 5);
    pub const BOOT_ARCHITECTURE: usize = 109;
    pub const FLAGS: usize = 112;
    pub const RESET_REGISTER: usize = 116;
    pub const RESET_VALUE: usize = 128;
    pub const X_DSDT: usize = 140;
    pub const SLEEP_CONTROL: usize = 244;
    pub const SLEEP_STATUS: usize = 256;
}
/// Boot architecture: no VGA, no message-signalled interrupts, no `PCIe` power states, no CMOS clock. A clear bit 1 says
/// that there is no keyboard controller to look for, though there is one that resets.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5;
/// WBINVD works, the power and sleep buttons are no fixed hardware, there is a reset register, hardware-reduced.
const FLAGS: u32 = 1 | 1 << 4 | 1 << 5 | 1 << 10 | 1 << 20;

/// One virtio-mmio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Its first address.
    pub address: u32,
    /// Its interrupt line.
    pub irq: u32,
}

/// The most vCPUs: their APIC numbers are bytes, and 0xff means all.
pub const VCPUS_MAX: usize = 254;

/// What the tables describe.
#[derive(Debug, Clone, Default)]
pub struct Platform {
    /// How many vCPUs; their APIC numbers are 0, 1, …
    pub vcpus: u8,
    /// Whether there is a serial port.
    pub serial: bool,
    /// The virtio devices.
    pub devices: Vec<MmioDevice>,
}

/// Writes all tables; the address of the root pointer.
pub fn write(memory: &GuestMemoryMmap, platform: &Platform) -> Result<u64, Error> {
    let rsdp_length = Rsdp::len() as u64;
    let mut area = Area { bytes: Vec::new(), start: ACPI + rsdp_length.next_multiple_of(16) };
    let dsdt = area.add(&dsdt(platform));
    let fadt = area.add(&fadt(dsdt));
    let madt = area.add(&madt(platform));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = area.add(&xsdt);
    let mut root = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root);
    if area.start + area.bytes.len() as u64 > ACPI_END {
        return Err(Error::Tables(area.bytes.len()));
    }
    for (bytes, address) in [(&root, ACPI), (&area.bytes, area.start)] {
        memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(|source| Error::Write { what: "the ACPI tables", source })?;
    }
    Ok(ACPI)
}

/// Tables one behind the other.
struct Area {
    bytes: Vec<u8>,
    start: u64,
}

impl Area {
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = self.start + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn fadt(dsdt: u64) -> Sdt {
    let mut table = Sdt::new(*b"FACP", fadt::LENGTH, fadt::REVISION, OEM, OEM_TABLE, OEM_REVISION);
    table.write_u16(fadt::BOOT_ARCHITECTURE, BOOT_ARCHITECTURE);
    table.write_u32(fadt::FLAGS, FLAGS);
    table.write(fadt::RESET_REGISTER, GenericAddress::io_port_address::<u8>(power::RESET_PORT));
    table.write_u8(fadt::RESET_VALUE, power::RESET_VALUE);
    table.write_u8(fadt::MINOR_REVISION.0, fadt::MINOR_REVISION.1);
    table.write_u64(fadt::X_DSDT, dsdt);
    table.write(fadt::SLEEP_CONTROL, GenericAddress::io_port_address::<u8>(power::SLEEP_CONTROL_PORT));
    table.write(fadt::SLEEP_STATUS, GenericAddress::io_port_address::<u8>(power::SLEEP_STATUS_PORT));
    table.update_checksum();
    table
}

fn madt(platform: &Platform) -> MADT {
    let mut table = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..platform.vcpus {
        table.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    table.add_structure(IoApic::new(0, IO_APIC, 0));
    table
}

fn dsdt(platform: &Platform) -> Sdt {
    let mut code = Vec::new();
    let sleep_type = power::POWER_OFF_TYPE;
    let mut s5 = PackageBuilder::new();
    s5.add_element(&sleep_type);
    s5.add_element(&aml::ZERO);
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut code);
    if platform.serial {
        let port = serial::PORT as u16;
        let resources = [
            &IO::new(port, port, 1, serial::PORTS as u8) as &dyn Aml,
            &Interrupt::new(true, true, false, false, serial::IRQ),
        ];
        device("_SB_.COM1", &EISAName::new("PNP0501"), 0, &resources, &mut code);
    }
    let panic = IO::new(power::PANIC_PORT, power::PANIC_PORT, 1, 1);
    device("_SB_.PEVT", &"QEMU0001", 0, &[&panic], &mut code);
    for (number, virtio) in platform.devices.iter().enumerate() {
        let resources = [
            &Memory32Fixed::new(true, virtio.address, MMIO_SIZE as u32) as &dyn Aml,
            &Interrupt::new(true, true, false, false, virtio.irq),
        ];
        device(&format!("_SB_.VR{number:02}"), &"LNRO0005", number as u8, &resources, &mut code);
    }
    let mut table = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&code);
    table
}

fn device(path: &str, hardware: &dyn Aml, number: u8, resources: &[&dyn Aml], code: &mut Vec<u8>) {
    let hardware = Name::new("_HID".into(), hardware);
    let number = Name::new("_UID".into(), &number);
    let resources = ResourceTemplate::new(resources.to_vec());
    let resources = Name::new("_CRS".into(), &resources);
    Device::new(path.into(), vec![&hardware, &number, &resources]).to_aml_bytes(code);
}
