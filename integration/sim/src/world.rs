//! A cluster, its network, its clients and its time: everything that one seed decides.

use crate::client::Client;
use crate::clock;
use crate::dice::Dice;
use crate::net::Net;
use crate::node::SimNode;
use crate::operator::{self, Operator};
use crate::oracle::Oracle;
use crate::pg::disk::Disks;
use crate::pg::instance::{Around, SimInstance};
use crate::pg::server::Role;
use crate::pg::wal::Record;
use crate::runtime::NodeRuntime;
use crate::scene::{Conditions, Plant};
use crate::trace;
use quorate_model::{Command, Database, DatabaseId, Epoch, GateReport, NodeId, PartitionMap, Phase};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::watch;

/// Where clients are: no node of the cluster.
const CLIENTS: NodeId = NodeId(200);
const CLIENTS_A_DATABASE: u64 = 5;

/// Nodes' clocks differ by less than this when the world begins, nanoseconds: 10 minutes, wall clocks included. The limits
/// of operations (15 minutes and more) are judged by the wall clock of whoever coordinates.
const CLOCKS_APART: u64 = 600_000_000_000;

pub struct World {
    pub now_ms: u64,
    pub net: Arc<Net>,
    pub nodes: Vec<SimNode>,
    pub disks: Arc<Disks>,
    pub conditions: Arc<Conditions>,
    pub oracle: Arc<Oracle>,
    pub operator: Operator,
    pub databases: Vec<DatabaseId>,
    pub dice: Dice,
    ids: Vec<NodeId>,
    clients: NodeRuntime,
    clients_clock: u64,
    working: watch::Sender<bool>,
    /// The reign in which a gate was last seen open.
    open: BTreeMap<(NodeId, DatabaseId), Epoch>,
}

impl World {
    /// A cluster that is being started.
    pub fn new(seed: u64, plant: Option<Plant>) -> std::io::Result<World> {
        let mut dice = Dice::new(seed);
        // Four nodes have three voters of the map, five have five.
        let ids: Vec<NodeId> = (1..=dice.between(4, 5)).map(NodeId).collect();
        let mut members = ids.clone();
        members.sort_unstable();
        let net = Net::new(dice.fork(), members);
        let conditions = Arc::new(Conditions::new(dice.fork(), plant));
        let (disks, oracle) = (Arc::new(Disks::default()), Arc::new(Oracle::default()));
        let mut nodes = Vec::new();
        for &id in &ids {
            let around = Around {
                node: id,
                disks: disks.clone(),
                conditions: conditions.clone(),
                oracle: oracle.clone(),
            };
            // Machines were not all switched on at once.
            nodes.push(SimNode::new(id, around, dice.below(CLOCKS_APART)));
        }
        let mut world = World {
            now_ms: 0,
            net,
            nodes,
            disks,
            conditions,
            oracle,
            operator: Operator::default(),
            databases: Vec::new(),
            dice,
            ids,
            clients: NodeRuntime::new()?,
            clients_clock: clock::BEGIN,
            working: watch::Sender::new(true),
            open: BTreeMap::new(),
        };
        for at in 0..world.nodes.len() {
            world.start_node(at)?;
        }
        Ok(world)
    }

    pub fn ids(&self) -> &[NodeId] {
        &self.ids
    }

    pub fn start_node(&mut self, at: usize) -> std::io::Result<()> {
        let (net, ids) = (self.net.clone(), self.ids.clone());
        self.nodes[at].start(&net, &ids)
    }

    pub fn crash(&mut self, at: usize, heard: bool) {
        let net = self.net.clone();
        let id = self.nodes[at].id;
        self.nodes[at].crash(&net, heard);
        trace::running(NodeId(0));
        self.open.retain(|(node, _), _| *node != id);
    }

    /// A millisecond.
    pub fn step(&mut self) -> std::io::Result<()> {
        self.now_ms += 1;
        trace::at(self.now_ms);
        trace::running(NodeId(0));
        self.net.deliver(self.now_ms);
        for at in 0..self.nodes.len() {
            if self.nodes[at].restart_at.is_some_and(|due| due <= self.now_ms) {
                self.start_node(at)?;
            }
            self.nodes[at].step(self.now_ms);
            self.observe(at);
        }
        self.clients_clock += 1_000_000;
        clock::set(self.clients_clock);
        trace::running(CLIENTS);
        self.clients.step();
        trace::running(NodeId(0));
        operator::step(self);
        Ok(())
    }

    /// Shows the oracle what changed at a node.
    fn observe(&mut self, at: usize) {
        trace::running(NodeId(0));
        let node = self.nodes[at].id;
        let Some(seen) = self.nodes[at].observe() else { return };
        if let Some(map) = seen.map {
            self.oracle.map(&map);
        }
        for (database, report) in seen.gates {
            let GateReport::Open(reign) = report else {
                self.open.remove(&(node, database));
                continue;
            };
            if self.open.insert((node, database), reign) == Some(reign) {
                continue;
            }
            let Some(primary) = self.primary_on(at, database) else {
                self.oracle.fail(format!("I6: {database}: a gate opened on {node} in front of no primary"));
                continue;
            };
            let log = self.log(at, &primary);
            trace::note(&format!(
                "gate of {database} open on {node} for {} in reign {reign}",
                primary.replica
            ));
            self.oracle.gate_opened(database, primary.replica, reign, &log);
        }
    }

    fn primary_on(&self, at: usize, database: DatabaseId) -> Option<Arc<SimInstance>> {
        let live = self.nodes[at].live()?;
        let is_it = |i: &Arc<SimInstance>| {
            i.database() == database && i.any_server().is_some_and(|s| s.role() == Role::Primary)
        };
        live.registry.instances().into_iter().find(is_it)
    }

    fn log(&self, at: usize, instance: &SimInstance) -> Vec<Record> {
        self.disks.open(self.nodes[at].id, instance.replica).content().records.clone()
    }

    /// The log of the primary of the record, where it runs.
    pub fn primary_log(&self, record: &Database) -> Option<Vec<Record>> {
        let node = record.node_of(record.current.primary)?;
        let at = self.nodes.iter().position(|n| n.id == node)?;
        let primary = self.primary_on(at, record.id)?;
        Some(self.log(at, &primary))
    }

    /// The newest map that a node shows.
    pub fn map(&self) -> Arc<PartitionMap> {
        let age = |map: &Arc<PartitionMap>| {
            (map.databases.values().map(|d| d.version).sum::<u64>(), map.last_id, map.nodes.len())
        };
        let maps = self.nodes.iter().filter_map(|n| n.live()).map(|live| live.view.borrow().clone());
        maps.max_by_key(age).unwrap_or_default()
    }

    /// Has a command proposed at a node that is up.
    pub fn propose(&mut self, command: Command) {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|at| self.nodes[*at].live().is_some()).collect();
        let Some(&at) = self.dice.pick(&up) else { return };
        let Some(live) = self.nodes[at].live() else { return };
        self.nodes[at].spawn(async move {
            let told = match live.map.propose(command).await {
                Ok(_) => "done".to_owned(),
                Err(error) => error.to_string(),
            };
            trace::note(&format!("proposed: {told}"));
        });
        trace::running(NodeId(0));
    }

    /// Clients of a database begin.
    pub fn serve(&mut self, database: DatabaseId) {
        let peers = self.net.attach(CLIENTS, self.clients.handle().clone());
        for _ in 0..CLIENTS_A_DATABASE {
            let client = Client {
                peers: peers.clone(),
                conditions: self.conditions.clone(),
                oracle: self.oracle.clone(),
                database,
                nodes: self.ids.clone(),
                working: self.working.subscribe(),
            };
            self.clients.handle().spawn(client.run());
        }
    }

    pub fn let_clients_work(&self, work: bool) {
        self.working.send_replace(work);
    }

    /// Whether a database has everything that it should have, its gate open.
    pub fn is_whole(&self, map: &PartitionMap, database: DatabaseId) -> bool {
        let Some(record) = map.databases.get(&database) else { return false };
        let full = record.current.voters.len() + 1 == record.copies as usize;
        let no_more = record.replicas.len() == record.copies as usize;
        let there = record.replicas.iter().all(|(id, r)| self.disks.open(r.node, *id).content().complete);
        let open = record.node_of(record.current.primary).is_some_and(|node| {
            self.open.get(&(node, database)).is_some_and(|reign| reign.same_reign(record.epoch))
        });
        record.phase == Phase::Stable && full && no_more && there && open && record.operation.is_none()
    }

    pub fn are_whole(&self) -> bool {
        let map = self.map();
        self.databases.iter().all(|d| self.is_whole(&map, *d))
    }

    /// What keeps databases from being whole, for people.
    pub fn troubles(&self) -> Vec<String> {
        let map = self.map();
        let records = self.databases.iter().filter(|d| !self.is_whole(&map, **d));
        records
            .map(|d| match map.databases.get(d) {
                Some(r) => {
                    let open: BTreeSet<_> = self
                        .open
                        .iter()
                        .filter(|((_, db), _)| db == d)
                        .map(|((n, _), e)| format!("{n}:{e}"))
                        .collect();
                    format!(
                        "{d}: {} epoch {} primary {} voters {:?} replicas {:?} operation {:?} open {open:?}",
                        r.phase.name(),
                        r.epoch,
                        r.current.primary,
                        r.current.voters,
                        r.replicas,
                        r.operation
                    )
                }
                None => format!("{d} has no record"),
            })
            .collect()
    }
}
