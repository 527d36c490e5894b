//! What was done, recorded for people.

use super::actor::Actor;
use crate::decide::{self, Note};
use crate::map::Map;
use quorate_model::{Change, Command, DatabaseId, Epoch, EventKind, PartitionMap};
use std::sync::Arc;

impl Actor {
    /// Records for people what has just been accepted.
    pub(super) fn note(&mut self, map: &PartitionMap, id: DatabaseId, change: Option<&Change>, note: Note) {
        let database = map.databases.get(&id);
        let target = match database {
            Some(database) => map.full_name(database),
            // Dropped with this: the operation remembers its name.
            None => {
                let known = map.operations.values().rev().find(|o| o.database == id);
                known.map_or_else(|| id.to_string(), |o| o.target.clone())
            }
        };
        let epoch = database.map_or(Epoch::default(), |d| d.epoch);
        let mut event = quorate_model::Event {
            id: 0,
            at_ms: super::actor::unix_ms(),
            database: id,
            target,
            kind: EventKind::Dropped,
            epoch,
            reason: String::new(),
            reported_by: None,
            from: None,
            to: None,
            steps: Vec::new(),
        };
        match note {
            Note::Nothing => return,
            Note::Event { kind, reason, from, to } => {
                event.kind = kind;
                event.reason = reason;
                event.from = from;
                event.to = to;
            }
            Note::Reconfigured => {
                let Some(progress) = self.progress.get(&id) else { return };
                let Some(trigger) = &progress.trigger else { return };
                event.kind = if decide::reconfigure::is_reelection(progress) {
                    EventKind::Reelection
                } else if trigger.switchover {
                    EventKind::Switchover
                } else {
                    EventKind::Failover
                };
                event.reason = trigger.reason.clone();
                event.reported_by = trigger.reported_by;
                event.from = Some(trigger.from);
                event.to = database.map(|d| d.current.primary);
                if let Some(laps) = self.laps.remove(&id) {
                    event.steps = laps.steps().to_vec();
                }
            }
        }
        tracing::info!(database = event.target, event = event.kind.name(), %epoch, reason = event.reason, ?change, "recorded");
        let map: Arc<dyn Map> = self.map.clone();
        tokio::spawn(async move {
            if let Err(error) = map.propose(Command::Record(event)).await {
                tracing::warn!(%error, "an event was not recorded");
            }
        });
    }
}
