//! An agent with one replica, whose instance does nothing and waits where it is told to.

use crate::agent::gate::{BootTime, GateControl};
use crate::agent::host::*;
use crate::agent::keeper::Next;
use crate::agent::replica::Replica;
use crate::agent::{Agent, Inner};
use crate::decide::{Behalf, Failure, Order, Reply, What};
use crate::instance::{Bootstrap, InstanceError, Process, Progress, Promoted, StopMode};
use crate::map::Leader;
use crate::tunnel::{DownstreamStatus, Route};
use quorate_model::*;
use quorate_transport::{CallError, Handler, PeerNetwork, Service};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;

pub const ME: ReplicaId = ReplicaId(1);
pub const OTHER: ReplicaId = ReplicaId(2);
const DATABASE: DatabaseId = DatabaseId(7);

pub fn epoch(primary: u64) -> Epoch {
    Epoch::new(0, primary, 0)
}

pub fn node_of(replica: ReplicaId) -> NodeId {
    NodeId(replica.0)
}

/// [`OTHER`] left the log of reign 1 at 500.
pub fn history() -> Vec<Lineage> {
    let entry = |reign, timeline, start| Lineage {
        epoch: epoch(reign),
        timeline: Timeline(timeline),
        start_lsn: Lsn(start),
        uuid: uuid::Uuid::nil(),
    };
    vec![entry(1, 1, 0), entry(2, 2, 500)]
}

pub fn promotion() -> What {
    What::Promote { sync_names: "ANY 1 (r2)".to_owned(), allowed: [OTHER].into(), uuid: uuid::Uuid::nil() }
}

/// Everybody else gets as far as where he waits: they share this thread.
pub async fn pass_on() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// A point at which the instance waits until it is let go.
#[derive(Clone, Default)]
pub struct Held(Arc<(Notify, Notify)>);

impl Held {
    async fn pass(&self) {
        self.0.0.notify_one();
        self.0.1.notified().await;
    }

    pub async fn reached(&self) {
        self.0.0.notified().await;
    }

    pub fn release(&self) {
        self.0.1.notify_one();
    }
}

pub struct Still {
    process: watch::Sender<Process>,
    stops: AtomicUsize,
    position: Mutex<Option<(Held, Position)>>,
    complaints: Mutex<Option<Held>>,
    seeds: Mutex<Option<Held>>,
    torn: AtomicBool,
    taken_off: AtomicUsize,
}

impl Still {
    pub fn set(&self, process: Process) {
        self.process.send_replace(process);
    }

    pub fn stops(&self) -> usize {
        self.stops.load(Ordering::SeqCst)
    }

    /// Its log ends inside a record, in another segment than the one in which that begins.
    pub fn tear(&self, torn: bool) {
        self.torn.store(torn, Ordering::SeqCst);
    }

    /// How often a torn record was taken off.
    pub fn taken_off(&self) -> usize {
        self.taken_off.load(Ordering::SeqCst)
    }

    /// The next question for the end of the log waits, and is then answered like this.
    pub fn hold_position(&self, answer: Position) -> Held {
        let held = Held::default();
        *self.position.lock().unwrap() = Some((held.clone(), answer));
        held
    }

    /// Its data is gone; making it anew waits.
    pub fn hold_seed(&self) -> Held {
        self.set(Process::Down);
        let held = Held::default();
        *self.seeds.lock().unwrap() = Some(held.clone());
        held
    }

    /// The next look at the log of the server waits, and then finds that it asks in vain.
    pub fn hold_complaints(&self) -> Held {
        let held = Held::default();
        *self.complaints.lock().unwrap() = Some(held.clone());
        held
    }
}

#[async_trait::async_trait]
impl ReplicaInstance for Still {
    fn process(&self) -> watch::Receiver<Process> {
        self.process.subscribe()
    }

    fn is_complete(&self) -> bool {
        self.seeds.lock().unwrap().is_none()
    }

    fn data_directory(&self) -> PathBuf {
        PathBuf::new()
    }

    fn sockets(&self) -> &Path {
        Path::new("")
    }

    async fn bootstrap(&self, _: &Bootstrap) -> Result<(), InstanceError> {
        Ok(())
    }

    async fn seed(&self) -> Result<(), InstanceError> {
        let held = self.seeds.lock().unwrap().clone();
        if let Some(held) = held {
            held.pass().await;
            *self.seeds.lock().unwrap() = None;
        }
        Ok(())
    }

    async fn start(&self) -> Result<(), InstanceError> {
        self.set(Process::Running { pid: 1 });
        Ok(())
    }

    async fn stop(&self, _: StopMode, _: Duration) -> Result<(), InstanceError> {
        self.stops.fetch_add(1, Ordering::SeqCst);
        self.set(Process::Down);
        Ok(())
    }

    async fn destroy(&self) -> Result<(), InstanceError> {
        Ok(())
    }

    async fn position(&self) -> Result<Position, InstanceError> {
        let held = self.position.lock().unwrap().take();
        let Some((held, answer)) = held else {
            return Ok(Position { epoch: epoch(1), lsn: Lsn(400), timeline: Timeline(1) });
        };
        held.pass().await;
        Ok(answer)
    }

    async fn progress(&self) -> Result<Progress, InstanceError> {
        Err(InstanceError::NotRunning)
    }

    async fn promote(&self) -> Result<Promoted, InstanceError> {
        if !matches!(*self.process.borrow(), Process::Running { .. }) {
            return Err(InstanceError::NotRunning);
        }
        Ok(Promoted { timeline: Timeline(3), history: Vec::new(), rows: Vec::new(), lsn: Lsn(900) })
    }

    async fn set_sync_names(&self, _: &str) -> Result<(), InstanceError> {
        Ok(())
    }

    async fn ensure_slots(&self, _: &BTreeSet<String>) -> Result<bool, InstanceError> {
        Ok(true)
    }

    async fn write_epoch(&self, _: Epoch, _: uuid::Uuid, _: Duration) -> Result<Lsn, InstanceError> {
        Ok(Lsn(901))
    }

    async fn write_epoch_alone(&self, _: Epoch, _: uuid::Uuid, _: Duration) -> Result<Lsn, InstanceError> {
        Ok(Lsn(901))
    }

    async fn checkpoint(&self) -> Result<(), InstanceError> {
        Ok(())
    }

    async fn is_log_gone(&self) -> bool {
        let held = self.complaints.lock().unwrap().take();
        match held {
            Some(held) => {
                held.pass().await;
                true
            }
            None => false,
        }
    }

    async fn rewind(&self) -> Result<(), InstanceError> {
        Ok(())
    }

    /// Its primary does not have the log that it needs to answer.
    async fn finish_rewind(&self) -> Result<(), InstanceError> {
        std::future::pending().await
    }

    async fn is_torn(&self, _: Lsn) -> Result<bool, InstanceError> {
        Ok(self.torn.load(Ordering::SeqCst))
    }

    async fn take_torn_off(&self, _: Lsn) -> Result<(), InstanceError> {
        self.tear(false);
        self.taken_off.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Both ends of the tunnel: nothing passes.
#[derive(Default)]
pub struct Tunnel {
    attached: AtomicUsize,
    route: Mutex<Option<Route>>,
    streaming: watch::Sender<Option<Epoch>>,
}

impl Tunnel {
    pub fn attached(&self) -> usize {
        self.attached.load(Ordering::SeqCst)
    }
}

#[async_trait::async_trait]
impl StandbyTunnel for Tunnel {
    fn attach(&self, route: Route) {
        self.attached.fetch_add(1, Ordering::SeqCst);
        *self.route.lock().unwrap() = Some(route);
    }

    fn attach_rewind(&self, route: Route) {
        self.attach(route);
    }

    async fn cut(&self) {
        *self.route.lock().unwrap() = None;
    }

    async fn cut_older(&self, epoch: Epoch) {
        self.route.lock().unwrap().take_if(|route| route.epoch < epoch.reign());
    }

    fn status(&self) -> DownstreamStatus {
        DownstreamStatus {
            route: self.route.lock().unwrap().clone(),
            streaming: None,
            acknowledged: Lsn(0),
            upstream_end: Lsn(0),
            last_heard: None,
            held: 0,
        }
    }

    fn watch(&self) -> watch::Receiver<Option<Epoch>> {
        self.streaming.subscribe()
    }

    async fn stop(&self) {}
}

#[async_trait::async_trait]
impl PrimaryTunnels for Tunnel {
    fn admit(&self, _: DatabaseId, _: ReplicaId, _: Epoch, _: PathBuf, _: BTreeSet<ReplicaId>) {}

    async fn cut_all(&self, _: DatabaseId) {}
}

struct Nothing;

impl PromiseStore for Nothing {
    fn write(&self, _: Epoch) -> std::io::Result<()> {
        Ok(())
    }
}

impl Host for Nothing {
    fn assemble(&self, _: DatabaseId, _: ReplicaId) -> Result<Parts, Failed> {
        Err("there is one replica only".into())
    }

    fn found(&self) -> Vec<ReplicaId> {
        Vec::new()
    }

    fn upstreams(&self) -> Arc<dyn PrimaryTunnels> {
        Arc::new(Tunnel::default())
    }
}

#[async_trait::async_trait]
impl GateControl for Nothing {
    fn open(&self, _: DatabaseId, _: Epoch, _: &Path) {}
    fn hold(&self, _: DatabaseId) {}
    fn close(&self, _: DatabaseId, _: &str) {}
    async fn park(&self, _: DatabaseId, _: Duration) -> (u32, u32) {
        (0, 0)
    }
    fn set_lease(&self, _: DatabaseId, _: BootTime) {}
    fn drop_lease(&self, _: DatabaseId) {}
    fn set_rules(&self, _: DatabaseId, _: Reads, _: Commits) {}
    fn remove(&self, _: DatabaseId) {}
    fn report(&self, _: DatabaseId) -> (GateReport, u32) {
        (GateReport::Closed, 0)
    }
    fn renew_leases(&self) {}
}

#[async_trait::async_trait]
impl PeerNetwork for Nothing {
    fn me(&self) -> NodeId {
        node_of(ME)
    }
    fn nodes(&self) -> Vec<NodeId> {
        Vec::new()
    }
    async fn call(
        &self,
        _: NodeId,
        _: Service,
        _: bytes::Bytes,
        _: Duration,
    ) -> Result<bytes::Bytes, CallError> {
        std::future::pending().await
    }
    fn register(&self, _: Service, _: Arc<dyn Handler>) {}
    fn on_lost(&self) -> broadcast::Receiver<NodeId> {
        broadcast::channel(1).1
    }
}

/// The map is of reign 2, whose primary is [`OTHER`].
pub struct World {
    agent: Agent,
    pub replica: Arc<Replica>,
    pub instance: Arc<Still>,
    pub tunnel: Arc<Tunnel>,
    map: watch::Sender<Arc<PartitionMap>>,
}

fn record() -> Database {
    let placed = |id| (id, quorate_model::Replica { node: node_of(id), state: ReplicaState::Up });
    Database {
        id: DATABASE,
        server: ServerId(1),
        name: "app".to_owned(),
        version: 1,
        epoch: epoch(2),
        phase: Phase::Stable,
        current: Configuration::new(OTHER, [ME], 1),
        primary_since: epoch(2),
        previous: Vec::new(),
        replicas: [placed(ME), placed(OTHER)].into(),
        lineage: history(),
        operation: None,
        copies: 2,
        options: Default::default(),
    }
}

impl World {
    pub fn new() -> World {
        World::of(record())
    }

    /// As [`World::new`], but this replica does not count yet: another is the secondary.
    pub fn learner() -> World {
        let secondary = ReplicaId(3);
        let mut record = record();
        record.current = Configuration::new(OTHER, [secondary], 1);
        record
            .replicas
            .insert(secondary, quorate_model::Replica { node: node_of(secondary), state: ReplicaState::Up });
        World::of(record)
    }

    /// This one left the history, and the record has its floor.
    pub fn divergent() -> World {
        let mut record = record();
        let secondary = ReplicaId(3);
        record.current = Configuration::new(OTHER, [secondary], 1);
        let state = ReplicaState::Incomplete { floor: Position::default() };
        record.replicas.insert(ME, quorate_model::Replica { node: node_of(ME), state });
        record
            .replicas
            .insert(secondary, quorate_model::Replica { node: node_of(secondary), state: ReplicaState::Up });
        let world = World::of(record);
        world.replica.set_run(RunState::Divergent);
        world
    }

    fn of(record: Database) -> World {
        let map =
            PartitionMap { databases: [(DATABASE, record)].into(), last_id: 3, ..PartitionMap::default() };
        let map = watch::Sender::new(Arc::new(map));
        let instance = Arc::new(Still {
            process: watch::Sender::new(Process::Running { pid: 1 }),
            stops: AtomicUsize::new(0),
            position: Mutex::default(),
            complaints: Mutex::default(),
            seeds: Mutex::default(),
            torn: AtomicBool::default(),
            taken_off: AtomicUsize::default(),
        });
        let tunnel = Arc::new(Tunnel::default());
        let parts = Parts {
            instance: instance.clone(),
            downstream: tunnel.clone(),
            promise: Box::new(Nothing),
            promised: epoch(1),
        };
        let replica = Arc::new(Replica::new(DATABASE, ME, parts, 0));
        let agent = Agent(Arc::new(Inner {
            node: node_of(ME),
            host: Arc::new(Nothing),
            watch: map.subscribe(),
            peers: Arc::new(Nothing),
            gates: Arc::new(Nothing),
            upstreams: tunnel.clone(),
            replicas: RwLock::new(BTreeMap::from([(ME, replica.clone())])),
            changed: Notify::new(),
            coordinator: OnceLock::new(),
            leader: watch::Sender::new(Leader::default()).subscribe(),
            stop: Default::default(),
            keepers: Default::default(),
        }));
        World { agent, replica, instance, tunnel, map }
    }

    pub fn record(&self) -> Database {
        self.map.borrow().databases[&DATABASE].clone()
    }

    /// It has led reign 1 and does not know of the next.
    pub fn is_primary(&self) {
        self.replica.state().founded(epoch(1));
    }

    pub fn is_standby(&self) {
        self.replica.state().started();
    }

    /// An order of that reign arrives.
    pub fn order(&self, reign: u64, what: What) -> JoinHandle<Result<Reply, Failure>> {
        self.given(Order { database: DATABASE, replica: ME, epoch: epoch(reign), behalf: None, what })
    }

    fn given(&self, order: Order) -> JoinHandle<Result<Reply, Failure>> {
        let agent = self.agent.clone();
        tokio::spawn(async move { agent.obey(order).await })
    }

    /// A fence of that reign arrives, for an attempt of an operation.
    pub async fn fence_for(&self, reign: u64, operation: u64, attempt: u32) -> Result<Reply, Failure> {
        let behalf = Some(Behalf { operation: OperationId(operation), attempt });
        let order = Order { database: DATABASE, replica: ME, epoch: epoch(reign), behalf, what: What::Fence };
        self.given(order).await.unwrap()
    }

    /// The map of this node hears of an operation.
    pub fn hears_of(&self, operation: u64, attempt: u32, state: OperationState) {
        let id = OperationId(operation);
        let known = Operation {
            id,
            key: None,
            kind: OperationKind::Switchover { to: None },
            database: DATABASE,
            target: "demo.app".to_owned(),
            step: Step::Recorded,
            attempt,
            owner: None,
            state,
            started_ms: 0,
            updated_ms: 0,
        };
        self.map.send_modify(|map| {
            let mut changed = PartitionMap::clone(map);
            changed.operations.insert(id, known);
            *map = Arc::new(changed);
        });
    }

    /// An order arrives, promises, and waits.
    pub async fn order_waits(&self, reign: u64, what: What) {
        drop(self.order(reign, what));
        self.promised(reign).await;
    }

    pub async fn promised(&self, reign: u64) {
        while self.replica.state().promise() < epoch(reign) {
            tokio::task::yield_now().await;
        }
        pass_on().await;
    }

    /// Until it leads that reign.
    pub async fn settled(&self, reign: u64) {
        let leads = async {
            while self.replica.state().leading != Some(epoch(reign)) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), leads).await.expect("it is primary in the end");
    }

    /// One look of the keeper, which has found the instance hung since then.
    pub fn look(&self, hung_since: Option<Instant>) -> JoinHandle<Result<(), Failed>> {
        let (agent, replica) = (self.agent.clone(), self.replica.clone());
        tokio::spawn(async move {
            let mut hung_since = hung_since;
            agent.look(&replica, &mut hung_since).await.map(|_: Next| ())
        })
    }
}
