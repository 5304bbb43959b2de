//! Reads a seccomp profile from a file: docker's JSON format, of which the OCI format is a part.
//!
//! What docker's format adds is settled here: `archMap` becomes a list of architectures, and a rule with `includes` or
//! `excludes` is kept or left out by the container's capabilities, the machine and the kernel.

use oci_spec::runtime::{
    Arch, Capabilities, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSyscall,
};
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<Arch>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    flags: Vec<LinuxSeccompFilterFlag>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

/// An architecture with those whose system calls its kernel also serves.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Vec<Arch>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    /// The older spelling, one name a rule.
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    caps: Vec<Capability>,
    /// Names as Go has them: `amd64`, `x86`, `x32`, `arm64`.
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// The machine a profile is read for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    /// As in `std::env::consts::ARCH`.
    pub arch: &'static str,
    /// `(major, minor)`
    pub kernel: (u32, u32),
}

/// Reads a profile; the error says what is wrong with it.
pub(super) fn parse(text: &str, capabilities: &Capabilities, machine: Machine) -> Result<LinuxSeccomp, String> {
    let profile: Profile = serde_json::from_str(text)
        .map_err(|error| format!("{error}; give a profile in docker's or the OCI specification's JSON format"))?;
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return Err(String::from("it has both 'architectures' and 'archMap': keep one of them"));
    }
    let mut syscalls = Vec::with_capacity(profile.syscalls.len());
    for (index, rule) in profile.syscalls.into_iter().enumerate() {
        let failed = |reason: String| format!("rule {index} of 'syscalls': {reason}");
        if let Some(rule) = rule.settle(capabilities, machine).map_err(failed)? {
            syscalls.push(rule);
        }
    }
    let native = native(machine.arch);
    let architectures: Vec<Arch> = if profile.arch_map.is_empty() {
        profile.architectures
    } else {
        profile
            .arch_map
            .into_iter()
            .filter(|map| Some(map.architecture) == native)
            .flat_map(|map| std::iter::once(map.architecture).chain(map.sub_architectures))
            .collect()
    };
    let mut seccomp = LinuxSeccomp::default();
    seccomp
        .set_default_action(profile.default_action)
        .set_default_errno_ret(profile.default_errno_ret)
        .set_architectures(some(architectures))
        .set_flags(some(profile.flags))
        .set_listener_path(profile.listener_path)
        .set_listener_metadata(profile.listener_metadata)
        .set_syscalls(some(syscalls));
    Ok(seccomp)
}

impl Rule {
    /// The rule in OCI form; `None` where it is not for this container.
    fn settle(self, capabilities: &Capabilities, machine: Machine) -> Result<Option<LinuxSyscall>, String> {
        let names = match (self.name, self.names.is_empty()) {
            (Some(name), true) => vec![name],
            (None, false) => self.names,
            (Some(_), false) => {
                return Err(String::from("it has both 'name' and 'names': keep 'names'"));
            }
            (None, true) => return Err(String::from("it names no system call: add 'names'")),
        };
        if let Some(argument) = self.args.iter().flatten().find(|argument| argument.index() > 5) {
            return Err(format!("a system call has the arguments 0 to 5, not {}", argument.index()));
        }
        let included = self.includes.arches.is_empty() || self.includes.names_arch(machine.arch);
        if !included
            || !self.includes.caps.iter().all(|capability| capabilities.contains(capability))
            || self.includes.min_kernel()?.is_some_and(|least| machine.kernel < least)
            || self.excludes.names_arch(machine.arch)
            || self.excludes.caps.iter().any(|capability| capabilities.contains(capability))
            || self.excludes.min_kernel()?.is_some_and(|least| machine.kernel >= least)
        {
            return Ok(None);
        }
        let mut syscall = LinuxSyscall::default();
        syscall
            .set_names(names)
            .set_action(self.action)
            .set_errno_ret(self.errno_ret)
            .set_args(self.args.and_then(some));
        Ok(Some(syscall))
    }
}

impl Filter {
    fn names_arch(&self, arch: &str) -> bool {
        let go = match arch {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        self.arches.iter().any(|name| name == go)
    }

    fn min_kernel(&self) -> Result<Option<(u32, u32)>, String> {
        let Some(text) = &self.min_kernel else {
            return Ok(None);
        };
        text.split_once('.')
            .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
            .map(Some)
            .ok_or_else(|| format!("'minKernel' is '{text}': give major.minor, for example 4.8"))
    }
}

fn native(arch: &str) -> Option<Arch> {
    Some(match arch {
        "x86_64" => Arch::ScmpArchX86_64,
        "x86" => Arch::ScmpArchX86,
        "aarch64" => Arch::ScmpArchAarch64,
        "arm" => Arch::ScmpArchArm,
        "riscv64" => Arch::ScmpArchRiscv64,
        "powerpc64" => Arch::ScmpArchPpc64le,
        "s390x" => Arch::ScmpArchS390x,
        "loongarch64" => Arch::ScmpArchLoongarch64,
        _ => return None,
    })
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine { arch: "x86_64", kernel: (6, 1) };

    fn read(text: &str, capabilities: &[Capability]) -> Result<LinuxSeccomp, String> {
        parse(text, &capabilities.iter().copied().collect(), MACHINE)
    }

    fn names(seccomp: &LinuxSeccomp) -> Vec<&str> {
        seccomp
            .syscalls()
            .iter()
            .flatten()
            .flat_map(oci_spec::runtime::LinuxSyscall::names)
            .map(String::as_str)
            .collect()
    }

    fn rules(rules: &str) -> String {
        format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[{rules}]}}"#)
    }

    #[test]
    fn oci_format_is_kept_as_it_is() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X32"],
            "flags":["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
        let seccomp = read(text, &[]).unwrap();
        let direct: LinuxSeccomp = serde_json::from_str(text).unwrap();
        assert_eq!(seccomp, direct);
    }

    #[test]
    fn arch_map_gives_this_machines_architectures() {
        let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[
            {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]},
            {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}]}"#;
        let seccomp = read(text, &[]).unwrap();
        let expected = vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32];
        assert_eq!(seccomp.architectures().as_ref(), Some(&expected));
    }

    #[test]
    fn includes_and_excludes_are_settled() {
        let text = rules(
            r#"{"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
               {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"excludes":{"caps":["CAP_SYS_ADMIN"]}},
               {"names":["arch_prctl"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["amd64","x32"]}},
               {"names":["breakpoint"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["arm64"]}},
               {"names":["s390_runtime_instr"],"action":"SCMP_ACT_ALLOW","excludes":{"arches":["amd64"]}},
               {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
               {"names":["future"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"6.10"}},
               {"names":["old"],"action":"SCMP_ACT_ALLOW","excludes":{"minKernel":"4.8"}},
               {"name":"read","action":"SCMP_ACT_ALLOW","args":[]}"#,
        );
        assert_eq!(names(&read(&text, &[]).unwrap()), ["clone3", "arch_prctl", "ptrace", "read"]);
        let admin = read(&text, &[Capability::SysAdmin]).unwrap();
        assert_eq!(names(&admin), ["bpf", "arch_prctl", "ptrace", "read"]);
        let clone3 = &read(&text, &[]).unwrap().syscalls().clone().unwrap()[0];
        assert_eq!(clone3.errno_ret(), Some(38));
    }

    #[test]
    fn bad_profiles_are_errors_that_say_why() {
        let cases = [
            ("", "EOF"),
            ("[]", "JSON format"),
            ("{}", "defaultAction"),
            (r#"{"defaultAction":"SCMP_ACT_PARTY"}"#, "SCMP_ACT_PARTY"),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86"}]}"#,
                "keep one",
            ),
            (&rules(r#"{"action":"SCMP_ACT_ALLOW"}"#), "rule 0"),
            (&rules(r#"{"name":"a","names":["b"],"action":"SCMP_ACT_ALLOW"}"#), "keep 'names'"),
            (
                &rules(
                    r#"{"names":["a"],"action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}"#,
                ),
                "0 to 5",
            ),
            (
                &rules(
                    r#"{"names":["a"],"action":"SCMP_ACT_ALLOW","args":[{"index":-1,"value":0,"op":"SCMP_CMP_EQ"}]}"#,
                ),
                "JSON format",
            ),
            (&rules(r#"{"names":["a"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"new"}}"#), "minKernel"),
            (&rules(r#"{"names":["a"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_FLY"]}}"#), "JSON format"),
        ];
        for (text, part) in cases {
            let error = read(text, &[]).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        read(&"[".repeat(100_000), &[]).unwrap_err();
    }
}
