//! What the ring tells the rest of the daemon.

use quorate_model::NodeId;

/// A change in what is believed of a node. Never about the node itself that hears it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingEvent {
    /// `reporter` has not heard `node` for `silent_ms`. Told once for every reporter.
    Suspect { node: NodeId, reporter: NodeId, silent_ms: u64 },
    /// Nobody suspects `node` any more.
    Alive { node: NodeId },
}

/// One node's place in the ring, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingMember {
    /// Counted from 1, in the order of the ids.
    pub position: usize,
    pub node: NodeId,
    /// The nearest node before it that nobody suspects; itself when there is none.
    pub predecessor: NodeId,
    /// The nearest node after it that nobody suspects; itself when there is none.
    pub successor: NodeId,
    /// `alive`, `suspect`, or `down`: suspect for long, or never seen.
    pub state: &'static str,
    /// Since this node heard anything of it. Nodes that are no neighbours are heard seldom.
    pub last_heartbeat_ms: Option<u64>,
    /// Who was the first to suspect it.
    pub reported_by: Option<NodeId>,
}
