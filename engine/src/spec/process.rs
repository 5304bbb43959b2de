//! The container's process: its arguments, environment, user, directory, capabilities and limits.

use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capabilities, LinuxCapabilities, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, User,
};
use rustix::process::Resource;

use crate::options::{Options, Ulimit};

use super::{Error, Inputs};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The names of `--ulimit` and what they limit, see getrlimit(2).
const ULIMITS: [(&str, PosixRlimitType, Resource); 16] = [
    ("as", PosixRlimitType::RlimitAs, Resource::As),
    ("core", PosixRlimitType::RlimitCore, Resource::Core),
    ("cpu", PosixRlimitType::RlimitCpu, Resource::Cpu),
    ("data", PosixRlimitType::RlimitData, Resource::Data),
    ("fsize", PosixRlimitType::RlimitFsize, Resource::Fsize),
    ("locks", PosixRlimitType::RlimitLocks, Resource::Locks),
    ("memlock", PosixRlimitType::RlimitMemlock, Resource::Memlock),
    ("msgqueue", PosixRlimitType::RlimitMsgqueue, Resource::Msgqueue),
    ("nice", PosixRlimitType::RlimitNice, Resource::Nice),
    ("nofile", PosixRlimitType::RlimitNofile, Resource::Nofile),
    ("nproc", PosixRlimitType::RlimitNproc, Resource::Nproc),
    ("rss", PosixRlimitType::RlimitRss, Resource::Rss),
    ("rtprio", PosixRlimitType::RlimitRtprio, Resource::Rtprio),
    ("rttime", PosixRlimitType::RlimitRttime, Resource::Rttime),
    ("sigpending", PosixRlimitType::RlimitSigpending, Resource::Sigpending),
    ("stack", PosixRlimitType::RlimitStack, Resource::Stack),
];

pub(super) fn process(inputs: &Inputs, capabilities: &Capabilities) -> Result<Process, Error> {
    let options = inputs.options;
    let mut process = Process::default();
    process
        .set_terminal(Some(options.tty))
        .set_user(user(options, inputs.image))
        .set_args(Some(args(options, inputs.image)?))
        .set_env(Some(env(options, inputs.image, &hostname(inputs))))
        .set_cwd(working_dir(options, inputs.image)?.into())
        .set_capabilities(Some(sets(capabilities)))
        .set_rlimits(rlimits(&options.ulimits)?)
        .set_no_new_privileges(Some(options.no_new_privileges.unwrap_or(!options.privileged)))
        .set_oom_score_adj(options.oom_score_adj);
    Ok(process)
}

/// The command line: entry point and command combined by docker's rules.
///
/// `--entrypoint` replaces the image's and discards the image's command with it; an empty one clears it.
pub fn args(options: &Options, image: &ImageConfiguration) -> Result<Vec<String>, Error> {
    let config = image.config().as_ref();
    let mut args: Vec<String> = match &options.entrypoint {
        Some(entrypoint) => Some(entrypoint.clone()).filter(|entrypoint| !entrypoint.is_empty()).into_iter().collect(),
        None => config.and_then(|config| config.entrypoint().clone()).unwrap_or_default(),
    };
    if !options.command.is_empty() {
        args.extend_from_slice(&options.command);
    } else if options.entrypoint.is_none() {
        args.extend(config.and_then(|config| config.cmd().clone()).unwrap_or_default());
    }
    match args.first() {
        Some(program) if !program.is_empty() => Ok(args),
        _ => Err(Error::NoCommand),
    }
}

/// The environment: `PATH`, the image's, `HOSTNAME`, `TERM` with a terminal, then the person's; what comes later
/// takes the place of what was there.
fn env(options: &Options, image: &ImageConfiguration, hostname: &str) -> Vec<String> {
    let from_image = image.config().as_ref().and_then(|config| config.env().clone()).unwrap_or_default();
    let mut env = vec![String::from(PATH)];
    let own = [format!("HOSTNAME={hostname}")].into_iter().chain(options.tty.then(|| String::from("TERM=xterm")));
    for entry in from_image.into_iter().chain(own).chain(options.env.iter().cloned()) {
        let Some((key, _)) = entry.split_once('=') else {
            continue;
        };
        match env.iter_mut().find(|old| old.split_once('=').is_some_and(|(name, _)| name == key)) {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
    }
    env
}

/// The host name: as asked for, or the first 12 digits of the id.
pub(super) fn hostname(inputs: &Inputs) -> String {
    inputs.options.hostname.clone().unwrap_or_else(|| inputs.id.chars().take(12).collect())
}

/// The user as it is looked up inside the sandbox: the person's, the image's or root.
pub(super) fn user_name(options: &Options, image: &ImageConfiguration) -> String {
    let of_image = || image.config().as_ref().and_then(|config| config.user().clone());
    options
        .user
        .clone()
        .filter(|user| !user.is_empty())
        .or_else(of_image)
        .filter(|user| !user.is_empty())
        .unwrap_or_else(|| String::from("0"))
}

/// The numeric parts of the user, for runtimes that do not know berth's annotation.
fn user(options: &Options, image: &ImageConfiguration) -> User {
    let name = user_name(options, image);
    let (uid, gid) = name.split_once(':').unwrap_or((&name, "0"));
    let groups: Vec<u32> = options.group_add.iter().filter_map(|group| group.parse().ok()).collect();
    let mut user = User::default();
    user.set_uid(uid.parse().unwrap_or(0))
        .set_gid(gid.parse().unwrap_or(0))
        .set_additional_gids((!groups.is_empty()).then_some(groups));
    user
}

fn working_dir(options: &Options, image: &ImageConfiguration) -> Result<String, Error> {
    if let Some(path) = options.workdir.as_ref().filter(|path| !path.is_empty()) {
        if !path.starts_with('/') {
            return Err(Error::WorkingDir { path: path.clone() });
        }
        return Ok(path.clone());
    }
    let path = image.config().as_ref().and_then(|config| config.working_dir().clone()).unwrap_or_default();
    Ok(if path.starts_with('/') { path } else { format!("/{path}") })
}

/// Bounding, permitted and effective; nothing is inheritable or ambient, as in docker since CVE-2022-24769.
fn sets(capabilities: &Capabilities) -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(capabilities.clone()))
        .set_permitted(Some(capabilities.clone()))
        .set_effective(Some(capabilities.clone()))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

fn rlimits(ulimits: &[Ulimit]) -> Result<Option<Vec<PosixRlimit>>, Error> {
    let mut limits: Vec<PosixRlimit> = Vec::new();
    for ulimit in ulimits {
        let kind = ulimit_kind(&ulimit.name)?;
        let limit = PosixRlimitBuilder::default()
            .typ(kind)
            .soft(ulimit.soft)
            .hard(ulimit.hard)
            .build()
            .expect("the builder requires nothing");
        limits.retain(|old| old.typ() != kind);
        limits.push(limit);
    }
    Ok((!limits.is_empty()).then_some(limits))
}

/// What a name of `--ulimit` limits.
pub fn ulimit_kind(name: &str) -> Result<PosixRlimitType, Error> {
    ulimit(name).map(|(kind, _)| kind)
}

/// What a name of `--ulimit` limits, in the OCI specification's terms and the kernel's.
pub(super) fn ulimit(name: &str) -> Result<(PosixRlimitType, Resource), Error> {
    let found = ULIMITS.iter().find(|(known, ..)| *known == name);
    found.map(|(_, kind, resource)| (*kind, *resource)).ok_or_else(|| {
        let known: Vec<&str> = ULIMITS.iter().map(|(known, ..)| *known).collect();
        Error::UnknownUlimit { name: name.to_owned(), known: known.join(", ") }
    })
}
