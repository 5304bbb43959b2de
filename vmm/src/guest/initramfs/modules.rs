//! Which modules a guest needs, and in which order (`modules.dep(5)`).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;

use super::{Error, Kernel};

/// The files of these modules and of what they need, in an order in which they can be loaded. Of `welcome` those the kernel has.
pub fn resolve(kernel: &Kernel, required: &[&str], welcome: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let read = |name: &str| {
        let path = kernel.modules.join(name);
        fs::read_to_string(&path).map_err(Error::io("read the modules of the kernel in", &path))
    };
    let dependencies = read("modules.dep")?;
    let built_in = read("modules.builtin")?;
    let built_in: HashSet<String> = built_in.lines().map(module_name).collect();
    let modules: HashMap<String, (&str, Vec<&str>)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (module_name(file), (file, needs.split_whitespace().collect())))
        .collect();
    let mut files: Vec<&str> = Vec::new();
    let required = required.iter().map(|name| (*name, true));
    for (name, is_required) in required.chain(welcome.iter().map(|name| (*name, false))) {
        let Some((file, needs)) = modules.get(name) else {
            if built_in.contains(name) || !is_required {
                continue;
            }
            return Err(Error::NoModule {
                version: kernel.version.clone(),
                directory: kernel.modules.clone(),
                module: name.to_owned(),
            });
        };
        // What is needed most is named last.
        for file in needs.iter().rev().chain([file]) {
            if !files.contains(file) {
                files.push(file);
            }
        }
    }
    Ok(files.into_iter().map(|file| kernel.modules.join(file)).collect())
}

/// The name of the module in a file: `kernel/x/virtio-rng.ko.xz` holds `virtio_rng`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or_default();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::super::tests::fake;
    use super::*;

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = fake(dir.path());
        let files = resolve(&kernel, &["virtio_mmio", "virtio_blk", "erofs"], &["virtio_rng", "no_such"]).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["virtio.ko", "virtio_blk.ko", "libcrc32c.ko", "erofs.ko", "virtio-rng.ko"]);
        let error = resolve(&kernel, &["no_such"], &[]).unwrap_err().to_string();
        assert!(error.contains("6.1.0-1-test") && error.contains("no module no_such"), "{error}");
    }
}
