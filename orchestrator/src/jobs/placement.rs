//! Which task goes where: offers, and the tasks that wait.
//!
//! Jobs of a higher priority come first, and then older ones; a task that fits nowhere does not hold up those after it.
//! Of the offers a task fits into, it takes the one of the failure domain with the fewest of its kind, then of an agent
//! that has its image (it says so, or the image has run there), then with the fewest of its kind, then the first.

use std::collections::BTreeMap;
use std::time::Duration;

use super::manifest::{Group, Name};
use super::scheduler::{Now, Scheduler};
use super::state::{Launch, TaskKey};
use super::task::{self, Launched};
use super::wire::{Call, Offer};
use crate::agent::images;
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
    /// What an agent that has the image says.
    image: Option<String>,
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
            let image = images::attribute(&group.image.to_string());
            let wanted = Wanted { role: manifest.role.to_string(), constraints: constraints(&group), image, group };
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
        let Wanted { group, role, constraints, image } = wanted;
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
                let says_so = image.as_ref().is_some_and(|image| room.offer.attributes.contains_key(image));
                let has_image = says_so || self.images.contains(&(room.offer.agent.clone(), group.image.to_string()));
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
            healthy: None,
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

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::manifest::Manifest;
    use super::super::scheduler::Recovered;
    use super::super::wire::Status;
    use super::*;
    use crate::master::AgentId;
    use crate::resources::Quantities;

    const NOW: Now = Now { elapsed: Duration::ZERO, time: Timestamp::UNIX_EPOCH };

    fn scheduler(manifests: &[&str]) -> Scheduler {
        let mut scheduler = Scheduler::new(Recovered::default());
        for manifest in manifests {
            scheduler.submit(Manifest::read(manifest).unwrap(), NOW).unwrap();
        }
        scheduler
    }

    /// An offer of an agent in a zone, with room for so many tasks of 0.1 CPUs and a port each.
    fn offer(agent: &str, zone: &str, tasks: u16) -> Offer {
        let attributes = [("zone", zone), ("isolation.container", "true")];
        Offer {
            id: format!("offer of {agent}"),
            agent: AgentId::from(agent),
            role: "*".to_owned(),
            resources: Resources {
                quantities: Quantities::new(u64::from(tasks) * 100, 1 << 40),
                ports: [31_000..=31_000 + tasks].into_iter().collect(),
            },
            attributes: attributes.map(|(name, text)| (name.to_owned(), text.to_owned())).into(),
        }
    }

    /// The tasks that go into each of these offers.
    fn placed(scheduler: &mut Scheduler, offers: Vec<Offer>) -> Vec<(String, Vec<String>)> {
        scheduler.offered(offers, NOW);
        let accepted = scheduler.take_calls().into_iter().filter_map(|call| match call {
            Call::Accept { offer, tasks, .. } => {
                let tasks = tasks.iter().map(|(_, info)| info["name"].as_str().unwrap().to_owned());
                Some((offer, tasks.collect()))
            }
            _ => None,
        });
        accepted.collect()
    }

    #[test]
    fn higher_priorities_and_older_jobs_come_first_and_what_does_not_fit_holds_up_nobody() {
        let mut scheduler = scheduler(&[
            "{name: old, tasks: {t: {image: i}}}",
            "{name: young, tasks: {t: {image: i}}}",
            "{name: urgent, priority: 90, tasks: {t: {image: i}, huge: {image: i, resources: {cpus: 50}}}}",
            "{name: other, role: elsewhere, priority: 100, tasks: {t: {image: i}}}",
        ]);
        let first = placed(&mut scheduler, vec![offer("a", "x", 2)]);
        assert_eq!(first, [("offer of a".to_owned(), vec!["urgent.t.0".to_owned(), "old.t.0".to_owned()])]);
        let second = placed(&mut scheduler, vec![offer("a", "x", 2)]);
        assert_eq!(second[0].1, ["young.t.0"]);
        assert_eq!(placed(&mut scheduler, vec![offer("a", "x", 2)]), []);
    }

    #[test]
    fn tasks_are_spread_and_have_ports_of_their_own() {
        let mut scheduler = scheduler(&["{name: j, tasks: {t: {image: i, service: {replicas: 5}, ports: [a], \
             spread: {over: zone, most: 2}}}}"]);
        let offers = vec![offer("a", "x", 9), offer("b", "x", 9), offer("c", "y", 9)];
        let placed = placed(&mut scheduler, offers);
        let counts: Vec<usize> = placed.iter().map(|(_, tasks)| tasks.len()).collect();
        assert_eq!(counts, [1, 1, 2], "two in each zone, on as many agents as can be");
        let tasks = scheduler.crews.values().flat_map(|crew| crew.tasks.values());
        let ports: Vec<(AgentId, u16)> = tasks
            .filter_map(|task| task.launch())
            .map(|launch| (launch.agent.clone(), *launch.ports.values().next().unwrap()))
            .collect();
        let distinct: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!((ports.len(), distinct.len()), (4, 4), "{ports:?}");
    }

    #[test]
    fn an_agent_that_has_the_image_is_preferred() {
        let mut scheduler = scheduler(&["{name: j, tasks: {t: {image: docker.io/library/i}}}"]);
        let mut second = offer("b", "x", 1);
        second.attributes.insert("image.i:latest".to_owned(), "true".to_owned());
        let placed = placed(&mut scheduler, vec![offer("a", "x", 1), second, offer("c", "x", 1)]);
        assert_eq!(placed[0].0, "offer of b");
    }

    #[test]
    fn an_agent_that_has_run_the_image_is_preferred() {
        let mut scheduler = scheduler(&["{name: j, tasks: {t: {image: i, resources: {cpus: 0.1}}}}"]);
        assert_eq!(placed(&mut scheduler, vec![offer("b", "x", 1)]).len(), 1);
        let id = scheduler.crews.values().flat_map(|crew| crew.tasks.values()).find_map(|task| task.launch());
        let status = Status {
            task: id.unwrap().id.clone(),
            agent: Some(AgentId::from("b")),
            state: TaskState::Running,
            update: None,
            message: String::new(),
            sandbox: None,
            healthy: None,
        };
        scheduler.told(status, NOW);
        // So it is by whoever reads what was made durable.
        let jobs = scheduler.jobs.clone();
        let tasks = scheduler.crews.iter().flat_map(|((job, group), crew)| {
            let key = |index: &u32| TaskKey { job: job.clone(), group: group.clone(), index: *index };
            crew.tasks.iter().map(move |(index, task)| (key(index), task.clone()))
        });
        let next = Scheduler::new(Recovered { own: scheduler.own.clone(), jobs, tasks: tasks.collect() });
        for mut scheduler in [scheduler, next] {
            scheduler.submit(Manifest::read("{name: k, tasks: {t: {image: i}}}").unwrap(), NOW).unwrap();
            let second = placed(&mut scheduler, vec![offer("a", "x", 1), offer("b", "x", 1)]);
            assert_eq!(second[0].0, "offer of b");
        }
    }
}
