//! Thousands of histories of a cluster in which everything goes wrong.
//!
//! `BERTH_SEEDS=FIRST..END` chooses others: one that failed, or many more.

use std::env;
use std::ops::Range;
use std::thread;

use berth_orchestrator::simulator;

fn seeds() -> Range<u64> {
    let Ok(text) = env::var("BERTH_SEEDS") else { return 0..2000 };
    let bounds = text.split_once("..").and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?));
    bounds.unwrap_or_else(|| panic!("BERTH_SEEDS={text}: FIRST..END is wanted"))
}

#[test]
fn no_task_is_lost_duplicated_or_double_booked() {
    let mut tasks = 0;
    let mut failovers = 0;
    for seed in seeds() {
        let history = thread::spawn(move || simulator::run(seed));
        let summary = history.join().unwrap_or_else(|_| panic!("seed {seed}: see above"));
        tasks += summary.tasks;
        failovers += summary.failovers;
    }
    println!("{tasks} tasks, {failovers} master failovers");
}

#[test]
fn the_same_seed_makes_the_same_history() {
    for seed in 0..20 {
        assert_eq!(simulator::run(seed), simulator::run(seed));
    }
}
