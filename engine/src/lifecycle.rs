//! What can be done to a container between its creation and its removal.
//!
//! ```text
//! created --start--> running --end, stop, kill--> exited --start--> running …
//!                    running --pause--> paused --unpause--> running
//!                    running --end, with a restart policy--> restarting --> running
//! ```

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use berth_runtime::cgroup::CgroupManager;
use berth_runtime::executor::{self, Executor};
use berth_runtime::monitor::{RestartPolicy, STOP_REQUESTED};
use berth_runtime::sandbox::{Sandbox, is_deaf_to};

use crate::container::{Container, State};
use crate::document;
use crate::error::{Attempt as _, Error, Result};
use crate::events::{self, Event};
use crate::id::short;
use crate::launch;
use crate::lock::{self, Lock};
use crate::microvm;
use crate::monitor::Monitor;
use crate::names;
use crate::options::Limits;
use crate::paths::Roots;
use crate::record::Record;
use crate::signal;
use crate::spec;
use crate::sweep;
use crate::{vm, wasm};

/// How long `stop` waits before it kills, unless told otherwise.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the kernel and the monitor have to end a container whose processes were killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(30);

/// Takes the lock of a container that is to be started; `None`: it runs already.
pub fn begin_start(container: &Container) -> Result<Option<Lock>> {
    if container.state(&container.status()?).is_alive() {
        return Ok(None);
    }
    for layer in &container.record.lower_dirs {
        if !layer.exists() {
            return Err(Error::Invalid(format!(
                "container {} cannot start: its image {} has lost the layer {}; `berth pull {1}` may bring it back",
                container.name(),
                container.record.image,
                layer.display()
            )));
        }
    }
    let Some(lock) = Lock::take(container.roots(), container.id())? else {
        return Ok(None);
    };
    // What a run has left whose sandbox's state was lost.
    sweep::delete_sandbox(container.roots(), container.id())?;
    // A request to stop is about the run it was made in.
    let _ = fs::remove_file(container.live_dir().join(STOP_REQUESTED));
    Ok(Some(lock))
}

/// Starts a container in the background; fine if it runs already.
pub fn start(container: &Container) -> Result<()> {
    match begin_start(container)? {
        Some(lock) => launch::start_detached(container.roots(), &container.record, &lock).map(|_| ()),
        None => Ok(()),
    }
}

/// Stops a container: its stop signal, and `SIGKILL` when it has not ended after the timeout. Fine if it has ended.
pub fn stop(container: &Container, signal: Option<&str>, timeout: Option<Duration>) -> Result<()> {
    let timeout = timeout.or(container.record.options.stop_timeout).unwrap_or(STOP_TIMEOUT);
    ask_to_stop(container, signal)?.map_or(Ok(()), |monitor| finish_stop(container, &monitor, timeout))
}

/// The first half of [`stop`], for who would rather not wait in it: sends the stop signal. Returns who looks after the container;
/// nobody does if it has ended.
pub fn ask_to_stop(container: &Container, signal: Option<&str>) -> Result<Option<Monitor>> {
    let options = &container.record.options;
    let signal = signal::parse(signal.or(options.stop_signal.as_deref()).unwrap_or("TERM"))?;
    let state = container.state(&container.status()?);
    if !state.is_alive() {
        return Ok(None);
    }
    request_stop(container.roots(), container.id())?;
    let Some(monitor) = Monitor::of(container)? else {
        return Ok(None);
    };
    // Between two runs there is no sandbox; the monitor sees the request.
    if let Ok(sandbox) = container.sandbox() {
        // Looked at before it is sent: a handler, or what the signal wakes, changes what there is to see.
        let deaf = sandbox.pid().is_some_and(|pid| is_deaf_to(pid, signal));
        // The signal waits for a frozen process to thaw: send first.
        let _ = if deaf { sandbox.kill(libc::SIGKILL, true) } else { sandbox.kill(signal, false) };
        if state == State::Paused {
            sandbox.resume()?;
        }
    }
    Ok(Some(monitor))
}

/// The second half: `SIGKILL` when it has not ended after the timeout.
pub fn finish_stop(container: &Container, monitor: &Monitor, timeout: Duration) -> Result<()> {
    if !monitor.wait(Some(timeout))? {
        kill_all(container.roots(), container.id());
        if !monitor.wait(Some(KILL_TIMEOUT))? {
            return Err(stuck(container.name()));
        }
    }
    events::append(container.roots(), &Event::of(&container.record, "stop"))
}

/// Kills whatever of a container is alive, and again, until nobody looks after it; returns its lock. Needs neither
/// its record nor its status: they may be damaged.
pub(crate) fn end(roots: &Roots, id: &str) -> Result<Lock> {
    let begin = Instant::now();
    loop {
        if let Some(lock) = Lock::try_take(roots, id)? {
            sweep::delete_sandbox(roots, id)?;
            return Ok(lock);
        }
        request_stop(roots, id)?;
        kill_all(roots, id);
        if begin.elapsed() > KILL_TIMEOUT {
            return Err(stuck(short(id)));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Kills all processes of a container. That it ends on its own in this moment is fine: what counts is whether its
/// monitor ends.
fn kill_all(roots: &Roots, id: &str) {
    match Sandbox::load(&roots.sandboxes(), id) {
        Ok(sandbox) => {
            let _ = sandbox.kill(libc::SIGKILL, true);
            if sandbox.is_paused().unwrap_or(false) {
                let _ = sandbox.resume();
            }
        }
        Err(_) => {
            // A state that is damaged or lost: what it would say of the control group is known here too.
            let _ = CgroupManager::new(&spec::cgroups_path(id)).and_then(|cgroup| cgroup.kill_all());
        }
    }
}

fn stuck(name: &str) -> Error {
    lock::busy(
        name,
        "still there after SIGKILL",
        "a process of it is stuck in the kernel, see `berth top` and the kernel's log",
    )
}

/// Tells the monitor that a person wants the container stopped, so no restart policy applies.
fn request_stop(roots: &Roots, id: &str) -> Result<()> {
    let path = roots.live_container(id).join(STOP_REQUESTED);
    match fs::write(&path, "") {
        // It has ended in this moment.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.attempt(|| format!("write {}", path.display())),
    }
}

/// Sends a signal to a container's first process.
pub fn kill(container: &Container, signal: &str) -> Result<()> {
    let number = signal::parse(signal)?;
    let sandbox = container.running_sandbox()?;
    let stop_signal = container.record.options.stop_signal.as_deref().unwrap_or("TERM");
    if number == libc::SIGKILL || signal::parse(stop_signal).is_ok_and(|stop| stop == number) {
        request_stop(container.roots(), container.id())?;
    }
    sandbox.kill(number, false)?;
    let mut event = Event::of(&container.record, "kill");
    event.attributes.insert("signal".to_owned(), number.to_string());
    events::append(container.roots(), &event)
}

/// Freezes a container's processes.
pub fn pause(container: &Container) -> Result<()> {
    let sandbox = container.running_sandbox()?;
    if sandbox.is_paused()? {
        let advice = format!("`berth unpause {}` lets it go on", container.name());
        return Err(container.wrong_state(State::Paused, &advice));
    }
    sandbox.pause()?;
    events::append(container.roots(), &Event::of(&container.record, "pause"))
}

/// Lets a paused container go on.
pub fn unpause(container: &Container) -> Result<()> {
    let sandbox = container.running_sandbox()?;
    if !sandbox.is_paused()? {
        return Err(container.wrong_state(State::Running, "only a paused container can go on, and it is not paused"));
    }
    sandbox.resume()?;
    events::append(container.roots(), &Event::of(&container.record, "unpause"))
}

/// Stops a container where it runs, and starts it.
pub fn restart(container: &Container, signal: Option<&str>, timeout: Option<Duration>) -> Result<()> {
    let state = container.state(&container.status()?);
    if container.record.options.remove && state.is_alive() {
        let advice = "it is removed when it ends (--rm), so it cannot be restarted";
        return Err(container.wrong_state(state, advice));
    }
    stop(container, signal, timeout)?;
    start(container)?;
    events::append(container.roots(), &Event::of(&container.record, "restart"))
}

/// Gives a container another name.
pub fn rename(container: &Container, name: &str) -> Result<()> {
    let (roots, id) = (container.roots(), container.id());
    names::check(name)?;
    if container.name() == name {
        return Err(Error::Invalid(format!("{name} has this name already; give another")));
    }
    let state = container.state(&container.status()?);
    if container.record.options.remove && state.is_alive() {
        let advice = "its name is given back when it ends (--rm), so it cannot change before";
        return Err(container.wrong_state(state, advice));
    }
    names::claim(roots, name, id)?;
    let mut old = String::new();
    let record = Record::change(roots, id, |record| {
        old = std::mem::replace(&mut record.name, name.to_owned());
        Ok(())
    });
    let record = record.or_else(|error| names::release(roots, name, id).and(Err(error)))?;
    names::release(roots, &old, id)?;
    change_monitor(container, |config| name.clone_into(&mut config.name))?;
    let mut event = Event::of(&record, "rename");
    event.attributes.insert("oldName".to_owned(), old);
    events::append(roots, &event)
}

/// Changes a container's limits, at once where it runs, and its restart policy.
pub fn update(container: &Container, changes: &Limits, restart: Option<RestartPolicy>) -> Result<()> {
    let roots = container.roots();
    if changes.memory.is_some() {
        microvm::refuse(container, "change the memory of", "make another one with --memory")?;
        wasm::refuse_memory(container)?;
    }
    let limits = container.record.options.limits.updated(changes);
    spec::check_limits(&limits, spec::cpus())?;
    if restart.is_some_and(|policy| policy != RestartPolicy::No) && container.record.options.remove {
        return Err(Error::Invalid("a container that is removed when it ends (--rm) cannot be restarted".to_owned()));
    }
    let record = Record::change(roots, container.id(), |record| {
        let resources = spec::resources(&limits);
        let mut executor = executor(container)?;
        if container.state(&container.status()?).is_alive() {
            change_running(container, executor.as_ref(), &limits)?;
        }
        if let Some(executor) = executor.as_mut().filter(|_| record.options.is_process_guest()) {
            executor.settings = microvm::process_limits(&limits);
            document::write(&container.dir().join(executor::FILE), executor)?;
        }
        change_resources(container, &resources)?;
        record.options.limits = limits;
        record.options.restart = restart.unwrap_or(record.options.restart);
        Ok(())
    })?;
    if let Some(policy) = restart {
        change_monitor(container, |config| config.restart = policy)?;
    }
    events::append(roots, &Event::of(&record, "update"))
}

/// What runs the image in place of its own process, if anything.
fn executor(container: &Container) -> Result<Option<Executor>> {
    let advice = format!("`berth rm {}` and create it anew", container.name());
    document::read(&container.dir().join(executor::FILE), &advice)
}

/// Changes the limits of a container that runs: of the control group, and before that of the VMM that keeps a process guest
/// to its own.
fn change_running(container: &Container, executor: Option<&Executor>, limits: &Limits) -> Result<()> {
    let mut resources = spec::resources(limits);
    if let Some(executor) = executor {
        executor.add_overhead(&mut resources);
    }
    let sandbox = container.sandbox()?;
    let options = &container.record.options;
    if !options.is_process_guest() {
        return Ok(sandbox.update(&resources)?);
    }
    vm::limit(container, limits)?;
    let changed = sandbox.update(&resources);
    if changed.is_err() {
        // The error below says what went wrong.
        let _ = vm::limit(container, &options.limits);
    }
    Ok(changed?)
}

/// Changes the limits in `config.json`, for the next start; device rules stay.
fn change_resources(container: &Container, resources: &oci_spec::runtime::LinuxResources) -> Result<()> {
    let path = container.dir().join("config.json");
    let advice = format!("`berth rm {}` and create it anew", container.name());
    let mut config: oci_spec::runtime::Spec =
        document::read(&path, &advice)?.ok_or_else(|| Error::NotFound(container.name().to_owned()))?;
    if let Some(linux) = config.linux_mut() {
        let devices = linux.resources().as_ref().and_then(|resources| resources.devices().clone());
        let mut resources = resources.clone();
        resources.set_devices(devices);
        linux.set_resources(Some(resources));
    }
    document::write(&path, &config)
}

/// Changes what the monitor of a running container reads before it starts the container again.
fn change_monitor(container: &Container, change: impl FnOnce(&mut berth_runtime::monitor::Config)) -> Result<()> {
    let path = launch::monitor_file(container.roots(), container.id());
    let Some(mut config) = document::read(&path, "`berth restart` writes it anew")? else {
        return Ok(());
    };
    change(&mut config);
    document::write(&path, &config)
}
