//! Where new replicas go: as far apart as fault domains allow, then where there is least.

use crate::{Database, NodeId, PartitionMap};
use std::collections::{BTreeMap, BTreeSet};

/// Why no place was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} nodes in different fault domains are needed, {found} are usable")]
pub struct NoPlace {
    pub needed: usize,
    pub found: usize,
}

/// Replicas and primaries a node holds, by the map.
fn loads(map: &PartitionMap) -> BTreeMap<NodeId, (usize, usize)> {
    let mut loads: BTreeMap<NodeId, (usize, usize)> = map.nodes.keys().map(|n| (*n, (0, 0))).collect();
    for database in map.databases.values() {
        for (id, replica) in &database.replicas {
            let load = loads.entry(replica.node).or_default();
            load.0 += 1;
            load.1 += usize::from(*id == database.current.primary);
        }
    }
    loads
}

/// Chooses `copies` usable nodes in different fault domains for a new database, the primary's first: fewest
/// primaries for the primary, fewest replicas for the others; ties go to the lowest id.
pub fn place_database(
    map: &PartitionMap,
    usable: &BTreeSet<NodeId>,
    copies: usize,
) -> Result<Vec<NodeId>, NoPlace> {
    let loads = loads(map);
    let mut candidates: Vec<NodeId> = map.nodes.keys().copied().filter(|n| usable.contains(n)).collect();
    candidates.sort_by_key(|n| (loads[n].1, loads[n].0, *n));
    let mut chosen = Vec::new();
    let mut domains = BTreeSet::new();
    while chosen.len() < copies {
        let next = candidates
            .iter()
            .copied()
            .filter(|n| !chosen.contains(n) && !domains.contains(&map.nodes[n].fault_domain))
            .min_by_key(|n| {
                if chosen.is_empty() { (loads[n].1, loads[n].0, *n) } else { (loads[n].0, loads[n].1, *n) }
            });
        match next {
            Some(node) => {
                domains.insert(map.nodes[&node].fault_domain.clone());
                chosen.push(node);
            }
            None => return Err(NoPlace { needed: copies, found: chosen.len() }),
        }
    }
    Ok(chosen)
}

/// Chooses the node for one more replica of `database`: usable, without a replica of it, and in a fault domain
/// that none of the `kept` replicas' nodes is in.
pub fn place_replica(
    map: &PartitionMap,
    usable: &BTreeSet<NodeId>,
    database: &Database,
    kept: &BTreeSet<NodeId>,
) -> Option<NodeId> {
    let loads = loads(map);
    let domains: BTreeSet<&str> =
        kept.iter().filter_map(|n| map.nodes.get(n)).map(|n| n.fault_domain.as_str()).collect();
    map.nodes
        .values()
        .filter(|n| usable.contains(&n.id) && !domains.contains(n.fault_domain.as_str()))
        .filter(|n| database.replicas_on(n.id).next().is_none())
        .map(|n| n.id)
        .min_by_key(|n| (loads[n].0, loads[n].1, *n))
}
