//! From an OCI profile to a BPF program. What the program means is in the [parent module](super).

use std::collections::BTreeMap;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as OciAction, LinuxSeccompArg, LinuxSeccompFilterFlag as OciFlag,
    LinuxSeccompOperator as Operator,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use syscalls::Sysno;

use super::search::{Range, Target, load, ret, search, skip, skip_if_equal};
use super::{Error, Filter, Result};

/// Numbers from here on are x32 calls on `x86_64`, and nothing elsewhere.
const X32_SYSCALL_BIT: u32 = 0x4000_0000;
/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// `AUDIT_ARCH_*` of this machine, `linux/audit.h`.
const AUDIT_ARCH: u32 = 0xC000_0000
    | if cfg!(target_arch = "x86_64") {
        62
    } else if cfg!(target_arch = "aarch64") {
        183
    } else {
        243
    };
/// `BPF_MAXINSNS`, `linux/bpf_common.h`.
const MAX_INSTRUCTIONS: usize = 4096;
/// Where an action wants an errno and the profile gives none.
const DEFAULT_ERRNO: u32 = libc::EPERM as u32;

/// What is done about one system call.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The same whatever its arguments.
    Always(u32),
    /// The action of the first matching rule, in the order of the profile; rules of one action in a row are together.
    ByArguments(Vec<(SeccompAction, Vec<SeccompRule>)>),
}

/// Compiles `profile` for this machine's architecture.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let default = action(profile.default_action(), profile.default_errno_ret(), None)?;
    let (verdicts, highest) = verdicts(profile, &default)?;
    let default = u32::from(default);
    let unknown = if denies(profile.default_action()) { errno(libc::ENOSYS) } else { default };
    let younger = highest.map(|highest| (highest + 1, unknown));
    Ok(Filter {
        program: program(verdicts, default, younger)?,
        flags: flags(profile.flags().as_deref().unwrap_or_default()),
    })
}

/// Compiles a filter that does as `verdicts` say, and `default` about the calls they do not name.
pub(crate) fn filter(verdicts: BTreeMap<u32, Verdict>, default: u32) -> Result<Filter> {
    Ok(Filter { program: program(verdicts, default, None)?, flags: 0 })
}

/// The same, with calls from a number on for which there is another value.
fn program(verdicts: BTreeMap<u32, Verdict>, default: u32, younger: Option<(u32, u32)>) -> Result<Vec<sock_filter>> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| Error::Architecture(std::env::consts::ARCH))?;
    let mut ranges = Ranges::new(default);
    let mut blocks = Vec::new();
    for (number, verdict) in verdicts {
        match verdict {
            Verdict::Always(value) => ranges.push(number, Target::Return(value)),
            Verdict::ByArguments(groups) => {
                ranges.push(number, Target::Block(blocks.len()));
                blocks.push(block(number, groups, default, arch)?);
            }
        }
    }
    if let Some((start, value)) = younger {
        ranges.fill(start, Target::Return(value));
    }
    ranges.fill(X32_SYSCALL_BIT, Target::Return(errno(libc::ENOSYS)));

    let mut program =
        vec![load(ARCHITECTURE), skip_if_equal(AUDIT_ARCH, 1), ret(libc::SECCOMP_RET_KILL_PROCESS), load(NUMBER)];
    program.extend(search(&ranges.0, blocks));
    if program.len() > MAX_INSTRUCTIONS {
        return Err(Error::TooLarge(program.len()));
    }
    Ok(program)
}

/// What is done about each system call the profile has a rule for, and the highest number it names.
fn verdicts(profile: &LinuxSeccomp, default: &SeccompAction) -> Result<(BTreeMap<u32, Verdict>, Option<u32>)> {
    let mut verdicts = BTreeMap::new();
    let mut highest = None;
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret(), rule.names().first())?;
        for name in rule.names() {
            let Some(number) = number(name) else { continue };
            highest = highest.max(Some(number));
            if action == *default {
                continue;
            }
            let rules = rules(rule.args().as_deref().unwrap_or_default())
                .map_err(|source| Error::Rule { syscall: name.clone(), source })?;
            let verdict = verdicts.entry(number).or_insert_with(|| Verdict::ByArguments(Vec::new()));
            let Verdict::ByArguments(groups) = verdict else {
                continue;
            };
            if rules.is_empty() {
                *verdict = Verdict::Always(u32::from(action.clone()));
                continue;
            }
            match groups.last_mut() {
                Some((last, group)) if *last == action => group.extend(rules),
                _ => groups.push((action.clone(), rules)),
            }
        }
    }
    Ok((verdicts, highest))
}

/// Ranges of system call numbers, ascending; neighbours with one target become one range.
struct Ranges(Vec<Range>, u32);

impl Ranges {
    /// Everything has the default action.
    fn new(default: u32) -> Self {
        Self(vec![Range { start: 0, target: Target::Return(default) }], default)
    }

    /// `number`, and nothing after it, has `target`.
    fn push(&mut self, number: u32, target: Target) {
        self.fill(number, target);
        self.0.push(Range { start: number + 1, target: Target::Return(self.1) });
    }

    /// Everything from `start` on has `target`.
    fn fill(&mut self, start: u32, target: Target) {
        self.0.pop_if(|last| last.start == start);
        if self.0.last().is_none_or(|last| last.target != target) {
            self.0.push(Range { start, target });
        }
    }
}

/// The code for one system call whose arguments matter. `seccompiler` makes a whole program of each group; where such a
/// program says "no match" it goes on to the next, and the last one to the default action.
fn block(
    number: u32,
    groups: Vec<(SeccompAction, Vec<SeccompRule>)>,
    default: u32,
    arch: TargetArch,
) -> Result<Vec<sock_filter>> {
    let mut code = Vec::new();
    for (action, rules) in groups {
        let no_match = if action == SeccompAction::Trap { SeccompAction::Log } else { SeccompAction::Trap };
        let marker = ret(u32::from(no_match.clone()));
        let rules = BTreeMap::from([(i64::from(number), rules)]);
        let mut program = SeccompFilter::new(rules, no_match, action, arch)
            .and_then(BpfProgram::try_from)
            .map_err(|source| Error::Rule { syscall: name(number), source })?;
        let end = program.len();
        for (position, instruction) in program.iter_mut().enumerate() {
            if *instruction == marker {
                *instruction = skip((end - position - 1) as u32);
            }
        }
        code.append(&mut program);
    }
    code.push(ret(default));
    Ok(code)
}

/// The rules that stand for `args`: one that wants all of them, or, if an argument occurs twice, one for each. The
/// latter is what runc does, and the only way a profile can allow two values in one rule.
fn rules(args: &[LinuxSeccompArg]) -> std::result::Result<Vec<SeccompRule>, seccompiler::BackendError> {
    if args.is_empty() {
        return Ok(Vec::new());
    }
    let conditions = args.iter().map(condition).collect::<std::result::Result<Vec<_>, _>>()?;
    let twice = args.iter().enumerate().any(|(i, arg)| args[..i].iter().any(|before| before.index() == arg.index()));
    if twice {
        conditions.into_iter().map(|condition| SeccompRule::new(vec![condition])).collect()
    } else {
        Ok(vec![SeccompRule::new(conditions)?])
    }
}

fn condition(arg: &LinuxSeccompArg) -> std::result::Result<SeccompCondition, seccompiler::BackendError> {
    let (operator, value) = match arg.op() {
        Operator::ScmpCmpNe => (SeccompCmpOp::Ne, arg.value()),
        Operator::ScmpCmpLt => (SeccompCmpOp::Lt, arg.value()),
        Operator::ScmpCmpLe => (SeccompCmpOp::Le, arg.value()),
        Operator::ScmpCmpEq => (SeccompCmpOp::Eq, arg.value()),
        Operator::ScmpCmpGe => (SeccompCmpOp::Ge, arg.value()),
        Operator::ScmpCmpGt => (SeccompCmpOp::Gt, arg.value()),
        Operator::ScmpCmpMaskedEq => (SeccompCmpOp::MaskedEq(arg.value()), arg.value_two().unwrap_or(0)),
    };
    let index = u8::try_from(arg.index()).map_err(|_| seccompiler::BackendError::InvalidArgumentNumber)?;
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)
}

fn action(action: OciAction, errno: Option<u32>, syscall: Option<&String>) -> Result<SeccompAction> {
    let data = match errno {
        Some(errno) if errno > libc::SECCOMP_RET_DATA => return Err(Error::Errno(errno)),
        errno => errno.unwrap_or(DEFAULT_ERRNO),
    };
    Ok(match action {
        OciAction::ScmpActAllow => SeccompAction::Allow,
        OciAction::ScmpActErrno => SeccompAction::Errno(data),
        OciAction::ScmpActKill | OciAction::ScmpActKillThread => SeccompAction::KillThread,
        OciAction::ScmpActKillProcess => SeccompAction::KillProcess,
        OciAction::ScmpActTrap => SeccompAction::Trap,
        OciAction::ScmpActLog => SeccompAction::Log,
        OciAction::ScmpActTrace => SeccompAction::Trace(data),
        OciAction::ScmpActNotify => {
            return Err(Error::Notify { syscall: syscall.cloned() });
        }
    })
}

/// Whether the action keeps the call from being made.
fn denies(action: OciAction) -> bool {
    !matches!(action, OciAction::ScmpActAllow | OciAction::ScmpActLog | OciAction::ScmpActTrace)
}

fn errno(errno: i32) -> u32 {
    u32::from(SeccompAction::Errno(errno as u32))
}

/// The native number of the system call `name`; `None`: this architecture does not have it.
fn number(name: &str) -> Option<u32> {
    let name = match name {
        // The table calls it by the name in the generic header.
        "newfstatat" if cfg!(not(target_arch = "x86_64")) => "fstatat",
        name => name,
    };
    name.parse::<Sysno>().ok().map(|sysno| sysno.id() as u32)
}

fn name(number: u32) -> String {
    Sysno::new(number as usize).map_or_else(|| number.to_string(), |sysno| sysno.name().to_owned())
}

/// `SECCOMP_FILTER_FLAG_*` bits. `WAIT_KILLABLE_RECV` concerns listeners alone, and there is none.
fn flags(flags: &[OciFlag]) -> libc::c_ulong {
    flags
        .iter()
        .map(|flag| match flag {
            OciFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            OciFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            OciFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            OciFlag::SeccompFilterFlagWaitKillableRecv => 0,
        })
        .fold(0, |bits, flag| bits | flag)
}
