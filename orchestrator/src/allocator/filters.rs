//! What a member refused, and for how long it is not offered that again.

use std::time::Duration;

use slotmap::SparseSecondaryMap;

use super::AgentKey;
use crate::resources::Quantities;

/// The longest refusal: a year, as in Mesos.
const LONGEST: Duration = Duration::from_hours(365 * 24);
/// How many refusals of one agent are remembered for a member: the oldest gives way.
const MOST: usize = 4;

#[derive(Debug, Clone, Copy)]
struct Refusal {
    refused: Quantities,
    until: Duration,
}

/// The refusals of one member.
#[derive(Debug, Default)]
pub(super) struct Filters(SparseSecondaryMap<AgentKey, Vec<Refusal>>);

impl Filters {
    /// From `now` on, and for so long, so much of this agent is not wanted, nor is any part of it.
    pub(super) fn refuse(&mut self, agent: AgentKey, refused: Quantities, now: Duration, refuse: Duration) {
        if refuse.is_zero() {
            return;
        }
        let until = now.saturating_add(refuse.min(LONGEST));
        if !self.0.contains_key(agent) {
            self.0.insert(agent, Vec::new());
        }
        let refusals = &mut self.0[agent];
        refusals.retain(|other| other.until > now && (other.until > until || !refused.contains(&other.refused)));
        if refusals.len() == MOST {
            refusals.remove(0);
        }
        refusals.push(Refusal { refused, until });
    }

    /// Whether an offer of so much of this agent was refused. Forgets what is over.
    pub(super) fn refuses(&mut self, agent: AgentKey, offer: &Quantities, now: Duration) -> bool {
        let Some(refusals) = self.0.get_mut(agent) else { return false };
        refusals.retain(|refusal| refusal.until > now);
        let refuses = refusals.iter().any(|refusal| refusal.refused.contains(offer));
        if refusals.is_empty() {
            self.0.remove(agent);
        }
        refuses
    }

    /// Forgets one agent's.
    pub(super) fn remove(&mut self, agent: AgentKey) {
        self.0.remove(agent);
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use slotmap::SlotMap;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn cpus(count: u64) -> Quantities {
        Quantities::new(count * 1000, 0)
    }

    #[test]
    fn a_refusal_is_of_as_much_or_less_until_its_time_is_over() {
        let mut agents: SlotMap<AgentKey, ()> = SlotMap::with_key();
        let (agent, other) = (agents.insert(()), agents.insert(()));
        let mut filters = Filters::default();
        filters.refuse(agent, cpus(4), SECOND, 5 * SECOND);
        assert!(filters.refuses(agent, &cpus(4), SECOND));
        assert!(filters.refuses(agent, &cpus(1), 5 * SECOND));
        assert!(!filters.refuses(agent, &cpus(5), SECOND));
        assert!(!filters.refuses(other, &cpus(4), SECOND));
        assert!(!filters.refuses(agent, &cpus(4), 6 * SECOND));
        assert!(filters.0.is_empty());
    }

    #[test]
    fn refusals_are_bounded_in_number_and_in_time() {
        let agent = SlotMap::<AgentKey, ()>::with_key().insert(());
        let mut filters = Filters::default();
        for count in 1..100 {
            // Each shorter than the one before and of more, so that none makes another superfluous.
            filters.refuse(agent, cpus(count), Duration::ZERO, (200 - count as u32) * SECOND);
        }
        assert_eq!(filters.0[agent].len(), MOST);
        filters.refuse(agent, cpus(200), Duration::ZERO, Duration::MAX);
        assert_eq!(filters.0[agent].len(), 1);
        assert!(!filters.refuses(agent, &cpus(1), LONGEST));
    }
}
