//! The filters are proved twice: instruction by instruction in an interpreter, and by the kernel in forked children.

use std::collections::HashSet;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use oci_spec::runtime::{Capability, LinuxSeccomp};
use serde_json::json;

use super::{Error, Filter, compile, default_profile, install};

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const ARCH: u32 = if cfg!(target_arch = "x86_64") { 0xC000_003E } else { 0xC000_00B7 };

fn no_caps() -> HashSet<Capability> {
    HashSet::new()
}

fn errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

fn profile(json: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(json).unwrap()
}

/// `sethostname` fails with errno 7 where `args` match; everything else is allowed.
fn with_args(args: &serde_json::Value) -> Filter {
    compile(&profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7, "args": args}],
    })))
    .unwrap()
}

/// Runs the filter as the kernel would: the `SECCOMP_RET_*` value for a call.
fn decide(filter: &Filter, arch: u32, number: u32, args: &[u64]) -> u32 {
    let mut data = vec![number, arch, 0, 0];
    for i in 0..6 {
        let arg = args.get(i).copied().unwrap_or(0);
        data.extend([arg as u32, (arg >> 32) as u32]);
    }
    let (mut pc, mut a) = (0_usize, 0_u32);
    loop {
        let i = &filter.program[pc];
        pc += 1;
        let jump = |condition: bool| usize::from(if condition { i.jt } else { i.jf });
        match i.code {
            0x20 => a = data[i.k as usize / 4],
            0x54 => a &= i.k,
            0x05 => pc += i.k as usize,
            0x15 => pc += jump(a == i.k),
            0x25 => pc += jump(a > i.k),
            0x35 => pc += jump(a >= i.k),
            0x06 => return i.k,
            code => panic!("instruction {code:#x} is not one a filter here uses"),
        }
    }
}

fn call(filter: &Filter, number: libc::c_long, args: &[u64]) -> u32 {
    decide(filter, ARCH, number as u32, args)
}

/// Installs the filter in a child and runs `body` there, which may only make system calls.
fn in_child(filter: &Filter, body: impl FnOnce() -> bool) -> WaitStatus {
    // SAFETY: the child makes system calls and exits, whatever other threads held at the time of the fork.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => waitpid(child, None).unwrap(),
        ForkResult::Child => {
            let code = if install(filter).is_err() { 2 } else { i32::from(!body()) };
            // SAFETY: ends this child at once.
            unsafe { libc::_exit(code) }
        }
    }
}

fn holds(filter: &Filter, body: impl FnOnce() -> bool) {
    match in_child(filter, body) {
        WaitStatus::Exited(_, 0) => {}
        status => panic!("the child ended with {status:?} (2: the filter could not be installed)"),
    }
}

fn fails_with(errno: i32, result: libc::c_long) -> bool {
    result == -1 && std::io::Error::last_os_error().raw_os_error() == Some(errno)
}

fn raw(number: libc::c_long, args: [u64; 3]) -> libc::c_long {
    // SAFETY: the callers pass null pointers or plain numbers.
    unsafe { libc::syscall(number, args[0], args[1], args[2]) }
}

#[test]
fn the_default_profile_holds_in_the_kernel() {
    let filter = compile(&default_profile(&no_caps())).unwrap();
    holds(&filter, || raw(libc::SYS_getppid, [0; 3]) > 0);
    holds(&filter, || fails_with(libc::EPERM, raw(libc::SYS_mount, [0; 3])));
    holds(&filter, || fails_with(libc::EPERM, raw(libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0])));
    holds(&filter, || fails_with(libc::EPERM, raw(libc::SYS_keyctl, [0; 3])));
    holds(&filter, || fails_with(libc::ENOSYS, raw(libc::SYS_clone3, [0; 3])));
    holds(&filter, || fails_with(libc::ENOSYS, raw(2000, [0; 3])));
    holds(&filter, || fails_with(libc::EPERM, raw(libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0])));
    holds(&filter, || {
        match raw(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0]) {
            // SAFETY: ends this grandchild at once.
            0 => unsafe { libc::_exit(0) },
            pid => pid > 0,
        }
    });
    holds(&filter, || raw(libc::SYS_personality, [0xFFFF_FFFF, 0, 0]) >= 0);
    holds(&filter, || raw(libc::SYS_personality, [0x2_0008, 0, 0]) >= 0);
    holds(&filter, || fails_with(libc::EPERM, raw(libc::SYS_personality, [0x40000, 0, 0])));
    holds(&filter, || raw(libc::SYS_socket, [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0]) >= 0);
    for family in [libc::AF_ALG, libc::AF_VSOCK] {
        for upper in [0, 1 << 32] {
            let family = family as u64 | upper;
            holds(&filter, || fails_with(libc::EPERM, raw(libc::SYS_socket, [family, libc::SOCK_DGRAM as u64, 0])));
        }
    }
}

#[test]
fn the_default_profile_allows_every_family_but_two() {
    let filter = compile(&default_profile(&no_caps())).unwrap();
    for family in 0..48 {
        let expected = if [38, 40].contains(&family) { errno(libc::EPERM) } else { ALLOW };
        assert_eq!(call(&filter, libc::SYS_socket, &[family]), expected, "family {family}");
    }
}

#[test]
fn capabilities_open_their_calls_and_no_others() {
    let bare = compile(&default_profile(&no_caps())).unwrap();
    for (cap, numbers) in [
        (Capability::SysAdmin, &[libc::SYS_mount, libc::SYS_unshare, libc::SYS_setns, libc::SYS_bpf][..]),
        (Capability::SysPtrace, &[libc::SYS_kcmp, libc::SYS_pidfd_getfd]),
        (Capability::SysModule, &[libc::SYS_init_module, libc::SYS_finit_module]),
        (Capability::SysTime, &[libc::SYS_settimeofday, libc::SYS_clock_settime]),
        (Capability::DacReadSearch, &[libc::SYS_open_by_handle_at]),
        (Capability::SysBoot, &[libc::SYS_reboot]),
        (Capability::SysChroot, &[libc::SYS_chroot]),
        (Capability::SysPacct, &[libc::SYS_acct]),
        #[cfg(target_arch = "x86_64")]
        (Capability::SysRawio, &[libc::SYS_iopl, libc::SYS_ioperm]),
        (Capability::SysTtyConfig, &[libc::SYS_vhangup]),
        (Capability::SysNice, &[libc::SYS_mbind]),
        (Capability::Syslog, &[libc::SYS_syslog]),
        (Capability::Bpf, &[libc::SYS_bpf]),
        (Capability::Perfmon, &[libc::SYS_perf_event_open]),
    ] {
        let with = compile(&default_profile(&HashSet::from([cap]))).unwrap();
        for number in numbers {
            assert_eq!(call(&bare, *number, &[]), errno(libc::EPERM), "{number} without {cap}");
            assert_eq!(call(&with, *number, &[]), ALLOW, "{number} with {cap}");
        }
        assert_eq!(call(&with, libc::SYS_kexec_load, &[]), errno(libc::EPERM));
        let admin = cap == Capability::SysAdmin;
        assert_eq!(call(&with, libc::SYS_clone3, &[]), if admin { ALLOW } else { errno(libc::ENOSYS) });
        let namespaces = call(&with, libc::SYS_clone, &[libc::CLONE_NEWNS as u64]);
        assert_eq!(namespaces, if admin { ALLOW } else { errno(libc::EPERM) });
    }
}

#[test]
fn operators_compare_all_64_bits() {
    const BIG: u64 = 5 << 32 | 9;
    let blocked = |op: &str, value: u64, two: u64, arg: u64| {
        let filter = with_args(&json!([{"index": 1, "value": value, "valueTwo": two, "op": op}]));
        call(&filter, libc::SYS_sethostname, &[0, arg]) == errno(7)
    };
    for arg in [0, 8, 9, 10, 0x4_0000_000A, BIG - 1, BIG, BIG + 1, 6 << 32, u64::MAX] {
        for value in [0, 9, BIG, u64::MAX] {
            let holds = |op| blocked(op, value, 0, arg);
            assert_eq!(holds("SCMP_CMP_NE"), arg != value, "{arg:#x} != {value:#x}");
            assert_eq!(holds("SCMP_CMP_LT"), arg < value, "{arg:#x} < {value:#x}");
            assert_eq!(holds("SCMP_CMP_LE"), arg <= value, "{arg:#x} <= {value:#x}");
            assert_eq!(holds("SCMP_CMP_EQ"), arg == value, "{arg:#x} == {value:#x}");
            assert_eq!(holds("SCMP_CMP_GE"), arg >= value, "{arg:#x} >= {value:#x}");
            assert_eq!(holds("SCMP_CMP_GT"), arg > value, "{arg:#x} > {value:#x}");
            for mask in [0xF, 0xF << 32, 0x0000_000F_0000_000F] {
                let masked = blocked("SCMP_CMP_MASKED_EQ", mask, value & mask, arg);
                assert_eq!(masked, arg & mask == value & mask, "{arg:#x} & {mask:#x} == {value:#x}");
            }
        }
    }
}

#[test]
fn several_arguments_must_all_match_and_one_argument_twice_is_a_choice() {
    let both = with_args(&json!([
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}
    ]));
    assert_eq!(call(&both, libc::SYS_sethostname, &[1, 2]), errno(7));
    assert_eq!(call(&both, libc::SYS_sethostname, &[1, 3]), ALLOW);
    let either = with_args(&json!([
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}
    ]));
    assert_eq!(call(&either, libc::SYS_sethostname, &[2]), errno(7));
    assert_eq!(call(&either, libc::SYS_sethostname, &[3]), ALLOW);
}

#[test]
fn one_system_call_may_have_several_actions() {
    let filter = compile(&profile(json!({
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [
            {"names": ["socket"], "action": "SCMP_ACT_TRAP", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_TRACE", "errnoRet": 5,
             "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_GE"}]},
            {"names": ["bind", "no_such_call"], "action": "SCMP_ACT_KILL"},
            {"names": ["bind"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            {"names": ["no_such_call"], "action": "SCMP_ACT_ALLOW"},
        ],
    })))
    .unwrap();
    for (family, expected) in [
        (0, libc::SECCOMP_RET_KILL_PROCESS),
        (1, libc::SECCOMP_RET_TRAP),
        (2, libc::SECCOMP_RET_LOG),
        (9, libc::SECCOMP_RET_TRACE | 5),
    ] {
        assert_eq!(call(&filter, libc::SYS_socket, &[family]), expected, "{family}");
    }
    assert_eq!(call(&filter, libc::SYS_bind, &[1]), libc::SECCOMP_RET_KILL_THREAD, "a rule without arguments wins");
    assert_eq!(call(&filter, libc::SYS_read, &[]), libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn every_number_has_the_action_its_rule_says() {
    // Every third number, so that the search is deep and the jumps over its halves are long.
    let named: Vec<_> = syscalls::Sysno::iter().filter(|sysno| sysno.id() % 3 == 0).collect();
    let names: Vec<_> = named.iter().map(syscalls::Sysno::name).collect();
    let filter = compile(&profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 99,
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
    })))
    .unwrap();
    let highest = named.last().unwrap().id();
    for number in 0..1000 {
        let expected = if named.iter().any(|sysno| sysno.id() == number) {
            ALLOW
        } else if number > highest {
            errno(libc::ENOSYS)
        } else {
            errno(99)
        };
        assert_eq!(call(&filter, number.into(), &[]), expected, "{number}");
    }
}

#[test]
fn foreign_architectures_are_killed_and_x32_does_not_get_round_a_deny_list() {
    let filter = compile(&profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}],
    })))
    .unwrap();
    assert_eq!(decide(&filter, 0x4000_0003, 3, &[]), libc::SECCOMP_RET_KILL_PROCESS);
    let x32_mount = 0x4000_0000 | libc::SYS_mount as u32;
    assert_eq!(decide(&filter, ARCH, x32_mount, &[]), errno(libc::ENOSYS));
    assert_eq!(call(&filter, libc::SYS_mount, &[]), errno(libc::EPERM));
    assert_eq!(call(&filter, 999, &[]), ALLOW, "no ENOSYS where the default allows");
}

#[test]
fn actions_act() {
    let with = |action: &str| {
        compile(&profile(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
            "syscalls": [{"names": ["getppid"], "action": action, "errnoRet": libc::EXDEV}],
        })))
        .unwrap()
    };
    let getppid = || raw(libc::SYS_getppid, [0; 3]);
    holds(&with("SCMP_ACT_ERRNO"), || fails_with(libc::EXDEV, getppid()));
    holds(&with("SCMP_ACT_LOG"), || getppid() > 0);
    // Without a tracer, a traced call is one that does not exist.
    holds(&with("SCMP_ACT_TRACE"), || fails_with(libc::ENOSYS, getppid()));
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let status = in_child(&with(action), || getppid() > 0);
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _)), "{action}: {status:?}");
    }
}

#[test]
fn bad_profiles_are_refused() {
    let refused = |json| compile(&profile(json)).unwrap_err();
    let notify = refused(json!({
        "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}],
    }));
    assert!(matches!(&notify, Error::Notify { syscall: Some(name) } if name == "mount"), "{notify}");
    let default = refused(json!({"defaultAction": "SCMP_ACT_NOTIFY"}));
    assert!(default.to_string().contains("has no seccomp agent"), "{default}");
    let errno = refused(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 0x0007_0000}));
    assert!(matches!(errno, Error::Errno(0x0007_0000)), "{errno}");
    let index = refused(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO",
                      "args": [{"index": 300, "value": 0, "op": "SCMP_CMP_EQ"}]}],
    }));
    assert!(matches!(&index, Error::Rule { syscall, .. } if syscall == "mount"), "{index}");
    let choices: Vec<_> = (0..2000).map(|value| json!({"index": 0, "value": value, "op": "SCMP_CMP_EQ"})).collect();
    let large = refused(json!({
        "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": choices}],
    }));
    assert!(large.to_string().contains("4096"), "{large}");
}

#[test]
fn the_default_profile_is_small_and_quick_to_compile() {
    let profile = default_profile(&no_caps());
    let start = Instant::now();
    let filter = compile(&profile).unwrap();
    println!("default profile: {} instructions, compiled in {:?}", filter.instructions(), start.elapsed());
    assert!(filter.instructions() < 400, "{} instructions", filter.instructions());
}
