//! The operator API: what people and their tools ask of a master.
//!
//! The calls are those of Mesos, and some of berth's own: `GET_FAIRNESS` (who has what share, and waits for what),
//! `EXPLAIN_TASK` (why a task is where it is), and `CREATE_JOIN_TOKEN`, `GET_JOIN_TOKENS` and `REVOKE_JOIN_TOKEN`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::framework::check_role;
use super::resources::{self, Dialect, Resource, amounts};
use super::scheduler::id;
use super::{Id, Invalid, VERSION, decode, decode_list, payload};
use crate::allocator::{Decision, FrameworkFairness, Quota, RoleFairness, Share, Weight};
use crate::master::{AgentId, AgentState, AgentView, ExecutorView, FrameworkId, FrameworkView, Snapshot, Task, TaskId};
use crate::resources::{Kind, Quantities};
use crate::tls::TokenId;

/// The longest that a join token is good, in seconds: 30 days.
const LONGEST_TOKEN: u32 = 30 * 86_400;
/// The most agents that one lets in.
const MOST_USES: u32 = 10_000;

/// What is asked.
#[derive(Debug)]
pub enum Request {
    /// To be told something.
    Look(Look),
    /// To change something.
    Change(Change),
    /// To be told of everything that happens.
    Subscribe,
    /// To do something about join tokens.
    Token(TokenCall),
}

/// What can be done about join tokens.
#[derive(Debug)]
pub enum TokenCall {
    /// To have a new one.
    Create {
        /// How long it is good.
        seconds: u32,
        /// How many agents it lets in.
        uses: u32,
    },
    /// To be told which there are.
    List,
    /// That one is good no more.
    Revoke(TokenId),
}

/// What there is to know.
#[derive(Debug)]
pub enum Look {
    /// Whether the master is well.
    Health,
    /// Which API it speaks.
    Version,
    /// What the master is.
    Master,
    /// Everything.
    State,
    /// The agents.
    Agents,
    /// The frameworks.
    Frameworks,
    /// The tasks.
    Tasks,
    /// The executors.
    Executors,
    /// The roles, and what they have.
    Roles,
    /// The weights of roles.
    Weights,
    /// The quotas of roles.
    Quota,
    /// Who has what share.
    Fairness,
    /// Why a task is where it is.
    Explain(TaskId, Option<FrameworkId>),
}

/// What can be changed.
#[derive(Debug)]
pub enum Change {
    /// The weights of roles.
    Weights(Vec<(String, Weight)>),
    /// The quotas of roles.
    Quota(Vec<(String, Quota)>),
    /// Whether an agent gets no new tasks.
    Drain(AgentId, bool),
    /// That an agent is gone for good.
    Gone(AgentId),
    /// That a framework is over.
    TearDown(FrameworkId),
}

#[derive(Deserialize)]
struct Call {
    #[serde(rename = "type")]
    kind: String,
    update_weights: Option<UpdateWeights>,
    update_quota: Option<UpdateQuota>,
    drain_agent: Option<OneAgent>,
    reactivate_agent: Option<OneAgent>,
    mark_agent_gone: Option<OneAgent>,
    teardown: Option<OneFramework>,
    explain_task: Option<ExplainTask>,
    create_join_token: Option<CreateJoinToken>,
    revoke_join_token: Option<RevokeJoinToken>,
}

#[derive(Deserialize)]
struct UpdateWeights {
    #[serde(default)]
    weight_infos: Vec<WeightInfo>,
}

#[derive(Deserialize)]
struct WeightInfo {
    role: String,
    weight: f64,
}

#[derive(Deserialize)]
struct UpdateQuota {
    #[serde(default)]
    quota_configs: Vec<QuotaConfig>,
}

#[derive(Deserialize)]
struct QuotaConfig {
    role: String,
    #[serde(default)]
    guarantees: BTreeMap<String, Scalar>,
    #[serde(default)]
    limits: BTreeMap<String, Scalar>,
}

#[derive(Deserialize)]
struct Scalar {
    value: f64,
}

#[derive(Deserialize)]
struct OneAgent {
    agent_id: Id,
}

#[derive(Deserialize)]
struct OneFramework {
    framework_id: Id,
}

#[derive(Deserialize)]
struct ExplainTask {
    task_id: Id,
    framework_id: Option<Id>,
}

#[derive(Deserialize)]
struct CreateJoinToken {
    ttl_seconds: u32,
    uses: u32,
}

#[derive(Deserialize)]
struct RevokeJoinToken {
    id: String,
}

/// Reads a call.
pub fn read(call: Value) -> Result<Request, Invalid> {
    let call: Call = decode(call)?;
    let agent = |part: Option<OneAgent>, field: &str| {
        Ok::<_, Invalid>(AgentId::from(payload(part, field)?.agent_id.checked(&format!("{field}.agent_id.value"))?))
    };
    let look = match call.kind.as_str() {
        "GET_HEALTH" => Look::Health,
        "GET_VERSION" => Look::Version,
        "GET_MASTER" => Look::Master,
        "GET_STATE" => Look::State,
        "GET_AGENTS" => Look::Agents,
        "GET_FRAMEWORKS" => Look::Frameworks,
        "GET_TASKS" => Look::Tasks,
        "GET_EXECUTORS" => Look::Executors,
        "GET_ROLES" => Look::Roles,
        "GET_WEIGHTS" => Look::Weights,
        "GET_QUOTA" => Look::Quota,
        "GET_FAIRNESS" => Look::Fairness,
        "EXPLAIN_TASK" => {
            let asked = payload(call.explain_task, "explain_task")?;
            let framework = asked.framework_id.map(|id| FrameworkId::from(id.value));
            Look::Explain(TaskId::from(asked.task_id.value), framework)
        }
        "SUBSCRIBE" => return Ok(Request::Subscribe),
        "CREATE_JOIN_TOKEN" => {
            let asked = payload(call.create_join_token, "create_join_token")?;
            return Ok(Request::Token(asked.read().map_err(|wrong| wrong.within("create_join_token"))?));
        }
        "GET_JOIN_TOKENS" => return Ok(Request::Token(TokenCall::List)),
        "REVOKE_JOIN_TOKEN" => {
            let id = payload(call.revoke_join_token, "revoke_join_token")?.id;
            let id = id.parse().map_err(|problem| Invalid::new("revoke_join_token.id", problem))?;
            return Ok(Request::Token(TokenCall::Revoke(id)));
        }
        "UPDATE_WEIGHTS" => {
            let infos = payload(call.update_weights, "update_weights")?.weight_infos.into_iter().enumerate();
            let weights = infos.map(|(index, info)| {
                let field = format!("update_weights.weight_infos[{index}]");
                check_role(&info.role, &format!("{field}.role"))?;
                // What is no number, or too large, becomes one that is refused.
                let weight = Weight::try_from((info.weight * 1000.0).round() as u32);
                Ok((info.role, weight.map_err(|problem| Invalid::new(format!("{field}.weight"), problem))?))
            });
            return Ok(Request::Change(Change::Weights(weights.collect::<Result<_, Invalid>>()?)));
        }
        "UPDATE_QUOTA" => {
            let configs = payload(call.update_quota, "update_quota")?.quota_configs.into_iter().enumerate();
            let quotas = configs.map(|(index, config)| {
                config.read().map_err(|wrong| wrong.within(&format!("update_quota.quota_configs[{index}]")))
            });
            return Ok(Request::Change(Change::Quota(quotas.collect::<Result<_, Invalid>>()?)));
        }
        "DRAIN_AGENT" => return Ok(Request::Change(Change::Drain(agent(call.drain_agent, "drain_agent")?, true))),
        "REACTIVATE_AGENT" => {
            return Ok(Request::Change(Change::Drain(agent(call.reactivate_agent, "reactivate_agent")?, false)));
        }
        "MARK_AGENT_GONE" => {
            return Ok(Request::Change(Change::Gone(agent(call.mark_agent_gone, "mark_agent_gone")?)));
        }
        "TEARDOWN" => {
            let framework = payload(call.teardown, "teardown")?.framework_id;
            let framework = framework.checked("teardown.framework_id.value")?;
            return Ok(Request::Change(Change::TearDown(FrameworkId::from(framework))));
        }
        other => return Err(Invalid::new("type", format!("`{other}` is no call that is known"))),
    };
    Ok(Request::Look(look))
}

impl CreateJoinToken {
    fn read(self) -> Result<TokenCall, Invalid> {
        if !(1..=LONGEST_TOKEN).contains(&self.ttl_seconds) {
            return Err(Invalid::new("ttl_seconds", format!("has to be between 1 and {LONGEST_TOKEN}: 30 days")));
        }
        if !(1..=MOST_USES).contains(&self.uses) {
            return Err(Invalid::new("uses", format!("has to be between 1 and {MOST_USES}")));
        }
        Ok(TokenCall::Create { seconds: self.ttl_seconds, uses: self.uses })
    }
}

impl QuotaConfig {
    fn read(self) -> Result<(String, Quota), Invalid> {
        check_role(&self.role, "role")?;
        let guarantee = quantities(&self.guarantees, Quantities::ZERO, "guarantees")?;
        let limit = quantities(&self.limits, Quantities::UNLIMITED, "limits")?;
        Ok((self.role, Quota { guarantee, limit }))
    }
}

/// The amounts that are named, the others as they are by default.
fn quantities(named: &BTreeMap<String, Scalar>, mut all: Quantities, field: &str) -> Result<Quantities, Invalid> {
    for (name, Scalar { value }) in named {
        let field = format!("{field}.{name}");
        let kind = Kind::ALL.into_iter().find(|kind| kind.to_string() == *name);
        let kind = kind.ok_or_else(|| Invalid::new(&field, "is not known; there are cpus, mem, disk and gpus"))?;
        let resource = json!([{ "name": name, "scalar": { "value": value } }]);
        let amount = resources::read(&decode_list::<Resource>(resource)?, &field);
        all[kind] = amount.map_err(|wrong| Invalid::new(format!("{field}.value"), wrong.problem))?.quantities[kind];
    }
    Ok(all)
}

/// What a master says of itself.
#[derive(Debug)]
pub struct Identity<'a> {
    /// `MasterInfo`
    pub master_info: &'a Value,
    /// When it started, in seconds since 1970.
    pub started: f64,
}

/// The answer to a question; none if it is about a task that is not known.
pub fn answer(look: &Look, snapshot: &Snapshot, identity: &Identity) -> Option<Value> {
    let wrapped = |kind: &str, body: Value| json!({ "type": kind, (kind.to_ascii_lowercase()): body });
    Some(match look {
        Look::Health => wrapped("GET_HEALTH", json!({ "healthy": true })),
        Look::Version => wrapped("GET_VERSION", json!({ "version_info": version() })),
        Look::Master => {
            let started = identity.started;
            let body = json!({ "master_info": identity.master_info, "start_time": started, "elected_time": started });
            wrapped("GET_MASTER", body)
        }
        Look::State => wrapped("GET_STATE", state(snapshot)),
        Look::Agents => wrapped("GET_AGENTS", agents(snapshot)),
        Look::Frameworks => wrapped("GET_FRAMEWORKS", frameworks(snapshot)),
        Look::Tasks => wrapped("GET_TASKS", tasks(snapshot)),
        Look::Executors => wrapped("GET_EXECUTORS", executors(snapshot)),
        Look::Roles => {
            wrapped("GET_ROLES", json!({ "roles": list(&snapshot.fairness.roles, |it| role(it, snapshot)) }))
        }
        Look::Weights => {
            let weights = list(&snapshot.fairness.roles, |role| json!({ "role": &*role.role, "weight": weight(role) }));
            wrapped("GET_WEIGHTS", json!({ "weight_infos": weights }))
        }
        Look::Quota => {
            let with_quota = snapshot.fairness.roles.iter().filter(|role| role.quota != Quota::default());
            let quotas: Vec<Value> = with_quota.map(quota).collect();
            wrapped("GET_QUOTA", json!({ "status": { "infos": [], "configs": quotas } }))
        }
        Look::Fairness => wrapped("GET_FAIRNESS", fairness(snapshot)),
        Look::Explain(task, framework) => wrapped("EXPLAIN_TASK", explain(snapshot, task, framework.as_ref())?),
    })
}

/// `VersionInfo`
pub fn version() -> Value {
    json!({ "version": VERSION, "berth_version": env!("CARGO_PKG_VERSION") })
}

/// `GetState`
pub(super) fn state(snapshot: &Snapshot) -> Value {
    json!({
        "get_tasks": tasks(snapshot),
        "get_executors": executors(snapshot),
        "get_frameworks": frameworks(snapshot),
        "get_agents": agents(snapshot),
    })
}

fn list<T>(items: &[T], one: impl Fn(&T) -> Value) -> Vec<Value> {
    items.iter().map(one).collect()
}

fn agents(snapshot: &Snapshot) -> Value {
    json!({ "agents": list(&snapshot.agents, |it| agent(it, snapshot.used_of(&it.id))), "recovered_agents": [] })
}

/// An agent whose tasks use so much of it.
pub(super) fn agent(agent: &AgentView, used: Quantities) -> Value {
    let info = &agent.info;
    let state = match agent.state {
        AgentState::Connected => "connected",
        AgentState::Disconnected => "disconnected",
        AgentState::Awaited => "awaited",
        AgentState::Unreachable => "unreachable",
    };
    let total = resources::write(&info.resources, None, Dialect::default());
    json!({
        "agent_info": {
            "id": id(agent.id.as_str()),
            "hostname": info.hostname,
            "port": info.port,
            "resources": &total,
            "attributes": resources::attributes(&info.attributes),
        },
        "active": agent.state == AgentState::Connected && !agent.draining,
        "deactivated": agent.draining,
        "state": state,
        "version": env!("CARGO_PKG_VERSION"),
        "total_resources": &total,
        "allocated_resources": resources::write(&used.into(), None, Dialect::default()),
    })
}

fn frameworks(snapshot: &Snapshot) -> Value {
    let all = list(&snapshot.frameworks, framework);
    json!({ "frameworks": all, "completed_frameworks": [], "recovered_frameworks": [] })
}

pub(super) fn framework(framework: &FrameworkView) -> Value {
    let info = &framework.info;
    let capabilities: Vec<Value> =
        if info.partition_aware { vec![json!({ "type": "PARTITION_AWARE" })] } else { vec![] };
    json!({
        "framework_info": {
            "id": id(framework.id.as_str()),
            "name": info.name,
            "principal": info.principal,
            "roles": info.roles.keys().collect::<Vec<_>>(),
            "failover_timeout": info.failover_timeout.as_secs_f64(),
            "capabilities": capabilities,
        },
        "active": framework.connected,
        "connected": framework.connected,
        "recovered": false,
    })
}

fn tasks(snapshot: &Snapshot) -> Value {
    let (ended, others): (Vec<&Task>, Vec<&Task>) = snapshot.tasks.iter().partition(|task| task.state.is_terminal());
    let (unreachable, there): (Vec<&Task>, Vec<&Task>) = others.into_iter().partition(|task| !task.holds());
    let all = |tasks: Vec<&Task>| tasks.into_iter().map(task).collect::<Vec<_>>();
    json!({
        "pending_tasks": [],
        "tasks": all(there),
        "unreachable_tasks": all(unreachable),
        "completed_tasks": all(ended),
        "orphan_tasks": [],
    })
}

fn executors(snapshot: &Snapshot) -> Value {
    let executor = |it: &ExecutorView| {
        let info: Value = serde_json::from_str(&it.info.payload).unwrap_or_default();
        json!({ "agent_id": id(it.agent.as_str()), "executor_info": info })
    };
    json!({ "executors": list(&snapshot.executors, executor) })
}

pub(super) fn task(task: &Task) -> Value {
    let payload: Value = serde_json::from_str(&task.info.payload).unwrap_or_default();
    json!({
        "name": payload.get("name").cloned().unwrap_or_else(|| json!(task.info.id.as_str())),
        "task_id": id(task.info.id.as_str()),
        "framework_id": id(task.framework.as_str()),
        "agent_id": id(task.info.agent.as_str()),
        "executor_id": task.info.executor.as_ref().map(|executor| id(executor.id.as_str())),
        "state": task.state.name(),
        "role": &*task.role,
        "resources": resources::write(&task.info.resources, Some(&task.role), Dialect::default()),
        "statuses": [],
    })
}

fn weight(role: &RoleFairness) -> f64 {
    f64::from(role.weight.thousandths()) / 1000.0
}

fn quota(role: &RoleFairness) -> Value {
    let set = |quantities: &Quantities, unset: &Quantities| -> Map<String, Value> {
        let named = Kind::ALL.into_iter().filter(|kind| quantities[*kind] != unset[*kind]);
        let all = amounts(quantities);
        named.map(|kind| (kind.to_string(), json!({ "value": all[kind.to_string()] }))).collect()
    };
    json!({
        "role": &*role.role,
        "guarantees": set(&role.quota.guarantee, &Quantities::ZERO),
        "limits": set(&role.quota.limit, &Quantities::UNLIMITED),
    })
}

fn role(role: &RoleFairness, snapshot: &Snapshot) -> Value {
    let frameworks = role.frameworks.iter().map(|member| id(snapshot.framework(member.framework)));
    let mut held = role.used;
    held += &role.offered;
    json!({
        "name": &*role.role,
        "weight": weight(role),
        "frameworks": frameworks.collect::<Vec<_>>(),
        "resources": resources::write(&held.into(), None, Dialect::default()),
    })
}

fn share(share: &Share) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let part = share.millionths as f64 / 1e6;
    json!({ "weighted_share": part, "dominant_resource": share.dominant.map(|kind| kind.to_string()) })
}

fn fairness(snapshot: &Snapshot) -> Value {
    let member = |member: &FrameworkFairness| {
        let tally = &member.tally;
        json!({
            "framework_id": id(snapshot.framework(member.framework)),
            "offered": amounts(&member.offered),
            "used": amounts(&member.used),
            "share": share(&member.share),
            "wants_offers": member.wants_offers,
            "last_cycle": {
                "cycle": tally.round,
                "offers": tally.offers,
                "passed_over": { "constraints": tally.constraints, "refused": tally.refused, "quota": tally.quota },
            },
        })
    };
    let role = |role: &RoleFairness| {
        json!({
            "role": &*role.role,
            "weight": weight(role),
            "quota": quota(role),
            "offered": amounts(&role.offered),
            "used": amounts(&role.used),
            "share": share(&role.share),
            "frameworks": list(&role.frameworks, member),
        })
    };
    json!({
        "cycle": snapshot.fairness.round.number,
        "total": amounts(&snapshot.total),
        "roles": list(&snapshot.fairness.roles, role),
    })
}

fn explain(snapshot: &Snapshot, asked: &TaskId, framework: Option<&FrameworkId>) -> Option<Value> {
    let known = snapshot
        .tasks
        .iter()
        .find(|task| task.info.id == *asked && framework.is_none_or(|framework| *framework == task.framework))?;
    let decision = |decision: &Decision| {
        let passed_over = decision.passed_over.iter().map(|other| {
            json!({ "framework_id": id(snapshot.framework(other.framework)), "reason": other.reason.to_string() })
        });
        json!({
            "cycle": decision.round.number,
            "stage": match decision.stage {
                crate::allocator::Stage::Guarantee => "guarantee",
                crate::allocator::Stage::FairShare => "fair share",
            },
            "agents_with_something_free": decision.round.agents,
            "role_held": amounts(&decision.role_held),
            "role_share": share(&decision.role_share()),
            "framework_held": amounts(&decision.framework_held),
            "framework_share": share(&decision.framework_share()),
            "passed_over": passed_over.collect::<Vec<_>>(),
            "passed_over_more": decision.passed_over_more,
        })
    };
    // The offer's decision is not known of a task that an earlier master launched.
    Some(json!({ "task": task(known), "decision": known.decision.as_deref().map(decision) }))
}
