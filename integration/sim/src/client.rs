//! Clients, and the way of their statements: entry node, map, the real gate of the primary's node, the instance, and
//! out through the gate again, as `proxy` does it with bytes.

use crate::net::SimPeers;
use crate::oracle::{Egress, Floor, Oracle};
use crate::pg::host::Registry;
use crate::pg::server::NoResult;
use crate::pg::wal::KEYS;
use crate::scene::{Conditions, Plant};
use quorate_model::{DatabaseId, Epoch, GateReport, NodeId, PartitionMap, Reads, ReplicaId};
use quorate_proxy::{Gates, Pass, Slot};
use quorate_transport::{CallError, Fault, Handler, PeerNetwork, Service, decode, encode};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// A client's statement is held so long at its entry node.
const HOLD: Duration = Duration::from_secs(6);
const GATE_WAIT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(10);
const CALL_DEADLINE: Duration = Duration::from_secs(12);

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Statement {
    Write { key: usize, serial: u64 },
    Read { key: usize },
}

impl Statement {
    fn is_read(self) -> bool {
        matches!(self, Statement::Read { .. })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Ask {
    database: DatabaseId,
    statement: Statement,
    /// From an entry node to the gate of the primary, with the reign that the entry node knows.
    to_gate: Option<Epoch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    Done,
    /// What became of it is not known.
    Unknown,
    /// Nothing was done.
    Refused,
}

/// A node's answering side.
pub struct Door {
    pub node: NodeId,
    pub map: watch::Receiver<Arc<PartitionMap>>,
    pub peers: Arc<SimPeers>,
    pub gates: Arc<Gates>,
    pub registry: Arc<Registry>,
    pub oracle: Arc<Oracle>,
    pub conditions: Arc<Conditions>,
}

#[async_trait::async_trait]
impl Handler for Door {
    async fn call(&self, _from: NodeId, body: bytes::Bytes) -> Result<bytes::Bytes, Fault> {
        let ask = decode::<Ask>(&body)?;
        let told = match ask.to_gate {
            Some(epoch) => self.at_gate(&ask, epoch).await,
            None => self.enter(ask).await,
        };
        Ok(encode(&told))
    }
}

impl Door {
    /// Finds the primary, again and again while nothing was done.
    async fn enter(&self, ask: Ask) -> Told {
        let until = Instant::now() + HOLD;
        while Instant::now() < until {
            let primary = {
                let map = self.map.borrow();
                let record = map.databases.get(&ask.database);
                record.and_then(|r| Some((r.primary_node()?, r.epoch.reign())))
            };
            let told = match primary {
                Some((node, epoch)) if node == self.node => self.at_gate(&ask, epoch).await,
                Some((node, epoch)) => self.ask_gate(node, Ask { to_gate: Some(epoch), ..ask.clone() }).await,
                None => Told::Refused,
            };
            if told != Told::Refused {
                return told;
            }
            sleep(PAUSE).await;
        }
        Told::Refused
    }

    async fn ask_gate(&self, node: NodeId, ask: Ask) -> Told {
        let is_read = ask.statement.is_read();
        match self.peers.call(node, Service::Proxy, encode(&ask), CALL_DEADLINE).await {
            Ok(body) => decode(&body).unwrap_or(Told::Unknown),
            Err(CallError::Refused(_) | CallError::TooLarge(_)) => Told::Refused,
            // A read that was lost on the way may be asked again.
            Err(_) if is_read => Told::Refused,
            Err(_) => Told::Unknown,
        }
    }

    async fn at_gate(&self, ask: &Ask, epoch: Epoch) -> Told {
        let Some(gate) = self.gates.find(ask.database) else { return Told::Refused };
        let slot = Arc::new(Slot::default());
        let entered = gate.enter(&slot, epoch, Instant::now() + GATE_WAIT).await;
        let Ok((mut pass, socket)) = entered else { return Told::Refused };
        let GateReport::Open(reign) = gate.report() else { return Told::Refused };
        let Some(server) = self.registry.server(&socket).filter(|_| pass.may_enter()) else {
            return Told::Refused;
        };
        let replica = server.replica;
        let egress = |key, by, floor: Floor| Egress {
            database: ask.database,
            replica,
            reign: self.reign_of(&gate, replica, reign),
            key,
            by,
            began_in: floor.newest,
        };
        match ask.statement {
            Statement::Write { key, serial } => {
                let floor = self.oracle.floor(ask.database, key);
                let placed = match server.commit(key, serial).await {
                    Ok(placed) => placed,
                    Err(NoResult::Lost) => return Told::Unknown,
                    Err(NoResult::Refused) => return Told::Refused,
                };
                let Some(by) = self.leave(&mut pass).await else { return Told::Unknown };
                self.oracle.acknowledged(egress(key, by, floor), placed);
                Told::Done
            }
            Statement::Read { key } => {
                let floor = self.oracle.floor(ask.database, key);
                let Ok(value) = server.read(key) else { return Told::Refused };
                let Some(by) = self.leave(&mut pass).await else { return Told::Refused };
                self.oracle.returned(egress(key, by, floor), floor, value);
                Told::Done
            }
        }
    }

    /// The reign in which a gate is open now; while it is held, the last one in which it was: a session that was held
    /// may have begun in an earlier one.
    fn reign_of(&self, gate: &quorate_proxy::Gate, replica: ReplicaId, entered: Epoch) -> Epoch {
        match gate.report() {
            GateReport::Open(epoch) => epoch,
            GateReport::Closed | GateReport::Held => entered.max(self.oracle.opened_by(replica)),
        }
    }

    /// Waits until the result may leave, by a lease or by a confirmation, as the database's option says. None when the
    /// session was ended first.
    async fn leave(&self, pass: &mut Pass) -> Option<Reads> {
        // The session's only result.
        const RECEIVED: u64 = 1;
        loop {
            let by = pass.gate().reads();
            let leaves = match self.conditions.plant {
                Some(Plant::NoLease) => pass.may_enter(),
                _ => pass.leaves_until(RECEIVED) >= RECEIVED,
            };
            if leaves {
                return Some(by);
            }
            if matches!(pass.door(), quorate_proxy::Door::Ended { .. }) {
                return None;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// One client of one database, until the world ends or says to stop.
pub struct Client {
    pub peers: Arc<SimPeers>,
    pub conditions: Arc<Conditions>,
    pub oracle: Arc<Oracle>,
    pub database: DatabaseId,
    pub nodes: Vec<NodeId>,
    pub working: watch::Receiver<bool>,
}

impl Client {
    pub async fn run(self) {
        let mut dice = self.conditions.dice();
        loop {
            sleep(dice.millis(5, 60)).await;
            if !*self.working.borrow() {
                continue;
            }
            let key = dice.below(KEYS as u64) as usize;
            let statement = if dice.chance(600) {
                Statement::Write { key, serial: self.conditions.serial() }
            } else {
                Statement::Read { key }
            };
            let Some(&entry) = dice.pick(&self.nodes) else { return };
            let ask = Ask { database: self.database, statement, to_gate: None };
            let told = self.peers.call(entry, Service::Proxy, encode(&ask), CALL_DEADLINE).await;
            let told = told.ok().and_then(|body| decode::<Told>(&body).ok()).unwrap_or(Told::Unknown);
            let Statement::Write { serial, .. } = statement else { continue };
            let mistakes = self.conditions.plant == Some(Plant::MistakenRefusal);
            match told {
                Told::Done => {}
                Told::Unknown if !mistakes => self.oracle.unknown(),
                Told::Unknown | Told::Refused => self.oracle.refused(self.database, serial),
            }
        }
    }
}
