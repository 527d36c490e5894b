//! What the coordinator proposes to the map, and what it does with the answers.

use super::{Actor, Point, Proposal, Proposing, unix_ms};
use crate::coordinator::steps::Laps;
use crate::coordinator::{Event, failpoint};
use crate::decide::{Claim, Progress, Trigger};
use crate::map::ProposeError;
use quorate_model::{Applied, Change, Command, Database, DatabaseId, OperationId};

impl Actor {
    pub(super) fn claim(&mut self, operation: OperationId, attempt: u32, point: Point) {
        if !self.claiming.insert(operation) {
            return;
        }
        failpoint::hit(point.scope, "before", point.step);
        let (map, inbox) = (self.map.clone(), self.inbox.clone());
        let command = Command::Claim { operation, attempt, owner: self.me, now_ms: unix_ms() };
        tokio::spawn(async move {
            let outcome = map.propose(command).await;
            let _ = inbox.send(Event::Claimed { operation, point, outcome }).await;
        });
    }

    pub(super) fn claimed(
        &mut self,
        operation: OperationId,
        point: Point,
        outcome: Result<Applied, ProposeError>,
    ) {
        self.claiming.remove(&operation);
        match outcome {
            Ok(Applied::Attempt(attempt)) => {
                tracing::info!(%operation, attempt, "taken over");
                failpoint::hit(point.scope, "after", point.step);
                self.claims.insert(operation, Claim { attempt, since_ms: self.now_ms() });
                let map = self.watch.borrow().clone();
                self.claims.retain(|id, _| map.operations.get(id).is_none_or(|o| !o.state.is_over()));
            }
            Ok(other) => tracing::warn!(%operation, ?other, "a claim was answered oddly"),
            Err(error) => tracing::info!(%operation, %error, "an operation was not taken over"),
        }
    }

    pub(super) fn spawn_progress(&self, command: Command, point: Point) {
        failpoint::hit(point.scope, "before", point.step);
        let map = self.map.clone();
        tokio::spawn(async move {
            match map.propose(command).await {
                Ok(_) => failpoint::hit(point.scope, "after", point.step),
                Err(error) => tracing::debug!(%error, "an operation's step was not recorded"),
            }
        });
    }

    pub(super) fn propose(
        &mut self,
        database: &Database,
        command: Command,
        proposal: Proposal,
        point: Point,
    ) {
        failpoint::hit(point.scope, "before", point.step);
        self.proposing.insert(database.id, Proposing { version: database.version, ended: false });
        let (map, inbox) = (self.map.clone(), self.inbox.clone());
        let (database, version) = (database.id, database.version);
        let command = proposal.noted(command);
        tokio::spawn(async move {
            let outcome = map.propose(command).await;
            let _ = inbox.send(Event::Proposed { database, version, proposal, point, outcome }).await;
        });
    }

    pub(super) fn proposed(
        &mut self,
        id: DatabaseId,
        version: u64,
        proposal: Proposal,
        point: Point,
        outcome: Result<Applied, ProposeError>,
    ) {
        match &outcome {
            Ok(_) => {
                failpoint::hit(point.scope, "after", point.step);
                if let Some(p) = self.proposing.get_mut(&id).filter(|p| p.version == version) {
                    p.ended = true;
                }
            }
            Err(error) => {
                self.proposing.remove(&id);
                tracing::info!(database = %id, %error, "a proposal was not accepted; looking again");
                return;
            }
        }
        let map = self.watch.borrow().clone();
        match proposal {
            Proposal::Elect(trigger) => {
                self.lap(id, "record");
                if let Some(database) = map.databases.get(&id) {
                    let mut progress = Progress::new(database.epoch.reign());
                    progress.trigger = Some(trigger);
                    self.progress.insert(id, progress);
                }
            }
            Proposal::Change(change, event) => {
                if matches!(change, Change::Promote { .. }) {
                    self.lap(id, "record");
                }
                if let (Change::Recover { survivor, .. }, Some(database)) = (&change, map.databases.get(&id))
                {
                    self.laps.insert(id, Laps::begin(0, self.now_us()));
                    let mut progress = Progress::new(database.epoch.reign());
                    progress.trigger = Some(Trigger::new("forced recovery".to_owned(), self.me, *survivor));
                    self.progress.insert(id, progress);
                }
                self.recorded(&map, id, Some(&change), event);
            }
            Proposal::Operation(event) => self.recorded(&map, id, None, event),
        }
    }
}

/// A change's name among the failpoints.
pub(super) fn word_of(change: &Change) -> &'static str {
    match change {
        Change::AllocateReplica { .. } => "record_allocate",
        Change::DropReplica { .. } => "record_drop_replica",
        Change::MarkReplica { .. } => "record_mark",
        Change::Join { .. } => "record_join",
        Change::Stabilize { .. } => "record_stabilize",
        Change::Elect { .. } => "record_elect",
        Change::Promote { .. } => "record_promote",
        Change::LoseQuorum { .. } => "record_lose_quorum",
        Change::Switch { .. } => "record_switch",
        Change::Recover { .. } => "record_recover",
        Change::Remove => "record_remove",
    }
}
