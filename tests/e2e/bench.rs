//! `berth bench`: what it measures, prints and leaves behind; and the spans it is built on.

use std::path::Path;

use berth_tests::command::Cmd;
use berth_tests::home::Home;
use berth_tests::wait;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

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

/// The names of images that a measurement has left.
fn left_images(home: &Home) -> Vec<String> {
    let text = home.berth("images").ok().text();
    text.lines().filter(|line| line.contains("berth-bench")).map(str::to_owned).collect()
}

/// What was measured of a subject.
fn subject<'a>(measured: &'a Value, name: &str) -> &'a Value {
    let subjects = measured["results"][0]["subjects"].as_array().unwrap();
    subjects.iter().find(|subject| subject["name"] == name).unwrap_or_else(|| panic!("no {name} in {measured}"))
}

#[test]
fn starts_are_measured_from_inside_and_outside() {
    let home = Home::new();
    let measured = home.berth("bench startup --runs 3 --parallel 2 --format json").ok().json();
    assert_eq!(measured["results"][0]["measured"], "startup");
    assert!(measured["results"][0]["host"]["kernel"].as_str().unwrap().contains('.'));
    let mut kinds = vec![("container", "run"), ("Wasm", "executor")];
    if Path::new("/dev/kvm").exists() {
        let guests = ["microVM, Linux guest", "microVM, process guest"];
        let can = |name: &&str| subject(&measured, name)["reason"].is_null();
        assert!(guests.iter().any(can), "a host with KVM runs one kind of guest");
        kinds.extend(guests.into_iter().filter(can).map(|name| (name, "vm-create")));
    }
    for (name, phase) in kinds {
        let subject = subject(&measured, name);
        let runs = subject["runs"].as_array().unwrap();
        assert_eq!((runs.len(), &subject["reason"]), (3, &Value::Null), "{name}");
        for run in runs {
            let time = |what: &str| run[what].as_u64().unwrap_or_else(|| panic!("{name}: no {what} in {run}"));
            assert!(0 < time("first_instruction"), "{run}");
            assert!(time("first_instruction") < time("first_output"), "{run}");
            assert!(time("first_output") < time("exit"), "{run}");
            let phases = run["phases"].as_object().unwrap();
            assert_eq!(phases.values().map(|time| time.as_u64().unwrap()).sum::<u64>(), time("exit"), "{run}");
            for needed in ["command", "image", "bundle", "sandbox", "mounts", "load", "run", "end", phase] {
                assert!(phases.contains_key(needed), "{name}: no {needed} in {run}");
            }
        }
        let exit = &subject["summary"]["exit"];
        let quantile = |of: &str| exit[of].as_f64().unwrap();
        assert!(quantile("min") <= quantile("median") && quantile("median") <= quantile("p99"), "{exit}");
        assert!(subject["memory"]["pss"].as_u64().unwrap() > 1 << 16, "{subject}");
        assert!(subject["memory"]["processes"].as_u64().unwrap() >= 2, "{subject}");
        assert_eq!(subject["throughput"]["starts"], 3);
    }
    assert_eq!(left_images(&home), Vec::<String>::new());
}

#[test]
fn cold_starts_peers_and_other_formats() {
    let home = Home::new();
    let text = home.berth("bench startup --runs 2 --isolation container --peers").ok().text();
    for part in [
        "FIRST INSTRUCTION",
        "phases of the median run",
        "container",
        "berth-oci, ready bundle",
        "runc",
        "podman",
        "kernel ",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let peer = text.lines().find(|line| line.starts_with("berth-oci")).unwrap();
    assert!(peer.trim_end().ends_with('x'), "a ratio in {peer}");
    assert!(text.contains("not measured: wasmtime"), "{text}");

    let lines = home.berth("bench startup --runs 2 --isolation wasm --cold --format csv").ok().text();
    assert!(lines.starts_with("host,began,measured,subject,number,what,value,unit,reason\n"), "{lines}");
    let values = |what: &str| lines.lines().filter(|line| line.contains(what)).count();
    assert_eq!((values(",exit,"), values(",first instruction,"), values(",phase load,")), (2, 2, 2), "{lines}");
    // Its code is compiled each time, which takes longer than all else of finding it.
    let image: Vec<u64> = lines
        .lines()
        .filter(|line| line.contains(",phase image,"))
        .map(|line| line.split(',').nth(6).unwrap().parse().unwrap())
        .collect();
    assert!(image.iter().all(|&time| time > 2_000_000), "{image:?}");

    let other = home
        .berth("bench startup busybox --isolation container --runs 1 --format json -- sh -c")
        .arg("echo two; exit 0");
    assert_eq!(subject(&other.ok().json(), "container")["workload"], "busybox sh -c echo two; exit 0");
}

#[test]
fn density_and_work_are_measured() {
    let home = Home::new();
    let density = home.berth("bench density --isolation container,wasm --count 3 --format json").ok().json();
    for name in ["container", "Wasm"] {
        let subject = subject(&density, name);
        let bytes: Vec<u64> =
            subject["bytes"].as_array().unwrap().iter().map(|bytes| bytes.as_u64().unwrap()).collect();
        assert!(bytes.len() == 3 && bytes[0] > 0 && bytes[2] > bytes[0], "{subject}");
        assert_eq!(subject["budget_reached"], false);
    }
    let small = home.berth("bench density --isolation container --memory-budget 1k --format json").ok().json();
    assert_eq!(
        (&subject(&small, "container")["budget_reached"], &subject(&small, "container")["bytes"]),
        (&json!(true), &json!([]))
    );

    for (work, figures, wasm) in [("syscall", 1, false), ("cpu", 1, true), ("io", 4, false), ("net", 2, false)] {
        let measured = home.berth(&format!("bench {work} --rounds 1 --format json")).ok().json();
        for name in ["native", "container"] {
            let found = subject(&measured, name)["figures"].as_array().unwrap();
            assert_eq!(found.len(), figures, "{work}: {found:?}");
            assert!(found.iter().all(|figure| figure["summary"]["median"].as_f64().unwrap() > 0.0), "{found:?}");
        }
        assert_eq!(subject(&measured, "Wasm")["reason"].is_null(), wasm, "{work}");
        let text = home.berth(&format!("bench {work} --rounds 1 --isolation container")).ok().text();
        assert!(text.contains("native") && text.contains("x)"), "{text}");
    }
    assert_eq!(left_images(&home), Vec::<String>::new());
}

#[test]
fn the_report_is_drawn_by_a_browser() {
    let home = Home::new();
    let path = |name: &str| home.scratch().join(name);
    let density = home.berth("bench density --isolation container,wasm --count 4 --label <b>&\"x --format json").ok();
    std::fs::write(path("density.json"), &density.stdout).unwrap();
    let run = home.berth("bench startup --runs 3 --isolation container,wasm").arg("--report").arg(path("report.html"));
    let _ = run.arg("--add").arg(path("density.json")).ok();
    let html = std::fs::read_to_string(path("report.html")).unwrap();
    for part in [
        "Warm starts",
        "Where the time goes",
        "Every warm run",
        "Memory of one idle instance",
        "Density",
        "@media print",
    ] {
        assert!(html.contains(part), "no {part}");
    }
    assert!(!html.contains("<script") && !html.contains("<b>&") && html.contains("&lt;b&gt;&amp;&quot;x"), "escaped");
    assert!(!html.contains("http"), "it needs nothing from elsewhere");
    let merged = home.berth("bench report").arg(path("density.json")).arg("-o").arg(path("density.html"));
    let _ = merged.ok();
    assert!(std::fs::read_to_string(path("density.html")).unwrap().contains("Density"));
    let printed = home.berth("bench report").arg(path("density.json")).ok().text();
    assert!(printed.contains("idle instances in a budget"), "{printed}");
    let same = home.berth("bench report --format json").arg(path("density.json")).ok().text();
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(read(&same), read(&std::fs::read_to_string(path("density.json")).unwrap()));
    // Nothing that was begun stands beside what is whole.
    let left = std::fs::read_dir(home.scratch()).unwrap().flatten();
    assert!(left.into_iter().all(|entry| !entry.file_name().to_string_lossy().contains(".berth-report")));

    let Some(browser) = ["chromium", "chromium-browser"].into_iter().find(|name| installed(name)) else {
        eprintln!(
            "NOT CHECKED: no chromium is installed, so no browser has drawn the report; scripts/setup test installs it"
        );
        return;
    };
    let picture = path("report.png");
    let drawn = Cmd::new(browser, "--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1160,4000")
        .arg(format!("--user-data-dir={}", path("browser").display()))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("file://{}", path("report.html").display()));
    let _ = drawn.ok();
    let colours = berth_tests::png::colours(&picture);
    let area = |colour: [u8; 3]| colours.get(&colour).copied().unwrap_or_default();
    // By day: the kinds' own colours in bars and lines, and those of phases that every start has.
    for (what, colour) in [
        ("container", [0x2b, 0x6c, 0xb0]),
        ("Wasm", [0x6b, 0x4f, 0xa0]),
        ("phase command", [0xb9, 0xc2, 0xca]),
        ("phase sandbox", [0x1f, 0x5c, 0x8b]),
        ("phase end", [0xd8, 0xd3, 0xca]),
    ] {
        assert!(area(colour) > 400, "{what}: {} pixels", area(colour));
    }
}

fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_is() {
    let home = Home::empty();
    let refused = |words: &str, why: &str| home.berth(&format!("bench {words}")).run().code(125).fails_with(why);
    refused("startup", "'busybox', which is not here");
    refused("startup nothing-like-it", "nothing-like-it");
    refused("startup --isolation jail", "jail");
    refused("startup --runs 0", "0 is not in");
    refused("startup --parallel 0", "0 is not in");
    refused("density --memory-budget 0", "0 bytes");
    refused("cpu --rounds 0", "0 is not in");
    refused("startup --isolation wasm --report /does/not/exist/r.html", "/does/not/exist");
    refused("startup --isolation wasm --report /", "directory");
    refused("report /does/not/exist.json -o x.html", "/does/not/exist.json");
    let nonsense = home.scratch().join("nonsense.json");
    for text in ["", "{}", "[1]", r#"{"version": 99, "results": []}"#] {
        std::fs::write(&nonsense, text).unwrap();
        let report = home.berth("bench report -o").arg(home.scratch().join("r.html")).arg(&nonsense);
        report.run().code(125).fails_with("nonsense.json");
    }
    assert!(!home.scratch().join("r.html").exists());
    home.berth("images --format csv").run().code(125).fails_with("berth bench");
}

#[test]
fn an_interrupted_measurement_leaves_nothing() {
    let home = Home::new();
    for words in ["startup --runs 5000 --isolation container,wasm", "density --count 5000 --isolation container"] {
        let scratch = home.path().join("temporary");
        std::fs::create_dir_all(&scratch).unwrap();
        let running = home.berth(&format!("bench {words}")).env("TMPDIR", &scratch).spawn();
        let journal = || std::fs::read_to_string(home.state().join("events.jsonl")).unwrap_or_default();
        let before = journal().len();
        wait::until("something was started", || journal()[before..].contains("\"start\""));
        running.signal(Signal::SIGINT);
        running.wait().code(130).fails_with("interrupted");
        assert_eq!(left_images(&home), Vec::<String>::new(), "{words}");
        assert_eq!(home.containers(), Vec::<String>::new(), "{words}");
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "{words}");
    }
}

#[test]
fn a_start_that_does_not_end_is_ended_by_an_interruption() {
    let home = Home::new();
    let running = home.berth("bench startup --isolation container busybox -- sleep 1000").spawn();
    wait::until("it was started", || home.containers().len() == 1);
    running.signal(Signal::SIGINT);
    running.wait().code(130).fails_with("interrupted");
    assert_eq!(home.containers(), Vec::<String>::new());
}

#[test]
fn what_a_killed_measurement_has_left_goes_with_the_next() {
    let home = Home::new();
    let scratch = home.path().join("temporary");
    std::fs::create_dir_all(&scratch).unwrap();
    let running = home.berth("bench density --isolation container,wasm --count 500").env("TMPDIR", &scratch).spawn();
    wait::until("something is there", || home.containers().len() > 2);
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().exit_code(), 137);
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 1, "what it worked with");
    // The start that was under way ends by itself.
    let next = || home.berth("bench syscall --isolation container --rounds 1").env("TMPDIR", &scratch).ok();
    let _ = next();
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
    let leave = || {
        let _ = next();
        home.containers().is_empty() && left_images(&home).is_empty()
    };
    assert!(wait::within(wait::DEADLINE, leave), "{:?} {:?}", home.containers(), left_images(&home));
}

#[test]
fn a_report_is_written_where_it_was_asked_for_and_nowhere_else() {
    let home = Home::new();
    let scratch = home.scratch();
    let at = |name: &str| scratch.join(name);
    let results = home.berth("bench startup --runs 1 --isolation container --format json").ok().text();
    std::fs::write(at("a.json"), &results).unwrap();
    let report = |to: &Path| home.berth("bench report").arg(at("a.json")).arg("-o").arg(to);

    // What is no file is written through, and stays what it is.
    assert!(report(Path::new("/dev/stdout")).ok().text().contains("</html>"));
    let tty = at("null");
    let make = "mknod -m 666 \"$1\" c 1 3 && exec \"$0\" bench report \"$2\" -o \"$1\"";
    let _ = home.berth("").in_shell(make).arg(&tty).arg(at("a.json")).ok();
    assert!(std::os::unix::fs::FileTypeExt::is_char_device(&std::fs::metadata(&tty).unwrap().file_type()));
    // A link leads to it, and the file keeps its mode.
    std::fs::write(at("target"), "old").unwrap();
    std::fs::set_permissions(at("target"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink("target", at("link")).unwrap();
    let _ = report(&at("link")).ok();
    assert!(at("link").is_symlink() && std::fs::read_to_string(at("target")).unwrap().contains("</html>"));
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(at("target")).unwrap().permissions()),
        0o100_600
    );
    // Results are not what a report is written over.
    report(&at("a.json")).run().code(125).fails_with("holds results");
    assert_eq!(std::fs::read_to_string(at("a.json")).unwrap(), results);
}

#[test]
fn a_measurement_without_a_figure_fails() {
    let home = Home::new();
    let output = home.berth("bench startup --runs 1 --isolation container busybox -- false").run().code(125);
    output.fails_with("nothing was measured");
    assert!(output.text().contains("not measured: container"), "{output:?}");
}
