//! What one replica has promised, what it is, and what it therefore may do: the rules of the replica agent as
//! functions of values.
//!
//! The agent's orders and keepers, the simulator and the model checker all go through [`Standing`]; around it the
//! agent writes promises to disk, moves tunnels and gates, and talks to Postgres. Every rule is decided under the
//! replica's one short lock, so that a fence and an attach cannot cross.
//!
//! **Invariants.** A promise never goes back (I5). A replica leads only in the reign that it promised, and no longer
//! than until it promises the next. It grants no lease to a reign older than its promise, nor while it leads.

use crate::agent::gate::BootTime;
use crate::decide::Failure;
use crate::tunnel::Route;
use quorate_model::{Database, Epoch, InstanceRole, NodeId, Phase, ReplicaId, ReplicaState, RunState};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long a primary that ended stays down while nobody is known to need it.
const SHORT_REST: Duration = Duration::from_millis(200);
/// The same while others make up the quorum of its successor.
const LONG_REST: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    /// Durable before it is set here: see [`Standing::must_persist`].
    promise: Epoch,
    pub role: InstanceRole,
    /// The reign in which this replica is primary and may have its gate opened.
    pub leading: Option<Epoch>,
    /// The reign in which this instance was promoted to its present timeline.
    pub promoted_in: Option<Epoch>,
    /// The reign whose history this replica's log was found to be a prefix of.
    pub validated: Option<Epoch>,
    /// A lease granted to the primary by this node runs at most until then.
    pub granted_until: BootTime,
    /// Leases granted to this replica, by the voters' nodes, in the reign of `leading`.
    pub grants: BTreeMap<NodeId, BootTime>,
    pub run: RunState,
    /// Stopped on purpose by a switchover; stays so until another primary is elected.
    pub retired: bool,
    /// The newest record by which this replica, as primary, settled who replicates from it and who counts. The promise
    /// tells reigns apart, not the records of one: an order or a map of an older record is told by this.
    arranged: Epoch,
}

/// What a fence does beside the promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FenceEffect {
    /// It led an older reign: its gate is to be held and its lease dropped before anything else.
    pub hold_gate: bool,
    /// Its tunnels are of an older reign and are to be closed. False for a fence that comes after the promotion or the
    /// attachment that it was to prepare: those tunnels are of the promised reign, and nobody would open them again.
    pub cut: bool,
    pub role: InstanceRole,
    /// How long a lease that this node granted may still run, nanoseconds.
    pub lease_left: u64,
}

/// What a running instance has to do so that the present follows the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Duty {
    Nothing,
    /// A primary: these may replicate from it.
    Admit(BTreeSet<ReplicaId>),
    /// A primary that was replaced.
    Demote,
    /// A standby: attach to this primary after a check of its history.
    Follow(Route),
    /// Its log left the history, and the record has its floor: rewind it to this primary.
    Rewind(Route),
}

impl Standing {
    /// A replica whose agent has just begun to keep it. `granted_until` covers grants of an earlier run of the daemon,
    /// which are not remembered.
    pub fn new(promise: Epoch, granted_until: BootTime) -> Standing {
        Standing {
            promise,
            role: InstanceRole::Unknown,
            leading: None,
            promoted_in: None,
            validated: None,
            granted_until,
            grants: BTreeMap::new(),
            run: RunState::Absent,
            retired: false,
            arranged: Epoch::default(),
        }
    }

    pub fn promise(&self) -> Epoch {
        self.promise
    }

    /// What must be durable before [`Standing::promised`] may be told of it: nothing when it is promised already.
    /// An older epoch than what was promised is refused with what was promised.
    pub fn must_persist(&self, epoch: Epoch) -> Result<Option<Epoch>, Epoch> {
        let reign = epoch.reign();
        match reign.cmp(&self.promise) {
            std::cmp::Ordering::Less => Err(self.promise),
            std::cmp::Ordering::Equal => Ok(None),
            std::cmp::Ordering::Greater => Ok(Some(reign)),
        }
    }

    /// The promise is on disk.
    pub fn promised(&mut self, reign: Epoch) {
        if reign < self.promise {
            // What was promised counts, whatever was written since.
            tracing::error!(promise = %self.promise, %reign, "a promise would go back (I5); it is kept");
        }
        self.promise = self.promise.max(reign);
    }

    /// Whether an order of this epoch may still be obeyed.
    pub fn obeys(&self, replica: ReplicaId, epoch: Epoch) -> Result<(), Failure> {
        if self.promise > epoch.reign() {
            return Err(Failure::Promised { replica, promise: self.promise });
        }
        Ok(())
    }

    /// Whether the record of `epoch` may settle who replicates from here and who counts; remembered if so. Once a newer
    /// one of the same reign has, an order that was under way for long would let those count again whom the map counts
    /// no more (R1, R2).
    pub fn arranges(&mut self, replica: ReplicaId, epoch: Epoch) -> Result<(), Failure> {
        self.obeys(replica, epoch)?;
        if epoch < self.arranged {
            return Err(Failure::Overtaken { replica, by: self.arranged });
        }
        self.arranged = epoch;
        Ok(())
    }

    /// After the promise to `epoch`: this replica follows nobody and leads no older reign.
    pub fn fence(&mut self, epoch: Epoch, now: BootTime) -> FenceEffect {
        let cut = self.validated != Some(epoch.reign());
        if cut {
            self.validated = None;
        }
        let hold_gate = self.leading.is_some_and(|led| led < epoch.reign());
        if hold_gate {
            self.leading = None;
            self.grants.clear();
        }
        FenceEffect { hold_gate, cut, role: self.role, lease_left: self.granted_until.saturating_sub(now) }
    }

    /// The instance was promoted by an order of `epoch`, whether or not it may lead: if not, it is to be demoted.
    pub fn became_primary(&mut self, epoch: Epoch, was_primary: bool) {
        if !was_primary {
            self.promoted_in = Some(epoch.reign());
        }
        self.role = InstanceRole::Primary;
        if self.run == RunState::Divergent {
            // It was, from a history that ended with nobody's barrier; now the history goes on from its log.
            self.run = RunState::Running;
        }
    }

    /// The instance is primary now, in the reign of `epoch`. Returns the reign in which it was promoted.
    pub fn lead(&mut self, replica: ReplicaId, epoch: Epoch, was_primary: bool) -> Result<Epoch, Failure> {
        let reign = epoch.reign();
        self.became_primary(epoch, was_primary);
        if self.promise != reign {
            return Err(Failure::Promised { replica, promise: self.promise });
        }
        self.leading = Some(reign);
        self.validated = Some(reign);
        self.grants.clear();
        self.retired = false;
        Ok(self.promoted_in.unwrap_or(reign))
    }

    /// Whether a record of that epoch is not older than the one that settled who counts: an older one may count
    /// somebody who was cut off since.
    pub fn is_settled_by(&self, epoch: Epoch) -> bool {
        epoch >= self.arranged
    }

    /// Whether this replica is the primary of that epoch: what a barrier, an opening and a retirement need.
    pub fn leads(&self, replica: ReplicaId, epoch: Epoch) -> Result<(), Failure> {
        self.obeys(replica, epoch)?;
        if self.leading != Some(epoch.reign()) {
            return Err(Failure::Instance(format!("{replica} is not the primary of epoch {epoch}")));
        }
        Ok(())
    }

    /// Whether the log is to be compared with the history before this replica may follow in that reign.
    pub fn needs_check(&self, reign: Epoch) -> bool {
        self.validated != Some(reign)
    }

    /// Whether its keeper is making it a copy of the primary, through the tunnel: it has no log to follow with, and an
    /// order to follow leaves the tunnel to the keeper.
    pub fn is_copying(&self) -> bool {
        matches!(self.run, RunState::Building | RunState::Rewinding)
    }

    /// The log was found to be a prefix: follows in that reign from now on. True the first time.
    pub fn follow(&mut self, replica: ReplicaId, reign: Epoch) -> Result<bool, Failure> {
        self.obeys(replica, reign)?;
        if self.run == RunState::Divergent {
            self.run = RunState::Running;
        }
        Ok(self.validated.replace(reign) != Some(reign))
    }

    /// Whether what this replica once promised is known here. With its data it has lost its promise too, so it may not
    /// speak for any reign: neither grant nor confirm.
    pub fn remembers(&self) -> bool {
        !self.is_failed() && !matches!(self.run, RunState::Absent | RunState::Building)
    }

    /// Whether this replica, as a voter, still supports the primary of that reign: it has promised no newer one and
    /// is no primary itself. What a grant and a confirmation rest on.
    pub fn supports(&self, epoch: Epoch) -> bool {
        self.promise <= epoch && self.leading.is_none()
    }

    /// Whether the primary of `epoch` may release results until `until`, by this node's word; recorded if so.
    pub fn grant(&mut self, epoch: Epoch, until: BootTime) -> bool {
        if !self.supports(epoch) {
            return false;
        }
        self.granted_until = self.granted_until.max(until);
        true
    }

    /// A voter's node granted a lease. Until when results may leave now, by the grants of every configuration in
    /// force, that of a change under way included; `None` while too few have granted.
    pub fn granted(
        &mut self,
        me: ReplicaId,
        record: &Database,
        epoch: Epoch,
        by: NodeId,
        until: BootTime,
    ) -> Option<BootTime> {
        if self.leading != Some(epoch) || self.promise > epoch {
            return None;
        }
        let known = self.grants.entry(by).or_default();
        *known = until.max(*known);
        let grants = &self.grants;
        record
            .configurations()
            // Nobody can be elected beside a lone primary, so none of its leases is needed.
            .filter(|c| c.primary == me && !c.is_lone())
            .map(|c| c.lease_until(|r| grants.get(&record.node_of(r)?).copied()))
            .min()
            .flatten()
    }

    /// The daemon did not run for a while: what was granted to it may have been taken over meanwhile.
    pub fn forget_grants(&mut self) {
        self.grants.clear();
    }

    /// The postmaster is gone. True when it led: its gate is to be held and its lease dropped.
    pub fn ended(&mut self, reason: &str) -> bool {
        let led = self.leading.take().is_some();
        if led {
            self.grants.clear();
        }
        self.role = InstanceRole::Unknown;
        self.validated = None;
        if self.run == RunState::Running {
            self.run = RunState::Stopped(reason.to_owned());
        }
        led
    }

    /// The instance was started: as a standby, always (R7).
    pub fn started(&mut self) {
        self.role = InstanceRole::Standby;
        self.run = RunState::Running;
        self.validated = None;
    }

    /// One that is divergent was started, to say where its log ends. It stays divergent, and so votes under nobody, until
    /// its log is found to be a prefix.
    pub fn started_divergent(&mut self) {
        self.started();
        self.run = RunState::Divergent;
    }

    /// The instance was made anew as the first primary of its database.
    pub fn founded(&mut self, reign: Epoch) {
        self.role = InstanceRole::Primary;
        self.run = RunState::Running;
        self.leading = Some(reign);
        self.promoted_in = Some(reign);
        self.validated = Some(reign);
    }

    /// Another replica is primary in `reign`. True when this instance still is one, and is about to be stopped. Asked
    /// when nothing else changes the instance any more: between the decision and this, it may have been elected in a
    /// newer reign.
    pub fn demote(&mut self, replica: ReplicaId, reign: Epoch) -> Result<bool, Failure> {
        self.obeys(replica, reign)?;
        let is_primary = self.role == InstanceRole::Primary;
        if is_primary {
            self.leading = None;
            self.grants.clear();
            self.validated = None;
        }
        Ok(is_primary)
    }

    /// The instance was stopped on purpose.
    pub fn stopped(&mut self, why: &str) {
        self.role = InstanceRole::Unknown;
        self.leading = None;
        self.run = RunState::Stopped(why.to_owned());
    }

    /// Whether an instance that led may stay down a little longer: its recovery would compete for disk and processor with
    /// the promotion that everybody waits for. Not when its position or its acknowledgement may be what is missing.
    pub fn may_rest(&self, me: ReplicaId, record: &Database, down_for: Duration) -> bool {
        match record.phase {
            Phase::Switching { .. } => self.retired,
            // The election is about to be recorded, or the answers of the others are about to cover.
            Phase::Stable | Phase::Joint => {
                !self.retired && record.current.primary == me && down_for < SHORT_REST
            }
            Phase::Electing { .. } => down_for < SHORT_REST,
            Phase::Promoting { .. } => !record.current.contains(me) && down_for < LONG_REST,
            Phase::Creating | Phase::QuorumLost { .. } | Phase::Dropping => false,
        }
    }

    /// Whether an instance that ended is to be started. One that is divergent waits for its rewind; while a primary is
    /// being found, though, its word may be what is missing for a cover. Whether it may follow is checked anew.
    pub fn may_be_started(&self, record: &Database) -> bool {
        let searching = matches!(
            record.phase,
            Phase::Electing { .. } | Phase::Promoting { .. } | Phase::QuorumLost { .. }
        );
        !self.is_failed() || (self.run == RunState::Divergent && searching)
    }

    pub fn is_failed(&self) -> bool {
        matches!(self.run, RunState::Failed(_) | RunState::Divergent)
    }

    /// What the map asks of a running instance. Never more than its promise allows: a keeper that reads an old map
    /// undoes no fence.
    pub fn duty(&self, me: ReplicaId, record: &Database) -> Duty {
        let reign = record.epoch.reign();
        let settled = matches!(record.phase, Phase::Stable | Phase::Joint | Phase::Creating);
        if self.run == RunState::Divergent && settled && rewinders(record).contains(&me) {
            return match route(record) {
                Some(route) if route.primary != me && self.promise <= route.epoch => Duty::Rewind(route),
                _ => Duty::Nothing,
            };
        }
        if self.is_failed() {
            return Duty::Nothing;
        }
        match self.role {
            InstanceRole::Primary if record.current.primary == me => {
                let is_newest = record.epoch >= self.arranged;
                if settled && is_newest && self.promise <= reign && self.leading == Some(reign) {
                    return Duty::Admit(admissible(record, me));
                }
                Duty::Nothing
            }
            InstanceRole::Primary => {
                let replaced = settled || matches!(record.phase, Phase::Promoting { .. });
                if replaced && reign >= self.promise { Duty::Demote } else { Duty::Nothing }
            }
            InstanceRole::Standby => {
                // While a primary is being promoted, only a copy made in its reign follows without an order: the
                // history that others must be checked against is not recorded yet.
                let known = settled || self.validated == Some(reign);
                match route(record) {
                    Some(route) if known && route.primary != me && self.promise <= route.epoch => {
                        Duty::Follow(route)
                    }
                    _ => Duty::Nothing,
                }
            }
            InstanceRole::Unknown => Duty::Nothing,
        }
    }
}

/// Who may replicate from the primary `me`: learners too, and those that the record no longer has may not. Voters
/// being taken out are cut by the barrier's order and stay out (R2).
fn admissible(record: &Database, me: ReplicaId) -> BTreeSet<ReplicaId> {
    let mut allowed: BTreeSet<ReplicaId> = record.copies().filter(|r| *r != me).collect();
    if record.phase == Phase::Joint {
        let removed: BTreeSet<ReplicaId> =
            record.previous.iter().flat_map(|c| c.voters.iter().copied()).collect();
        allowed.retain(|r| record.current.contains(*r) || !removed.contains(r));
    }
    allowed
}

/// Who may read the primary's files for a rewind.
pub fn rewinders(record: &Database) -> BTreeSet<ReplicaId> {
    let incomplete = |r: &ReplicaState| matches!(r, ReplicaState::Incomplete { .. });
    record.replicas.iter().filter(|(_, r)| incomplete(&r.state)).map(|(id, _)| *id).collect()
}

/// Where a secondary follows from, once somebody is primary.
pub fn route(record: &Database) -> Option<Route> {
    let primary = match record.phase {
        Phase::Creating => record.current.primary,
        _ => record.primary()?,
    };
    Some(Route { node: record.node_of(primary)?, primary, epoch: record.epoch.reign() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn epoch(primary: u64) -> Epoch {
        Epoch::new(0, primary, 0)
    }

    fn record_between(phase: Phase, primary: ReplicaId, voter: ReplicaId) -> Database {
        Database {
            id: quorate_model::DatabaseId(1),
            server: quorate_model::ServerId(1),
            name: "app".into(),
            version: 1,
            epoch: epoch(2),
            phase,
            current: quorate_model::Configuration::new(primary, [voter], 1),
            primary_since: epoch(1),
            previous: Vec::new(),
            replicas: BTreeMap::new(),
            lineage: Vec::new(),
            operation: None,
            copies: 3,
            options: Default::default(),
        }
    }

    fn promise(standing: &mut Standing, to: Epoch) -> Result<(), Epoch> {
        if let Some(reign) = standing.must_persist(to)? {
            standing.promised(reign);
        }
        Ok(())
    }

    #[test]
    fn a_fenced_primary_leads_no_longer_and_grants_nothing_old() {
        let me = ReplicaId(1);
        let mut standing = Standing::new(Epoch::default(), 0);
        promise(&mut standing, epoch(1)).unwrap();
        standing.lead(me, epoch(1), false).unwrap();
        assert!(!standing.grant(epoch(1), 100), "a primary grants no lease");
        promise(&mut standing, epoch(2)).unwrap();
        let effect = standing.fence(epoch(2), 10);
        assert!(effect.hold_gate);
        assert!(standing.leads(me, epoch(1)).is_err());
        assert!(!standing.grant(epoch(1), 100), "the mutant that grants after its promise");
        assert!(!standing.supports(epoch(1)), "the mutant that confirms after its promise");
        assert!(standing.follow(me, epoch(1)).is_err());
    }

    #[test]
    fn a_replica_that_lost_its_data_speaks_for_no_reign() {
        let mut standing = Standing::new(Epoch::default(), 0);
        assert!(!standing.remembers(), "its data has not been looked for yet");
        standing.run = RunState::Stopped("killed".to_owned());
        assert!(standing.remembers(), "the daemon grants, not the instance");
        standing.run = RunState::Failed("its data directory is gone".to_owned());
        assert!(!standing.remembers());
    }

    #[test]
    fn a_fence_tells_how_long_its_grant_still_runs() {
        let mut standing = Standing::new(epoch(1), 0);
        assert!(standing.grant(epoch(1), 400));
        promise(&mut standing, epoch(2)).unwrap();
        assert_eq!(standing.fence(epoch(2), 150).lease_left, 250);
    }

    #[test]
    fn a_promotion_that_was_overtaken_leads_nothing() {
        let mut standing = Standing::new(epoch(2), 0);
        promise(&mut standing, epoch(3)).unwrap();
        assert!(standing.lead(ReplicaId(1), epoch(2), false).is_err());
        assert_eq!(standing.leading, None);
        assert_eq!(standing.role, InstanceRole::Primary, "it is one, and will be demoted");
    }

    /// Found by the model checker: the coordinator had given the fence up, and ordered the attachment only once.
    #[test]
    fn a_late_fence_of_the_same_reign_cuts_nothing() {
        let (primary, standby) = (ReplicaId(1), ReplicaId(2));
        let mut leads = Standing::new(Epoch::default(), 0);
        promise(&mut leads, epoch(2)).unwrap();
        assert!(leads.fence(epoch(2), 0).cut);
        leads.lead(primary, epoch(2), false).unwrap();
        assert!(!leads.fence(epoch(2), 0).cut);
        assert!(leads.leads(primary, epoch(2)).is_ok());
        let mut follows = Standing::new(Epoch::default(), 0);
        promise(&mut follows, epoch(2)).unwrap();
        assert!(follows.fence(epoch(2), 0).cut);
        follows.follow(standby, epoch(2)).unwrap();
        assert!(!follows.fence(epoch(2), 0).cut);
        assert!(!follows.needs_check(epoch(2)));
        promise(&mut follows, epoch(3)).unwrap();
        assert!(follows.fence(epoch(3), 0).cut);
    }

    /// Found by the model checker: a barrier that was given up and arrived late named a voter that was taken out since.
    #[test]
    fn a_late_order_of_the_same_reign_lets_nobody_count_again() {
        let me = ReplicaId(1);
        let mut standing = Standing::new(Epoch::default(), 0);
        promise(&mut standing, epoch(1)).unwrap();
        standing.lead(me, epoch(1), false).unwrap();
        let (wide, narrow) = (Epoch::new(0, 1, 1), Epoch::new(0, 1, 2));
        standing.arranges(me, wide).unwrap();
        standing.arranges(me, narrow).unwrap();
        standing.arranges(me, narrow).unwrap();
        assert_eq!(standing.arranges(me, wide), Err(Failure::Overtaken { replica: me, by: narrow }));
        standing.arranges(me, epoch(2)).unwrap();
        assert!(standing.arranges(me, narrow).is_err(), "a newer reign is newer than any record of an older");
    }

    #[test]
    fn a_divergent_copy_that_is_elected_is_divergent_no_more() {
        let mut standing = Standing::new(epoch(2), 0);
        standing.run = RunState::Divergent;
        standing.lead(ReplicaId(1), epoch(2), false).unwrap();
        assert_eq!(standing.run, RunState::Running);
    }

    #[test]
    fn promises_never_go_back() {
        let mut standing = Standing::new(epoch(3), 0);
        assert_eq!(promise(&mut standing, epoch(2)), Err(epoch(3)));
        assert_eq!(promise(&mut standing, Epoch::new(0, 3, 9)), Ok(()));
        assert_eq!(standing.promise(), epoch(3));
        standing.promised(epoch(2));
        assert_eq!(standing.promise(), epoch(3), "not even by a mistake of ours");
    }

    /// Without the rest, a crashed primary's recovery flushes the disk that its successor's promotion waits for.
    #[test]
    fn who_led_rests_unless_it_is_needed() {
        let (me, other) = (ReplicaId(1), ReplicaId(2));
        let brief = Duration::from_millis(50);
        let record = record_between;
        let standing = Standing::new(epoch(1), 0);
        let coordinator = NodeId(1);
        let stable = record(Phase::Stable, me, other);
        assert!(standing.may_rest(me, &stable, brief));
        assert!(!standing.may_rest(me, &stable, LONG_REST));
        let electing = record(Phase::Electing { coordinator }, me, other);
        assert!(standing.may_rest(me, &electing, brief));
        assert!(!standing.may_rest(me, &electing, LONG_REST), "its position may complete the cover");
        let promoting = Phase::Promoting { coordinator };
        assert!(standing.may_rest(me, &record(promoting.clone(), other, ReplicaId(3)), SHORT_REST));
        assert!(!standing.may_rest(me, &record(promoting, other, me), brief), "a voter of its successor");
        assert!(!standing.may_rest(me, &record(Phase::Stable, other, ReplicaId(3)), brief));
    }

    #[test]
    fn a_divergent_copy_is_started_while_a_primary_is_being_found() {
        let me = ReplicaId(1);
        let mut record = record_between(Phase::Stable, me, ReplicaId(2));
        let mut standing = Standing::new(epoch(1), 0);
        assert!(standing.may_be_started(&record));
        standing.run = RunState::Divergent;
        assert!(!standing.may_be_started(&record), "it is rewound");
        record.phase = Phase::Electing { coordinator: NodeId(1) };
        assert!(standing.may_be_started(&record));
        standing.started_divergent();
        assert_eq!((standing.role, &standing.run), (InstanceRole::Standby, &RunState::Divergent));
        assert!(standing.needs_check(epoch(2)), "whether it may follow is checked anew");
        promise(&mut standing, epoch(2)).unwrap();
        assert!(standing.follow(me, epoch(2)).unwrap());
        assert_eq!(standing.run, RunState::Running, "its log is a prefix of this history");
        standing.run = RunState::Failed("its data is gone".to_owned());
        assert!(!standing.may_be_started(&record));
    }
}
