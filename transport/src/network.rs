//! What the control plane needs of the transport, as a trait: the daemon's is [`Peers`], a simulation has its own.

use crate::{CallError, Handler, Peers, Service};
use async_trait::async_trait;
use bytes::Bytes;
use quorate_model::NodeId;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast;

/// Calls between nodes, with the promises of [`Peers`]: a call ends within its deadline; after `Unreachable` and
/// `Timeout` it may or may not have been carried out, then or later. Raw streams are not among them: those who move
/// bytes use [`Peers`] itself, without a table of functions in between.
#[async_trait]
pub trait PeerNetwork: Send + Sync + 'static {
    fn me(&self) -> NodeId;
    /// Every node whose address is known.
    fn nodes(&self) -> Vec<NodeId>;
    /// Asks a node, this one included.
    async fn call(
        &self,
        to: NodeId,
        service: Service,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError>;
    /// From now on `handler` answers the calls of `service`.
    fn register(&self, service: Service, handler: Arc<dyn Handler>);
    /// Tells of nodes whose connection broke: a hint.
    fn on_lost(&self) -> broadcast::Receiver<NodeId>;
}

#[async_trait]
impl PeerNetwork for Peers {
    fn me(&self) -> NodeId {
        Peers::me(self)
    }

    fn nodes(&self) -> Vec<NodeId> {
        Peers::nodes(self)
    }

    async fn call(
        &self,
        to: NodeId,
        service: Service,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        Peers::call(self, to, service, body, deadline).await
    }

    fn register(&self, service: Service, handler: Arc<dyn Handler>) {
        Peers::register(self, service, handler);
    }

    fn on_lost(&self) -> broadcast::Receiver<NodeId> {
        Peers::on_lost(self)
    }
}
