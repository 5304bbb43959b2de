use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::vcpu::exits::Exits;

/// A served socket; ends with the test.
fn with_server(test: impl FnOnce(&Path, &AtomicU32)) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let listener = UnixListener::bind(&path).unwrap();
    let stop = EventFd::new(0).unwrap();
    let answered = AtomicU32::new(0);
    let answer = |request| {
        answered.fetch_add(1, Ordering::Relaxed);
        match request {
            Request::Exits => Answer::Exits(Exits { kicks: 7, ..Exits::default() }),
            other => Answer::Error(format!("{other:?}")),
        }
    };
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(&listener, &stop, answer));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&path, &answered)));
        stop.write(1).unwrap();
        server.join().unwrap();
        outcome.unwrap();
    });
}

fn ask(path: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(request).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[test]
fn a_request_is_a_line_and_so_is_its_answer() {
    with_server(|path, _| {
        let line = ask(path, b"\"exits\"\n");
        assert_eq!(
            serde_json::from_str::<Answer>(&line).unwrap(),
            Answer::Exits(Exits { kicks: 7, ..Exits::default() })
        );
        let said = [
            (&b"{\"translate\":{\"vcpu\":1,\"address\":18446744073709551615}}\n"[..], "address: 18446744073709551615"),
            (b"{\"balloon\":{\"bytes\":4096}}\n", "Balloon { bytes: 4096 }"),
            (b"\"state\"\n\"exits\"\n", "State"),
        ];
        for (request, expected) in said {
            assert!(ask(path, request).contains(expected), "{expected}");
        }
    });
}

#[test]
fn what_is_no_request_is_refused_by_name() {
    with_server(|path, answered| {
        let cases: [&[u8]; 8] = [
            b"\n",
            b"exits\n",
            b"{\"exits\":1}\n",
            b"\"nonsense\"\n",
            b"{\"balloon\":{\"bytes\":-1}}\n",
            b"{\"balloon\":{\"bytes\":1,\"more\":1}}\n",
            b"{\"translate\":{\"vcpu\":256,\"address\":0}}\n",
            b"\xff\xfe\0\n",
        ];
        for case in cases {
            assert!(ask(path, case).contains("this is no request"), "{case:?}");
        }
        assert_eq!(answered.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn clients_without_manners_keep_nobody_waiting() {
    with_server(|path, answered| {
        // Too long, never finished, gone without a word, or without an ear for the answer.
        assert_eq!(ask(path, &[b'['; REQUEST_MAX]), "");
        let mut slow = UnixStream::connect(path).unwrap();
        slow.write_all(b"\"exi").unwrap();
        drop(UnixStream::connect(path).unwrap());
        let mut deaf = UnixStream::connect(path).unwrap();
        deaf.write_all(b"\"exits\"\n").unwrap();
        drop(deaf);
        assert!(ask(path, b"\"exits\"\n").contains("kicks"));
        let mut rest = Vec::new();
        assert_eq!(slow.read_to_end(&mut rest).unwrap(), 0);
        assert!(answered.load(Ordering::Relaxed) >= 1);
    });
}
