//! The state of a cluster with one database, as the model checker compares it.

use super::postgres::{Instance, Mode, Names};
use crate::decisions::Quirk;
use quorate_model::{Database, Epoch, GateReport, NodeId, OperationId, PartitionMap, Position, ReplicaId};
use quorate_reconfig_agent::agent::standing::Standing;
use quorate_reconfig_agent::decide::{Claim, OrderKind, Progress, What};
use quorate_reconfig_agent::tunnel::Route;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The partition map. Two are the same when they say the same of databases and operations: nodes never change here,
/// and events are for people.
#[derive(Clone, Debug)]
pub struct Map(pub Arc<PartitionMap>);

impl Map {
    /// The record of the one database.
    pub fn database(&self) -> Option<&Database> {
        self.0.databases.values().next()
    }
}

impl PartialEq for Map {
    fn eq(&self, other: &Map) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.0.databases == other.0.databases
                && self.0.operations == other.0.operations
                && self.0.last_id == other.0.last_id)
    }
}

impl Eq for Map {}

impl Hash for Map {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.0.databases, &self.0.operations, self.0.last_id).hash(state);
    }
}

/// What a primary's node lets in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Admission {
    pub reign: Epoch,
    pub allowed: BTreeSet<ReplicaId>,
}

/// An order that was accepted and has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// Sync names are set, the instance is about to be promoted.
    Promoting { letter: Letter, allowed: BTreeSet<ReplicaId>, uuid: uuid::Uuid },
    /// It is promoted; its epoch row is about to be written, and others to be let in.
    Leading { letter: Letter, allowed: BTreeSet<ReplicaId>, uuid: uuid::Uuid, was_primary: bool },
    /// Only these replicate now; the sync names are about to be set.
    Naming { letter: Letter, names: Names },
    /// The barrier's commit waits for the quorum behind so many entries.
    Passing { letter: Letter, entries: usize },
    /// The node lost power meanwhile: nothing goes on, and its giver is yet to find that out.
    Lost { letter: Letter },
}

impl Work {
    pub fn letter(&self) -> Letter {
        match self {
            Work::Promoting { letter, .. }
            | Work::Leading { letter, .. }
            | Work::Naming { letter, .. }
            | Work::Passing { letter, .. }
            | Work::Lost { letter } => *letter,
        }
    }
}

/// One replica on its node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    pub node: NodeId,
    /// Its promise is on disk; everything else of it is lost with the node's power.
    pub standing: Standing,
    pub instance: Instance,
    /// The secondary's end of its tunnel.
    pub downstream: Option<Route>,
    /// The primary's end of every tunnel to it.
    pub upstream: Option<Admission>,
    pub gate: GateReport,
    /// The last reign in which its gate was open, as its coordinator has seen.
    pub led: Option<Epoch>,
    pub work: Vec<Work>,
    /// History: the end of the log that it has discarded, until its log is past that.
    pub floor: Option<Position>,
    /// What a local file would tell of its last route. Only a mutant writes one.
    pub file: Option<Route>,
    pub quirk: Quirk,
}

impl Replica {
    pub fn new(node: NodeId, promise: Epoch, instance: Instance) -> Replica {
        Replica {
            node,
            standing: Standing::new(promise, 0),
            instance,
            downstream: None,
            upstream: None,
            gate: GateReport::Closed,
            led: None,
            work: Vec::new(),
            floor: None,
            file: None,
            quirk: Quirk::None,
        }
    }

    /// Goes back to the first `entries` of its log.
    pub fn discard(&mut self, entries: usize) {
        let end = self.instance.position();
        if self.floor.is_none_or(|floor| floor.rank() < end.rank()) {
            self.floor = Some(end);
        }
        self.instance.log.truncate(entries);
    }

    /// Its log has grown.
    pub fn grew(&mut self) {
        let end = self.instance.position();
        self.floor.take_if(|floor| end.rank() >= floor.rank());
    }

    pub fn is_primary(&self) -> bool {
        self.instance.mode == Mode::Primary
    }

    /// No stream goes on, and none is taken until the next admission.
    pub fn cut_upstream(&mut self) {
        self.upstream = None;
        self.instance.senders.clear();
    }

    pub fn admit(&mut self, reign: Epoch, allowed: BTreeSet<ReplicaId>) {
        let goes_on = self.upstream.as_ref().is_some_and(|a| a.reign == reign);
        self.instance.cut(|r| goes_on && allowed.contains(&r));
        self.upstream = Some(Admission { reign, allowed });
    }
}

/// An order under way, by its giver and what it is; a repeated one is the same letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Letter {
    pub from: NodeId,
    pub epoch: Epoch,
    pub replica: ReplicaId,
    pub kind: OrderKind,
    /// False once its giver has given it up: it may still arrive.
    pub awaited: bool,
}

/// One coordinator and what it has learnt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coordinator {
    pub me: NodeId,
    pub progress: Progress,
    /// The attempts of operations that are its own.
    pub claims: BTreeMap<OperationId, Claim>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Spent {
    pub writes: u8,
    pub faults: u8,
    pub takeovers: u8,
    pub switchovers: u8,
    pub moves: u8,
    pub words: u8,
    pub cancels: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub map: Map,
    pub replicas: BTreeMap<ReplicaId, Arc<Replica>>,
    /// Nodes without power.
    pub off: BTreeSet<NodeId>,
    /// Nodes that the leader believes to be down.
    pub suspected: BTreeSet<NodeId>,
    /// A node that has not heard of the map since.
    pub frozen: Option<(NodeId, Map)>,
    pub leader: Arc<Coordinator>,
    /// A coordinator that was replaced and does not know it: it decides by the map as it was.
    pub zombie: Option<(Arc<Coordinator>, Map)>,
    pub network: BTreeMap<Letter, What>,
    pub spent: Spent,
    /// History: what clients were told, with the reign whose gate told it.
    pub acknowledged: BTreeMap<u8, Epoch>,
    /// History: who led each reign.
    pub reigns: BTreeMap<Epoch, ReplicaId>,
    /// History: an invariant of a step that did not hold.
    pub broken: Option<&'static str>,
}

impl State {
    pub fn replica(&mut self, id: ReplicaId) -> Option<&mut Replica> {
        self.replicas.get_mut(&id).map(Arc::make_mut)
    }

    /// The map as that node has heard of it.
    pub fn map_at(&self, node: NodeId) -> &Map {
        match &self.frozen {
            Some((frozen, map)) if *frozen == node => map,
            _ => &self.map,
        }
    }

    pub fn is_on(&self, replica: &Replica) -> bool {
        !self.off.contains(&replica.node)
    }

    /// Whether the tunnel from `standby` to `primary` is open at both ends and both instances run.
    pub fn is_connected(&self, primary: ReplicaId, standby: ReplicaId) -> bool {
        let (Some(p), Some(s)) = (self.replicas.get(&primary), self.replicas.get(&standby)) else {
            return false;
        };
        let route = s.downstream.as_ref().filter(|route| route.primary == primary);
        let admission = p.upstream.as_ref().filter(|a| a.allowed.contains(&standby));
        self.is_on(p)
            && self.is_on(s)
            && p.is_primary()
            && s.instance.mode == Mode::Standby
            && matches!((route, admission), (Some(r), Some(a)) if r.epoch == a.reign)
    }

    /// Whether bytes flow: connected, and PostgreSQL takes the standby's log for a part of the primary's.
    pub fn is_streaming(&self, primary: ReplicaId, standby: ReplicaId) -> bool {
        self.is_connected(primary, standby)
            && self.replicas[&primary].instance.streams_to(&self.replicas[&standby].instance)
    }
}

/// Names that nobody bears.
pub fn nobody() -> Names {
    Names { k: 1, who: BTreeSet::new() }
}
