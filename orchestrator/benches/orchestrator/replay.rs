//! A day of real jobs.
//!
//! The trace is in SWIM's format: tab-separated, the time of submission in seconds second, the input of the map phase in bytes fourth. What it does not
//! say is made up: a task reads 64 MiB and needs one CPU and 2 GiB for a minute, and jobs belong to the users in turn.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_orchestrator::allocator::{AgentKey, Allocator, Config, FrameworkKey, Subscription};
use berth_orchestrator::resources::{Kind, Quantities};

use crate::{GIB, agents, millis};

const AGENTS: usize = 1000;
const USERS: usize = 50;
const TASK: Quantities = Quantities::new(1000, 2 * GIB);
const TASK_SECONDS: u64 = 60;

/// A framework, in a role of its own.
struct User {
    key: FrameworkKey,
    role: String,
    waiting: u64,
}

/// Tasks that were started together.
struct Running {
    until: u64,
    agent: AgentKey,
    user: usize,
    part: Quantities,
}

fn tasks(count: u64) -> Quantities {
    Quantities::new(TASK[Kind::Cpus] * count, TASK[Kind::Memory] * count)
}

/// When each job was submitted, and how many tasks it has.
fn jobs(trace: &Path) -> std::io::Result<Vec<(u64, u64)>> {
    let text = std::fs::read_to_string(trace)?;
    let jobs = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let (submitted, input): (u64, u64) = (fields.get(1)?.parse().ok()?, fields.get(3)?.parse().ok()?);
        Some((submitted, input.div_ceil(64 << 20).max(1)))
    });
    let mut jobs: Vec<_> = jobs.collect();
    jobs.sort_unstable();
    Ok(jobs)
}

/// A cycle each simulated second until all jobs are done.
pub fn replay(trace: &Path) -> std::io::Result<()> {
    let jobs = jobs(trace)?;
    let mut allocator = Allocator::new(Config::default());
    agents(&mut allocator, AGENTS);
    let mut users: Vec<User> = (0..USERS)
        .map(|user| {
            let role = format!("user-{user}");
            User { key: allocator.add_framework([(role.clone(), Subscription::default())].into()), role, waiting: 0 }
        })
        .collect();
    let mut running: VecDeque<Running> = VecDeque::new();
    let mut submitted = 0;
    let mut started = 0;
    let mut times = Vec::new();
    let mut now = 0;
    while submitted < jobs.len() || !running.is_empty() || users.iter().any(|user| user.waiting > 0) {
        now += 1;
        while running.front().is_some_and(|first| first.until <= now)
            && let Some(ended) = running.pop_front()
        {
            let user = &users[ended.user];
            allocator.release(ended.agent, user.key, &user.role, &ended.part.into()).expect("it is in use");
        }
        while submitted < jobs.len() && jobs[submitted].0 <= now {
            users[submitted % USERS].waiting += jobs[submitted].1;
            submitted += 1;
        }
        for user in &users {
            let change = if user.waiting == 0 { Allocator::suppress } else { Allocator::revive };
            change(&mut allocator, user.key, &[]).expect("the framework is there");
        }
        let time = Duration::from_secs(now);
        let start = Instant::now();
        let offers = allocator.allocate(time);
        times.push(start.elapsed());
        for key in offers {
            let offer = allocator.offer(key).expect("it was made just now");
            let user = users.iter().position(|user| user.key == offer.framework).expect("it was made to one of them");
            let free = &offer.resources.quantities;
            let fit = (free[Kind::Cpus] / TASK[Kind::Cpus]).min(free[Kind::Memory] / TASK[Kind::Memory]);
            let count = fit.min(users[user].waiting);
            let (agent, part) = (offer.agent, tasks(count));
            allocator.accept(&[key], &part.into(), time, Duration::ZERO).expect("it fits");
            if count > 0 {
                running.push_back(Running { until: now + TASK_SECONDS, agent, user, part });
            }
            users[user].waiting -= count;
            started += count;
        }
    }
    times.sort_unstable();
    println!(
        "{}: {} jobs, {started} tasks in {now} simulated seconds on {AGENTS} agents, {USERS} users; durations, users and shapes are made up",
        trace.display(),
        jobs.len(),
    );
    if let [.., longest] = times[..] {
        let part = |percent: usize| millis(times[times.len() * percent / 100]);
        println!("a cycle: p50 {:.3} ms, p99 {:.3} ms, at most {:.3} ms", part(50), part(99), millis(longest));
    }
    Ok(())
}
