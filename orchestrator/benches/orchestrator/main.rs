//! What the cores of the orchestrator take: allocation cycles by the number of agents, frameworks and roles, and a new master.
//!
//! `cargo bench -p berth-orchestrator` measures some sizes with criterion. `scripts/bench-orchestrator` runs the whole grid and, given
//! a trace of jobs, a day of them.

mod failover;
mod replay;

use std::env;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_orchestrator::allocator::{Allocator, Config, Policy, Quota, Subscription};
use berth_orchestrator::attributes::Attributes;
use berth_orchestrator::resources::{Kind, Quantities, Resources};
use criterion::{BatchSize, Criterion};

const GIB: u64 = 1 << 30;
const AGENT: Quantities = Quantities::new(32_000, 128 * GIB);
/// What a cycle with 10,000 agents and 1,000 frameworks, and one with 3,000 agents and 3,000 roles with quota, may take.
const TARGETS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
const REPEATS: usize = 7;

fn agents(allocator: &mut Allocator, count: usize) {
    for _ in 0..count {
        let agent =
            Resources { quantities: AGENT.with(Kind::Disk, 512 * GIB), ports: [31_000..=32_000].into_iter().collect() };
        allocator.add_agent(agent, Attributes::new()).expect("the cluster is not too large");
    }
}

/// Agents with nothing in use, and frameworks spread over roles.
fn cluster(policy: Policy, agent_count: usize, frameworks: usize, roles: usize) -> Allocator {
    let mut allocator = Allocator::new(Config { policy, ..Config::default() });
    agents(&mut allocator, agent_count);
    for framework in 0..frameworks {
        let role = format!("role-{}", framework % roles);
        allocator.add_framework([(role, Subscription::default())].into());
    }
    allocator
}

/// As many roles as agents with a framework each: every other has a small guarantee, of which several fit on an agent, the rest one that
/// takes more than one agent; together they are guaranteed nine tenths of the cluster.
fn guaranteed(agent_count: usize, roles: usize) -> Allocator {
    let mut allocator = cluster(Policy::Drf, agent_count, roles, roles);
    for role in 0..roles {
        let tenths = if role % 2 == 0 { 3 } else { 15 };
        let part = |amount: u64| amount * tenths / 10 * agent_count as u64 / roles as u64;
        let guarantee = Quantities::new(part(AGENT[Kind::Cpus]), part(AGENT[Kind::Memory]));
        let quota = Quota { guarantee, limit: Quantities::UNLIMITED };
        allocator.set_quota(&format!("role-{role}"), quota).expect("the guarantees are not too large");
    }
    allocator
}

/// The median of some cycles, each on a new cluster, and how many offers one made.
fn measure(make: impl Fn() -> Allocator) -> (Duration, usize) {
    let mut times = Vec::with_capacity(REPEATS);
    let mut offers = 0;
    for _ in 0..REPEATS {
        let mut allocator = make();
        let start = Instant::now();
        offers = allocator.allocate(Duration::ZERO).len();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    (times[REPEATS / 2], offers)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The report of `scripts/bench-orchestrator`; whether all targets were met.
fn grid() -> bool {
    let mut met = true;
    println!("one cycle, everything free: median of {REPEATS}, ms (offers)");
    for (layout, roles_of) in [("all frameworks in one role", 0), ("each framework in its own role", 1)] {
        println!("{layout}:\n{:>8} {:>16} {:>16} {:>16} {:>16}", "agents", 1, 100, 1000, 3000);
        for agents in [1000, 5000, 10_000, 20_000, 50_000] {
            print!("{agents:>8}");
            for frameworks in [1, 100, 1000, 3000] {
                let roles = if roles_of == 0 { 1 } else { frameworks };
                let (time, offers) = measure(|| cluster(Policy::Drf, agents, frameworks, roles));
                print!(" {:>8.2} {:>7}", millis(time), format!("({offers})"));
                met &= (agents, frameworks) != (10_000, 1000) || time <= TARGETS[0];
            }
            println!();
        }
    }
    println!("policies, 10000 agents, 1000 frameworks in 100 roles, ms:");
    for policy in [Policy::Drf, Policy::MaxMin(Kind::Cpus), Policy::Asset, Policy::Ceei] {
        let (time, _) = measure(|| cluster(policy, 10_000, 1000, 100));
        println!("{:>16} {:>8.2}", format!("{policy:?}"), millis(time));
    }
    let (time, offers) = measure(|| guaranteed(3000, 3000));
    println!("3000 agents, 3000 roles with quota: {:.2} ms ({offers} offers)", millis(time));
    met &= time <= TARGETS[1];
    met & failover::measure()
}

fn criterion() {
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    for (agents, frameworks) in [(1000, 100), (10_000, 1000)] {
        criterion.bench_function(&format!("cycle/{agents} agents/{frameworks} frameworks"), |bencher| {
            let make = || cluster(Policy::Drf, agents, frameworks, 100);
            bencher.iter_batched_ref(make, |allocator| allocator.allocate(Duration::ZERO), BatchSize::LargeInput);
        });
    }
    criterion.final_summary();
}

fn main() -> std::io::Result<()> {
    let mut arguments = env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("grid"), _) => std::process::exit(i32::from(!grid())),
        (Some("replay"), Some(trace)) => replay::replay(Path::new(&trace)),
        _ => {
            criterion();
            Ok(())
        }
    }
}
