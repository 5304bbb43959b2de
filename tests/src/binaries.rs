//! The binaries under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder that holds `berth` and `berth-oci`: the one of this build's profile, built now if it is stale; or
/// the one named by `BERTH_BIN_DIR`, as it is.
pub fn dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        if let Some(dir) = std::env::var_os("BERTH_BIN_DIR") {
            return PathBuf::from(dir);
        }
        let dir = profile_dir();
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--bins"]).current_dir(workspace());
        // What cargo tells this test of its own package would have build scripts that look at it run once more.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
                build.env_remove(name);
            }
        }
        if dir.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status().expect("cargo can be started");
        assert!(status.success(), "cargo build of the binaries under test failed");
        dir
    })
}

/// `berth`
pub fn berth() -> PathBuf {
    dir().join("berth")
}

/// `berth-oci`
pub fn berth_oci() -> PathBuf {
    dir().join("berth-oci")
}

/// `berth-wasm-compile`
pub fn berth_wasm_compile() -> PathBuf {
    dir().join("berth-wasm-compile")
}

/// The root of the source tree.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace")
}

/// Where fixtures are kept from one test run to the next: in the target directory.
pub fn fixtures_dir() -> PathBuf {
    profile_dir().join("../fixtures")
}

/// `…/target/<host>/<profile>`, from the path of the test that runs, `…/<profile>/deps/e2e-…`.
fn profile_dir() -> PathBuf {
    let test = std::env::current_exe().expect("/proc is mounted");
    test.ancestors().nth(2).expect("cargo puts tests into <profile>/deps").to_owned()
}
