//! Which nodes are down: what the ring suspects and the coordinator cannot reach either.

use super::Event;
use crate::agent::{Request, Response};
use crate::decide::NodeDown;
use quorate_model::NodeId;
use quorate_transport::{PeerNetwork, Service, decode, encode};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A suspect that answers a call in this time is not down.
const CHECK_DEADLINE: Duration = Duration::from_millis(120);

#[derive(Default)]
pub struct Nodes {
    pub down: BTreeMap<NodeId, NodeDown>,
    checking: BTreeSet<NodeId>,
}

impl Nodes {
    /// Asks a suspect directly, once at a time.
    pub fn check(
        &mut self,
        node: NodeId,
        reporter: NodeId,
        silent_ms: u64,
        peers: &Arc<dyn PeerNetwork>,
        inbox: &mpsc::Sender<Event>,
    ) {
        if !self.checking.insert(node) {
            return;
        }
        let (peers, inbox) = (peers.clone(), inbox.clone());
        tokio::spawn(async move {
            let answer = peers.call(node, Service::Agent, encode(&Request::Ping), CHECK_DEADLINE).await;
            let answered = answer.is_ok_and(|a| decode::<Response>(&a).is_ok());
            // The actor's end is the only reason for a failure here.
            let _ = inbox.send(Event::Checked { node, reporter, silent_ms, answered }).await;
        });
    }

    pub fn checked(&mut self, node: NodeId, reporter: NodeId, silent_ms: u64, answered: bool, now_ms: u64) {
        self.checking.remove(&node);
        if answered {
            if self.down.remove(&node).is_some() {
                tracing::info!(%node, "the node answers again");
            }
            return;
        }
        self.down.entry(node).or_insert_with(|| {
            tracing::warn!(%node, %reporter, silent_ms, "the node is down");
            NodeDown { since_ms: now_ms, reported_by: reporter, silent_ms }
        });
    }

    pub fn heard(&mut self, node: NodeId) {
        if self.down.remove(&node).is_some() {
            tracing::info!(%node, "the node is back");
        }
    }
}
