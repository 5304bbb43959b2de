//! The master core, one exchange at a time. What thousands of them come to is in `simulation.rs`.

use std::sync::Arc;
use std::time::Duration;

use berth_orchestrator::allocator::{OfferKey, Quota, Subscription, Weight};
use berth_orchestrator::master::{
    Admission, AgentId, AgentInfo, AgentState, Call, Change, Config, Connection, Event, ExecutorId, ExecutorInfo,
    ExecutorReport, FrameworkId, FrameworkInfo, FromAgent, Master, Output, Reason, Refused, Registration, Registry,
    TaskId, TaskInfo, TaskReport, TaskState, TaskStatus, ToAgent, UpdateId,
};
use berth_orchestrator::resources::{Kind, Quantities};

const GIB: u64 = 1 << 30;
const AGENT: Quantities = Quantities::new(4000, 8 * GIB);
const TASK: Quantities = Quantities::new(1000, GIB);
const FRAMEWORK: Connection = Connection(1);
const AGENT_LINK: Connection = Connection(2);

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A master with a framework and an agent.
struct Cluster {
    master: Master,
    framework: FrameworkId,
    agent: AgentId,
}

fn info(partition_aware: bool) -> FrameworkInfo {
    let roles = [("a".to_owned(), Subscription::default())].into();
    FrameworkInfo { roles, partition_aware, failover_timeout: seconds(100), ..FrameworkInfo::default() }
}

fn registration(id: Option<&AgentId>, tasks: Vec<TaskReport>) -> Registration {
    let info = AgentInfo { resources: AGENT.into(), hostname: "here".to_owned(), ..AgentInfo::default() };
    Registration { id: id.cloned(), info, tasks, ..Registration::default() }
}

impl Cluster {
    fn new(partition_aware: bool) -> Cluster {
        let mut master = Master::new(Config::new("m"), Registry::default(), Duration::ZERO);
        let framework = master.subscribe(FRAMEWORK, None, info(partition_aware), Duration::ZERO).unwrap();
        master.register(AGENT_LINK, registration(None, vec![]), Duration::ZERO);
        let mut outputs = master.take_outputs().into_iter();
        assert!(matches!(outputs.next(), Some(Output::Framework(FRAMEWORK, Event::Subscribed { .. }))));
        assert!(matches!(outputs.next(), Some(Output::Store(Change::Agent(..)))), "stored before the agent is told");
        let Some(Output::Agent(AGENT_LINK, ToAgent::Registered(agent))) = outputs.next() else {
            panic!("not registered")
        };
        Cluster { master, framework, agent }
    }

    fn call(&mut self, call: Call) {
        self.master.call(FRAMEWORK, &self.framework, call, seconds(1)).unwrap();
    }

    fn told(&mut self) -> Vec<Event> {
        let outputs = self.master.take_outputs().into_iter();
        outputs
            .filter_map(|output| if let Output::Framework(FRAMEWORK, event) = output { Some(event) } else { None })
            .collect()
    }

    fn sent(&mut self) -> Vec<ToAgent> {
        let outputs = self.master.take_outputs().into_iter();
        outputs.filter_map(|output| if let Output::Agent(_, message) = output { Some(message) } else { None }).collect()
    }

    /// The states the framework is told, with the reasons.
    fn states(&mut self) -> Vec<(TaskState, Option<Reason>)> {
        let told = self.told().into_iter();
        told.filter_map(
            |event| if let Event::Update(status) = event { Some((status.state, status.reason)) } else { None },
        )
        .collect()
    }

    fn offer(&mut self) -> OfferKey {
        self.master.allocate(seconds(1));
        let told = self.told();
        let [Event::Offers(offers)] = &told[..] else { panic!("{told:?}") };
        assert_eq!(offers.len(), 1);
        offers[0].key
    }

    fn task(&self, id: &str, resources: Quantities) -> TaskInfo {
        TaskInfo {
            id: TaskId::from(id),
            agent: self.agent.clone(),
            resources: resources.into(),
            executor: None,
            payload: "{}".into(),
        }
    }

    /// A task that an executor runs, which uses as much as a task besides.
    fn task_of(&self, executor: &str, id: &str) -> TaskInfo {
        let info = ExecutorInfo { id: executor.into(), resources: TASK.into(), payload: "{}".into() };
        TaskInfo { executor: Some(Arc::new(info)), ..self.task(id, TASK) }
    }

    fn launch(&mut self, id: &str) {
        let offers = vec![self.offer()];
        self.call(Call::Accept { offers, tasks: vec![self.task(id, TASK)], refuse: Duration::ZERO });
        let sent = self.sent();
        assert!(matches!(&sent[..], [ToAgent::Run { task, .. }] if task.id.as_str() == id), "{sent:?}");
    }

    fn update(&mut self, id: &str, state: TaskState, update: u128) {
        let status = TaskStatus {
            task: id.into(),
            agent: None,
            state,
            update: Some(UpdateId(update)),
            reason: None,
            message: String::new(),
            details: "".into(),
        };
        let update = FromAgent::Update { framework: self.framework.clone(), status, latest: state };
        self.master.agent_says(AGENT_LINK, update, seconds(2));
    }

    fn report(&self, id: &str, state: TaskState) -> TaskReport {
        TaskReport { framework: self.framework.clone(), role: "a".into(), info: self.task(id, TASK), state }
    }

    /// What the roles use.
    fn used(&self) -> Quantities {
        self.master.fairness().roles.iter().fold(Quantities::ZERO, |mut used, role| {
            used += &role.used;
            used
        })
    }
}

#[test]
fn a_task_is_known_until_its_end_is_acknowledged() {
    let mut cluster = Cluster::new(true);
    cluster.launch("t");
    cluster.update("t", TaskState::Running, 1);
    cluster.update("t", TaskState::Finished, 2);
    assert_eq!(cluster.states(), [(TaskState::Running, None), (TaskState::Finished, None)]);
    assert_eq!(cluster.used(), Quantities::ZERO);
    let acknowledge =
        |update| Call::Acknowledge { agent: AgentId::from("m-A2"), task: "t".into(), update: UpdateId(update) };
    cluster.call(acknowledge(1));
    assert_eq!(cluster.master.tasks().count(), 1);
    cluster.call(acknowledge(2));
    assert_eq!(cluster.master.tasks().count(), 0);
    assert!(matches!(
        cluster.sent()[..],
        [ToAgent::Acknowledge { .. }, ToAgent::Acknowledge { update: UpdateId(2), .. }]
    ));
    // The acknowledgement was lost, and the agent says it again: nobody else would answer.
    cluster.update("t", TaskState::Finished, 2);
    assert!(matches!(cluster.sent()[..], [ToAgent::Acknowledge { update: UpdateId(2), .. }]));
}

#[test]
fn wrong_tasks_are_errors_and_the_right_ones_beside_them_run() {
    let mut cluster = Cluster::new(true);
    let offers = vec![cluster.offer()];
    let mut elsewhere = cluster.task("elsewhere", TASK);
    elsewhere.agent = AgentId::from("other");
    let tasks = vec![
        cluster.task("right", TASK),
        cluster.task("right", TASK),
        cluster.task("too-large", AGENT),
        cluster.task("../name", TASK),
        cluster.task("", TASK),
        cluster.task("nothing", Quantities::ZERO),
        elsewhere,
    ];
    let wrong = tasks.len() - 1;
    cluster.call(Call::Accept { offers: offers.clone(), tasks, refuse: Duration::ZERO });
    assert_eq!(cluster.used(), TASK);
    assert_eq!(cluster.states(), vec![(TaskState::Error, Some(Reason::TaskInvalid)); wrong]);
    // The offer is used up.
    let late = vec![cluster.task("late", TASK)];
    cluster.call(Call::Accept { offers, tasks: late, refuse: Duration::ZERO });
    assert_eq!(cluster.states(), [(TaskState::Dropped, Some(Reason::InvalidOffers))]);
}

#[test]
fn a_task_that_never_arrived_is_dropped_when_the_agent_comes_back() {
    let mut cluster = Cluster::new(true);
    cluster.launch("t");
    cluster.master.disconnected(AGENT_LINK, seconds(2));
    let agent = cluster.agent.clone();
    cluster.master.register(Connection(3), registration(Some(&agent), vec![]), seconds(3));
    assert_eq!(cluster.states(), [(TaskState::Dropped, Some(Reason::AgentReregistered))]);
    assert_eq!(cluster.used(), Quantities::ZERO);
}

#[test]
fn tasks_of_an_unreachable_agent_come_back_with_it_for_those_who_understand() {
    for (partition_aware, told) in [(true, TaskState::Unreachable), (false, TaskState::Lost)] {
        let mut cluster = Cluster::new(partition_aware);
        cluster.launch("t");
        cluster.update("t", TaskState::Running, 1);
        cluster.told();
        cluster.master.tick(seconds(80));
        let outputs = cluster.master.take_outputs();
        assert!(
            matches!(&outputs[0], Output::Store(Change::Agent(_, admission)) if admission.unreachable),
            "{outputs:?}"
        );
        let states: Vec<_> = outputs
            .iter()
            .filter_map(|output| match output {
                Output::Framework(_, Event::Update(status)) => Some(status.state),
                _ => None,
            })
            .collect();
        assert_eq!(states, [told]);
        assert_eq!(cluster.used(), Quantities::ZERO);

        let (agent, report) = (cluster.agent.clone(), cluster.report("t", TaskState::Running));
        cluster.master.register(Connection(3), registration(Some(&agent), vec![report]), seconds(90));
        assert_eq!(cluster.used(), TASK, "it runs, whatever was said");
        let killed = cluster.sent().iter().any(|message| matches!(message, ToAgent::Kill { .. }));
        assert_eq!(killed, !partition_aware);
    }
}

#[test]
fn a_kill_reaches_an_agent_that_was_away() {
    let mut cluster = Cluster::new(true);
    cluster.launch("t");
    cluster.master.disconnected(AGENT_LINK, seconds(2));
    cluster.call(Call::Kill { task: "t".into(), agent: None, grace: None });
    assert!(cluster.sent().is_empty());
    let (agent, report) = (cluster.agent.clone(), cluster.report("t", TaskState::Running));
    cluster.master.register(Connection(3), registration(Some(&agent), vec![report]), seconds(3));
    assert!(matches!(cluster.sent()[..], [ToAgent::Registered(_), ToAgent::Kill { .. }]));
}

#[test]
fn a_framework_fails_over_and_its_offers_do_not() {
    let mut cluster = Cluster::new(true);
    cluster.launch("t");
    let offer = cluster.offer();
    let id = cluster.framework.clone();
    cluster.master.subscribe(Connection(9), Some(id.clone()), info(true), seconds(5)).unwrap();
    let outputs = cluster.master.take_outputs();
    assert!(matches!(&outputs[0], Output::Framework(FRAMEWORK, Event::Error(_))), "{outputs:?}");
    assert!(matches!(outputs[1], Output::Close(FRAMEWORK)));
    let decline = Call::Decline { offers: vec![offer], refuse: Duration::ZERO };
    assert_eq!(cluster.master.call(FRAMEWORK, &id, decline, seconds(5)), Err(Refused::NotSubscribed(id.clone())));
    assert_eq!(cluster.master.tasks().count(), 1);
    cluster.master.call(Connection(9), &id, Call::Reconcile(vec![]), seconds(5)).unwrap();
    let outputs = cluster.master.take_outputs();
    assert!(
        matches!(&outputs[..], [Output::Framework(Connection(9), Event::Update(status))] if status.state == TaskState::Staging)
    );
}

#[test]
fn a_framework_that_stays_away_is_over_and_what_it_uses_is_not_free_before_it_ends() {
    let mut cluster = Cluster::new(true);
    cluster.launch("t");
    let id = cluster.framework.clone();
    cluster.master.disconnected(FRAMEWORK, seconds(2));
    cluster.master.agent_says(AGENT_LINK, FromAgent::Heartbeat, seconds(100));
    cluster.master.tick(seconds(101));
    assert!(matches!(cluster.sent()[..], [ToAgent::Heartbeat]));
    cluster.master.tick(seconds(102));
    assert!(matches!(&cluster.sent()[..], [ToAgent::ShutDownFramework(of)] if *of == id));
    assert_eq!(cluster.used(), TASK);
    cluster.update("t", TaskState::Killed, 7);
    assert!(matches!(cluster.sent()[..], [ToAgent::Acknowledge { update: UpdateId(7), .. }]));
    assert_eq!(cluster.used(), Quantities::ZERO);
    assert_eq!(cluster.master.frameworks().count(), 0);
    let again = cluster.master.subscribe(Connection(9), Some(id.clone()), info(true), seconds(103));
    assert_eq!(again, Err(Refused::FrameworkGone(id)));
}

#[test]
fn a_new_master_learns_of_tasks_and_frameworks_from_agents_and_of_the_rest_from_the_registry() {
    let mut cluster = Cluster::new(true);
    let mut registry = Registry::default();
    cluster.master.set_weight("a", Weight::from_thousandths(3000).unwrap());
    let quota = Quota { guarantee: TASK, ..Quota::default() };
    cluster.master.set_quota("a", quota).unwrap();
    for output in cluster.master.take_outputs() {
        if let Output::Store(change) = output {
            registry.apply(change);
        }
    }
    registry.apply(Change::Agent(cluster.agent.clone(), Admission::default()));

    let mut next = Master::new(Config::new("n"), registry, seconds(10));
    assert_eq!(next.agents().map(|agent| agent.state).collect::<Vec<_>>(), [AgentState::Awaited]);
    let id = cluster.framework.clone();
    next.subscribe(FRAMEWORK, Some(id.clone()), info(true), seconds(10)).unwrap();
    next.take_outputs();
    // Nothing is said of a task that may yet come back.
    next.call(FRAMEWORK, &id, Call::Reconcile(vec![("t".into(), None)]), seconds(10)).unwrap();
    assert!(next.take_outputs().is_empty());
    let report = cluster.report("t", TaskState::Running);
    next.register(AGENT_LINK, registration(Some(&cluster.agent), vec![report]), seconds(11));
    next.take_outputs();
    next.call(FRAMEWORK, &id, Call::Reconcile(vec![("t".into(), None), ("u".into(), None)]), seconds(12)).unwrap();
    let states = next.take_outputs().into_iter().filter_map(|output| match output {
        Output::Framework(_, Event::Update(status)) => Some(status.state),
        _ => None,
    });
    assert_eq!(states.collect::<Vec<_>>(), [TaskState::Running, TaskState::Unknown]);
    let role = &next.fairness().roles[0];
    assert_eq!((role.weight.thousandths(), role.quota, role.used), (3000, quota, TASK));
}

#[test]
fn agents_cannot_claim_more_than_they_have() {
    let mut cluster = Cluster::new(true);
    let agent = cluster.agent.clone();
    let tasks = (0..5).map(|index| cluster.report(&format!("t{index}"), TaskState::Running)).collect::<Vec<_>>();
    let twice = vec![tasks[0].clone(), tasks[0].clone()];
    for wrong in [tasks, twice] {
        cluster.master.register(Connection(5), registration(Some(&agent), wrong), seconds(2));
        assert!(matches!(cluster.sent()[..], [ToAgent::Refused(_)]));
    }
    assert_eq!(
        cluster.master.agents().next().unwrap().state,
        AgentState::Connected,
        "the one that is there is unharmed"
    );
    let mut absurd = registration(None, vec![]);
    absurd.info.resources.quantities[Kind::Memory] = u64::MAX;
    cluster.master.register(Connection(6), absurd, seconds(2));
    assert!(matches!(cluster.sent()[..], [ToAgent::Refused(_)]));
}

#[test]
fn an_agent_that_is_gone_stays_gone() {
    let mut cluster = Cluster::new(true);
    cluster.launch("t");
    let agent = cluster.agent.clone();
    cluster.master.mark_gone(&agent).unwrap();
    assert_eq!(cluster.states(), [(TaskState::GoneByOperator, Some(Reason::AgentRemoved))]);
    cluster.master.register(Connection(5), registration(Some(&agent), vec![]), seconds(2));
    assert!(matches!(cluster.sent()[..], [ToAgent::ShutDown(_)]));
    assert_eq!(cluster.master.mark_gone(&agent), Err(Refused::UnknownAgent(agent)));
}

#[test]
fn a_draining_agent_loses_its_tasks_and_gets_no_others() {
    let mut cluster = Cluster::new(true);
    cluster.launch("t");
    let agent = cluster.agent.clone();
    cluster.master.drain(&agent, true).unwrap();
    assert!(matches!(cluster.sent()[..], [ToAgent::Kill { .. }]));
    cluster.update("t", TaskState::Killed, 1);
    assert_eq!(cluster.states(), [(TaskState::Killed, None)]);
    cluster.master.allocate(seconds(3));
    assert!(cluster.told().is_empty());
    // It stays so when the agent comes back. Without the task, so that nobody else can say that it ended.
    cluster.master.register(Connection(5), registration(Some(&agent), vec![]), seconds(4));
    assert_eq!(cluster.states(), [(TaskState::Killed, Some(Reason::AgentReregistered))]);
    cluster.master.allocate(seconds(5));
    assert!(cluster.told().is_empty());
    cluster.master.drain(&agent, false).unwrap();
    cluster.offer();
}

#[test]
fn frameworks_hear_from_the_master_again_and_again() {
    let mut cluster = Cluster::new(true);
    for (time, heartbeats) in [(14, 0), (15, 1), (16, 0), (30, 1)] {
        cluster.master.tick(seconds(time));
        let told = cluster.told();
        assert_eq!(told.iter().filter(|event| matches!(event, Event::Heartbeat)).count(), heartbeats, "{time}");
    }
}

#[test]
fn a_lost_task_that_runs_is_ended_though_the_master_dies_meanwhile() {
    let mut cluster = Cluster::new(false);
    cluster.launch("t");
    let mut registry = Registry::default();
    cluster.master.tick(seconds(80));
    let agent = cluster.agent.clone();
    let report = cluster.report("t", TaskState::Running);
    cluster.master.register(Connection(3), registration(Some(&agent), vec![report.clone()]), seconds(90));
    // The kill is under way, and nothing else is launched there.
    cluster.master.allocate(seconds(91));
    for output in cluster.master.take_outputs() {
        match output {
            Output::Store(change) => registry.apply(change),
            Output::Framework(_, Event::Offers(offers)) => panic!("{offers:?}"),
            Output::Framework(..) | Output::Agent(..) | Output::Observers(..) | Output::Close(_) => {}
        }
    }
    cluster.master = Master::new(Config::new("n"), registry, seconds(92));
    cluster.master.subscribe(FRAMEWORK, Some(cluster.framework.clone()), info(false), seconds(92)).unwrap();
    cluster.master.register(AGENT_LINK, registration(Some(&agent), vec![report]), seconds(93));
    assert!(matches!(cluster.sent()[..], [ToAgent::Registered(_), ToAgent::Kill { .. }]));
    cluster.update("t", TaskState::Killed, 1);
    let outputs = cluster.master.take_outputs();
    let reachable =
        |output: &Output| matches!(output, Output::Store(Change::Agent(_, admission)) if !admission.unreachable);
    assert!(outputs.iter().any(reachable), "{outputs:?}");
    cluster.offer();
}

/// How many times a task's resources are in use.
fn tasks_worth(cluster: &Cluster) -> u64 {
    cluster.used()[Kind::Cpus] / TASK[Kind::Cpus]
}

fn ended(cluster: &Cluster, executor: &str) -> FromAgent {
    FromAgent::ExecutorEnded { framework: cluster.framework.clone(), executor: executor.into(), status: Some(3) }
}

#[test]
fn an_executor_is_counted_once_until_it_ends() {
    let mut cluster = Cluster::new(true);
    let offers = vec![cluster.offer()];
    let tasks = vec![cluster.task_of("e", "t"), cluster.task_of("e", "u")];
    cluster.call(Call::Accept { offers, tasks, refuse: Duration::ZERO });
    let launched: Vec<bool> =
        cluster.sent().iter().map(|sent| matches!(sent, ToAgent::Run { launch_executor: true, .. })).collect();
    assert_eq!((launched, tasks_worth(&cluster)), (vec![true, false], 3));

    // There is enough for one more task, and not for another executor with it.
    cluster.master.allocate(seconds(1));
    let told = cluster.told();
    let [Event::Offers(offers)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(offers[0].executors, [ExecutorId::from("e")]);
    let offers = vec![offers[0].key];
    let tasks = vec![cluster.task_of("another", "v"), cluster.task_of("e", "w")];
    cluster.call(Call::Accept { offers, tasks, refuse: Duration::ZERO });
    let outputs = cluster.master.take_outputs();
    let error =
        |output: &Output| matches!(output, Output::Framework(_, Event::Update(it)) if it.state == TaskState::Error);
    let run = |output: &Output| matches!(output, Output::Agent(_, ToAgent::Run { launch_executor: false, .. }));
    assert!(outputs.iter().any(error) && outputs.iter().any(run), "{outputs:?}");
    assert_eq!(tasks_worth(&cluster), 4);

    for (number, task) in (1..).zip(["t", "u", "w"]) {
        cluster.update(task, TaskState::Finished, number);
    }
    assert_eq!(tasks_worth(&cluster), 1, "it is there without tasks");
    cluster.told();
    let message = ended(&cluster, "e");
    cluster.master.agent_says(AGENT_LINK, message.clone(), seconds(3));
    assert_eq!(tasks_worth(&cluster), 0);
    let told = cluster.told();
    assert!(
        matches!(&told[..], [Event::ExecutorFailure { executor, status: Some(3), .. }] if executor.as_str() == "e"),
        "{told:?}"
    );
    cluster.master.agent_says(AGENT_LINK, message, seconds(3));
    assert!(cluster.told().is_empty());
}

#[test]
fn another_executor_of_the_same_name_is_none() {
    let mut cluster = Cluster::new(true);
    let offers = vec![cluster.offer()];
    let mut other = cluster.task_of("e", "u");
    let info = ExecutorInfo { id: "e".into(), resources: TASK.into(), payload: "{\"name\":\"other\"}".into() };
    other.executor = Some(Arc::new(info));
    cluster.call(Call::Accept { offers, tasks: vec![cluster.task_of("e", "t"), other], refuse: Duration::ZERO });
    assert_eq!(cluster.states(), [(TaskState::Error, Some(Reason::TaskInvalid))]);
    assert_eq!(tasks_worth(&cluster), 2);
}

#[test]
fn an_agent_brings_back_its_executors() {
    let mut cluster = Cluster::new(true);
    let report = |cluster: &Cluster| ExecutorReport {
        framework: cluster.framework.clone(),
        role: "a".into(),
        info: cluster.task_of("e", "t").executor.unwrap(),
    };
    let mut with = registration(Some(&cluster.agent), vec![]);
    with.executors = vec![report(&cluster)];
    cluster.master.register(Connection(3), with.clone(), seconds(2));
    assert_eq!(tasks_worth(&cluster), 1);
    assert_eq!(cluster.master.executors().count(), 1);
    cluster.told();
    // Twice is impossible, and so is more than there is.
    let mut twice = with.clone();
    twice.executors.push(report(&cluster));
    cluster.master.register(Connection(4), twice, seconds(2));
    assert!(cluster.sent().iter().any(|sent| matches!(sent, ToAgent::Refused(_))));

    // It comes back without.
    let without = registration(Some(&cluster.agent), vec![]);
    cluster.master.register(Connection(5), without, seconds(3));
    assert_eq!(tasks_worth(&cluster), 0);
    assert!(matches!(&cluster.told()[..], [Event::ExecutorFailure { status: None, .. }]));

    // A framework that is over has to be rid of its executors too.
    cluster.master.register(Connection(6), with, seconds(4));
    cluster.call(Call::Teardown);
    let sent = cluster.sent();
    assert!(sent.iter().any(|sent| matches!(sent, ToAgent::ShutDownFramework(_))), "{sent:?}");
    assert_eq!((tasks_worth(&cluster), cluster.master.frameworks().count()), (1, 1));
    let message = ended(&cluster, "e");
    cluster.master.agent_says(Connection(6), message, seconds(5));
    assert_eq!((cluster.used(), cluster.master.frameworks().count()), (Quantities::ZERO, 0));
}
