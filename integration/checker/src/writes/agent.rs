//! A node's agent: obeys orders and keeps its replicas, by the rules of [`Standing`]. The order of steps within one
//! order is that of `quorate_reconfig_agent::agent`; where another order may come between two of them, they are two
//! steps of the model as well.
//!
//! [`Standing`]: quorate_reconfig_agent::agent::standing::Standing

use super::postgres::{Entry, Instance, Mode, Names, Sender};
use super::state::{Letter, Replica, State, Work, nobody};
use crate::decisions::Quirk;
use quorate_model::position::{Relation, relate};
use quorate_model::{
    Configuration, Database, Epoch, GateReport, InstanceRole, Lineage, NodeId, ReplicaId, RunState,
};
use quorate_reconfig_agent::agent::standing::{Duty, FenceEffect, route};
use quorate_reconfig_agent::decide::{Failure, Fenced, OrderKind, Promoted, Reply, What};
use quorate_reconfig_agent::tunnel::Route;
use std::collections::BTreeSet;
use std::sync::Arc;

type Outcome = Result<Reply, Failure>;

/// A failure whose text nobody decides by.
pub fn failure() -> Failure {
    Failure::Unreachable(String::new())
}

fn promise(replica: &mut Replica, id: ReplicaId, epoch: Epoch) -> Result<(), Failure> {
    match replica.standing.must_persist(epoch) {
        Err(promise) => Err(Failure::Promised { replica: id, promise }),
        Ok(None) => Ok(()),
        Ok(Some(reign)) => {
            replica.standing.promised(reign);
            Ok(())
        }
    }
}

fn arrange(replica: &mut Replica, id: ReplicaId, epoch: Epoch) -> Result<(), Failure> {
    match replica.quirk {
        Quirk::Rearranges => replica.standing.obeys(id, epoch),
        _ => replica.standing.arranges(id, epoch),
    }
}

/// Carries an order out, up to the first point at which another may come between. `None` while it goes on.
pub fn obey(state: &mut State, letter: Letter, what: What) -> Option<Outcome> {
    let id = letter.replica;
    let is_on = state.replicas.get(&id).is_some_and(|r| state.is_on(r));
    let Some(replica) = state.replica(id).filter(|_| is_on) else { return Some(Err(failure())) };
    let epoch = letter.epoch;
    let outcome = match what {
        What::Fence => fence(replica, id, epoch),
        What::Promote { sync_names, allowed, uuid } => {
            if let Err(failure) = promise(replica, id, epoch) {
                return Some(Err(failure));
            }
            if let Err(failure) = arrange(replica, id, epoch) {
                return Some(Err(failure));
            }
            replica.downstream = None;
            if replica.instance.mode == Mode::Down {
                return Some(Err(failure()));
            }
            replica.instance.set_names(Names::parse(&sync_names));
            replica.work.push(Work::Promoting { letter, allowed, uuid });
            return None;
        }
        What::Attach { primary, node, history } => attach(replica, id, epoch, primary, node, &history),
        What::Barrier { sync_names, allowed, .. } => {
            return barrier(replica, id, letter, &sync_names, allowed).err().map(Err);
        }
        What::Open => replica.standing.leads(id, epoch).map(|()| {
            replica.gate = GateReport::Open(epoch.reign());
            replica.led = Some(epoch.reign());
            Reply::Done
        }),
        What::Checkpoint => replica.standing.obeys(id, epoch).map(|()| Reply::Done),
        What::PrepareSource => replica.standing.leads(id, epoch).map(|()| Reply::Done),
        What::Retire { .. } => return Some(retire(state, id, epoch)),
    };
    Some(outcome)
}

/// After the promise: closes the gate and the tunnels of every older reign.
fn close_older(replica: &mut Replica, epoch: Epoch) -> FenceEffect {
    let effect = replica.standing.fence(epoch, 0);
    if effect.hold_gate {
        replica.gate = GateReport::Held;
    }
    if effect.cut {
        replica.cut_upstream();
        replica.downstream = None;
    }
    effect
}

fn fence(replica: &mut Replica, id: ReplicaId, epoch: Epoch) -> Outcome {
    promise(replica, id, epoch)?;
    let effect = close_older(replica, epoch);
    if replica.quirk == Quirk::FencesAgain {
        replica.standing.validated = None;
        replica.cut_upstream();
        replica.downstream = None;
    }
    let runs = matches!(replica.standing.run, RunState::Running | RunState::Divergent);
    // Only an instance that answers says where its log ends.
    let position = (runs && replica.instance.mode != Mode::Down).then(|| replica.instance.position());
    Ok(Reply::Fenced(Fenced {
        position,
        role: effect.role,
        lease_left_ms: effect.lease_left,
        note: String::new(),
    }))
}

fn attach(
    replica: &mut Replica,
    id: ReplicaId,
    epoch: Epoch,
    primary: ReplicaId,
    node: NodeId,
    lineage: &[Lineage],
) -> Outcome {
    promise(replica, id, epoch)?;
    if replica.standing.role == InstanceRole::Primary {
        demote(replica, id, epoch)?;
        return Err(failure());
    }
    close_older(replica, epoch);
    attach_checked(replica, id, Route { node, primary, epoch: epoch.reign() }, lineage)?;
    Ok(Reply::Done)
}

fn attach_checked(
    replica: &mut Replica,
    id: ReplicaId,
    route: Route,
    lineage: &[Lineage],
) -> Result<(), Failure> {
    replica.standing.obeys(id, route.epoch)?;
    if replica.standing.needs_check(route.epoch) {
        replica.downstream = None;
        if replica.standing.leading.is_none() && replica.standing.obeys(id, route.epoch).is_ok() {
            replica.cut_upstream();
        }
        if replica.instance.mode == Mode::Down {
            return Err(failure());
        }
        let position = replica.instance.position();
        if relate(lineage, &position) == Relation::Divergent && replica.quirk == Quirk::Rewinds {
            replica.discard(1);
        } else if relate(lineage, &position) == Relation::Divergent {
            replica.standing.run = RunState::Divergent;
            return Err(Failure::Divergent { replica: id, lsn: position.lsn, timeline: position.timeline });
        }
    }
    let first = replica.standing.follow(id, route.epoch)?;
    if replica.file.is_some() {
        replica.file = Some(route.clone());
    }
    replica.downstream = Some(route);
    if first {
        replica.gate = GateReport::Closed;
    }
    Ok(())
}

fn barrier(
    replica: &mut Replica,
    id: ReplicaId,
    letter: Letter,
    sync_names: &str,
    allowed: BTreeSet<ReplicaId>,
) -> Result<(), Failure> {
    let epoch = letter.epoch;
    replica.standing.leads(id, epoch)?;
    arrange(replica, id, epoch)?;
    replica.admit(epoch.reign(), allowed);
    replica.work.push(Work::Naming { letter, names: Names::parse(sync_names) });
    Ok(())
}

/// The second part of a barrier: the names, then the row, whose commit the third waits for.
fn name_and_write(replica: &mut Replica, letter: Letter, names: Names) -> Result<(), Failure> {
    if replica.instance.mode == Mode::Down {
        return Err(failure());
    }
    replica.instance.set_names(names);
    if !replica.is_primary() || replica.instance.epoch() > letter.epoch {
        return Err(failure());
    }
    write_row(replica, letter.epoch);
    // A lone primary waits for nobody: nothing can be acknowledged by these names.
    let entries = if replica.instance.names.who.is_empty() { 0 } else { replica.instance.log.len() };
    replica.work.push(Work::Passing { letter, entries });
    Ok(())
}

fn write_row(replica: &mut Replica, epoch: Epoch) {
    if replica.instance.epoch() < epoch {
        replica.instance.log.push(Entry::Row(epoch));
    }
}

/// The orderly stop: connected standbys have everything, the shutdown checkpoint included, when it ends.
fn retire(state: &mut State, id: ReplicaId, epoch: Epoch) -> Outcome {
    let Some(primary) = state.replica(id) else { return Err(failure()) };
    primary.standing.leads(id, epoch)?;
    if !primary.is_primary() {
        return Err(failure());
    }
    primary.gate = GateReport::Held;
    primary.instance.log.push(Entry::Shutdown);
    let standbys: Vec<ReplicaId> = state.replicas.keys().copied().filter(|s| *s != id).collect();
    for standby in standbys {
        ship(state, id, standby);
    }
    let Some(primary) = state.replica(id) else { return Err(failure()) };
    primary.standing.retired = true;
    primary.instance.stop();
    primary.standing.stopped("");
    Ok(Reply::Retired { kept: 0, cut: 0 })
}

fn demote(replica: &mut Replica, id: ReplicaId, epoch: Epoch) -> Result<(), Failure> {
    if replica.standing.demote(id, epoch.reign())? {
        replica.gate = GateReport::Closed;
        replica.cut_upstream();
        replica.instance.stop();
        replica.standing.stopped("");
    }
    Ok(())
}

/// The standby flushes everything that the primary has, and the acknowledgement reaches the primary's walsender.
pub fn ship(state: &mut State, primary: ReplicaId, standby: ReplicaId) {
    if !state.is_streaming(primary, standby) {
        return;
    }
    let log = state.replicas[&primary].instance.log.clone();
    let flushed = log.len();
    if let Some(s) = state.replica(standby) {
        let have = s.instance.log.len();
        s.instance.log.extend(log.into_iter().skip(have));
        s.grew();
    }
    if let Some(p) = state.replica(primary) {
        let sender = p.instance.senders.entry(standby).or_insert(Sender { flushed, stale: None });
        sender.flushed = flushed;
    }
}

/// Whether an order that was accepted can end now.
pub fn can_finish(replica: &Replica, work: &Work) -> bool {
    match work {
        Work::Promoting { .. } | Work::Leading { .. } | Work::Naming { .. } | Work::Lost { .. } => true,
        Work::Passing { letter, entries } => {
            !replica.is_primary()
                || replica.instance.released() >= *entries
                || replica.standing.leads(letter.replica, letter.epoch).is_err()
        }
    }
}

/// The deadline of a barrier that the quorum does not acknowledge passes.
pub fn expire(state: &mut State, id: ReplicaId) -> Option<Letter> {
    let work = &mut state.replica(id)?.work;
    let at = work.iter().position(|w| matches!(w, Work::Passing { .. }))?;
    match work.remove(at) {
        Work::Passing { letter, .. } => Some(letter),
        _ => None,
    }
}

/// Goes on with an order that was accepted. `None` while it is not at its end.
pub fn finish(state: &mut State, work: Work) -> Option<(Letter, Outcome)> {
    let record = state.map.database().cloned();
    Some(match work {
        Work::Naming { letter, names } => {
            let replica = state.replica(letter.replica)?;
            (letter, Err(name_and_write(replica, letter, names).err()?))
        }
        Work::Promoting { letter, allowed, uuid } => {
            let replica = state.replica(letter.replica)?;
            if replica.instance.mode == Mode::Down {
                return Some((letter, Err(failure())));
            }
            let was_primary = replica.standing.role == InstanceRole::Primary;
            replica.instance.promote(letter.replica);
            replica.standing.became_primary(letter.epoch, was_primary);
            replica.work.push(Work::Leading { letter, allowed, uuid, was_primary });
            return None;
        }
        Work::Leading { letter, allowed, uuid, was_primary } => {
            let replica = state.replica(letter.replica)?;
            (letter, lead(replica, letter, allowed, uuid, was_primary))
        }
        Work::Passing { letter, entries } => {
            let outcome = pass(state, record.as_ref(), letter, entries);
            (letter, outcome)
        }
        Work::Lost { letter } => (letter, Err(failure())),
    })
}

/// The last part of a promotion: the epoch row, and only then whoever follows.
fn lead(
    replica: &mut Replica,
    letter: Letter,
    allowed: BTreeSet<ReplicaId>,
    uuid: uuid::Uuid,
    was_primary: bool,
) -> Outcome {
    if !replica.is_primary() || replica.instance.epoch() > letter.epoch {
        return Err(failure());
    }
    // A fence may have come after the look at the promise and before the row.
    write_row(replica, letter.epoch);
    let since = replica.standing.lead(letter.replica, letter.epoch, was_primary)?;
    replica.admit(letter.epoch.reign(), allowed);
    Ok(Reply::Promoted(Promoted {
        promoted: !was_primary,
        since,
        timeline: replica.instance.timeline(),
        history: replica.instance.history(),
        rows: replica.instance.rows(),
        lsn: replica.instance.end(),
        uuid,
    }))
}

fn pass(state: &mut State, record: Option<&Database>, letter: Letter, entries: usize) -> Outcome {
    let Some(replica) = state.replicas.get(&letter.replica) else { return Err(failure()) };
    if !replica.is_primary() || replica.instance.released() < entries {
        return Err(failure());
    }
    replica.standing.leads(letter.replica, letter.epoch)?;
    let lsn = replica.instance.end();
    // The configuration of the barrier is that of the record while the record has its epoch.
    if let Some(record) = record.filter(|d| d.epoch == letter.epoch)
        && !holds_row(state, &record.current, letter.epoch)
    {
        state.broken = Some("I6");
    }
    Ok(Reply::Passed { lsn })
}

/// I6: whether a write quorum of the configuration holds the row of this reign. A lone primary has none, and
/// acknowledges nothing.
pub fn holds_row(state: &State, configuration: &Configuration, epoch: Epoch) -> bool {
    let holds = |id: &ReplicaId| {
        state.replicas.get(id).is_some_and(|r| {
            r.instance.log.iter().any(|e| matches!(e, Entry::Row(row) if row.same_reign(epoch)))
        })
    };
    let voters = configuration.voters.iter().filter(|v| holds(v)).count();
    holds(&configuration.primary) && (configuration.is_lone() || voters >= configuration.k as usize)
}

/// The keeper's look at a running instance. Returns whether it did anything.
pub fn keep(state: &mut State, id: ReplicaId, rewinds: bool) {
    let Some(replica) = state.replicas.get(&id) else { return };
    let map = state.map_at(replica.node).clone();
    let Some(database) = map.database() else { return };
    if !database.replicas.contains_key(&id) {
        if id.0 <= map.0.last_id {
            state.replicas.remove(&id);
        }
        return;
    }
    let duty = state.replicas[&id].standing.duty(id, database);
    if let Duty::Rewind(route) = &duty
        && rewinds
    {
        return rewind(state, id, route);
    }
    let Some(replica) = state.replica(id) else { return };
    match duty {
        Duty::Nothing | Duty::Rewind(_) => {}
        Duty::Admit(allowed) => {
            let reign = database.epoch.reign();
            let known = replica.upstream.as_ref().is_some_and(|a| a.reign == reign && a.allowed == allowed);
            let leads = replica.is_primary() && replica.standing.leads(id, reign).is_ok();
            if leads && !known && arrange(replica, id, database.epoch).is_ok() {
                replica.admit(reign, allowed);
            }
        }
        // A refusal or a divergence is what the keeper finds out; it says so in its report.
        Duty::Demote => {
            let _ = demote(replica, id, database.epoch);
        }
        Duty::Follow(route) => {
            let _ = attach_checked(replica, id, route, &database.lineage);
        }
    }
}

/// pg_rewind: what the primary's log does not hold is gone, and what of it comes with the changed blocks is less than what
/// the stream brings afterwards. Nothing of that here: the longest time in which the copy is short of its floor.
fn rewind(state: &mut State, id: ReplicaId, from: &Route) {
    let Some(source) = state.replicas.get(&from.primary).filter(|p| state.is_on(p)) else { return };
    let admits = source.upstream.as_ref().is_some_and(|a| a.reign == from.epoch && a.allowed.contains(&id));
    if !source.is_primary() || !admits {
        return;
    }
    let source = source.instance.log.clone();
    let Some(replica) = state.replica(id) else { return };
    let same = replica.instance.log.iter().zip(&source).take_while(|(own, its)| own == its).count();
    replica.discard(same);
    replica.instance.mode = Mode::Standby;
    replica.standing.started();
}

/// The keeper starts an instance that is down: as a standby, always.
pub fn start(state: &mut State, id: ReplicaId) {
    let Some(replica) = state.replicas.get(&id) else { return };
    let map = state.map_at(replica.node).clone();
    let Some(database) = map.database().filter(|d| d.replicas.contains_key(&id)) else { return };
    let switching = matches!(database.phase, quorate_model::Phase::Switching { .. });
    let Some(replica) = state.replica(id) else { return };
    if !replica.standing.may_be_started(database) || replica.standing.retired && switching {
        return;
    }
    replica.standing.retired = false;
    replica.downstream = None;
    replica.instance.mode = Mode::Standby;
    if replica.standing.run == RunState::Divergent {
        replica.standing.started_divergent();
    } else {
        replica.standing.started();
    }
}

/// The postmaster ends; its agent notices at once.
pub fn crash(replica: &mut Replica) {
    replica.instance.stop();
    if replica.standing.ended("") {
        replica.gate = GateReport::Held;
    }
}

/// The node loses power: of a replica stay its data and its promise. Of the orders that it had accepted stays that
/// somebody waits for their end.
pub fn power_off(replica: &mut Replica) {
    let mut instance = replica.instance.clone();
    instance.stop();
    *replica = Replica {
        work: replica.work.iter().map(|work| Work::Lost { letter: work.letter() }).collect(),
        led: replica.led,
        floor: replica.floor,
        file: replica.file.clone(),
        quirk: replica.quirk,
        ..Replica::new(replica.node, replica.standing.promise(), instance)
    };
}

/// A learner that the map has placed is copied from the primary, through the tunnel, and follows it.
pub fn build(state: &mut State, id: ReplicaId) {
    let Some(record) = state.map.database().cloned() else { return };
    let (Some(node), Some(route)) = (record.node_of(id), route(&record)) else { return };
    if record.members().contains(&id) || state.off.contains(&node) {
        return;
    }
    let Some(primary) = state.replicas.get(&route.primary).filter(|p| state.is_on(p)) else { return };
    let admitted =
        primary.upstream.as_ref().is_some_and(|a| a.reign == route.epoch && a.allowed.contains(&id));
    if !primary.is_primary() || !admitted {
        return;
    }
    let copy = Instance::new(Mode::Standby, primary.instance.log.clone(), nobody());
    let mut replica = Replica::new(node, Epoch::default(), copy);
    replica.standing.started();
    replica.standing.validated = Some(route.epoch);
    state.replicas.insert(id, Arc::new(replica));
}

/// Orders that the coordinator gives to a replica that is not there fail.
pub fn is_deliverable(state: &State, letter: &Letter) -> bool {
    let Some(replica) = state.replicas.get(&letter.replica).filter(|r| state.is_on(r)) else { return true };
    let changing = replica.work.iter().any(|w| !matches!(w, Work::Passing { .. } | Work::Lost { .. }));
    // One change of an instance at a time; a fence waits for none.
    !(changing && matches!(letter.kind, OrderKind::Promote | OrderKind::Barrier | OrderKind::Retire))
}
