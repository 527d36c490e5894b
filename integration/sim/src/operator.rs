//! The operator: gives up what cannot come back, and nothing else.
//!
//! He knows of which databases the disks of most copies are lost. When such a one says that its quorum is lost, he gives
//! the word (`FORCE RECOVER DATABASE … ACCEPT DATA LOSS`), and drops the copies that were put aside once it is well again.
//! A database whose quorum is only away he leaves alone.

use crate::trace;
use crate::world::World;
use quorate_model::{Change, Command, Database, DatabaseId, OperationKind, Phase};
use std::collections::BTreeMap;

/// Between two looks at a database, milliseconds.
const LOOK_MS: u64 = 500;

#[derive(Default)]
pub struct Operator {
    /// Databases whose copies are lost for the most part, and when each is looked at next.
    ruined: BTreeMap<DatabaseId, u64>,
}

impl Operator {
    pub fn knows_of_ruin(&mut self, database: DatabaseId) {
        self.ruined.insert(database, 0);
    }

    /// One of the databases that are due.
    fn due(&mut self, now_ms: u64) -> Option<DatabaseId> {
        let (database, at) = self.ruined.iter_mut().find(|(_, at)| **at <= now_ms)?;
        *at = now_ms + LOOK_MS;
        Some(*database)
    }
}

pub fn step(world: &mut World) {
    let Some(database) = world.operator.due(world.now_ms) else { return };
    let map = world.map();
    if world.is_whole(&map, database) {
        world.operator.ruined.remove(&database);
        return;
    }
    let Some(record) = map.databases.get(&database) else { return };
    let recovers = record
        .operation
        .and_then(|id| map.operations.get(&id))
        .is_some_and(|o| matches!(o.kind, OperationKind::ForceRecover { .. }));
    match record.phase {
        Phase::QuorumLost { .. } if !recovers => {
            trace::note(&format!("ORDER force recovery of {database}, data loss accepted"));
            world.oracle.word(database);
            let now_ms = crate::clock::unix_ms(world.now_ms);
            world.propose(Command::BeginForceRecover { database, candidate: None, now_ms });
        }
        Phase::Stable => drop_aside(world, record),
        _ => {}
    }
}

fn drop_aside(world: &mut World, record: &Database) {
    let Some(replica) = record.replicas.keys().copied().find(|r| record.is_quarantined(*r)) else { return };
    trace::note(&format!("ORDER drop {replica}, which was put aside"));
    let (database, version) = (record.id, record.version);
    world.propose(Command::Reconfigure { database, version, change: Change::DropReplica { replica } });
}
