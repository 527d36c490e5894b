//! The two ends of the simulated tunnel, with the promises of the real one: after a cut nothing passes that end, a
//! stream belongs to one reign, one primary and one replica, and nothing passes before it was attached and admitted.

use super::host::Registry;
use super::server::{Role, Server};
use super::wal;
use super::wire::{Hello, Message, Purpose};
use crate::net::{Acceptor, Net, Pipe};
use quorate_model::{DatabaseId, Epoch, Lsn, NodeId, ReplicaId, Timeline};
use quorate_reconfig_agent::agent::host::{PrimaryTunnels, StandbyTunnel};
use quorate_reconfig_agent::tunnel::{DownstreamStatus, Route};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// `wal_retrieve_retry_interval`.
const RETRY: Duration = Duration::from_millis(100);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A standby's end.
pub struct SimDownstream {
    pub node: NodeId,
    pub database: DatabaseId,
    pub replica: ReplicaId,
    net: Arc<Net>,
    route: watch::Sender<Option<Lane>>,
    /// Cancelled when the route changes.
    cut: Mutex<CancellationToken>,
    streaming: watch::Sender<Option<Epoch>>,
    heard: Mutex<Heard>,
    /// A walreceiver is there, or has received what it has not flushed.
    receiving: AtomicBool,
    stopped: CancellationToken,
}

/// A route, and whether only a rewind may take it.
#[derive(Clone, PartialEq, Eq)]
struct Lane {
    route: Route,
    rewind: bool,
}

#[derive(Clone, Copy, Default)]
struct Heard {
    acknowledged: Lsn,
    upstream_end: Lsn,
}

impl SimDownstream {
    pub fn new(node: NodeId, database: DatabaseId, replica: ReplicaId, net: Arc<Net>) -> Arc<SimDownstream> {
        Arc::new(SimDownstream {
            node,
            database,
            replica,
            net,
            route: watch::Sender::new(None),
            cut: Mutex::default(),
            streaming: watch::Sender::new(None),
            heard: Mutex::default(),
            receiving: AtomicBool::new(false),
            stopped: CancellationToken::new(),
        })
    }

    pub fn is_receiving(&self) -> bool {
        self.receiving.load(Ordering::SeqCst)
    }

    fn change(&self, route: Option<Lane>) {
        let mut cut = locked(&self.cut);
        if *self.route.borrow() == route {
            return;
        }
        std::mem::take(&mut *cut).cancel();
        locked(&self.heard).upstream_end = Lsn(0);
        self.route.send_replace(route);
    }

    /// The route, once there is one for this, and the token of its cut.
    async fn routed(&self, rewind: bool) -> (Route, CancellationToken) {
        let mut routes = self.route.subscribe();
        loop {
            {
                let cut = locked(&self.cut);
                let lane = routes.borrow_and_update().clone();
                if let Some(lane) = lane.filter(|lane| lane.rewind == rewind) {
                    return (lane.route, cut.clone());
                }
            }
            if routes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn open(&self, route: &Route, purpose: Purpose) -> Pipe {
        let hello = Hello {
            database: self.database,
            replica: self.replica,
            primary: route.primary,
            epoch: route.epoch,
            purpose,
        };
        self.net.open(self.node, route.node, hello)
    }

    /// Asks for a copy, through whatever route there is.
    pub async fn backup(&self) -> Option<Message> {
        let (route, cut) = self.routed(false).await;
        let pipe = self.open(&route, Purpose::Backup);
        cut.run_until_cancelled(pipe.receive()).await.flatten()
    }

    /// Asks for the primary's log, through whatever route there is for a rewind.
    pub async fn source(&self) -> Option<Message> {
        let (route, cut) = self.routed(true).await;
        let pipe = self.open(&route, Purpose::Rewind);
        cut.run_until_cancelled(pipe.receive()).await.flatten()
    }

    /// The walreceiver of one run of a standby, until that ends or `stop`: then what was received is durable.
    pub async fn receive(self: Arc<Self>, server: Arc<Server>, stop: CancellationToken) {
        loop {
            let (route, cut) = tokio::select! {
                biased;
                () = server.ended.cancelled() => return,
                () = stop.cancelled() => return,
                routed = self.routed(false) => routed,
            };
            self.receiving.store(true, Ordering::SeqCst);
            let lost = self.stream(&server, &route, &cut, &stop).await;
            self.streaming.send_replace(None);
            let received = server.disk.content().records.len();
            // An instance that ends meanwhile has no log to speak of.
            let _ = server.flush(received).await;
            self.receiving.store(false, Ordering::SeqCst);
            if lost {
                tokio::select! {
                    biased;
                    () = server.ended.cancelled() => return,
                    () = stop.cancelled() => return,
                    () = cut.cancelled() => {}
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }

    /// True when the other end closed it.
    async fn stream(
        &self,
        server: &Arc<Server>,
        route: &Route,
        cut: &CancellationToken,
        stop: &CancellationToken,
    ) -> bool {
        let (from, timeline) = {
            let content = server.disk.content();
            (content.records.len(), content.timeline())
        };
        let pipe = self.open(route, Purpose::Stream { from, timeline });
        loop {
            let message = tokio::select! {
                biased;
                () = server.ended.cancelled() => return false,
                () = cut.cancelled() => return false,
                () = stop.cancelled() => return false,
                message = pipe.receive() => message,
            };
            let Some(Message::Wal { from, before, records, history, end }) = message else { return true };
            let thawed = tokio::select! {
                biased;
                thawed = server.thawed() => thawed.is_ok(),
                () = cut.cancelled() => false,
                () = stop.cancelled() => false,
            };
            if !thawed {
                return false;
            }
            if !server.receive(from, before, &records, &history) {
                return true;
            }
            locked(&self.heard).upstream_end = end;
            if *self.streaming.borrow() != Some(route.epoch) {
                self.streaming.send_replace(Some(route.epoch));
            }
            let received = server.disk.content().records.len();
            if server.flush(received).await.is_err() || cut.is_cancelled() || stop.is_cancelled() {
                return false;
            }
            let flushed = wal::end_of(received);
            locked(&self.heard).acknowledged = flushed;
            pipe.send(Message::Flushed(flushed));
        }
    }
}

#[async_trait::async_trait]
impl StandbyTunnel for SimDownstream {
    fn attach(&self, route: Route) {
        if !self.stopped.is_cancelled() {
            let route = Route { epoch: route.epoch.reign(), ..route };
            self.change(Some(Lane { route, rewind: false }));
        }
    }

    fn attach_rewind(&self, route: Route) {
        if !self.stopped.is_cancelled() {
            let route = Route { epoch: route.epoch.reign(), ..route };
            self.change(Some(Lane { route, rewind: true }));
        }
    }

    async fn cut(&self) {
        self.change(None);
    }

    async fn cut_older(&self, epoch: Epoch) {
        let is_older = self.route.borrow().as_ref().is_some_and(|lane| lane.route.epoch < epoch.reign());
        if is_older {
            self.change(None);
        }
    }

    fn status(&self) -> DownstreamStatus {
        let heard = *locked(&self.heard);
        DownstreamStatus {
            route: self.route.borrow().as_ref().map(|lane| lane.route.clone()),
            streaming: *self.streaming.borrow(),
            acknowledged: heard.acknowledged,
            upstream_end: heard.upstream_end,
            last_heard: None,
            held: 0,
        }
    }

    fn watch(&self) -> watch::Receiver<Option<Epoch>> {
        self.streaming.subscribe()
    }

    async fn stop(&self) {
        self.stopped.cancel();
        self.change(None);
    }
}

/// The primaries' ends of a node.
pub struct SimUpstreams {
    registry: Arc<Registry>,
    served: Mutex<BTreeMap<DatabaseId, Served>>,
}

#[derive(Default)]
struct Served {
    admission: Option<Admission>,
    /// Those of the admitted that may rewind from here.
    rewinders: BTreeSet<ReplicaId>,
    /// Open streams: whose, whether a walreceiver's, and the token of their cut.
    streams: BTreeMap<u64, (ReplicaId, bool, CancellationToken)>,
}

#[derive(Clone, PartialEq, Eq)]
struct Admission {
    primary: ReplicaId,
    epoch: Epoch,
    sockets: PathBuf,
    allowed: BTreeSet<ReplicaId>,
}

impl SimUpstreams {
    pub fn new(registry: Arc<Registry>) -> Arc<SimUpstreams> {
        Arc::new(SimUpstreams { registry, served: Mutex::default() })
    }

    /// The instance to which a stream is admitted, and the token of its cut.
    fn enter(&self, hello: &Hello, id: u64) -> Option<(Arc<Server>, CancellationToken)> {
        let mut served = locked(&self.served);
        let served = served.get_mut(&hello.database)?;
        let admission = served.admission.as_ref()?;
        let fits = admission.epoch == hello.epoch
            && admission.primary == hello.primary
            && admission.allowed.contains(&hello.replica);
        let may = !matches!(hello.purpose, Purpose::Rewind) || served.rewinders.contains(&hello.replica);
        let server = self.registry.server(&admission.sockets).filter(|_| fits && may)?;
        let is_stream = matches!(hello.purpose, Purpose::Stream { .. });
        if is_stream {
            // A standby has one walreceiver: when another comes, the former has ended.
            served.cut(|replica, stream| replica == hello.replica && stream);
        }
        let cut = CancellationToken::new();
        served.streams.insert(id, (hello.replica, is_stream, cut.clone()));
        Some((server, cut))
    }

    fn leave(&self, database: DatabaseId, id: u64) {
        if let Some(served) = locked(&self.served).get_mut(&database) {
            served.streams.remove(&id);
        }
    }
}

impl Served {
    fn cut(&mut self, which: impl Fn(ReplicaId, bool) -> bool) {
        self.streams.retain(|_, (replica, is_stream, cut)| {
            let over = which(*replica, *is_stream);
            if over {
                cut.cancel();
            }
            !over
        });
    }
}

#[async_trait::async_trait]
impl PrimaryTunnels for SimUpstreams {
    fn admit(
        &self,
        database: DatabaseId,
        primary: ReplicaId,
        epoch: Epoch,
        sockets: PathBuf,
        allowed: BTreeSet<ReplicaId>,
    ) {
        let admission = Admission { primary, epoch: epoch.reign(), sockets, allowed };
        let mut served = locked(&self.served);
        let served = served.entry(database).or_default();
        let goes_on = served.admission.as_ref().is_some_and(|former| {
            (former.primary, former.epoch, &former.sockets)
                == (admission.primary, admission.epoch, &admission.sockets)
        });
        served.cut(|replica, _| !goes_on || !admission.allowed.contains(&replica));
        served.rewinders.retain(|replica| goes_on && admission.allowed.contains(replica));
        served.admission = Some(admission);
    }

    fn admit_rewinds(&self, database: DatabaseId, epoch: Epoch, rewinders: BTreeSet<ReplicaId>) {
        if let Some(served) = locked(&self.served).get_mut(&database)
            && let Some(admission) = served.admission.as_ref().filter(|a| a.epoch.same_reign(epoch))
        {
            served.rewinders = rewinders.intersection(&admission.allowed).copied().collect();
        }
    }

    async fn cut_all(&self, database: DatabaseId) {
        if let Some(served) = locked(&self.served).get_mut(&database) {
            served.admission = None;
            served.rewinders.clear();
            served.cut(|_, _| true);
        }
    }

    fn flushes(&self, database: DatabaseId) -> BTreeMap<ReplicaId, Lsn> {
        let sockets =
            locked(&self.served).get(&database).and_then(|s| s.admission.clone()).map(|a| a.sockets);
        let server = sockets.and_then(|sockets| self.registry.server(&sockets));
        server.map(|server| server.flushes()).unwrap_or_default()
    }
}

/// Takes streams for [`SimUpstreams`].
pub struct Door(pub Arc<SimUpstreams>);

impl Acceptor for Door {
    fn accept(&self, _from: NodeId, hello: Hello, pipe: Pipe) {
        let Some((server, cut)) = self.0.enter(&hello, pipe.id()) else { return };
        let upstreams = self.0.clone();
        tokio::spawn(async move {
            match hello.purpose {
                Purpose::Stream { from, timeline } => {
                    walsender(&server, &hello, &pipe, &cut, (from, timeline)).await;
                }
                Purpose::Backup | Purpose::Rewind => backup(&server, &pipe, &cut).await,
            }
            upstreams.leave(hello.database, pipe.id());
        });
    }
}

/// Whether a standby whose log ends there may stream from here: PostgreSQL compares timelines and positions, and
/// knows nothing of what the bytes are.
fn may_stream(server: &Server, from: usize, timeline: Timeline) -> bool {
    let content = server.disk.content();
    if timeline == content.timeline() {
        return from <= content.flushed;
    }
    let left = content.history.iter().find(|(t, _)| *t == timeline);
    left.is_some_and(|(_, left_at)| wal::end_of(from) <= *left_at)
}

async fn walsender(
    server: &Arc<Server>,
    hello: &Hello,
    pipe: &Pipe,
    cut: &CancellationToken,
    (from, timeline): (usize, Timeline),
) {
    if server.is_over() || server.role() != Role::Primary || !may_stream(server, from, timeline) {
        return;
    }
    let mut flushed = server.flushed.subscribe();
    server.begin_sender(pipe.id(), hello.replica);
    let mut sent = from;
    let mut first = true;
    loop {
        let ready = {
            let content = server.disk.content();
            (content.flushed > sent || first).then(|| {
                let before =
                    sent.checked_sub(1).and_then(|at| content.records.get(at)).map_or(0, |r| r.serial);
                let records = content.records[sent..content.flushed.max(sent)].into();
                let message = Message::Wal {
                    from: sent,
                    before,
                    records,
                    history: content.history.as_slice().into(),
                    end: content.end(),
                };
                (message, content.flushed.max(sent))
            })
        };
        let thawed = tokio::select! {
            biased;
            () = cut.cancelled() => false,
            thawed = server.thawed() => thawed.is_ok(),
        };
        if !thawed {
            break;
        }
        if let Some((message, end)) = ready {
            first = false;
            sent = end;
            pipe.send(message);
        }
        tokio::select! {
            biased;
            () = server.ended.cancelled() => break,
            () = cut.cancelled() => break,
            message = pipe.receive() => match message {
                Some(Message::Flushed(lsn)) => server.acknowledged(pipe.id(), lsn, hello.epoch),
                _ => break,
            },
            changed = flushed.changed() => if changed.is_err() { break },
        }
    }
    server.end_sender(pipe.id());
}

/// The copy holds everything up to its end.
async fn backup(server: &Arc<Server>, pipe: &Pipe, cut: &CancellationToken) {
    let takes = server.conditions.copy();
    let waited = async {
        tokio::select! {
            biased;
            () = server.ended.cancelled() => false,
            () = cut.cancelled() => false,
            () = tokio::time::sleep(takes) => true,
        }
    };
    if !waited.await || server.role() != Role::Primary {
        return;
    }
    let message = {
        let content = server.disk.content();
        Message::Backup {
            records: content.records[..content.flushed].into(),
            history: content.history.as_slice().into(),
        }
    };
    pipe.send(message);
    // Kept open until the other side has taken it.
    let _ = pipe.receive().await;
}
