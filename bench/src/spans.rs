//! From moments to phases: what a start's time went into, without a gap and without an overlap.

use std::collections::BTreeMap;

use berth_runtime::span::Phase;

/// How long each phase was under way, in nanoseconds. Together they are the time from `request` to `exit`: until the first moment
/// it is the command's own start, and what is done twice is added up.
pub fn phases(request: u64, moments: &[(Phase, u64)], exit: u64) -> BTreeMap<Phase, u64> {
    let mut durations = BTreeMap::new();
    let mut current = (Phase::Command, request);
    for &(phase, time) in moments.iter().chain([&(Phase::End, exit)]) {
        let time = time.clamp(current.1, exit.max(current.1));
        *durations.entry(current.0).or_default() += time - current.1;
        current = (phase, time);
    }
    durations.retain(|_, duration| *duration > 0);
    durations
}

/// When the workload's first instruction ran.
pub fn first_instruction(moments: &[(Phase, u64)]) -> Option<u64> {
    moments.iter().find(|(phase, _)| *phase == Phase::Run).map(|&(_, time)| time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_whole() {
        let moments = [
            (Phase::Command, 110),
            (Phase::Image, 120),
            (Phase::Mounts, 150),
            (Phase::Network, 170),
            (Phase::Mounts, 175),
            (Phase::Run, 180),
            (Phase::End, 250),
        ];
        let phases = phases(100, &moments, 300);
        let expected = [
            (Phase::Command, 20),
            (Phase::Image, 30),
            (Phase::Mounts, 25),
            (Phase::Network, 5),
            (Phase::Run, 70),
            (Phase::End, 50),
        ];
        assert_eq!(phases, expected.into());
        assert_eq!(phases.values().sum::<u64>(), 200);
        assert_eq!(first_instruction(&moments), Some(180));
    }

    #[test]
    fn moments_outside_the_run_take_nothing_from_it() {
        let phases = phases(100, &[(Phase::Image, 50), (Phase::Run, 500)], 300);
        assert_eq!(phases, [(Phase::Image, 200)].into());
        assert_eq!(super::phases(5, &[], 9), [(Phase::Command, 4)].into());
        assert_eq!(first_instruction(&[]), None);
    }
}
