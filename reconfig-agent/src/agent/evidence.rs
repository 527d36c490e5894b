//! What the agent of a primary can say without a clock: whether its reign was still obeyed, and what is on a quorum.
//!
//! Both are asked for by the primary's gate before a result leaves. `k` voters of every configuration in force are
//! enough, as for a lease: a fence set that covers without the primary holds one of any `k` voters, so it was not
//! complete while they still obeyed; and what `k` voters have flushed every such set has.

use super::Agent;
use super::message::{Request, Response};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use quorate_model::{DatabaseId, Epoch, Lsn, NodeId, ReplicaId};
use quorate_transport::{Service, decode, encode};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Longest wait for a voter's word.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(1);

impl Agent {
    /// Whether enough voters said, after this was called, that they had not promised a newer reign than that of `epoch`.
    pub async fn confirm(&self, database: DatabaseId, epoch: Epoch) -> bool {
        let epoch = epoch.reign();
        if self.reached_by_quorum(database, epoch, |_| None).is_some() {
            return true;
        }
        let mut asked: FuturesUnordered<_> = self
            .voters(database, epoch)
            .into_iter()
            .map(|(voter, node)| async move { (voter, self.ask_to_confirm(voter, node, epoch).await) })
            .collect();
        let mut obeying = BTreeSet::new();
        while let Some((voter, obeys)) = asked.next().await {
            if obeys {
                obeying.insert(voter);
            }
            let said = |r| obeying.contains(&r).then_some(1);
            if self.reached_by_quorum(database, epoch, said).is_some() {
                return true;
            }
        }
        false
    }

    async fn ask_to_confirm(&self, voter: ReplicaId, node: NodeId, epoch: Epoch) -> bool {
        let body = encode(&Request::Confirm { voter, epoch });
        match self.0.peers.call(node, Service::Agent, body, CONFIRM_DEADLINE).await {
            Ok(answer) => matches!(decode(&answer), Ok(Response::Confirmed(true))),
            Err(error) => {
                tracing::debug!(replica = %voter, %node, %error, "a voter did not confirm");
                false
            }
        }
    }

    /// A voter's answer. That very replica is asked: another one of its database may have promised something else.
    pub(super) fn confirms(&self, voter: ReplicaId, epoch: Epoch) -> bool {
        self.replica(voter).is_some_and(|replica| {
            let state = replica.state();
            state.remembers() && state.supports(epoch)
        })
    }

    /// Waits until a quorum has acknowledged the log up to `lsn` in the reign of `epoch`; false when `limit` is over or
    /// the reign has ended.
    pub async fn on_quorum(&self, database: DatabaseId, epoch: Epoch, lsn: Lsn, limit: Duration) -> bool {
        let epoch = epoch.reign();
        let until = Instant::now() + limit;
        let is_there = || {
            let flushes = self.0.upstreams.flushes(database);
            let flushed = |r| flushes.get(&r).map(|lsn| lsn.0);
            self.reached_by_quorum(database, epoch, flushed) >= Some(lsn.0)
        };
        if is_there() {
            return true;
        }
        let mut waiting: FuturesUnordered<_> = self
            .voters(database, epoch)
            .into_keys()
            .map(|voter| self.0.upstreams.flushed(database, voter, lsn, limit))
            .collect();
        while let Ok(Some(_)) = tokio::time::timeout_at(until, waiting.next()).await {
            if is_there() {
                return true;
            }
        }
        is_there()
    }

    /// Who counts for the primary here in that reign, and where it is.
    fn voters(&self, database: DatabaseId, epoch: Epoch) -> BTreeMap<ReplicaId, NodeId> {
        let map = self.map();
        let Some(record) = map.databases.get(&database).filter(|_| self.leads(database, epoch)) else {
            return BTreeMap::new();
        };
        let voters = record.configurations().flat_map(|c| c.voters.iter());
        voters.filter_map(|voter| Some((*voter, record.node_of(*voter)?))).collect()
    }

    /// The highest value that a quorum of every configuration in force has reached; none when this node does not lead.
    /// A lone primary needs nobody: no other can be elected before it has answered a fence.
    fn reached_by_quorum(
        &self,
        database: DatabaseId,
        epoch: Epoch,
        value: impl Fn(ReplicaId) -> Option<u64>,
    ) -> Option<u64> {
        let map = self.map();
        let record = map.databases.get(&database)?;
        let replica = self.replica_of(database)?;
        let me = replica.id;
        if !replica.state().is_settled_by(record.epoch) {
            return None;
        }
        let configurations = record.configurations().filter(|c| c.primary == me);
        configurations
            .map(|c| if c.is_lone() { Some(u64::MAX) } else { c.reached_by_quorum(&value) })
            .min()
            .flatten()
            .filter(|_| self.leads(database, epoch))
    }

    fn leads(&self, database: DatabaseId, epoch: Epoch) -> bool {
        self.replica_of(database).is_some_and(|replica| replica.state().leads(replica.id, epoch).is_ok())
    }
}
