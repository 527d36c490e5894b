//! Raft's requests to other nodes, over the transport.

use crate::types::Types;
use crate::wire::{AppendReply, RaftRequest, SnapshotReply, VoteReply};
use openraft::EmptyNode;
use openraft::error::{
    Infallible, InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest};
use quorate_model::NodeId;
use quorate_transport::{CallError, PeerNetwork, Service, decode, encode};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// Pauses between requests to a node that cannot be reached: short, because a follower that came back must
/// hear of its leader before it asks for an election.
const BACKOFF_MS: [u64; 4] = [20, 40, 80, 100];

pub(crate) struct Network(pub(crate) Arc<dyn PeerNetwork>);

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Link {
        Link { peers: self.0.clone(), target }
    }
}

/// The way to one node.
pub(crate) struct Link {
    peers: Arc<dyn PeerNetwork>,
    target: u64,
}

type Failure<E = Infallible> = RPCError<u64, EmptyNode, RaftError<u64, E>>;

impl Link {
    async fn ask<T, E>(
        &self,
        request: &RaftRequest,
        action: RPCTypes,
        deadline: Duration,
    ) -> Result<T, Failure<E>>
    where
        T: DeserializeOwned,
        E: std::error::Error,
    {
        let answer = self.peers.call(NodeId(self.target), Service::Raft, encode(request), deadline).await;
        match answer {
            Ok(body) => decode(&body).map_err(|fault| RPCError::Network(NetworkError::new(&fault))),
            Err(CallError::Timeout(timeout)) => Err(RPCError::Timeout(Timeout {
                action,
                id: self.peers.me().0,
                target: self.target,
                timeout,
            })),
            Err(error @ CallError::Unreachable(_)) => Err(RPCError::Unreachable(Unreachable::new(&error))),
            // It is there and does not take it now: it is starting, or it has stopped its part.
            Err(error) => Err(RPCError::Unreachable(Unreachable::new(&error))),
        }
    }
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendReply, Failure> {
        self.ask(&RaftRequest::Append(rpc), RPCTypes::AppendEntries, option.hard_ttl()).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failure<InstallSnapshotError>> {
        let request = RaftRequest::Snapshot(rpc);
        let reply: SnapshotReply = self.ask(&request, RPCTypes::InstallSnapshot, option.hard_ttl()).await?;
        reply.map_err(|error| RemoteError::new(self.target, RaftError::APIError(error)).into())
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, option: RPCOption) -> Result<VoteReply, Failure> {
        self.ask(&RaftRequest::Vote(rpc), RPCTypes::Vote, option.hard_ttl()).await
    }

    fn backoff(&self) -> Backoff {
        let last = BACKOFF_MS[BACKOFF_MS.len() - 1];
        Backoff::new(BACKOFF_MS.into_iter().chain(std::iter::repeat(last)).map(Duration::from_millis))
    }
}
