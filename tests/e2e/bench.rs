//! `berth bench`: what it measures, prints and leaves behind; and the spans it is built on.

use std::path::Path;

use berth_tests::command::Cmd;
use berth_tests::home::Home;

/// The command, with `file` as its descriptor 9 and named as the file for spans.
fn with_spans(command: Cmd, file: &Path) -> Cmd {
    let script = r#"exec 9>> "$SPANS"; export BERTH_SPANS="9:$(stat -Lc %d:%i /proc/self/fd/9)"; exec "$0" "$@""#;
    let arguments: Vec<_> = command.inner.get_args().map(ToOwned::to_owned).collect();
    command.in_shell(script).args(arguments).env("SPANS", file)
}

/// The numbers of the phases that were marked.
fn phases(file: &Path) -> Vec<u64> {
    let bytes = std::fs::read(file).unwrap();
    assert_eq!(bytes.len() % 16, 0);
    bytes.chunks(16).map(|record| u64::from_le_bytes(record[..8].try_into().unwrap())).collect()
}

#[test]
fn no_program_of_an_image_finds_the_file_for_spans() {
    let home = Home::new();
    let look = "for fd in /proc/self/fd/*; do readlink $fd || :; done; env; echo done";
    let guest = Path::new("/dev/kvm").exists().then_some("--isolation microvm --guest process");
    for flags in ["", "--init", "-d"].into_iter().chain(guest) {
        let file = home.scratch().join("spans");
        std::fs::write(&file, "").unwrap();
        let keep = if flags == "-d" { "" } else { "--rm" };
        let run = home.berth(&format!("run {keep} {flags} busybox sh -c")).arg(look);
        let mut text = with_spans(run, &file).ok().text();
        let marked = phases(&file);
        if flags == "-d" {
            let id = text.trim().to_owned();
            let _ = home.berth("wait").arg(&id).ok();
            text = home.berth("logs").arg(&id).ok().text();
        } else {
            // From the command's own beginning to the end: all that a start of this kind goes through.
            for phase in [0, 1, 2, 3, 5, 6, 11, 12, 13] {
                assert!(marked.contains(&phase), "{flags}: phase {phase} is not in {marked:?}");
            }
        }
        assert!(text.contains("done"), "{flags}: {text}");
        assert!(!text.contains("spans") && !text.contains("SPANS"), "{flags}: {text}");
    }
}

#[test]
fn a_file_that_is_not_the_one_meant_is_left_alone() {
    let home = Home::new();
    let file = home.scratch().join("precious");
    std::fs::write(&file, "precious").unwrap();
    let run = home.berth("run --rm busybox true");
    let script = r#"exec 9>> "$FILE"; export BERTH_SPANS="9:$(stat -c %d:%i /)"; exec "$0" "$@""#;
    let arguments: Vec<_> = run.inner.get_args().map(ToOwned::to_owned).collect();
    let _ = run.in_shell(script).args(arguments).env("FILE", &file).ok();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    for nonsense in ["", "9", "9:1", "x:1:2", "-1:0:0", "2:0:0", "99999999999:1:1"] {
        let _ = home.berth("run --rm busybox true").env("BERTH_SPANS", nonsense).ok();
    }
}
