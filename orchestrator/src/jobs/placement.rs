//! Which task goes where: offers, and the tasks that wait.
//!
//! Jobs of a higher priority come first, and then older ones; a task that fits nowhere does not hold up those after it.
//! Of the offers a task fits into, it takes the one of the failure domain with the fewest of its kind, then of an agent
//! on which its image has run, then with the fewest of its kind, then the first.

use std::collections::BTreeMap;
use std::time::Duration;

use super::manifest::{Group, Name};
use super::scheduler::{Now, Scheduler};
use super::state::{Launch, TaskKey};
use super::task::{self, Launched};
use super::wire::{Call, Offer};
use crate::attributes::{Constraint, Constraints};
use crate::master::{TaskId, TaskState};
use crate::resources::Resources;

/// How long what is left of offers is refused. When tasks end on an agent, it is offered anew all the same.
const REFUSE: Duration = Duration::from_secs(5);
/// About how many bytes of tasks go into one call.
const MOST_BYTES: usize = 4 << 20;

/// An offer, and what it is used for.
struct Room {
    offer: Offer,
    free: Resources,
    tasks: Vec<(TaskId, serde_json::Value)>,
    bytes: usize,
}

/// What tasks of one kind want.
struct Wanted {
    group: Group,
    role: String,
    /// On which agents they may run.
    constraints: Constraints,
}

/// Why offers did not fit, by how many.
#[derive(Default)]
struct Misfits {
    constraints: usize,
    spread: usize,
    resources: usize,
}

impl Misfits {
    /// For people.
    fn tell(&self, group: &Group) -> String {
        let mut reasons = Vec::new();
        if self.resources > 0 {
            reasons.push(format!("{} with {}", agents(self.resources), group.resources.quantities()));
        }
        if self.constraints > 0 {
            reasons.push(format!("{} that satisfy its constraints", agents(self.constraints)));
        }
        if self.spread > 0 {
            reasons.push(format!("{} where fewer of its kind run", agents(self.spread)));
        }
        if reasons.is_empty() {
            "an offer".to_owned()
        } else {
            format!("others than the latest offers: {}", reasons.join(", "))
        }
    }
}

fn agents(count: usize) -> String {
    if count == 1 { "not 1 agent".to_owned() } else { format!("not {count} agents") }
}

impl Scheduler {
    /// The master offers something.
    pub fn offered(&mut self, offers: Vec<Offer>, now: Now) {
        let rooms =
            offers.into_iter().map(|offer| Room { free: offer.resources.clone(), offer, tasks: Vec::new(), bytes: 0 });
        let mut rooms: Vec<Room> = rooms.collect();
        for ((_, _, name), (job, indices)) in self.queue.clone() {
            let Some(manifest) = self.jobs.get(&job).map(|job| &job.manifest) else { continue };
            let Some(group) = manifest.tasks.get(&name).cloned() else { continue };
            let wanted = Wanted { role: manifest.role.to_string(), constraints: constraints(&group), group };
            for index in indices {
                let key = TaskKey { job: job.clone(), group: name.clone(), index };
                if !self.place(&key, &wanted, &mut rooms, now) {
                    // Nor do the others of its kind.
                    break;
                }
            }
        }
        let mut unused = Vec::new();
        for Room { offer, tasks, .. } in rooms {
            if tasks.is_empty() {
                unused.push(offer.id);
            } else {
                self.calls.push(Call::Accept { offer: offer.id, tasks, refuse: REFUSE });
            }
        }
        if !unused.is_empty() {
            self.calls.push(Call::Decline { offers: unused, refuse: REFUSE });
        }
    }

    /// Launches a task, if it fits somewhere.
    fn place(&mut self, key: &TaskKey, wanted: &Wanted, rooms: &mut [Room], now: Now) -> bool {
        let Wanted { group, role, constraints } = wanted;
        let Some(crew) = self.crews.get(&(key.job.clone(), key.group.clone())) else { return false };
        let mut misfits = Misfits::default();
        let mut best: Option<(_, usize)> = None;
        for (index, room) in rooms.iter().enumerate().filter(|(_, room)| room.offer.role == *role) {
            let domain = domain(group, &room.offer);
            let in_domain = domain.as_ref().and_then(|domain| crew.in_domains.get(domain)).copied().unwrap_or_default();
            let most = group.spread.as_ref().and_then(|spread| spread.most);
            if !constraints.hold(&room.offer.attributes) || (most.is_some() && domain.is_none()) {
                misfits.constraints += 1;
            } else if most.is_some_and(|most| in_domain >= most) {
                misfits.spread += 1;
            } else if room.bytes > MOST_BYTES || needs(group, &room.free).is_none() {
                misfits.resources += 1;
            } else {
                let has_image = self.images.contains(&(room.offer.agent.clone(), group.image.to_string()));
                let on_agent = crew.on_agents.get(&room.offer.agent).copied().unwrap_or_default();
                let rank = (in_domain, !has_image, on_agent);
                if best.as_ref().is_none_or(|(other, _)| rank < *other) {
                    best = Some((rank, index));
                }
            }
        }
        let Some((_, index)) = best else {
            self.explain(key, misfits.tell(group));
            return false;
        };
        let room = &mut rooms[index];
        let Some((resources, ports)) = needs(group, &room.free) else { return false };
        room.free.take(&resources);
        let id = self.next_id(key);
        let agent = room.offer.agent.clone();
        let attempts = self.task(key).map_or(0, |task| task.attempts.len());
        let launched = Launched {
            key,
            id: &id,
            agent: &agent,
            role,
            resources: &resources,
            ports: &ports,
            attempt: u32::try_from(attempts + 1).unwrap_or(u32::MAX),
        };
        let info = task::info(group, &launched);
        room.bytes += info.to_string().len();
        room.tasks.push((id.clone(), info));
        let domain = domain(group, &room.offer);
        let launch = Launch {
            id,
            agent,
            domain,
            launched: now.time,
            running: None,
            state: TaskState::Staging,
            sandbox: None,
            stop: None,
            ports,
        };
        self.launch(key, launch);
        true
    }

    fn explain(&mut self, key: &TaskKey, why: String) {
        if let Some(crew) = self.crews.get_mut(&(key.job.clone(), key.group.clone())) {
            crew.waits_for = why;
        }
    }
}

/// On which agents a task may run.
fn constraints(group: &Group) -> Constraints {
    let own: Vec<Constraint> = group.constraints.iter().filter_map(|constraint| constraint.read().ok()).collect();
    let isolated = group.isolation.one_of().iter().map(|isolation| {
        let mut all = own.clone();
        all.push(Constraint::Equals(format!("isolation.{isolation}"), "true".to_owned()));
        all
    });
    Constraints { groups: isolated.collect() }
}

/// The failure domain of whoever made an offer; none where tasks are not spread, or it has none.
fn domain(group: &Group, offer: &Offer) -> Option<String> {
    group.spread.as_ref().and_then(|spread| offer.attributes.get(&*spread.over)).cloned()
}

/// What a task would take of what is free, if that is enough.
fn needs(group: &Group, free: &Resources) -> Option<(Resources, BTreeMap<Name, u16>)> {
    let numbers = free.ports.ranges().flat_map(Clone::clone);
    let ports: BTreeMap<_, u16> = group.ports.iter().cloned().zip(numbers).collect();
    let resources = Resources {
        quantities: group.resources.quantities(),
        ports: ports.values().map(|port| *port..=*port).collect(),
    };
    (ports.len() == group.ports.len() && free.contains(&resources)).then_some((resources, ports))
}
