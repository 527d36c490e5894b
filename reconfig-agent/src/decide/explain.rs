//! Why a failover would happen, or does not: `EXPLAIN FAILOVER`. The election's own judgement, over what the nodes say
//! now in place of the answers to a fence.

mod verdict;

use super::election::{Ballot, Outcome, judge};
use super::order::Fenced;
use quorate_model::{
    Database, InstanceRole, NodeId, PartitionMap, Position, ReplicaId, ReplicaReport, RunState,
};
use std::collections::{BTreeMap, BTreeSet};

/// More members than this are not enumerated for their covering sets.
const MAX_ENUMERATED: usize = 12;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What would happen, or why nothing does: one sentence a line.
    pub verdict: Vec<String>,
    pub rows: Vec<Row>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub replica: ReplicaId,
    pub node: NodeId,
    pub role: &'static str,
    pub state: &'static str,
    pub position: Option<Position>,
    /// "current", "previous" or both: where its answer counts.
    pub counts_in: Vec<&'static str>,
    /// The smallest fence sets with this replica in them that cover every configuration in force.
    pub would_cover: Vec<BTreeSet<ReplicaId>>,
    /// Whether it would be primary if the present one were lost now, or is.
    pub could_lead: bool,
    pub why: String,
}

/// What is known at the moment of the question.
pub struct Question<'a> {
    pub map: &'a PartitionMap,
    pub database: &'a Database,
    /// What nodes answered just now.
    pub reports: &'a BTreeMap<ReplicaId, ReplicaReport>,
}

impl Question<'_> {
    /// Where its log ends, if it would answer a fence. One that is divergent does: its log counts.
    fn position(&self, replica: ReplicaId) -> Option<Position> {
        let answers = |r: &&ReplicaReport| matches!(r.run, RunState::Running | RunState::Divergent);
        let report = self.reports.get(&replica).filter(answers)?;
        report.position.filter(|_| !self.database.is_barred(replica))
    }

    /// Who would be elected by those whose logs end there; none while they do not cover.
    fn elected(&self, answering: &BTreeMap<ReplicaId, Position>) -> Option<ReplicaId> {
        let said = |replica: &ReplicaId| self.reports.get(replica);
        let fences = answering
            .iter()
            .filter_map(|(replica, position)| {
                let role = said(replica)?.role;
                let fenced =
                    Fenced { position: Some(*position), role, lease_left_ms: 0, note: String::new() };
                Some((*replica, fenced))
            })
            .collect();
        let is_divergent = |r: &&ReplicaId| said(r).is_some_and(|r| r.run == RunState::Divergent);
        let outcome = judge(&Ballot {
            database: self.database,
            fences: &fences,
            awaited: &BTreeSet::new(),
            divergent: &answering.keys().filter(is_divergent).copied().collect(),
            wish: None,
        });
        match outcome {
            Outcome::Elected(configuration) => Some(configuration.primary),
            Outcome::Patience | Outcome::Uncovered { .. } => None,
        }
    }

    fn name(&self, replica: ReplicaId) -> String {
        let node = self.database.node_of(replica).and_then(|n| self.map.nodes.get(&n));
        format!("{replica} on {}", node.map_or("?", |n| n.name.as_str()))
    }

    fn names(&self, replicas: impl IntoIterator<Item = ReplicaId>) -> String {
        let names: Vec<String> = replicas.into_iter().map(|r| self.name(r)).collect();
        names.join(", ")
    }

    /// The primary, if it leads and answers now.
    fn healthy_primary(&self) -> Option<ReplicaId> {
        let primary = self.database.primary()?;
        let report = self.reports.get(&primary)?;
        (report.run == RunState::Running && report.role == InstanceRole::Primary).then_some(primary)
    }
}

pub fn explain(question: &Question<'_>) -> Explanation {
    let database = question.database;
    let primary = question.healthy_primary();
    // Who would answer if the primary were lost now.
    let answering: BTreeMap<ReplicaId, Position> = database
        .copies()
        .filter(|r| Some(*r) != primary)
        .filter_map(|r| Some((r, question.position(r)?)))
        .collect();
    let fenced: BTreeSet<ReplicaId> = answering.keys().copied().collect();
    let covers = database.is_covered_by(&fenced);
    let best = question.elected(&answering).map(|replica| (replica, answering[&replica]));
    let covers_of = minimal_covers(database);
    let missing = database.missing_for_cover(&fenced);
    let rows = database
        .replicas
        .iter()
        .map(|(id, replica)| {
            let why = why(question, *id, primary, covers, best, &missing);
            Row {
                replica: *id,
                node: replica.node,
                role: role(database, *id),
                state: state(question, *id),
                position: question.reports.get(id).and_then(|r| r.position),
                counts_in: counts_in(database, *id),
                would_cover: covers_of.iter().filter(|set| set.contains(id)).cloned().collect(),
                could_lead: why.is_ok(),
                why: why.unwrap_or_else(|reason| reason),
            }
        })
        .collect();
    Explanation { verdict: verdict::verdict(question, primary, covers, best.map(|(r, _)| r), &missing), rows }
}

fn role(database: &Database, replica: ReplicaId) -> &'static str {
    if database.primary() == Some(replica) {
        "primary"
    } else if database.members().contains(&replica) {
        "secondary"
    } else {
        "learner"
    }
}

fn state(question: &Question<'_>, replica: ReplicaId) -> &'static str {
    if question.database.is_quarantined(replica) {
        return "quarantined";
    }
    question.reports.get(&replica).map_or("unreachable", |r| r.run.name())
}

fn counts_in(database: &Database, replica: ReplicaId) -> Vec<&'static str> {
    let mut all = Vec::new();
    if database.current.contains(replica) {
        all.push("current");
    }
    if database.previous.iter().any(|c| c.contains(replica)) {
        all.push("previous");
    }
    all
}

/// Every fence set that covers and of which no part does.
fn minimal_covers(database: &Database) -> Vec<BTreeSet<ReplicaId>> {
    let members: Vec<ReplicaId> = database.members().into_iter().collect();
    if members.len() > MAX_ENUMERATED {
        return Vec::new();
    }
    let set = |bits: u32| -> BTreeSet<ReplicaId> {
        members.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, r)| *r).collect()
    };
    let mut covering: Vec<u32> =
        (1..1u32 << members.len()).filter(|bits| database.is_covered_by(&set(*bits))).collect();
    covering.sort_by_key(|bits| (bits.count_ones(), *bits));
    let mut minimal: Vec<u32> = Vec::new();
    for bits in covering {
        if !minimal.iter().any(|m| m & bits == *m) {
            minimal.push(bits);
        }
    }
    minimal.into_iter().map(set).collect()
}

/// Why this replica could lead (`Ok`), or could not.
fn why(
    question: &Question<'_>,
    replica: ReplicaId,
    primary: Option<ReplicaId>,
    covers: bool,
    best: Option<(ReplicaId, Position)>,
    missing: &[ReplicaId],
) -> Result<String, String> {
    let database = question.database;
    if database.is_quarantined(replica) {
        return Err("given up by a forced recovery: it never counts again".to_owned());
    }
    if primary == Some(replica) {
        return Ok("it is the primary and answers; suspected, it would be elected again".to_owned());
    }
    let Some(report) = question.reports.get(&replica) else {
        return Err("its node does not answer".to_owned());
    };
    match &report.run {
        RunState::Running | RunState::Divergent => {}
        RunState::Stopped(reason) | RunState::Failed(reason) => {
            return Err(format!("it is {}: {reason}", report.run.name()));
        }
        run => return Err(format!("it is {}", run.name())),
    }
    if !database.members().contains(&replica) {
        return Err("a learner: its flushes never counted, so it may lack what was acknowledged".to_owned());
    }
    if database.is_barred(replica) {
        return Err("it discarded log and is not past its floor yet: what it says does not count".to_owned());
    }
    let Some(position) = question.position(replica) else {
        return Err("it does not say where its log ends".to_owned());
    };
    if !covers {
        return Err(format!(
            "those that answer do not meet every write quorum: one of {} is missing",
            question.names(missing.iter().copied())
        ));
    }
    if report.run == RunState::Divergent && best.is_none_or(|(best, _)| best != replica) {
        return Err("it is divergent: its log counts, but others are further".to_owned());
    }
    match best {
        Some((other, far)) if other != replica && far.epoch > position.epoch => {
            Err(format!("its log ends in epoch {}, that of {other} in {}", position.epoch, far.epoch))
        }
        Some((other, far)) if other != replica && far.lsn > position.lsn => {
            Err(format!("it is {} bytes behind {other}", far.lsn.since(position.lsn)))
        }
        Some((other, _)) if other != replica => Err(format!("as far as {other}, which comes first")),
        _ => Ok("it is the most advanced of a fence set that covers".to_owned()),
    }
}
