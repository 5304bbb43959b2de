//! The ports by which a guest ends itself: ACPI's sleep and reset registers, the panic event, the keyboard controller.

use std::sync::Arc;

use super::bus::BusDevice;
use crate::machine::control::{Control, Stop};

/// ACPI's sleep control register (ACPI 6.5, 4.8.3.7), one byte.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// The sleep status register next to it.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI's reset register.
pub const RESET_PORT: u16 = 0x602;
/// What is written there to reset.
pub const RESET_VALUE: u8 = 1;
/// The sleep type that means "off", as `_S5` in the DSDT says.
pub const POWER_OFF_TYPE: u8 = 5;
/// Where Linux' driver `pvpanic` reports a panic (QEMU's `docs/specs/pvpanic.rst`).
pub const PANIC_PORT: u16 = 0x505;
/// Command port of the i8042 keyboard controller, by which a PC is reset.
pub const KEYBOARD_PORT: u16 = 0x64;

/// `SLP_EN` and the place of `SLP_TYP`.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE: u8 = 7;
/// Event bit of the panic device: the kernel panicked.
const PANICKED: u8 = 1;
/// "Pulse the reset line."
const KEYBOARD_RESET: u8 = 0xfe;

/// ACPI's three registers, from [`SLEEP_CONTROL_PORT`] on.
pub struct Sleep(pub Arc<Control>);

impl BusDevice for Sleep {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (SLEEP_CONTROL_PORT + offset as u16, data[0]) {
            (SLEEP_CONTROL_PORT, value)
                if value & SLEEP_ENABLE != 0 && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE == POWER_OFF_TYPE =>
            {
                self.0.stop(Stop::PowerOff);
            }
            (RESET_PORT, RESET_VALUE) => self.0.stop(Stop::Reset),
            _ => {}
        }
    }
}

/// The panic event port.
pub struct Panic(pub Arc<Control>);

impl BusDevice for Panic {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(PANICKED);
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        if data[0] & PANICKED != 0 {
            self.0.stop(Stop::Panic);
        }
    }
}

/// The keyboard controller's command port: no keyboard, but a reset line.
pub struct Keyboard(pub Arc<Control>);

impl BusDevice for Keyboard {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        if data[0] == KEYBOARD_RESET {
            self.0.stop(Stop::Reset);
        }
    }
}
