//! Kernel modules from the initramfs.

use std::ffi::CString;
use std::fs;

use berth_runtime::error::{Attempt as _, Error, Result};
use berth_vmm::guest::initramfs::{MODULES, ORDER};
use nix::errno::Errno;

/// Loads the modules that the initramfs lists, in that order, and removes them from memory.
pub fn load() -> Result<()> {
    let directory = format!("/{MODULES}");
    let order = fs::read_to_string(format!("/{ORDER}")).attempt(|| format!("read the list of modules /{ORDER}"))?;
    let command_line = fs::read_to_string("/proc/cmdline").attempt(|| "read the kernel's command line")?;
    for name in order.lines() {
        let attempt = || format!("load the kernel module {name}");
        let file = fs::File::open(format!("{directory}/{name}")).attempt(attempt)?;
        let parameters = CString::new(parameters(name, &command_line))
            .map_err(|_| Error::Invalid("the kernel's command line contains a zero byte".to_owned()))?;
        match rustix::system::finit_module(&file, &parameters, 0) {
            Err(rustix::io::Errno::EXIST) => {}
            other => other.attempt(attempt)?,
        }
    }
    match fs::remove_dir_all(&directory) {
        Err(error) if error.raw_os_error() == Some(Errno::EROFS as i32) => Ok(()),
        other => other.attempt(|| format!("remove {directory}")),
    }
}

/// What the kernel's command line says for a module, `name.parameter=value`: only built-in ones read it themselves.
fn parameters(file: &str, command_line: &str) -> String {
    let name = file.split('.').next().unwrap_or_default().replace('-', "_");
    let words = command_line.split_whitespace().filter_map(|word| {
        let (module, parameter) = word.split_once('.')?;
        (module.replace('-', "_") == name).then_some(parameter)
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::parameters;

    #[test]
    fn a_module_gets_its_own_parameters() {
        let line = "console=ttyS0 virtio_mmio.device=4K@0xd0000000:5 virtio-mmio.device=4K@0xd0001000:6 x.y=1\n";
        assert_eq!(parameters("virtio_mmio.ko", line), "device=4K@0xd0000000:5 device=4K@0xd0001000:6");
        assert_eq!(parameters("virtio_blk.ko", line), "");
    }
}
