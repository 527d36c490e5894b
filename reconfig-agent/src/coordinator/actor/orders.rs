//! The orders that the coordinator gives to nodes, and what it makes of their answers.

use super::Actor;
use crate::agent::{Request, Response};
use crate::coordinator::steps::Laps;
use crate::coordinator::{Event, Given, failpoint};
use crate::decide::{Failure, Order, OrderKind, Reply, What};
use quorate_model::{Database, DatabaseId, NodeId, Phase};
use quorate_transport::{PeerNetwork, Service, decode, encode};
use std::sync::Arc;
use std::time::Duration;

impl Actor {
    pub(super) fn order(&mut self, database: &Database, order: Order) {
        let Some(node) = database.node_of(order.replica) else { return };
        let kind = order.what.kind();
        if let Some(progress) = self.progress.get_mut(&database.id) {
            progress.in_flight.insert((kind, order.replica));
        }
        if kind == OrderKind::Open && matches!(database.phase, Phase::Promoting { .. }) {
            self.lap(database.id, "lease");
        }
        if kind == OrderKind::Retire {
            self.laps.insert(database.id, Laps::begin(0, self.now_us()));
        }
        tracing::debug!(database = %database.id, replica = %order.replica, %node, order = kind.name(), "ordering");
        failpoint::hit(database.phase.name(), "before", kind.name());
        let (peers, inbox) = (self.peers.clone(), self.inbox.clone());
        let id = database.id;
        let given = Given { kind, replica: order.replica, epoch: order.epoch, phase: database.phase.name() };
        tokio::spawn(async move {
            let outcome = give(&peers, node, order).await;
            let _ = inbox.send(Event::Obeyed { database: id, given, outcome }).await;
        });
    }

    pub(super) fn obeyed(&mut self, id: DatabaseId, given: Given, outcome: Result<Reply, Failure>, now: u64) {
        let Given { kind, replica, epoch, phase } = given;
        if let Err(failure) = &outcome {
            tracing::info!(database = %id, %replica, order = kind.name(), %failure, "an order failed");
        }
        let retry = self.timers.retry;
        let Some(progress) = self.progress.get_mut(&id).filter(|p| p.reign == epoch.reign()) else {
            return;
        };
        let ok = outcome.is_ok();
        if ok {
            failpoint::hit(phase, "after", kind.name());
        }
        progress.on_reply(kind, replica, epoch, outcome, now, retry);
        match kind {
            // In vain or not, it took this long.
            OrderKind::Retire => self.lap(id, "retire"),
            OrderKind::Promote if ok => self.lap(id, "promote"),
            OrderKind::Barrier if ok => self.lap(id, "barrier"),
            OrderKind::Open if ok => self.lap(id, "open"),
            _ => {}
        }
    }
}

/// How long the coordinator waits for an order to be obeyed.
fn deadline(what: &What) -> Duration {
    match what {
        What::Fence => Duration::from_millis(2_000),
        What::Open => Duration::from_secs(2),
        What::Attach { .. } => Duration::from_secs(5),
        What::Barrier { .. } => Duration::from_secs(6),
        What::Promote { .. } => Duration::from_secs(20),
        What::Checkpoint => Duration::from_secs(30),
        What::PrepareSource => Duration::from_secs(120),
        What::Retire { drain_ms } => Duration::from_millis(drain_ms + 20_000),
    }
}

async fn give(peers: &Arc<dyn PeerNetwork>, node: NodeId, order: Order) -> Result<Reply, Failure> {
    let deadline = deadline(&order.what);
    let body = encode(&Request::Order(order));
    let answer = peers
        .call(node, Service::Agent, body, deadline)
        .await
        .map_err(|e| Failure::Unreachable(e.to_string()))?;
    match decode::<Response>(&answer) {
        Ok(Response::Obeyed(outcome)) => outcome,
        Ok(_) => Err(Failure::Unreachable("an answer of another kind".to_owned())),
        Err(fault) => Err(Failure::Unreachable(fault.0)),
    }
}
