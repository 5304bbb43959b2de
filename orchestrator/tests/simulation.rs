//! Thousands of histories of a cluster in which everything goes wrong.

mod seeds;

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use berth_orchestrator::simulator;
use seeds::seeds;

#[test]
fn no_task_is_lost_duplicated_or_double_booked() {
    let seeds = seeds(2000);
    let next = AtomicU64::new(seeds.start);
    let (tasks, failovers) = (AtomicU64::new(0), AtomicU64::new(0));
    let run_some = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !seeds.contains(&seed) {
                break;
            }
            let history = thread::spawn(move || simulator::run(seed));
            let summary = history.join().unwrap_or_else(|_| panic!("seed {seed}: see above"));
            tasks.fetch_add(summary.tasks, Ordering::Relaxed);
            failovers.fetch_add(summary.failovers, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(run_some);
        }
    });
    println!("{} tasks, {} master failovers", tasks.into_inner(), failovers.into_inner());
}

#[test]
fn the_same_seed_makes_the_same_history() {
    for seed in 0..20 {
        assert_eq!(simulator::run(seed), simulator::run(seed));
    }
}
