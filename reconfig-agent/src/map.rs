//! The partition map as the agents see it.

use quorate_model::{Applied, Command, PartitionMap, Refusal};
use std::sync::Arc;
use tokio::sync::watch;

#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// The map's rules refuse it; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No leader could be reached in time; the command may or may not take effect later.
    #[error("the partition map cannot be changed now: {0}")]
    Unavailable(String),
}

/// What the agents need of the replicated map.
#[async_trait::async_trait]
pub trait Map: Send + Sync + 'static {
    /// The state applied on this node, which may lag behind.
    fn watch(&self) -> watch::Receiver<Arc<PartitionMap>>;
    /// Proposes a change and waits until it is applied.
    async fn propose(&self, command: Command) -> Result<Applied, ProposeError>;
}

/// Who leads the map, as this node knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leader {
    pub node: Option<quorate_model::NodeId>,
    /// True while this node leads and has applied everything of earlier terms.
    pub is_me: bool,
}
