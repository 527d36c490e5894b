//! Who stands next to whom: nodes in id order, closed to a ring.
//!
//! A node is watched by the first node on either side of it that nobody suspects. Suspects in between are
//! skipped, so that a gap of dead nodes is bridged, but they stay among those that are asked, so that the first
//! sign of life of any of them is seen at once.

use quorate_model::NodeId;
use std::collections::BTreeSet;

/// What one node sees when it looks around.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbours {
    /// The nearest live node before this one; the node itself when there is no other.
    pub predecessor: NodeId,
    /// The nearest live node after this one; the node itself when there is no other.
    pub successor: NodeId,
    /// Suspects passed over on the way to either.
    pub skipped: BTreeSet<NodeId>,
}

impl Neighbours {
    /// Everybody whom this node sends heartbeats to and listens for.
    pub fn targets(&self, me: NodeId) -> BTreeSet<NodeId> {
        let mut targets = self.skipped.clone();
        targets.extend([self.predecessor, self.successor]);
        targets.remove(&me);
        targets
    }
}

/// The neighbours of `me` among `nodes`, where `is_suspect` says who is to be passed over.
pub fn neighbours(me: NodeId, nodes: &BTreeSet<NodeId>, is_suspect: impl Fn(NodeId) -> bool) -> Neighbours {
    let mut skipped = BTreeSet::new();
    let after = nodes.range(me..).chain(nodes.range(..me)).copied().filter(|n| *n != me);
    let before = nodes.range(..me).rev().chain(nodes.range(me..).rev()).copied().filter(|n| *n != me);
    let mut nearest = |nodes: &mut dyn Iterator<Item = NodeId>| {
        for node in nodes {
            if !is_suspect(node) {
                return node;
            }
            skipped.insert(node);
        }
        me
    };
    let successor = nearest(&mut after.into_iter());
    let predecessor = nearest(&mut before.into_iter());
    Neighbours { predecessor, successor, skipped }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn check(nodes: &[u64], suspects: &[u64], me: u64, before: u64, after: u64, targets: &[u64]) {
        let suspects = set(suspects);
        let found = neighbours(NodeId(me), &set(nodes), |n| suspects.contains(&n));
        assert_eq!((found.predecessor.0, found.successor.0), (before, after), "{found:?}");
        assert_eq!(found.targets(NodeId(me)), set(targets));
    }

    #[test]
    fn rings_of_one_to_five() {
        check(&[1], &[], 1, 1, 1, &[]);
        check(&[1, 2], &[], 1, 2, 2, &[2]);
        check(&[1, 2, 3], &[], 1, 3, 2, &[2, 3]);
        check(&[1, 2, 3, 4], &[], 1, 4, 2, &[2, 4]);
        check(&[1, 2, 3, 4], &[], 4, 3, 1, &[1, 3]);
        check(&[10, 20, 30, 40, 50], &[], 30, 20, 40, &[20, 40]);
    }

    #[test]
    fn suspects_are_skipped_but_still_asked() {
        check(&[1, 2, 3, 4, 5], &[3], 2, 1, 4, &[1, 3, 4]);
        check(&[1, 2, 3, 4, 5], &[3, 4], 2, 1, 5, &[1, 3, 4, 5]);
        check(&[1, 2, 3, 4, 5], &[1, 3], 2, 5, 4, &[1, 3, 4, 5]);
        check(&[1, 2], &[2], 1, 1, 1, &[2]);
        check(&[1, 2, 3], &[2, 3], 1, 1, 1, &[2, 3]);
        check(&[1, 2, 3], &[2], 1, 3, 3, &[2, 3]);
    }

    /// Without suspects everybody is watched by exactly those whom it watches.
    #[test]
    fn watching_is_mutual() {
        for size in 2..=7 {
            let nodes: BTreeSet<NodeId> = (1..=size).map(NodeId).collect();
            for &me in &nodes {
                for other in neighbours(me, &nodes, |_| false).targets(me) {
                    let back = neighbours(other, &nodes, |_| false).targets(other);
                    assert!(back.contains(&me), "{me} watches {other} of {size}");
                }
            }
        }
    }
}
