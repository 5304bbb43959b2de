//! A real Debian system of several layers with Python.

use std::fs;

use berth_tests::fixtures;
use berth_tests::home::Home;

#[test]
fn a_debian_image_of_several_layers_runs_python() {
    let home = Home::empty();
    let _ = home.berth("load -i").arg(fixtures::debian_layout()).ok();
    let image = "debian";

    let script = home.scratch().join("script.py");
    let program = "import hashlib, json, os, subprocess, sys, tempfile, threading\n\
                   results = []\n\
                   threads = [threading.Thread(target=results.append, args=(n * n,)) for n in range(4)]\n\
                   [t.start() for t in threads]; [t.join() for t in threads]\n\
                   with tempfile.NamedTemporaryFile('w') as f:\n    f.write('x'); f.flush(); size = os.stat(f.name).st_size\n\
                   out = subprocess.run(['dpkg', '--print-architecture'], capture_output=True, text=True).stdout.strip()\n\
                   print(json.dumps({'squares': sorted(results), 'size': size, 'arch': out, 'args': sys.argv[1:],\n\
                   'sha': hashlib.sha256(b'berth').hexdigest()[:8], 'pid': os.getpid()}))\n\
                   sys.exit(7)\n";
    fs::write(&script, program).unwrap();
    let run = home
        .berth(&format!("run --rm --memory 256m -v {}:/script.py:ro {image} python3 /script.py one", script.display()));
    let out = run.run().code(7).json();
    assert_eq!(out["squares"], serde_json::json!([0, 1, 4, 9]));
    assert_eq!((&out["size"], &out["pid"], &out["args"][0]), (&1.into(), &1.into(), &"one".into()));

    // The last layer has removed the documentation and put one file in its place.
    let out = home.berth(&format!("run --rm {image} ls /usr/share/doc")).ok();
    assert_eq!(out.text(), "made\n");
    // Setuid bits, links and the package database are as Debian has them.
    let check = "stat -c %a /usr/bin/passwd; readlink /bin; dpkg --audit; dpkg --verify 2>/dev/null | grep -v -e /usr/share/doc -e /usr/share/man || true";
    let out = home.berth(&format!("run --rm {image} bash -c")).arg(check).ok();
    assert_eq!(out.trimmed(), "4755\nusr/bin");
    // apt-get drops its privileges with setgroups, setresuid and the like.
    let _ = home
        .berth(&format!("run --rm --security-opt no-new-privileges=false {image} su nobody -s /bin/sh -c"))
        .arg("test $(id -un) = nobody")
        .ok();
}
