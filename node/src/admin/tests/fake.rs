//! A cluster of four nodes that exists only as a map.

use crate::admin::auth::tests::ADMIN;
use crate::admin::context::{PoolView, ProposeError, RingRow};
use crate::admin::{AdminContext, AdminServer, Operator};
use quorate_model::*;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub struct FakeCluster {
    map: watch::Sender<Arc<PartitionMap>>,
    pub usable: Mutex<BTreeSet<NodeId>>,
    pub leaderless: Mutex<bool>,
    pub reports: Mutex<Vec<ReplicaReport>>,
    pub suspected: Mutex<Vec<NodeId>>,
    /// So many commands find that the coordinator has changed the record of `app` just before them.
    pub overtaken: Mutex<u32>,
}

impl FakeCluster {
    pub fn new() -> Arc<Self> {
        let mut map = PartitionMap::default();
        for i in 1..=4u64 {
            let port = |base: u64| format!("127.0.0.1:{}", base + i);
            let record = NodeRecord {
                id: NodeId(i),
                name: format!("n{i}"),
                fault_domain: format!("fd{i}"),
                update_domain: format!("ud{i}"),
                region: "local".to_owned(),
                peer: port(6631),
                client: port(6431),
                admin: port(6531),
                http: port(6731),
                version: "0.1.0".to_owned(),
            };
            map.apply(Command::RegisterNode(record)).unwrap();
        }
        Arc::new(FakeCluster {
            map: watch::channel(Arc::new(map)).0,
            usable: Mutex::new((1..=4).map(NodeId).collect()),
            leaderless: Mutex::new(false),
            reports: Mutex::new(Vec::new()),
            suspected: Mutex::new(Vec::new()),
            overtaken: Mutex::new(0),
        })
    }

    pub fn apply(&self, command: Command) -> Result<Applied, Refusal> {
        let mut map = (**self.map.borrow()).clone();
        let applied = map.apply(command)?;
        self.map.send_replace(Arc::new(map));
        Ok(applied)
    }

    /// What was lost is given up by an operator's word, which the coordinator carries out at once.
    pub fn recover(&self, coordinator: NodeId, survivor: ReplicaId, quarantined: BTreeSet<ReplicaId>) {
        let database = self.map.borrow().databases_called("app").next().unwrap().id;
        let order = Command::BeginForceRecover { database, candidate: None, now_ms: 0 };
        let Ok(Applied::Operation { id: operation, .. }) = self.apply(order) else { panic!("refused") };
        self.apply(Command::Claim { operation, attempt: 0, owner: coordinator, now_ms: 0 }).unwrap();
        let version = self.map.borrow().databases[&database].version;
        let change = Change::Recover { coordinator, survivor, quarantined };
        let (attempt, step) = (1, Step::Recovering { survivor });
        let advance =
            Command::Advance { operation, attempt, step, change: Some((version, change)), now_ms: 0 };
        self.apply(advance).unwrap();
        let state = OperationState::Done;
        self.apply(Command::EndOperation { operation, attempt, state, now_ms: 0 }).unwrap();
    }

    /// A change of the record of `app` by the coordinator.
    pub fn change(&self, change: Change) {
        let map = self.map.borrow().clone();
        let database = map.databases_called("app").next().unwrap();
        let (database, version) = (database.id, database.version);
        self.apply(Command::Reconfigure { database, version, change }).unwrap();
    }

    /// Brings a database that was just created into phase Stable and ends its operation.
    pub fn settle(&self, name: &str) {
        let map = self.map.borrow().clone();
        let database = map.databases_called(name).next().unwrap();
        let change = Change::Stabilize { lineage: None };
        self.apply(Command::Reconfigure { database: database.id, version: database.version, change })
            .unwrap();
        if let Some(operation) = database.operation {
            let state = OperationState::Done;
            self.apply(Command::EndOperation { operation, attempt: 0, state, now_ms: 5_000 }).unwrap();
        }
    }

    /// Serves it on a free port.
    pub async fn serve(self: &Arc<Self>, stop: CancellationToken) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let operator = Operator { user: "admin".to_owned(), verifier: ADMIN.parse().unwrap() };
        let server = AdminServer::new(self.clone(), operator, None);
        tokio::spawn(server.serve(listener, stop));
        address
    }
}

#[async_trait::async_trait]
impl AdminContext for FakeCluster {
    fn node(&self) -> NodeId {
        NodeId(2)
    }

    fn map(&self) -> Arc<PartitionMap> {
        self.map.borrow().clone()
    }

    fn map_watch(&self) -> watch::Receiver<Arc<PartitionMap>> {
        self.map.subscribe()
    }

    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        if *self.leaderless.lock().unwrap() {
            return Err(ProposeError::NoLeader);
        }
        let overtaken = {
            let mut left = self.overtaken.lock().unwrap();
            let was = *left;
            *left = was.saturating_sub(1);
            was
        };
        if overtaken > 0 {
            self.change(Change::Elect { coordinator: NodeId(u64::from(overtaken)) });
        }
        Ok(self.apply(command)?)
    }

    async fn read_barrier(&self) -> Result<(), ProposeError> {
        if *self.leaderless.lock().unwrap() { Err(ProposeError::NoLeader) } else { Ok(()) }
    }

    async fn reports(&self) -> Vec<ReplicaReport> {
        self.reports.lock().unwrap().clone()
    }

    async fn answering(&self) -> usize {
        self.usable.lock().unwrap().len()
    }

    fn ring(&self) -> Vec<RingRow> {
        let usable = self.usable.lock().unwrap();
        (0..4u64)
            .map(|i| RingRow {
                position: i as usize,
                node: NodeId(i + 1),
                predecessor: NodeId((i + 3) % 4 + 1),
                successor: NodeId((i + 1) % 4 + 1),
                state: if usable.contains(&NodeId(i + 1)) { "alive" } else { "suspect" }.to_owned(),
                last_heartbeat_ms: (i != 1).then_some(12),
                reported_by: (!usable.contains(&NodeId(i + 1))).then_some(NodeId(2)),
            })
            .collect()
    }

    fn pools(&self) -> Vec<PoolView> {
        let pinned =
            vec!["LISTEN \"news\"".to_owned(), "the cursor \"c\"".to_owned(), "LISTEN \"news\"".to_owned()];
        let ids = self.map().databases.keys().copied().collect::<Vec<_>>();
        let view = |database| PoolView {
            database,
            size: 20,
            used: 5,
            idle: 2,
            waiting: 1,
            longest_ms: 7,
            pinned: pinned.clone(),
        };
        ids.into_iter().map(view).collect()
    }

    fn usable_nodes(&self) -> BTreeSet<NodeId> {
        self.usable.lock().unwrap().clone()
    }

    fn raft_role(&self, node: NodeId) -> String {
        if node == NodeId(1) { "leader" } else { "follower" }.to_owned()
    }

    async fn suspect(&self, node: NodeId) -> Result<(), ProposeError> {
        self.suspected.lock().unwrap().push(node);
        Ok(())
    }

    fn failpoint(&self, _name: &str, _action: &str) -> Result<(), String> {
        Err("this node was not started with FAILPOINTS in its environment".to_owned())
    }

    fn failpoints_passed(&self) -> Vec<String> {
        Vec::new()
    }

    fn scram_verifier(&self, password: &str) -> String {
        format!("verifier of {} characters", password.len())
    }

    fn now_ms(&self) -> u64 {
        1_000
    }
}

/// A healthy report of the primary of the database of that name, its gate open.
pub fn primary_report(map: &PartitionMap, name: &str) -> ReplicaReport {
    let database = map.databases_called(name).next().unwrap();
    let replica = database.current.primary;
    ReplicaReport {
        replica,
        database: database.id,
        node: database.node_of(replica).unwrap(),
        run: RunState::Running,
        role: InstanceRole::Primary,
        promise: database.epoch,
        position: None,
        timeline: Timeline(1),
        streaming: None,
        flush_lsn: Lsn(0x300_0060),
        lag_bytes: 0,
        gate: GateReport::Open(database.epoch.reign()),
        pid: Some(4711),
        data_directory: "/data/r1".to_owned(),
        socket: "/run/r1".to_owned(),
        sessions: 3,
        size_bytes: 7_000_000,
    }
}
