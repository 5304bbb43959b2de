//! The control socket of `berth-vmm run`, with a freestanding guest on this host's KVM, under the filter of a machine at work.

mod common;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Child;

use berth_vmm::machine::control_socket::{Answer, BalloonSize, Request, State};
use berth_vmm::paging::PageSize;
use berth_vmm::paging::walk::End;
use berth_vmm::vcpu::translate::Verdict;
use serde_json::json;

const MEMORY: u64 = 32 << 20;

/// A machine that writes one byte to a port nobody has and then spins.
struct Guest(Child);

impl Guest {
    fn start(socket: &Path) -> Option<Self> {
        common::kvm()?;
        let kvm = File::from(berth_vmm::host::open().unwrap());
        let kernel = common::file(&common::elf(&[&common::out8(0x1234, 1)[..], &common::SPIN].concat()));
        let listener = UnixListener::bind(socket).unwrap();
        let config = json!({
            "kvm": kvm.as_raw_fd(), "kernel": kernel.as_raw_fd(), "memory": MEMORY, "vcpus": 2,
            "control": listener.as_raw_fd(), "balloon": {},
        });
        let mut command = common::vmm(&config, &[kvm.as_raw_fd(), kernel.as_raw_fd(), listener.as_raw_fd()]);
        Some(Self(command.spawn().unwrap()))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(socket: &Path, request: Request) -> Answer {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(&serde_json::to_vec(&request).unwrap()).unwrap();
    stream.write_all(b"\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn a_machine_at_work_answers() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control");
    let Some(_guest) = Guest::start(&socket) else { return };
    let balloon = BalloonSize { wanted: MEMORY, kept: MEMORY, has_driver: false };
    let state = State { memory: MEMORY, vcpus: 2, balloon: Some(balloon) };
    assert_eq!(ask(&socket, Request::State), Answer::State(state));

    let state = State { balloon: Some(BalloonSize { wanted: 16 << 20, ..balloon }), ..state };
    assert_eq!(ask(&socket, Request::Balloon { bytes: 16 << 20 }), Answer::State(state));
    for bytes in [0, 1 << 20, MEMORY + 1, u64::MAX] {
        let Answer::Error(error) = ask(&socket, Request::Balloon { bytes }) else { panic!("{bytes}") };
        assert!(error.contains("it can keep"), "{error}");
    }

    // The guest stands still for a question; asking is an exit itself.
    let exits = loop {
        let Answer::Exits(exits) = ask(&socket, Request::Exits) else { panic!() };
        if exits.port_writes == 1 {
            break exits;
        }
        let _ = ask(&socket, Request::Translate { vcpu: 0, address: 0 });
    };
    assert_eq!((exits.port_reads, exits.failures), (0, 0));
}

#[test]
fn translations_agree_with_kvm() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control");
    let Some(_guest) = Guest::start(&socket) else { return };
    let translate = |vcpu, address| ask(&socket, Request::Translate { vcpu, address });
    // The boot tables map low memory by itself in pages of 2 MiB.
    let Answer::Translation { checked, text } = translate(0, common::CODE + 5) else { panic!() };
    assert_eq!((checked.verdict, checked.kvm), (Verdict::Agrees, Some(common::CODE + 5)), "{text}");
    let translation = checked.translation;
    assert_eq!(translation.guest_physical, Some(common::CODE + 5));
    assert!(matches!(translation.walk.end, End::Page(page) if page.size == PageSize::Large), "{text}");
    let slot = translation.slot.unwrap();
    assert_eq!(translation.host_virtual, Some(slot.host + common::CODE + 5 - slot.start));
    assert!(text.contains("PML4") && text.contains("agrees"), "{text}");

    let Answer::Translation { checked, text } = translate(0, 1 << 46) else { panic!() };
    assert_eq!((checked.verdict, checked.kvm), (Verdict::Agrees, None), "{text}");
    assert!(text.contains("not present"), "{text}");
    let Answer::Translation { checked, text } = translate(0, 1 << 63) else { panic!() };
    assert_eq!((checked.verdict, checked.translation.walk.end), (Verdict::NotComparable, End::NonCanonical), "{text}");

    // The second one waits to be started, in real mode.
    for (vcpu, expected) in [(1, "not in long mode"), (2, "there is no vCPU 2")] {
        let Answer::Error(error) = translate(vcpu, 0) else { panic!("vCPU {vcpu}") };
        assert!(error.contains(expected), "{error}");
    }
}
