//! Modules that are broken, or mean harm: an error that says what is wrong, limits that hold, and a host that lives on.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_tests::command::{Cmd, Output};
use berth_tests::home::Home;
use berth_tests::layout::{self, Layout};
use berth_tests::{binaries, fixtures, wait, wasm};
use nix::sys::resource::{Resource, setrlimit};
use serde_json::{Value, json};

/// A memory whose size is the program's to choose, and a command that does `body`.
fn command(body: &str) -> String {
    format!(r#"(module (memory (export "memory") 1) (table $t 1 funcref) (func (export "_start") {body}))"#)
}

fn run(home: &Home, flags: &str, module: &Path) -> Output {
    home.berth(&format!("run --rm {flags}")).arg(module).run()
}

/// After all that, an ordinary module runs as ever.
fn lives_on(home: &Home) {
    let out = home.berth("run --rm").arg(fixtures::wasm_program()).args(["echo", "on"]).ok();
    assert_eq!(out.text(), "program.wasm echo on\n");
}

#[test]
fn what_is_no_module_is_refused() {
    let home = Home::empty();
    let dir = home.scratch();
    let program = fs::read(fixtures::wasm_program()).unwrap();
    let mut component = fs::read(wasm::component(&dir)).unwrap();
    let mut other_version = program.clone();
    other_version[4] = 9;
    let mut wrong_kind = program.clone();
    wrong_kind[4..8].copy_from_slice(&component[4..8]);
    component[4..8].copy_from_slice(&program[4..8]);
    let cases: [(&str, &[u8], &str); 9] = [
        ("empty", b"", "begin"),
        ("short", b"\0asm", "begin"),
        ("text", b"(module)", "begin"),
        ("elf", b"\x7fELF\x02\x01\x01\0", "begin"),
        ("version", &other_version, "version"),
        ("component-as-module", &component, "cannot be compiled"),
        ("module-as-component", &wrong_kind, "cannot be compiled"),
        ("truncated", &program[..program.len() / 2], "cannot be compiled"),
        ("nothing-after-the-header", &program[..12], "cannot be compiled"),
    ];
    for (name, bytes, reason) in cases {
        let path = wasm::write(&dir, name, bytes);
        let out = run(&home, "", &path);
        assert!(out.exit_code() == 125 || out.exit_code() == 126, "{name}: {out:?}");
        out.fails_with(reason);
        home.berth("image build-wasm -t bad").arg(&path).run().fails_with("");
    }
    // Bytes of a good module at random places.
    for seed in 1..24_usize {
        let mut bytes = program.clone();
        for step in 0..seed {
            let place = 8 + (seed * 7919 + step * 104_729) % (bytes.len() - 8);
            bytes[place] ^= 1 << (seed % 8);
        }
        let out = run(&home, "--timeout 2s", &wasm::write(&dir, "flipped", &bytes));
        assert!(!out.stderr_text().contains("panicked"), "{out:?}");
    }
    run(&home, "", &dir).fails_with("no file");
    run(&home, "", &dir.join("missing.wasm")).fails_with("missing.wasm");
    assert!(!home.berth("images").ok().text().contains("bad"), "nothing was given the name");
    lives_on(&home);
}

#[test]
fn what_is_too_much_for_the_compiler_is_refused() {
    let home = Home::empty();
    let dir = home.scratch();
    let huge = wasm::write(&dir, "huge.wasm", b"\0asm\x01\0\0\0");
    File::options().write(true).open(&huge).unwrap().set_len((256 << 20) + 1).unwrap();
    run(&home, "", &huge).code(126).fails_with("accepted");

    // A function of blocks, each in the one before.
    let depth = 20_000;
    let body: Vec<u8> = [vec![0], [0x02, 0x40].repeat(depth), vec![0x0b; depth + 1]].concat();
    let section = |id: u8, content: Vec<u8>| [vec![id], leb(content.len()), content].concat();
    let nested = [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, vec![1, 0x60, 0, 0]),
        section(3, vec![1, 0]),
        section(7, [vec![1, 6], b"_start".to_vec(), vec![0, 0]].concat()),
        section(10, [vec![1], leb(body.len()), body].concat()),
    ];
    let before = Instant::now();
    let out = run(&home, "", &wasm::write(&dir, "nested.wasm", &nested.concat()));
    assert!([0, 126].contains(&out.exit_code()), "{out:?}");
    assert!(before.elapsed() < Duration::from_mins(1), "compiled or refused in time");

    // Components within components.
    let depth = 2_000;
    let text = "(component ".repeat(depth) + &")".repeat(depth);
    if let Some(bytes) = wasm::try_from_text(&text) {
        run(&home, "", &wasm::write(&dir, "deep.wasm", &bytes)).code(126).fails_with("");
    }
    lives_on(&home);
}

#[test]
fn the_compiler_is_held_by_limits() {
    let home = Home::empty();
    let dir = home.scratch();
    // It waits for the module behind its walls.
    let waiting = Cmd::new(binaries::berth_wasm_compile(), "compile").arg(dir.join("code")).spawn();
    let fields = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", waiting.pid())).unwrap();
    wait::until("it is confined", || fields("status").contains("Seccomp:\t2"));
    let limits = fields("limits");
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name}"));
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max cpu time"), "120");
    assert_eq!(limit("Max address space"), (8_u64 << 30).to_string());
    assert_eq!(limit("Max core file size"), "0");
    for field in ["CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(fields("status").contains(field), "{field}");
    }
    waiting.wait().fails_with("empty");

    // And they do hold it, where whoever starts it says less than SQLite takes.
    for (resource, limit) in [(Resource::RLIMIT_CPU, 1), (Resource::RLIMIT_AS, 140 << 20)] {
        let mut command = home.berth("run --rm").arg(fixtures::wasm_sqlite());
        // SAFETY: between fork and exec, one system call.
        unsafe { command.inner.pre_exec(move || setrlimit(resource, limit, limit).map_err(Into::into)) };
        command.run().code(126).fails_with("more time or memory to compile");
    }
    assert_eq!(home.berth("ps -aq").ok().text(), "");
    lives_on(&home);
}

/// A number as Wasm's binary format has it.
fn leb(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        bytes.push(if number == 0 { low } else { low | 0x80 });
        if number == 0 {
            return bytes;
        }
    }
}

#[test]
fn a_module_for_another_world_is_told_what_is_missing() {
    let home = Home::empty();
    let dir = home.scratch();
    let http = r#"(component
        (core module $m (func (export "handle")))
        (core instance $i (instantiate $m))
        (func $handle (canon lift (core func $i "handle")))
        (instance $handler (export "handle" (func $handle)))
        (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#;
    let cases = [
        ("library", r#"(module (func (export "add")))"#, "_start"),
        ("nothing", "(module)", "exports nothing"),
        ("not-a-function", r#"(module (memory (export "_start") 1))"#, "no function"),
        ("parameters", r#"(module (func (export "_start") (param i32)))"#, "without parameters"),
        ("foreign", r#"(module (import "env" "open" (func)) (func (export "_start")))"#, "env.open"),
        ("early", r#"(module (import "wasi_unstable" "fd_write" (func)) (func (export "_start")))"#, "preview 1"),
        (
            "unknown-function",
            r#"(module (import "wasi_snapshot_preview1" "fly" (func)) (func (export "_start")))"#,
            "fly",
        ),
        ("empty-component", "(component)", "wasi:cli/run"),
        ("handler", http, "berth wasm serve"),
        (
            "foreign-component",
            r#"(component
                (import "acme:boats/dock@1.0.0" (instance (export "moor" (func))))
                (core module $m (func (export "run") (result i32) (i32.const 0)))
                (core instance $i (instantiate $m))
                (func $run (result (result)) (canon lift (core func $i "run")))
                (instance $inst (export "run" (func $run)))
                (export "wasi:cli/run@0.2.0" (instance $inst)))"#,
            "acme:boats/dock",
        ),
    ];
    for (name, text, reason) in cases {
        run(&home, "", &wasm::from_text(&dir, name, text)).code(126).fails_with(reason);
    }
    lives_on(&home);
}

#[test]
fn bombs_meet_their_limits() {
    let home = Home::empty();
    let dir = home.scratch();
    let module = |name: &str, text: &str| wasm::from_text(&dir, name, text);
    let grow_until_refused =
        |grow: &str| command(&format!("(loop $again {grow} (i32.const -1) (i32.ne) (br_if $again))"));
    let memory = module("memory", &grow_until_refused("(memory.grow (i32.const 16))"));
    let _ = run(&home, "--memory 32m", &memory).code(0);
    let table = module("table", &grow_until_refused("(table.grow $t (ref.null func) (i32.const 65536))"));
    let _ = run(&home, "--memory 32m", &table).code(0);
    let touch = "(local $at i32) (drop (memory.grow (i32.const 65535))) \
                 (loop $again (i32.store8 (local.get $at) (i32.const 1)) \
                 (local.set $at (i32.add (local.get $at) (i32.const 4096))) (br $again))";
    let touched = module("touched", &command(touch));
    run(&home, "--memory 32m", &touched).code(134).fails_with("out of bounds");

    run(&home, "--timeout 2s", &module("endless", &command("(loop $again (br $again))"))).code(124).fails_with("2s");
    let start =
        module("start", r#"(module (func $spin (loop $again (br $again))) (start $spin) (func (export "_start")))"#);
    let _ = run(&home, "--timeout 300ms", &start).code(124);
    run(&home, "", &module("stack", &command("(call 0)"))).code(134).fails_with("stack");
    run(&home, "", &module("trap", &command("unreachable"))).code(134).fails_with("unreachable");
    run(&home, "", &module("divide", &command("(drop (i32.div_u (i32.const 1) (i32.const 0)))")))
        .code(134)
        .fails_with("divide");
    run(&home, "", &module("wild", &command("(drop (i32.load (i32.const 0x7fffffff)))")))
        .code(134)
        .fails_with("out of bounds");
    lives_on(&home);
}

#[test]
fn thousands_of_instances_are_too_many_or_none() {
    let home = Home::empty();
    let instances = "(core instance (instantiate $m))".repeat(20_000);
    let text = format!(
        r#"(component (core module $m (memory 1) (func (export "run") (result i32) (i32.const 0))) (core instance $i0 (instantiate $m)) {instances}
            (func $run (result (result)) (canon lift (core func $i0 "run")))
            (instance $inst (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $inst)))"#
    );
    let out = run(&home, "--memory 64m", &wasm::from_text(&home.scratch(), "many.wasm", &text));
    assert!([125, 126].contains(&out.exit_code()), "{out:?}");
    lives_on(&home);
}

#[test]
fn an_artifact_that_contradicts_itself_is_refused() {
    let home = Home::empty();
    let program = fs::read(fixtures::wasm_program()).unwrap();
    let digest = layout::digest(&program);
    let good = json!({ "architecture": "wasm", "os": "wasip1", "layerDigests": [digest] });
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        config
    };
    let wasm = "application/wasm";
    let cases = [
        ("other-module", with("layerDigests", json!([layout::digest(b"")])), vec![wasm], "not about the module"),
        ("no-module", with("layerDigests", json!([])), vec![wasm], "not about the module"),
        ("machine", with("architecture", json!("amd64")), vec![wasm], "architecture"),
        ("no-list", with("layerDigests", json!("x")), vec![wasm], "not valid"),
        ("two", good.clone(), vec![wasm, wasm], "2 layers"),
        ("none", good.clone(), vec![], "0 layers"),
        ("a-tar", good.clone(), vec![layout::LAYER], "media type"),
    ];
    for (name, config, layers, reason) in cases {
        let layout = Layout::new(home.scratch().join(name));
        let layers: Vec<Value> = layers.into_iter().map(|media_type| layout.blob(media_type, &program)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": layout::MANIFEST, "layers": layers,
            "config": layout.blob("application/vnd.wasm.config.v0+json", config.to_string().as_bytes()),
        });
        let manifest = layout.blob(layout::MANIFEST, manifest.to_string().as_bytes());
        layout.write_index(&[(name, manifest)]);
        home.berth("load -i").arg(layout.path()).run().fails_with(reason);
    }
    // A module is the layer of nothing else.
    let layout = Layout::new(home.scratch().join("mixed"));
    let layer = layout::Layer { bytes: program, media_type: wasm.to_owned(), diff_id: digest };
    layout.image("mixed", &[layer], &json!({ "Cmd": ["/x"] }));
    home.berth("load -i").arg(layout.path()).run().fails_with(wasm);
    assert_eq!(home.berth("images -q").ok().text(), "");
}
