//! A new master, to which all agents come back with their tasks.

use std::time::{Duration, Instant};

use berth_orchestrator::allocator::Subscription;
use berth_orchestrator::master::{
    Admission, AgentId, AgentInfo, Change, Config, Connection, FrameworkId, FrameworkInfo, Master, Registration,
    Registry, TaskId, TaskInfo, TaskReport, TaskState,
};
use berth_orchestrator::resources::Quantities;

use crate::{AGENT, GIB, millis};

const AGENTS: usize = 10_000;
const TASKS_EACH: usize = 10;
const FRAMEWORKS: usize = 100;
/// What all of it may take, and how much memory a master may have then.
const TIME: Duration = Duration::from_millis(4500);
const MEMORY_MIB: u64 = 600;

fn framework_id(framework: usize) -> FrameworkId {
    FrameworkId::from(format!("0-F{framework}"))
}

fn framework_info(framework: usize) -> FrameworkInfo {
    let roles = [(format!("role-{framework}"), Subscription::default())].into();
    FrameworkInfo {
        roles,
        failover_timeout: Duration::from_hours(1),
        partition_aware: true,
        ..FrameworkInfo::default()
    }
}

fn registration(agent: usize) -> Registration {
    let id = AgentId::from(format!("0-A{agent}"));
    let task = |task: usize| TaskReport {
        framework: framework_id((agent + task) % FRAMEWORKS),
        role: format!("role-{}", (agent + task) % FRAMEWORKS).into(),
        info: TaskInfo {
            id: TaskId::from(format!("task-{agent}-{task}")),
            agent: id.clone(),
            resources: Quantities::new(1000, GIB).into(),
            executor: None,
            payload: "{}".into(),
        },
        state: TaskState::Running,
    };
    let tasks: Vec<TaskReport> = (0..TASKS_EACH).map(task).collect();
    let frameworks = (0..TASKS_EACH).map(|task| (agent + task) % FRAMEWORKS);
    let frameworks = frameworks.map(|framework| (framework_id(framework), framework_info(framework))).collect();
    let info =
        AgentInfo { hostname: format!("host-{agent}"), port: 5051, resources: AGENT.into(), ..AgentInfo::default() };
    Registration { id: Some(id), info, frameworks, executors: Vec::new(), tasks }
}

/// The resident memory of this process, in MiB.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

/// Whether the targets were met.
pub fn measure() -> bool {
    let before = resident();
    let mut registry = Registry::default();
    for agent in 0..AGENTS {
        registry.apply(Change::Agent(AgentId::from(format!("0-A{agent}")), Admission::default()));
    }
    let mut master = Master::new(Config::new("1"), registry, Duration::ZERO);
    let mut time = Duration::ZERO;
    for agent in 0..AGENTS {
        let registration = registration(agent);
        let start = Instant::now();
        master.register(Connection(agent as u64), registration, Duration::from_secs(1));
        drop(master.take_outputs());
        time += start.elapsed();
    }
    let start = Instant::now();
    for framework in 0..FRAMEWORKS {
        let connection = Connection((AGENTS + framework) as u64);
        let id = Some(framework_id(framework));
        master.subscribe(connection, id, framework_info(framework), Duration::from_secs(2)).expect("it may come back");
    }
    master.allocate(Duration::from_secs(2));
    drop(master.take_outputs());
    time += start.elapsed();
    assert_eq!(master.tasks().count(), AGENTS * TASKS_EACH);

    let memory = resident().zip(before).map(|(after, before)| after.saturating_sub(before));
    print!(
        "{AGENTS} agents come back to a new master with {} tasks, and are offered: {:.1} ms",
        AGENTS * TASKS_EACH,
        millis(time)
    );
    println!(", {} MiB more resident", memory.map_or("?".to_owned(), |memory| memory.to_string()));
    time <= TIME && memory.is_none_or(|memory| memory <= MEMORY_MIB)
}
