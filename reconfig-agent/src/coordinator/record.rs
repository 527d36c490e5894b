//! What is done, recorded for people: in one command with what does it, so that whoever is lost, neither is there without
//! the other.

use super::actor::{Actor, Proposal, unix_ms};
use crate::decide::{self, Note};
use quorate_model::{Change, Command, Database, DatabaseId, Epoch, Event, EventKind, PartitionMap};

impl Actor {
    /// The event that is to be recorded with a change, or with the end of an operation.
    pub(super) fn event(&self, map: &PartitionMap, database: &Database, note: Note) -> Option<Event> {
        let event = Event {
            id: 0,
            at_ms: unix_ms(),
            database: database.id,
            target: map.full_name(database),
            kind: EventKind::Dropped,
            epoch: Epoch::default(),
            reason: String::new(),
            reported_by: None,
            from: None,
            to: None,
            steps: Vec::new(),
        };
        match note {
            Note::Nothing => None,
            Note::Event { kind, reason, from, to } => Some(Event { kind, reason, from, to, ..event }),
            Note::Reconfigured => {
                let progress = self.progress.get(&database.id)?;
                let trigger = progress.trigger.as_ref()?;
                let kind = if decide::reconfigure::is_reelection(progress) {
                    EventKind::Reelection
                } else if trigger.switchover {
                    EventKind::Switchover
                } else {
                    EventKind::Failover
                };
                Some(Event {
                    kind,
                    reason: trigger.reason.clone(),
                    reported_by: trigger.reported_by,
                    from: Some(trigger.from),
                    to: Some(database.current.primary),
                    steps: self.laps.get(&database.id).map(|laps| laps.steps().to_vec()).unwrap_or_default(),
                    ..event
                })
            }
        }
    }

    /// It was accepted.
    pub(super) fn recorded(
        &mut self,
        map: &PartitionMap,
        id: DatabaseId,
        change: Option<&Change>,
        event: Option<Event>,
    ) {
        let Some(event) = event else { return };
        if !event.steps.is_empty() {
            self.laps.remove(&id);
        }
        let epoch = map.databases.get(&id).map_or(Epoch::default(), |d| d.epoch);
        tracing::info!(database = event.target, event = event.kind.name(), %epoch, reason = event.reason, ?change, "recorded");
    }
}

impl Proposal {
    /// The command that carries it out, together with its event.
    pub(super) fn noted(&self, command: Command) -> Command {
        match self {
            Proposal::Change(_, Some(event)) | Proposal::Operation(Some(event)) => {
                Command::Noted { command: Box::new(command), event: event.clone() }
            }
            _ => command,
        }
    }
}
