//! Annotations in `config.json` by which a bundle asks for what the OCI runtime specification has no field for.
//! Every other OCI runtime ignores them.

use std::path::Path;

/// The user as the person gave it (`name`, `uid`, `name:group`, `uid:gid`), looked up in the image's own
/// `/etc/passwd` and `/etc/group` *inside* the sandbox. It overrides `process.user`, and sets `HOME` unless the
/// environment already has it.
pub const USER: &str = "org.berth.user";

/// Supplementary groups, names or numbers joined by commas, looked up inside the sandbox as [`USER`] is and added to
/// `process.user.additionalGids`.
pub const GROUPS: &str = "org.berth.groups";

/// `true`: a small init is the sandbox's process 1; it reaps orphans and forwards signals to the command.
pub const INIT: &str = "org.berth.init";

/// The isolation of the sandbox: `container`, or another one by the program that [`crate::executor`] speaks of.
pub const ISOLATION: &str = "org.berth.isolation";

/// Annotations of other engines and builders by which an image's entry point is said to be a Wasm module: crun's, and the one of the
/// tools that build such images. See [`is_wasm`].
const WASM: [&str; 2] = ["run.oci.handler", "module.wasm.image/variant"];

/// Whether annotations say that the program is a Wasm module; `None`: they say nothing about it. `get` finds an annotation.
pub fn is_wasm<'a>(get: impl Fn(&str) -> Option<&'a str>, program: &str) -> Option<bool> {
    match WASM.iter().find_map(|key| get(key))? {
        "wasm" | "compat" => Some(true),
        // They leave it to the program.
        "wasm-smart" | "compat-smart" => {
            Some(Path::new(program).extension().is_some_and(|extension| extension == "wasm"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smart_annotations_leave_it_to_the_program() {
        let said = |key: &'static str, value, program| is_wasm(|asked| (asked == key).then_some(value), program);
        assert_eq!(said("run.oci.handler", "wasm", "/app"), Some(true));
        assert_eq!(said("run.oci.handler", "wasm-smart", "/app"), Some(false));
        assert_eq!(said("module.wasm.image/variant", "compat-smart", "/app.wasm"), Some(true));
        assert_eq!(said("run.oci.handler", "krun", "/app.wasm"), None);
        assert_eq!(said("other", "wasm", "/app.wasm"), None);
    }
}
