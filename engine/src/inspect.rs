//! Everything there is to know of one container, in the shape people know from docker.

use std::path::Path;

use berth_runtime::executor::{self, Executor};
use berth_runtime::monitor::{RestartPolicy, Status};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::container::{Container, State};
use crate::document;
use crate::error::Result;
use crate::options::{Isolation, Mount, MountSource, Options, Seccomp};
use crate::{logs, vm, volumes, wasm};

/// What docker shows for a time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Describes a container.
pub fn inspect(container: &Container) -> Result<Value> {
    let record = &container.record;
    let options = &record.options;
    let status = container.status()?;
    let state = container.state(&status);
    let dir = container.dir();
    let spec: Value = document::read(&dir.join("config.json"), "remove the container")?.unwrap_or_default();
    let executor: Option<Executor> = document::read(&dir.join(executor::FILE), "remove the container")?;
    let etc = |name: &str| (options.isolation != Isolation::Wasm).then(|| container.live_dir().join(name));
    Ok(json!({
        "Id": record.id,
        "Name": record.name,
        "Created": record.created_at,
        "Path": record.args.first(),
        "Args": record.args.get(1..).unwrap_or_default(),
        "State": state_of(state, &status),
        "Image": record.image_id,
        "ImageName": record.image,
        "ImageDigest": record.image_digest,
        "ResolvConfPath": etc("resolv.conf"),
        "HostnamePath": etc("hostname"),
        "HostsPath": etc("hosts"),
        "LogPath": dir.join(logs::LOG),
        "RestartCount": status.restart_count,
        "Driver": "overlay",
        "Platform": "linux",
        "HostConfig": host_config(options),
        // Beyond the limits above, for what runs a microVM.
        "MemoryOverhead": executor.as_ref().map(|executor| executor.memory_overhead),
        "PidsOverhead": executor.as_ref().map(|executor| executor.pids_overhead),
        "GraphDriver": wasm::has_files(options, &record.lower_dirs).then(|| json!({
            "Name": "overlay",
            "Data": {
                "LowerDir": record.lower_dirs,
                "UpperDir": dir.join("upper"),
                "WorkDir": dir.join("work"),
            },
        })),
        "Mounts": mounts(container),
        "Config": config(container, &spec),
        "Bundle": dir,
        "MonitorPid": status.monitor_pid,
        "Exits": vm::known_exits(container),
    }))
}

fn state_of(state: State, status: &Status) -> Value {
    let time = |time: Option<Timestamp>| time.map_or_else(|| NEVER.to_owned(), |time| time.to_string());
    json!({
        "Status": state,
        "Running": matches!(state, State::Running | State::Paused),
        "Paused": state == State::Paused,
        "Restarting": state == State::Restarting,
        "OOMKilled": status.oom_killed,
        "Dead": false,
        "Pid": status.pid.unwrap_or_default(),
        "ExitCode": status.exit_code.unwrap_or_default(),
        "Error": status.error.as_deref().unwrap_or_default(),
        "StartedAt": time(status.started_at),
        "FinishedAt": time(status.finished_at),
    })
}

fn mounts(container: &Container) -> Vec<Value> {
    let volumes = volumes::Store::new(container.roots().data());
    let describe = |mount: &Mount| {
        let (kind, name, source) = match &mount.source {
            MountSource::Bind { path, .. } => ("bind", None, Some(path.clone())),
            MountSource::Volume { name, .. } => {
                let source = name.as_ref().map(|name| volumes.path(name).join("_data"));
                ("volume", name.as_deref(), source)
            }
            MountSource::Tmpfs { .. } => ("tmpfs", None, None),
            MountSource::Disk { path, filesystem } => (filesystem.as_str(), None, Some(path.clone())),
        };
        json!({
            "Type": kind,
            "Name": name,
            "Source": source,
            "Destination": mount.target,
            "RW": !mount.read_only,
        })
    };
    container.record.options.mounts.iter().map(describe).collect()
}

fn config(container: &Container, spec: &Value) -> Value {
    let options = &container.record.options;
    json!({
        "Hostname": spec["hostname"],
        "User": spec["annotations"][berth_runtime::annotations::USER],
        "Tty": options.tty,
        "OpenStdin": options.interactive,
        "Env": spec["process"]["env"],
        "Cmd": options.command,
        "Entrypoint": options.entrypoint,
        "WorkingDir": spec["process"]["cwd"],
        "Image": container.record.image,
        "Labels": options.labels,
        "Annotations": options.annotations,
        "StopSignal": options.stop_signal.as_deref().unwrap_or("SIGTERM"),
        "StopTimeout": options.stop_timeout.map(|timeout| timeout.as_secs()),
    })
}

fn host_config(options: &Options) -> Value {
    let limits = &options.limits;
    let (policy, retries) = match options.restart {
        RestartPolicy::No => ("no", 0),
        RestartPolicy::OnFailure { max_retries } => ("on-failure", max_retries.unwrap_or_default()),
        RestartPolicy::Always => ("always", 0),
        RestartPolicy::UnlessStopped => ("unless-stopped", 0),
    };
    let host_or = |host: bool, own: &str| {
        if host { "host".to_owned() } else { own.to_owned() }
    };
    json!({
        "AutoRemove": options.remove,
        "Privileged": options.privileged,
        "ReadonlyRootfs": options.read_only,
        "NetworkMode": options.network.to_string(),
        "PidMode": host_or(options.pid_host, ""),
        "IpcMode": host_or(options.ipc_host, "private"),
        "UTSMode": host_or(options.uts_host, ""),
        "CgroupnsMode": host_or(options.cgroup_host, "private"),
        "UsernsMode": options.userns.range().map_or_else(String::new, |ids| format!("{}:{}", ids.first, ids.count)),
        "Isolation": options.isolation,
        "Init": options.init,
        "CapAdd": options.cap_add,
        "CapDrop": options.cap_drop,
        "SecurityOpt": security(options),
        "Devices": options.devices,
        "Ulimits": options.ulimits,
        "Sysctls": options.sysctls,
        "ShmSize": options.shm_size,
        "ExtraHosts": options.add_hosts,
        "GroupAdd": options.group_add,
        "OomScoreAdj": options.oom_score_adj.unwrap_or_default(),
        "ContainerIDFile": options.cidfile.as_deref().unwrap_or(Path::new("")),
        "RestartPolicy": { "Name": policy, "MaximumRetryCount": retries },
        "Memory": limits.memory.unwrap_or_default(),
        "MemorySwap": limits.memory_swap.unwrap_or_default(),
        "MemoryReservation": limits.memory_reservation.unwrap_or_default(),
        "NanoCpus": limits.cpus.map_or(0, |cores| (cores * 1e9).round() as u64),
        "CpuShares": limits.cpu_shares.unwrap_or_default(),
        "CpusetCpus": limits.cpuset_cpus.as_deref().unwrap_or_default(),
        "PidsLimit": limits.pids.unwrap_or_default(),
        "BlkioWeight": limits.blkio_weight.unwrap_or_default(),
    })
}

fn security(options: &Options) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(on) = options.no_new_privileges {
        all.push(format!("no-new-privileges={on}"));
    }
    match &options.seccomp {
        Seccomp::Default => {}
        Seccomp::Unconfined => all.push("seccomp=unconfined".to_owned()),
        Seccomp::File(path) => all.push(format!("seccomp={}", path.display())),
    }
    all
}
