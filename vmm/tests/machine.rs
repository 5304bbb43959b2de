//! `berth-vmm run` with freestanding guests on this host's KVM: how machines end, and what is said of bad input.

mod common;

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::process::Output;

use berth_vmm::boot::{Protocol, layout};
use berth_vmm::machine::control::Stop;
use berth_vmm::machine::{MachineConfig, Report};
use serde_json::json;

/// A kernel, what is done to the configuration, and what the error must say.
type Case<'a> = (&'a [u8], fn(&mut MachineConfig), &'a str);

struct Ended {
    output: Output,
    report: Option<Report>,
}

impl Ended {
    fn error(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn stop(&self) -> &Stop {
        &self.report.as_ref().unwrap_or_else(|| panic!("no report: {}", self.error())).stop
    }
}

fn config(kernel: &File, kvm: RawFd) -> MachineConfig {
    let text =
        format!(r#"{{"kvm":{kvm},"kernel":{},"memory":{},"vcpus":1,"console":1}}"#, kernel.as_raw_fd(), 32 << 20);
    serde_json::from_str(&text).unwrap()
}

/// Runs a machine with the kernel `kernel`, which gets the descriptors `more` too; `None` without KVM.
fn run(kernel: &[u8], more: &[RawFd], change: impl FnOnce(&mut MachineConfig)) -> Option<Ended> {
    common::kvm()?;
    let kvm = File::from(berth_vmm::host::open().unwrap());
    let (kernel, mut report) = (common::file(kernel), tempfile::tempfile().unwrap());
    let mut config = config(&kernel, kvm.as_raw_fd());
    config.report = Some(report.as_raw_fd());
    change(&mut config);
    let given = [&[kvm.as_raw_fd(), kernel.as_raw_fd(), report.as_raw_fd()], more].concat();
    let output = common::vmm(&config, &given).output().unwrap();
    let mut text = String::new();
    report.rewind().unwrap();
    report.read_to_string(&mut text).unwrap();
    Some(Ended { output, report: serde_json::from_str(&text).ok() })
}

fn out(writes: &[(u16, u8)]) -> Vec<u8> {
    let code: Vec<u8> = writes.iter().flat_map(|(port, value)| common::out8(*port, *value)).collect();
    common::elf(&[&code[..], &common::SPIN].concat())
}

#[test]
fn a_guest_prints_and_turns_itself_off() {
    let Some(ended) = run(&out(&[(0x3f8, b'h'), (0x3f8, b'i'), (0x600, 0x34)]), &[], |_| ()) else { return };
    assert_eq!(ended.stop(), &Stop::PowerOff);
    assert_eq!(ended.output.status.code(), Some(0));
    assert_eq!(ended.output.stdout, b"hi");
    assert_eq!(ended.report.unwrap().exits.port_writes, 3);
}

#[test]
fn other_ends_are_told_apart() {
    for (port, value, stop) in [(0x602, 1, Stop::Reset), (0x64, 0xfe, Stop::Reset), (0x505, 1, Stop::Panic)] {
        let Some(ended) = run(&out(&[(port, value)]), &[], |_| ()) else { return };
        assert_eq!(ended.stop(), &stop, "port {port:#x}");
        assert_eq!(ended.output.status.code(), Some(125));
    }
    let Some(ended) = run(&common::elf(&common::UD2), &[], |_| ()) else { return };
    assert_eq!(ended.stop(), &Stop::TripleFault);
}

#[test]
fn unbacked_memory_and_ports_answer_like_an_empty_bus() {
    // mov rbx, 0x3fff0000; mov al, [rbx]; mov [rbx], al: beyond the guest's memory, within its page tables.
    let wild = [0x48, 0xc7, 0xc3, 0x00, 0x00, 0xff, 0x3f, 0x8a, 0x03, 0x88, 0x03];
    let code = [&wild[..], &common::in8(0x1234), &common::out8(0x600, 0x34), &common::SPIN].concat();
    let Some(ended) = run(&common::elf(&code), &[], |_| ()) else { return };
    assert_eq!(ended.stop(), &Stop::PowerOff);
    let exits = ended.report.unwrap().exits;
    assert_eq!((exits.mmio_reads, exits.mmio_writes, exits.port_reads), (1, 1, 1));
}

#[test]
fn a_console_that_nobody_reads_any_more_does_not_hold_the_guest() {
    let (reader, writer) = std::io::pipe().unwrap();
    // Four times what a pipe holds.
    let code = [common::out_many(0x3f8, 1 << 18), common::out8(0x600, 0x34), common::SPIN.to_vec()].concat();
    let kernel = common::elf(&[&[0xbe, 0, 0, 0, 0][..], &code].concat());
    let taken = std::thread::spawn(move || {
        let mut start = [0; 1000];
        (&reader).read_exact(&mut start).unwrap();
        start.len()
    });
    let given = writer.as_raw_fd();
    let Some(ended) = run(&kernel, &[given], |config| config.console = Some(given)) else { return };
    assert_eq!((ended.stop(), taken.join().unwrap()), (&Stop::PowerOff, 1000));
}

/// A guest that sets its devices up with rings that hold anything, and rings their doorbells.
fn wild(seed: u64) -> Vec<u8> {
    const DEVICES: u32 = 6;
    const RINGS: u32 = 0x80_0000;
    let mut state = seed;
    // Numerical Recipes' generator: the same bytes each time.
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let mut code = Vec::new();
    for word in 0..600 {
        let value = if word % 3 == 0 { RINGS + next() % 0x8000 } else { next() % 64 };
        code.extend(common::store32(RINGS + word * 4, value));
    }
    for _ in 0..40 {
        let window = layout::MMIO as u32 + next() % DEVICES * layout::MMIO_SIZE as u32;
        let rings = [0x80, 0x90, 0xa0].map(|register| (register, RINGS + next() % 0x40 * 16));
        let status = [0, 1, 3].map(|status| (0x70, status));
        let size = [(0x24, 1), (0x20, 1), (0x70, 11), (0x30, next() % 4), (0x38, 1 << (next() % 9))];
        let start = [(0x44, 1), (0x70, 15)];
        let bells: Vec<_> = (0..6).map(|_| (0x50, next() % 5)).collect();
        let anything: Vec<_> = (0..4).map(|_| (next() & 0x1fc, next())).collect();
        for (register, value) in [&status[..], &size, &rings, &start, &bells, &anything].concat() {
            code.extend(common::store32(window + register, value));
        }
    }
    [code, common::out8(0x600, 0x34), common::SPIN.to_vec()].concat()
}

#[test]
fn wild_rings_and_doorbells_end_at_the_devices() {
    for seed in 1..9 {
        let disk = common::file(&vec![0; 1 << 16]);
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("vsock")).unwrap();
        let shown = tempfile::tempfile().unwrap();
        let (file, socket, terminal) = (disk.as_raw_fd(), listener.as_raw_fd(), shown.as_raw_fd());
        let ended = run(&common::elf(&wild(seed)), &[file, socket, terminal], |config| {
            config.protocol = Some(Protocol::Pvh);
            let devices = json!({
                "disks": [{ "file": file, "serial": "disk" }], "balloon": {},
                "vsock": { "cid": 3, "listener": socket }, "terminal": { "output": terminal },
            });
            let mut all = serde_json::to_value(&*config).unwrap();
            all.as_object_mut().unwrap().extend(devices.as_object().unwrap().clone());
            *config = serde_json::from_value(all).unwrap();
        });
        let Some(ended) = ended else { return };
        assert_eq!(ended.stop(), &Stop::PowerOff, "seed {seed}: {}", ended.error());
        assert_eq!(disk.metadata().unwrap().len(), 1 << 16);
    }
}

#[test]
fn the_pvh_protocol_enters_where_the_note_says() {
    // In 32-bit code the operand size prefix means the same.
    let Some(ended) = run(&out(&[(0x600, 0x34)]), &[], |config| config.protocol = Some(Protocol::Pvh)) else { return };
    assert_eq!(ended.stop(), &Stop::PowerOff);
}

#[test]
fn bad_input_is_refused_by_name() {
    let kernel = out(&[(0x600, 0x34)]);
    let truncated = &kernel[..0x1000];
    let mut huge = kernel.clone();
    // The memory size of the first segment.
    huge[64 + 40..64 + 48].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let cases: [Case; 9] = [
        (b"#!/bin/sh\n", |_| (), "neither an ELF vmlinux nor a bzImage"),
        (b"", |_| (), "neither an ELF vmlinux nor a bzImage"),
        (&kernel[..40], |_| (), "truncated"),
        (truncated, |_| (), "truncated"),
        (&huge, |_| (), "raise --memory"),
        (&kernel, |config| config.vcpus = 255, "255 vCPUs were asked for"),
        (&kernel, |config| config.memory = 1 << 50, "bytes of memory were asked for"),
        (&kernel, |config| config.memory = 4096, "bytes of memory were asked for"),
        (&kernel, |config| config.initramfs = Some(999), "descriptor 999 for the initramfs is not open"),
    ];
    for (kernel, change, message) in cases {
        let Some(ended) = run(kernel, &[], change) else { return };
        assert_eq!(ended.output.status.code(), Some(125), "{message}");
        assert!(ended.error().contains(message), "{message}: {}", ended.error());
        assert!(ended.report.is_none());
    }
}
