//! `berth-vmm run` with freestanding guests on this host's KVM: how machines end, and what is said of bad input.

mod common;

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsRawFd, RawFd};
use std::process::Output;

use berth_vmm::boot::Protocol;
use berth_vmm::machine::control::Stop;
use berth_vmm::machine::{MachineConfig, Report};

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

/// Runs a machine with the kernel `kernel`; `None` without KVM.
fn run(kernel: &[u8], change: impl FnOnce(&mut MachineConfig)) -> Option<Ended> {
    common::kvm()?;
    let kvm = File::from(berth_vmm::host::open().unwrap());
    let (kernel, mut report) = (common::file(kernel), tempfile::tempfile().unwrap());
    let mut config = config(&kernel, kvm.as_raw_fd());
    config.report = Some(report.as_raw_fd());
    change(&mut config);
    let given = [kvm.as_raw_fd(), kernel.as_raw_fd(), report.as_raw_fd()];
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
    let Some(ended) = run(&out(&[(0x3f8, b'h'), (0x3f8, b'i'), (0x600, 0x34)]), |_| ()) else { return };
    assert_eq!(ended.stop(), &Stop::PowerOff);
    assert_eq!(ended.output.status.code(), Some(0));
    assert_eq!(ended.output.stdout, b"hi");
    assert_eq!(ended.report.unwrap().exits.port_writes, 3);
}

#[test]
fn other_ends_are_told_apart() {
    for (port, value, stop) in [(0x602, 1, Stop::Reset), (0x64, 0xfe, Stop::Reset), (0x505, 1, Stop::Panic)] {
        let Some(ended) = run(&out(&[(port, value)]), |_| ()) else { return };
        assert_eq!(ended.stop(), &stop, "port {port:#x}");
        assert_eq!(ended.output.status.code(), Some(125));
    }
    let Some(ended) = run(&common::elf(&common::UD2), |_| ()) else { return };
    assert_eq!(ended.stop(), &Stop::TripleFault);
}

#[test]
fn unbacked_memory_and_ports_answer_like_an_empty_bus() {
    // mov rbx, 0x3fff0000; mov al, [rbx]; mov [rbx], al: beyond the guest's memory, within its page tables.
    let wild = [0x48, 0xc7, 0xc3, 0x00, 0x00, 0xff, 0x3f, 0x8a, 0x03, 0x88, 0x03];
    let code = [&wild[..], &common::in8(0x1234), &common::out8(0x600, 0x34), &common::SPIN].concat();
    let Some(ended) = run(&common::elf(&code), |_| ()) else { return };
    assert_eq!(ended.stop(), &Stop::PowerOff);
    let exits = ended.report.unwrap().exits;
    assert_eq!((exits.mmio_reads, exits.mmio_writes, exits.port_reads), (1, 1, 1));
}

#[test]
fn the_pvh_protocol_enters_where_the_note_says() {
    // In 32-bit code the operand size prefix means the same.
    let Some(ended) = run(&out(&[(0x600, 0x34)]), |config| config.protocol = Some(Protocol::Pvh)) else { return };
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
        let Some(ended) = run(kernel, change) else { return };
        assert_eq!(ended.output.status.code(), Some(125), "{message}");
        assert!(ended.error().contains(message), "{message}: {}", ended.error());
        assert!(ended.report.is_none());
    }
}
