//! Frameworks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::network::{Party, ToMaster};
use super::{SECOND, Simulation};
use crate::allocator::{OfferKey, Subscription};
use crate::master::{
    AgentId, Call, Connection, Event, ExecutorId, ExecutorInfo, FrameworkId, FrameworkInfo, OfferEvent, TaskId,
    TaskInfo, TaskState, UpdateId,
};
use crate::resources::{Quantities, Resources};

/// How a framework behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Temper {
    Honest,
    /// Keeps offers.
    Hoarder,
    /// Never acknowledges.
    Forgetful,
    /// Takes more than it was offered.
    Greedy,
    /// Calls all the time, and for things that are not.
    Flooder,
}

#[derive(Debug)]
pub(super) struct SimulatedFramework {
    pub(super) temper: Temper,
    pub(super) id: Option<FrameworkId>,
    info: FrameworkInfo,
    pub(super) connection: Option<Connection>,
    /// It leaves for good at some time, or never.
    leaves: Option<Duration>,
    /// It has left, or was told that it is over.
    pub(super) over: bool,
    launched: u64,
    /// The tasks it launched, or tried to, and what it was told of each last.
    pub(super) told: BTreeMap<TaskId, Option<TaskState>>,
    offers: Vec<OfferKey>,
}

impl SimulatedFramework {
    pub(super) fn new(index: usize, chance: &mut fastrand::Rng) -> SimulatedFramework {
        let temper = match chance.u32(..10) {
            0 => Temper::Hoarder,
            1 => Temper::Forgetful,
            2 => Temper::Greedy,
            3 => Temper::Flooder,
            _ => Temper::Honest,
        };
        let role = format!("role{}", chance.usize(..=index));
        let info = FrameworkInfo {
            name: format!("framework{index}"),
            roles: [(role, Subscription::default())].into(),
            failover_timeout: chance.u32(10..200) * SECOND,
            partition_aware: chance.bool(),
            principal: None,
        };
        SimulatedFramework {
            temper,
            id: None,
            info,
            connection: None,
            leaves: (chance.u32(..5) == 0).then(|| chance.u32(20..150) * SECOND),
            over: false,
            launched: 0,
            told: BTreeMap::new(),
            offers: Vec::new(),
        }
    }

    pub(super) fn disconnected(&mut self, connection: Connection) {
        if self.connection == Some(connection) {
            self.connection = None;
            self.offers.clear();
        }
    }
}

impl Simulation {
    /// Connects, or makes sure of what it knows.
    pub(super) fn framework_acts(&mut self, index: usize) {
        let framework = &mut self.frameworks[index];
        if framework.over {
            return;
        }
        if framework.leaves.is_some_and(|time| time <= self.now) && framework.id.is_some() {
            // Some say goodbye. Of the others the master has to find out.
            framework.over = true;
            if self.chance.bool() {
                self.call(index, Call::Teardown);
            } else if let Some(connection) = self.frameworks[index].connection {
                self.break_link(connection);
            }
            return;
        }
        if framework.connection.is_none() {
            return self.framework_connects(index);
        }
        if self.in_trouble() && self.frameworks[index].id.is_some() && self.chance.u32(..10) == 0 {
            self.change_roles(index);
            let info = self.frameworks[index].info.clone();
            self.call(index, Call::Update(info));
        }
        // A second instance takes over while the first is still there.
        if self.in_trouble() && self.frameworks[index].id.is_some() && self.chance.u32(..40) == 0 {
            return self.framework_connects(index);
        }
        let pending =
            self.frameworks[index].told.iter().filter(|(_, state)| !state.is_some_and(TaskState::is_terminal));
        let pending: Vec<_> = pending.map(|(task, _)| (task.clone(), None)).collect();
        if !pending.is_empty() {
            self.call(index, Call::Reconcile(pending));
        }
        if self.frameworks[index].temper == Temper::Flooder && self.in_trouble() {
            self.flood(index);
        }
    }

    fn framework_connects(&mut self, index: usize) {
        let Some(connection) = self.connect(Party::Framework(index)) else { return };
        // It comes back in other roles, and may have tasks in those it has left.
        if self.in_trouble() && self.chance.u32(..3) == 0 {
            self.change_roles(index);
        }
        let framework = &mut self.frameworks[index];
        framework.connection = Some(connection);
        framework.offers.clear();
        let (id, info) = (framework.id.clone(), framework.info.clone());
        self.send_to_master(connection, ToMaster::Subscribe(id, info));
    }

    /// Some of the roles there are, or none.
    fn change_roles(&mut self, index: usize) {
        let (chance, roles) = (&mut self.chance, 0..self.frameworks.len());
        let mut some = BTreeMap::new();
        for role in roles {
            if chance.bool() {
                let subscription = Subscription { suppressed: chance.u32(..5) == 0, ..Subscription::default() };
                some.insert(format!("role{role}"), subscription);
            }
        }
        self.frameworks[index].info.roles = some;
    }

    fn call(&mut self, index: usize, call: Call) {
        let framework = &self.frameworks[index];
        if let (Some(connection), Some(id)) = (framework.connection, framework.id.clone()) {
            self.send_to_master(connection, ToMaster::Call(id, call));
        }
    }

    pub(super) fn framework_hears(&mut self, index: usize, over: Connection, event: Event) {
        let framework = &mut self.frameworks[index];
        if framework.connection != Some(over) {
            return;
        }
        match event {
            Event::Subscribed { framework: id, .. } => {
                assert!(framework.id.as_ref().is_none_or(|known| *known == id), "a framework keeps its id");
                framework.id = Some(id);
            }
            Event::Offers(offers) => {
                for offer in offers {
                    self.consider(index, &offer);
                }
            }
            Event::Rescind(key) => framework.offers.retain(|offer| *offer != key),
            Event::Update(status) => {
                framework.told.insert(status.task.clone(), Some(status.state));
                if let (Some(agent), Some(update)) = (status.agent, status.update)
                    && framework.temper != Temper::Forgetful
                {
                    self.call(index, Call::Acknowledge { agent, task: status.task, update });
                }
            }
            Event::Error(_) => framework.over = true,
            Event::Message { .. } | Event::Failure(_) | Event::ExecutorFailure { .. } | Event::Heartbeat => {}
        }
    }

    fn consider(&mut self, index: usize, offer: &OfferEvent) {
        self.frameworks[index].offers.push(offer.key);
        let temper = self.frameworks[index].temper;
        let refuse = self.chance.u32(..10) * SECOND;
        if temper == Temper::Hoarder {
            return;
        }
        if !self.in_trouble() || self.chance.u32(..4) == 0 {
            return self.call(index, Call::Decline { offers: vec![offer.key], refuse });
        }
        let mut tasks = Vec::new();
        for _ in 0..self.chance.u32(1..=3) {
            let task = self.make_task(index, offer);
            tasks.push(task);
        }
        self.call(index, Call::Accept { offers: vec![offer.key], tasks, refuse });
        if self.chance.u32(..20) == 0 {
            let executor = ExecutorId::from(format!("executor{}", self.chance.u64(..3)));
            self.call(index, Call::ShutDown { agent: offer.agent.clone(), executor });
        }
        // It changes its mind about some.
        if self.chance.u32(..8) == 0
            && let Some(task) = self.frameworks[index].told.keys().next_back().cloned()
        {
            self.call(index, Call::Kill { task, agent: None, grace: None });
        }
    }

    fn make_task(&mut self, index: usize, offer: &OfferEvent) -> TaskInfo {
        let (chance, framework) = (&mut self.chance, &mut self.frameworks[index]);
        let most = if framework.temper == Temper::Greedy { 20_000 } else { 1500 };
        let ports = offer
            .resources
            .ports
            .ranges()
            .take(chance.usize(..=1))
            .map(|range| *range.start()..=*range.start())
            .collect();
        framework.launched += 1;
        let id = TaskId::from(format!("task{}", framework.launched));
        framework.told.insert(id.clone(), None);
        // Some are wrong: another executor of the same name may be there.
        let executor = (chance.u32(..3) == 0).then(|| {
            let (number, wrong) = (chance.u64(..3), u64::from(chance.u32(..20) == 0));
            Arc::new(ExecutorInfo {
                id: ExecutorId::from(format!("executor{number}")),
                resources: Quantities::new((number + wrong) * 100, number * (32 << 20)).into(),
                payload: "{}".into(),
            })
        });
        TaskInfo {
            id,
            agent: offer.agent.clone(),
            resources: Resources {
                quantities: Quantities::new(chance.u64(100..=most), chance.u64(64..=1024) << 20),
                ports,
            },
            executor,
            payload: "{}".into(),
        }
    }

    fn flood(&mut self, index: usize) {
        let stale = self.frameworks[index].offers.clone();
        let nowhere = AgentId::from("nowhere");
        for _ in 0..10 {
            let unknown = TaskId::from(format!("unknown{}", self.chance.u32(..)));
            let call = match self.chance.u32(..6) {
                0 => Call::Decline { offers: stale.clone(), refuse: Duration::MAX },
                1 => Call::Reconcile(Vec::new()),
                2 => {
                    Call::Acknowledge { agent: nowhere.clone(), task: unknown, update: UpdateId(self.chance.u128(..)) }
                }
                3 => Call::Suppress(vec!["not a role of it".to_owned()]),
                4 => Call::Revive(Vec::new()),
                _ => Call::Accept { offers: stale.clone(), tasks: Vec::new(), refuse: Duration::ZERO },
            };
            self.call(index, call);
        }
    }
}
