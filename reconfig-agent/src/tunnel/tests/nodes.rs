//! Two nodes with real certificates on loopback: the primary lives on one, the standby on the other.

use crate::tunnel::{Downstream, Route, Upstreams};
use quorate_model::{DatabaseId, Epoch, NodeId, ReplicaId};
use quorate_transport::authority::Authority;
use quorate_transport::{Identity, Peers, StreamKind};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

pub const DATABASE: DatabaseId = DatabaseId(7);
pub const PRIMARY: ReplicaId = ReplicaId(1);
pub const STANDBY: ReplicaId = ReplicaId(2);
pub const PRIMARY_NODE: NodeId = NodeId(1);
pub const STANDBY_NODE: NodeId = NodeId(2);
pub const LONG: Duration = Duration::from_secs(30);

pub fn reign(number: u64) -> Epoch {
    Epoch::new(0, number, 0)
}

pub fn route(number: u64) -> Route {
    Route { node: PRIMARY_NODE, primary: PRIMARY, epoch: reign(number) }
}

/// Waits until something is so.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LONG;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub struct Nodes {
    pub upstreams: Arc<Upstreams>,
    pub standby_peers: Arc<Peers>,
    _stop: DropGuard,
}

impl Nodes {
    pub async fn start(dir: &Path, upstreams: Arc<Upstreams>) -> Nodes {
        let authority = Authority::create(&dir.join("ca")).unwrap();
        let stop = CancellationToken::new();
        let (primary_peers, address) = peers(&authority, PRIMARY_NODE, dir, &stop).await;
        let (standby_peers, _) = peers(&authority, STANDBY_NODE, dir, &stop).await;
        standby_peers.set_address(PRIMARY_NODE, address);
        primary_peers.register_stream(StreamKind::Tunnel, upstreams.clone());
        Nodes { upstreams, standby_peers, _stop: stop.drop_guard() }
    }

    pub fn downstream(&self, tunnel_dir: &Path, owner: Option<(u32, u32)>) -> Downstream {
        self.downstream_of(STANDBY, tunnel_dir, owner)
    }

    /// Of another replica on the standby's node.
    pub fn downstream_of(
        &self,
        replica: ReplicaId,
        tunnel_dir: &Path,
        owner: Option<(u32, u32)>,
    ) -> Downstream {
        Downstream::start(DATABASE, replica, tunnel_dir, owner, self.standby_peers.clone()).unwrap()
    }

    pub fn admit(&self, number: u64, socket_dir: &Path, allowed: &[ReplicaId]) {
        let allowed: BTreeSet<ReplicaId> = allowed.iter().copied().collect();
        self.upstreams.admit(DATABASE, PRIMARY, reign(number), PathBuf::from(socket_dir), allowed);
    }
}

async fn peers(
    authority: &Authority,
    node: NodeId,
    dir: &Path,
    stop: &CancellationToken,
) -> (Arc<Peers>, String) {
    let own = dir.join(node.to_string());
    authority.issue(node, &own).unwrap();
    let peers = Peers::new(Identity::load(node, &own).unwrap(), BTreeMap::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(peers.clone().serve(listener, stop.clone()));
    (peers, address)
}
