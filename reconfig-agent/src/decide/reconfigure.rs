//! Electing, promoting and switching over (DESIGN §5, steps c and d).

use super::election::{self, Ballot, Outcome};
use super::view::{Health, Progress, Trigger, View};
use super::{Act, Note, What, operate, order};
use quorate_model::{
    Change, Database, EventKind, InstanceRole, Lineage, NodeId, Phase, ReplicaId, RunState, position,
};
use std::collections::BTreeSet;

/// A failed order is repeated so often before a new election replaces the candidate.
const PROMOTE_TRIES: u32 = 3;

/// A coordinator that did not give the orders of this reign itself knows nothing of them: it starts over.
fn is_mine(view: &View<'_>, database: &Database, progress: &Progress) -> bool {
    database.phase.coordinator() == Some(view.me) && progress.reign == database.epoch.reign()
}

fn take_over(view: &View<'_>, database: &Database) -> Vec<Act> {
    let former = database.phase.coordinator().unwrap_or(view.me);
    let reason = format!("coordinator {former} left the database {}", database.phase.name());
    let wish = operate::wished(view, database);
    let trigger = Trigger::new(reason, view.me, database.current.primary);
    vec![Act::Elect(Trigger { switchover: wish.is_some(), wish, ..trigger })]
}

/// Electing and QuorumLost: fence everybody, judge the answers.
pub fn electing(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    if !is_mine(view, database, progress) {
        return take_over(view, database);
    }
    let mut acts: Vec<Act> = database
        .copies()
        .filter(|r| progress.fences.get(r).is_none_or(|f| f.position.is_none()))
        .filter_map(|r| order(view, database, progress, r, What::Fence))
        .collect();
    let awaited = awaited(view, database, progress);
    let wish = progress.trigger.as_ref().and_then(|t| t.wish).or_else(|| operate::wished(view, database));
    let divergent = database.copies().filter(|r| is_divergent(view, *r)).collect();
    let ballot =
        Ballot { database, fences: &progress.fences, awaited: &awaited, divergent: &divergent, wish };
    match election::judge(&ballot) {
        Outcome::Elected(current) => acts.push(Act::Propose {
            change: Change::Promote { coordinator: view.me, current },
            note: Note::Nothing,
        }),
        Outcome::Patience => {}
        Outcome::Uncovered { missing } => {
            if let Some(act) = operate::recover(view, database, progress) {
                acts.push(act);
                return acts;
            }
            let waited = view.now_ms.saturating_sub(progress.entered_ms);
            let recorded = match &database.phase {
                Phase::QuorumLost { missing: known, .. } => *known == missing,
                _ => waited < view.timers.quorum_lost_after,
            };
            if !recorded {
                let names: Vec<String> = missing.iter().map(|r| describe(view, database, *r)).collect();
                acts.push(Act::Propose {
                    change: Change::LoseQuorum { coordinator: view.me, missing },
                    note: Note::Event {
                        kind: EventKind::QuorumLost,
                        reason: format!("the position of one of these is missing: {}", names.join(", ")),
                        from: None,
                        to: None,
                    },
                });
            }
        }
    }
    acts
}

fn describe(view: &View<'_>, database: &Database, replica: ReplicaId) -> String {
    let node = database.node_of(replica).and_then(|n| view.map.nodes.get(&n));
    format!("{replica} on {}", node.map_or("?", |n| n.name.as_str()))
}

/// Whose answers are still worth a wait: nobody whose node is down; the others for the grace; a possibly healthy
/// incumbent longer, because its re-election costs no session; a restarted incumbent longest, because it is
/// likely the most advanced and would otherwise have to be rebuilt.
fn awaited(view: &View<'_>, database: &Database, progress: &Progress) -> BTreeSet<ReplicaId> {
    let incumbent = database.current.primary;
    let waited = view.now_ms.saturating_sub(progress.entered_ms);
    let trigger = progress.trigger.as_ref();
    let members = database.members();
    // A divergent copy says where its log ends, which helps to cover, and cannot vote.
    let may_vote = |r: ReplicaId| {
        progress.fences.get(&r).is_some_and(|f| f.position.is_some()) && !is_divergent(view, r)
    };
    // Without a voter beside the incumbent a learner that answers becomes one: one that was built for this election
    // must not come a moment too late for it, election after election.
    let learners_count = !members.iter().any(|r| *r != incumbent && may_vote(*r));
    database
        .copies()
        .filter(|r| !is_down(view, database, *r))
        .filter(|r| progress.fences.get(r).is_none_or(|f| f.position.is_none()))
        .filter(|r| {
            let answered = progress.fences.contains_key(r);
            let starting = matches!(
                view.report(*r).map(|x| &x.run),
                Some(RunState::Starting | RunState::Running) | None
            );
            if trigger.is_some_and(|t| t.restart) && members.contains(r) && starting {
                return waited < view.timers.restart_patience;
            }
            if *r == incumbent {
                return !answered && waited < view.timers.incumbent_grace;
            }
            (members.contains(r) || learners_count) && !answered && waited < view.timers.grace
        })
        .collect()
}

/// Whether a replica's own node says that its log holds what the history does not.
fn is_divergent(view: &View<'_>, replica: ReplicaId) -> bool {
    view.report(replica).is_some_and(|report| report.run == RunState::Divergent)
}

/// Promoting: promote, attach, barrier, wait out the lease, open, record.
pub fn promoting(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    let fenced: BTreeSet<ReplicaId> =
        progress.fences.iter().filter(|(_, f)| f.position.is_some()).map(|(r, _)| *r).collect();
    if !is_mine(view, database, progress) || !fenced.contains(&database.current.primary) {
        return take_over(view, database);
    }
    let candidate = database.current.primary;
    let restart = |reason: String| vec![Act::Elect(Trigger::new(reason, view.me, candidate))];
    if let Some(down) = database.node_of(candidate).and_then(|n| view.down.get(&n)) {
        return restart(format!("the candidate's node was silent for {} ms", down.silent_ms));
    }
    let Some(promoted) = &progress.promoted else {
        let failures = progress.failures_of(super::OrderKind::Promote, candidate);
        if failures >= PROMOTE_TRIES {
            return restart(format!("promotion of {candidate} failed {failures} times"));
        }
        let what = What::Promote {
            sync_names: database.current.sync_names(),
            allowed: allowed(database),
            uuid: uuid_of(database),
        };
        return order(view, database, progress, candidate, what).into_iter().collect();
    };
    // The candidate ended after its promotion: its report says so, and only a new election helps.
    if let Some(RunState::Stopped(why) | RunState::Failed(why)) = view.report(candidate).map(|r| &r.run)
        && view.reports.get(&candidate).is_some_and(|h| h.at_ms > progress.entered_ms)
    {
        return restart(format!("candidate {candidate} stopped: {why}"));
    }
    // It ended and was started again, and nobody heard of it in between: every instance starts as a standby.
    let refused = [super::OrderKind::Barrier, super::OrderKind::Open]
        .into_iter()
        .any(|kind| progress.failures_of(kind, candidate) > 0);
    let follows = view.reports.get(&candidate).is_some_and(|heard| {
        heard.at_ms > progress.entered_ms + view.timers.settle
            && heard.report.run == RunState::Running
            && heard.report.role == InstanceRole::Standby
    });
    if refused && follows {
        return restart(format!("candidate {candidate} was restarted"));
    }
    let lineage = lineage(database, promoted);
    let history = position::written_out(
        &database.lineage,
        &promoted.rows,
        &promoted.history,
        database.epoch.reign(),
        promoted.timeline,
    );
    let mut acts: Vec<Act> = database
        .copies()
        .filter(|r| *r != candidate && !progress.divergent.contains(r))
        .filter(|r| progress.attached.get(r).is_none_or(|at| fell_off(view, database, *r, *at)))
        // Whoever did not answer the fence is attached too: the order is a promise as well, and nobody asks again.
        .filter(|r| progress.fences.contains_key(r) || view.health(database, *r) == Health::Well)
        .filter_map(|r| {
            let node = database.node_of(candidate)?;
            let what = What::Attach { primary: candidate, node, history: history.clone() };
            order(view, database, progress, r, what)
        })
        .collect();
    if !progress.passed_barrier_of(database.epoch) {
        acts.extend(order(view, database, progress, candidate, barrier(database)));
        acts.extend(replace_placeholders(view, database, progress));
        return acts;
    }
    // A former primary whose node answered the fence has closed its gate and dropped its lease by itself.
    let silent =
        database.previous.iter().any(|c| c.primary != candidate && !progress.fences.contains_key(&c.primary));
    if silent && view.now_ms < progress.lease_until_ms {
        return acts;
    }
    if !progress.opened {
        acts.extend(order(view, database, progress, candidate, What::Open));
        return acts;
    }
    acts.push(Act::Propose { change: Change::Stabilize { lineage }, note: Note::Reconfigured });
    acts
}

/// Whether a replica that was attached follows no more: it was started again, and waits for another order.
fn fell_off(view: &View<'_>, database: &Database, replica: ReplicaId, attached_ms: u64) -> bool {
    view.reports.get(&replica).is_some_and(|heard| {
        heard.at_ms > attached_ms + view.timers.settle
            && heard.report.run == RunState::Running
            && !heard.report.streaming.is_some_and(|reign| reign.same_reign(database.epoch))
    })
}

/// No voter of the new configuration answers: the barrier waits for one of them to return, or for a learner that
/// a further election can make a voter. Meanwhile such a learner is built.
fn replace_placeholders(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    let candidate = database.current.primary;
    let live = |r: &ReplicaId| view.health(database, *r) == Health::Well && !progress.divergent.contains(r);
    let waited = view.now_ms.saturating_sub(progress.entered_ms);
    if database.current.voters.iter().any(live) || waited < view.timers.shrink_after {
        return Vec::new();
    }
    let learners: Vec<ReplicaId> = database.copies().filter(|r| !database.current.contains(*r)).collect();
    if let Some(ready) = learners.iter().find(|r| view.is_ready(database, **r)) {
        return vec![Act::Elect(Trigger::new(
            format!("{ready} was built to replace the voters of {candidate}"),
            view.me,
            candidate,
        ))];
    }
    // One that is divergent, or is given up, becomes no voter in this reign: it is not waited for.
    let is_lost =
        |r: ReplicaId| progress.divergent.contains(&r) || database.is_barred(r) || view.is_no_copy(r);
    let building = learners.iter().any(|r| !is_lost(*r) && !is_down(view, database, *r));
    // A reboot is cheaper than a copy, and makes none of what is divergent.
    let may_return = database.copies().any(|r| r != candidate && !is_lost(r));
    if building || may_return && waited < view.timers.replace_after {
        return Vec::new();
    }
    // Where every node holds a copy, one that is lost makes room.
    let members = database.members();
    let lost = || learners.iter().copied().find(|r| is_lost(*r) && !members.contains(r));
    super::settle::allocate(view, database)
        .or_else(|| Some(drop_lost(lost().or_else(|| outdone(database, progress, &learners))?)))
        .or_else(|| narrow(view, database, progress))
        .into_iter()
        .collect()
}

/// Whom another copy that cannot follow either outdoes: by every position that is known of them.
///
/// Its log and the candidate's may seem to be the only two that hold what was acknowledged, but all that it acknowledged
/// is in a log that ranks as high or higher. If their epoch rows are of one reign, the higher is the longer; if not, the
/// higher reign's primary was elected by a cover of everything that the lower may have acknowledged. So without it as
/// many copies hold each acknowledged commit as before, and it may go, while the highest stays until the barrier.
fn outdone(database: &Database, progress: &Progress, among: &[ReplicaId]) -> Option<ReplicaId> {
    let rank = |r: ReplicaId| {
        let known = progress.divergent.contains(&r) && !database.is_barred(r);
        Some((progress.fences.get(&r).filter(|_| known)?.position?.rank(), r))
    };
    let highest = database.copies().filter_map(rank).max()?;
    among.iter().filter_map(|r| rank(*r)).filter(|lower| *lower < highest).min().map(|(_, r)| r)
}

/// Nobody makes room because all that could are voters, none of whom can follow: the next election names the highest of
/// them alone, and the others may go.
fn narrow(view: &View<'_>, database: &Database, progress: &Progress) -> Option<Act> {
    let voters: Vec<ReplicaId> = database.current.voters.iter().copied().collect();
    let known = voters.iter().all(|r| progress.divergent.contains(r) && is_divergent(view, *r));
    let spare = outdone(database, progress, &voters).filter(|_| known)?;
    let reason = format!("{spare} cannot follow, and its node is wanted for a copy that can");
    Some(Act::Elect(Trigger::new(reason, view.me, database.current.primary)))
}

fn drop_lost(replica: ReplicaId) -> Act {
    Act::Propose {
        change: Change::DropReplica { replica },
        note: Note::Event {
            kind: EventKind::ReplicaLost,
            reason: format!("{replica} cannot follow this primary; it makes room for a copy that can"),
            from: Some(replica),
            to: None,
        },
    }
}

fn is_down(view: &View<'_>, database: &Database, replica: ReplicaId) -> bool {
    database.node_of(replica).is_some_and(|n| view.down.contains_key(&n))
}

/// Who may replicate from the primary: every copy of the record but itself.
pub fn allowed(database: &Database) -> BTreeSet<ReplicaId> {
    database.copies().filter(|r| *r != database.current.primary).collect()
}

/// A node that answers was suspected: its primary is fenced and, being healthy, elected again. None, when there is
/// nothing to be suspicious of.
pub fn suspected(view: &View<'_>, database: &Database, node: NodeId, reported_by: NodeId) -> Option<Trigger> {
    let led = matches!(database.phase, Phase::Stable | Phase::Joint) && database.primary_node() == Some(node);
    let name = view.map.nodes.get(&node).map_or("?", |n| n.name.as_str());
    led.then(|| {
        Trigger::new(format!("node {name} was suspected, and answers"), reported_by, database.current.primary)
    })
}

/// The barrier of the configuration in force: it names the voters and cuts everybody else first (R2).
pub fn barrier(database: &Database) -> What {
    let removed: BTreeSet<ReplicaId> = database
        .previous
        .iter()
        .flat_map(|c| c.members())
        .filter(|r| !database.current.contains(*r))
        .collect();
    let in_joint = database.phase == Phase::Joint;
    What::Barrier {
        sync_names: database.current.sync_names(),
        allowed: allowed(database).into_iter().filter(|r| !(in_joint && removed.contains(r))).collect(),
        uuid: uuid_of(database),
    }
}

/// A number that is unique to a reign of a database, the same for every coordinator that asks, so that repeating
/// an order changes nothing.
fn uuid_of(database: &Database) -> uuid::Uuid {
    let high = (database.id.0 as u128) << 96 | (database.epoch.data_loss as u128) << 80;
    uuid::Uuid::from_u128(high | (database.epoch.primary as u128) << 16 | 0x8000_4000)
}

/// The new entry of the history, when a promotion made one: it starts where the new timeline's history left the
/// timeline of the last recorded entry, whatever happened in elections between that were never recorded.
///
/// It bears the reign in which its primary was promoted, or the one since which nobody else was to be primary, if
/// that is later: the log of whoever was elected between, and may have chosen the same timeline, is no part of it.
pub fn lineage(database: &Database, promoted: &super::Promoted) -> Option<Lineage> {
    let last = database.lineage.last();
    if last.is_some_and(|l| l.epoch.reign() >= promoted.since) {
        return None;
    }
    let left = last.and_then(|l| promoted.history.iter().find(|(t, _)| *t == l.timeline));
    let start_lsn = left.or(promoted.history.last()).map_or(promoted.lsn, |(_, lsn)| *lsn);
    let epoch = promoted.since.max(database.primary_since);
    Some(Lineage { epoch, timeline: promoted.timeline, start_lsn, uuid: promoted.uuid })
}

/// Switching: the old primary stops at a transaction boundary, then a normal election finds everybody equal.
pub fn switching(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    let from = database.current.primary;
    let Phase::Switching { to, coordinator } = &database.phase else { return Vec::new() };
    let elect = |reason: String| {
        vec![Act::Elect(Trigger {
            reason,
            reported_by: Some(view.me),
            detect_ms: 0,
            from,
            restart: false,
            switchover: true,
            wish: *to,
        })]
    };
    if *coordinator != view.me {
        return elect(format!("coordinator {coordinator} left the switchover"));
    }
    if let Health::Unwell { reason, .. } = view.health(database, from)
        && !progress.retired
        && !progress.in_flight.contains(&(super::OrderKind::Retire, from))
    {
        return elect(format!("switchover, and {reason}"));
    }
    if progress.retired {
        return elect("switchover".to_owned());
    }
    if progress.failures_of(super::OrderKind::Retire, from) > 0 {
        return elect("switchover; the old primary did not stop in time".to_owned());
    }
    order(view, database, progress, from, What::Retire { drain_ms: view.timers.drain }).into_iter().collect()
}

/// Whether the record says that somebody became primary who was not before.
pub fn is_reelection(progress: &Progress) -> bool {
    progress.promoted.as_ref().is_some_and(|p| !p.promoted)
}

/// Whether the incumbent answered as a primary.
pub fn incumbent_answered(progress: &Progress, incumbent: ReplicaId) -> bool {
    progress.fences.get(&incumbent).is_some_and(|f| f.role == InstanceRole::Primary)
}
