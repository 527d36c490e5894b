//! What a node sees of the network: calls, and the ring's datagrams.

use super::{Mailbox, Net, Parcel, TWICE_PERMILLE, locked};
use bytes::Bytes;
use quorate_model::NodeId;
use quorate_ring::Datagrams;
use quorate_transport::{CallError, Handler, PeerNetwork, Service};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, oneshot};

/// A node's door to the others.
pub struct SimPeers {
    pub(super) node: NodeId,
    pub(super) net: Arc<Net>,
}

impl SimPeers {
    pub fn net(&self) -> &Arc<Net> {
        &self.net
    }

    /// The node's socket for datagrams.
    pub fn datagrams(&self) -> Option<SimDatagrams> {
        let mailbox = locked(&self.net.0).ports.get(&self.node)?.mailbox.clone();
        Some(SimDatagrams { node: self.node, net: self.net.clone(), mailbox })
    }
}

#[async_trait::async_trait]
impl PeerNetwork for SimPeers {
    fn me(&self) -> NodeId {
        self.node
    }

    fn nodes(&self) -> Vec<NodeId> {
        locked(&self.net.0).members.clone()
    }

    async fn call(
        &self,
        to: NodeId,
        service: Service,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let answer = {
            let mut inner = locked(&self.net.0);
            inner.serial += 1;
            inner.traffic.calls += 1;
            let call = inner.serial;
            let (reply, answer) = oneshot::channel();
            inner.calls.insert(call, reply);
            let request = Parcel::Request { from: self.node, to, service, body, call };
            if to == self.node {
                let now = inner.now_ms;
                inner.post(now, request);
            } else {
                let control = matches!(service, Service::Raft | Service::Agent);
                if control && inner.dice.chance(TWICE_PERMILLE) {
                    inner.traffic.doubled += 1;
                    let later = inner.now_ms + 1 + inner.dice.below(300);
                    inner.post(later, request.clone());
                }
                inner.send(self.node, to, request);
            }
            answer
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(CallError::Unreachable("the connection broke".to_owned())),
            Err(_) => Err(CallError::Timeout(deadline)),
        }
    }

    fn register(&self, service: Service, handler: Arc<dyn Handler>) {
        if let Some(port) = locked(&self.net.0).ports.get_mut(&self.node) {
            port.handlers.insert(service, handler);
        }
    }

    fn on_lost(&self) -> broadcast::Receiver<NodeId> {
        let inner = locked(&self.net.0);
        match inner.ports.get(&self.node) {
            Some(port) => port.lost.subscribe(),
            // The node is dying.
            None => broadcast::channel(1).1,
        }
    }
}

/// A node's address for datagrams.
pub fn address(node: NodeId) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, node.0 as u8), 7432).into()
}

pub struct SimDatagrams {
    node: NodeId,
    net: Arc<Net>,
    mailbox: Arc<Mailbox>,
}

impl Datagrams for SimDatagrams {
    async fn readable(&self) {
        if locked(&self.mailbox.waiting).is_empty() {
            self.mailbox.arrived.notified().await;
        }
    }

    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let bytes = locked(&self.mailbox.waiting).pop_front()?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        Some(&buffer[..length])
    }

    fn send(&self, to: SocketAddr, bytes: &[u8]) {
        let SocketAddr::V4(to) = to else { return };
        let to = NodeId(u64::from(to.ip().octets()[3]));
        let link = (self.node, to);
        let mut inner = locked(&self.net.0);
        let loss = inner.weather.loss.get(&link).copied().unwrap_or(0);
        if inner.weather.cut.contains(&link) || inner.dice.chance(loss) {
            inner.traffic.lost += 1;
            return;
        }
        let copies = if inner.dice.chance(TWICE_PERMILLE) { 2 } else { 1 };
        for _ in 0..copies {
            let due = inner.now_ms + inner.latency(self.node, to, false);
            inner.post(due, Parcel::Datagram { from: self.node, to, bytes: bytes.to_vec() });
        }
        inner.traffic.doubled += copies - 1;
    }

    fn drain(&self) {
        locked(&self.mailbox.waiting).clear();
    }
}
