//! The standby's end: a socket that looks like a PostgreSQL server and never moves, wherever the primary is.

use super::hello::{Hello, Purpose};
use super::leash::{Leash, locked};
use super::ledger::{Clerk, Ledger};
use super::relay::Relay;
use super::standby::serve_standby;
use super::telemetry::{self, Side};
use quorate_model::{DatabaseId, Epoch, Lsn, NodeId, ReplicaId};
use quorate_transport::{LocalStream, PeerStream, Peers};
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The name that PostgreSQL's libraries look for in a socket directory.
pub const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// Connections of one standby: a walreceiver, a base backup's two, and as many that have not noticed their end yet.
const MAX_CONNECTIONS: usize = 8;

/// How long [`Downstream::stop`] waits for connections to end. They are cut already.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// Pause after a failed accept (out of file descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the primary is.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Route {
    pub node: NodeId,
    pub primary: ReplicaId,
    /// The reign.
    pub epoch: Epoch,
}

/// A route, and what may go there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Lane {
    pub route: Route,
    /// Only pg_rewind passes: the standby is being rewound, and its log must not be streamed to.
    rewind: bool,
}

impl Lane {
    pub fn serves(&self, purpose: Purpose) -> bool {
        self.rewind == (purpose == Purpose::Rewind)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DownstreamStatus {
    pub route: Option<Route>,
    /// A copy-both stream is open and has carried WAL or keepalives, in this reign.
    pub streaming: Option<Epoch>,
    /// Highest flush position that this standby reported.
    pub acknowledged: Lsn,
    /// End of the log, as heard from the primary of the current route.
    pub upstream_end: Lsn,
    pub last_heard: Option<Instant>,
    /// Connections that wait for a primary. After a cut, a walreceiver among them tells that the former one has ended, and
    /// with it everything that was still on its way to the standby's disk.
    pub held: u32,
}

/// The tunnel of one standby, at the standby's node.
///
/// Starts without a route: what connects is held until [`Downstream::attach`]. Dropping it cuts everything.
pub struct Downstream {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
    socket: PathBuf,
}

pub(super) type DownLeash = Leash<Relay<LocalStream, PeerStream, Clerk>>;

pub(super) struct Shared {
    pub database: DatabaseId,
    pub replica: ReplicaId,
    pub peers: Arc<Peers>,
    pub ledger: Arc<Ledger>,
    /// Changed only under `streams`' lock.
    route: watch::Sender<Option<Lane>>,
    /// Streams of the current route, by number.
    streams: Mutex<BTreeMap<u64, Arc<DownLeash>>>,
    serial: AtomicU64,
}

impl Downstream {
    /// Listens in `tunnel_dir`, which it makes if it is not there and gives to `owner` (user, group). Must be called on a
    /// runtime.
    pub fn start(
        database: DatabaseId,
        replica: ReplicaId,
        tunnel_dir: &Path,
        owner: Option<(u32, u32)>,
        peers: Arc<Peers>,
    ) -> io::Result<Downstream> {
        let socket = tunnel_dir.join(SOCKET_NAME);
        let listener = listen(tunnel_dir, &socket, owner)?;
        let shared = Arc::new(Shared {
            database,
            replica,
            peers,
            ledger: Arc::default(),
            route: watch::Sender::new(None),
            streams: Mutex::default(),
            serial: AtomicU64::new(0),
        });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let accepting = accept(shared.clone(), listener, tasks.clone());
        let stopped = stop.clone();
        tasks.spawn(async move {
            let _ = stopped.run_until_cancelled(accepting).await;
        });
        Ok(Downstream { shared, stop, tasks, socket })
    }

    /// Streams from the primary of `route` from now on. The same route: no change. Another: cut, then go there. What waits
    /// goes there at once.
    pub fn attach(&self, route: Route) {
        self.enter_lane(route, false);
    }

    /// Lets pg_rewind through to the primary of `route`, and nothing else, until [`Downstream::cut`] or
    /// [`Downstream::attach`].
    pub fn attach_rewind(&self, route: Route) {
        self.enter_lane(route, true);
    }

    fn enter_lane(&self, route: Route, rewind: bool) {
        if self.stop.is_cancelled() {
            return;
        }
        let route = Route { epoch: route.epoch.reign(), ..route };
        let lane = Lane { route, rewind };
        if self.shared.routes().borrow().as_ref() == Some(&lane) {
            return;
        }
        let (database, replica, route) = (self.shared.database, self.shared.replica, &lane.route);
        tracing::info!(%database, %replica, node = %route.node, primary = %route.primary, epoch = %route.epoch, rewind, "tunnel attaches");
        self.shared.change_route(Some(lane));
    }

    /// After it returns no byte passes in either direction, whatever Postgres does. Connections that come are held
    /// unanswered until [`Downstream::attach`].
    ///
    /// Log that the walreceiver was handed before may still become durable, until it has ended (see
    /// [`DownstreamStatus::held`]); it will not be acknowledged to anybody.
    pub async fn cut(&self) {
        let_go(self.shared.change_route(None)).await;
    }

    /// As [`Downstream::cut`], if the route is of a reign older than `epoch`'s.
    pub async fn cut_older(&self, epoch: Epoch) {
        let is_older = |lane: &Lane| lane.route.epoch < epoch.reign();
        let_go(self.shared.change_route_if(|route| route.is_some_and(is_older), None)).await;
    }

    pub fn status(&self) -> DownstreamStatus {
        let ledger = &self.shared.ledger;
        DownstreamStatus {
            route: self.shared.route.borrow().as_ref().map(|lane| lane.route.clone()),
            streaming: ledger.streaming(),
            acknowledged: ledger.acknowledged(),
            upstream_end: ledger.upstream_end(),
            last_heard: ledger.last_heard(),
            held: ledger.held(),
        }
    }

    /// Changes when streaming begins (to its reign) and when it ends (to none).
    pub fn watch(&self) -> watch::Receiver<Option<Epoch>> {
        self.shared.ledger.watch()
    }

    /// Cuts everything, stops listening and removes the socket.
    pub async fn stop(&self) {
        self.close();
        self.tasks.close();
        let _ = tokio::time::timeout(STOP_LIMIT, self.tasks.wait()).await;
    }

    fn close(&self) {
        if !self.stop.is_cancelled() {
            self.stop.cancel();
            self.shared.change_route(None);
            let _ = fs::remove_file(&self.socket);
        }
    }
}

impl Drop for Downstream {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    /// Cuts the streams of the former route unless the new one is the same. Returns those that were cut.
    fn change_route(&self, route: Option<Lane>) -> Vec<Arc<DownLeash>> {
        self.change_route_if(|_| true, route)
    }

    /// As [`Shared::change_route`], if the former route is one that is meant.
    fn change_route_if(
        &self,
        is_meant: impl FnOnce(Option<&Lane>) -> bool,
        route: Option<Lane>,
    ) -> Vec<Arc<DownLeash>> {
        let mut streams = locked(&self.streams);
        let changes = {
            let former = self.route.borrow();
            *former != route && is_meant(former.as_ref())
        };
        if !changes {
            return Vec::new();
        }
        // Under the lock, so that whoever comes next finds them cut, not only gone.
        let streams: Vec<_> =
            std::mem::take(&mut *streams).into_values().inspect(|stream| stream.cut()).collect();
        self.ledger.rerouted();
        self.route.send_replace(route);
        if !streams.is_empty() {
            let (database, replica) = (self.database, self.replica);
            tracing::info!(%database, %replica, streams = streams.len(), "tunnel cut");
            telemetry::cut(Side::Downstream, streams.len());
        }
        streams
    }

    pub fn routes(&self) -> watch::Receiver<Option<Lane>> {
        self.route.subscribe()
    }

    /// Registers a stream on `route`, if that is the route still.
    pub fn enter(self: &Arc<Self>, route: Route, purpose: Purpose) -> Option<Ticket> {
        let mut streams = locked(&self.streams);
        let is_lane = |lane: &Lane| lane.route == route && lane.serves(purpose);
        if !self.route.borrow().as_ref().is_some_and(is_lane) {
            return None;
        }
        let number = self.serial.fetch_add(1, Ordering::Relaxed);
        let leash = Arc::new(DownLeash::default());
        streams.insert(number, leash.clone());
        Some(Ticket { shared: self.clone(), route, purpose, number, leash })
    }
}

/// A stream that may be opened on a route. Dropped, the stream is over.
pub(super) struct Ticket {
    shared: Arc<Shared>,
    pub route: Route,
    purpose: Purpose,
    number: u64,
    pub leash: Arc<DownLeash>,
}

impl Ticket {
    pub fn hello(&self) -> Hello {
        Hello {
            database: self.shared.database,
            replica: self.shared.replica,
            primary: self.route.primary,
            epoch: self.route.epoch,
            purpose: self.purpose,
        }
    }

    pub fn clerk(&self) -> Clerk {
        Clerk::new(self.shared.ledger.clone(), self.number, self.route.epoch, self.purpose)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leash.cut();
        locked(&self.shared.streams).remove(&self.number);
        self.leash.mark_let_go();
    }
}

async fn let_go(victims: Vec<Arc<DownLeash>>) {
    for victim in victims {
        victim.let_go().await;
    }
}

fn listen(dir: &Path, socket: &Path, owner: Option<(u32, u32)>) -> io::Result<UnixListener> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(socket)?;
    fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    if let Some((user, group)) = owner {
        chown(socket, Some(user), Some(group))?;
        chown(dir, Some(user), Some(group))?;
    }
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn accept(shared: Arc<Shared>, listener: UnixListener, tasks: TaskTracker) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stop = CancellationToken::new();
    let _stop_all = stop.clone().drop_guard();
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let Ok(place) = places.clone().try_acquire_owned() else {
                    let (database, replica) = (shared.database, shared.replica);
                    tracing::warn!(%database, %replica, limit = MAX_CONNECTIONS, "too many connections to a tunnel");
                    continue;
                };
                let serving = serve_standby(shared.clone(), connection);
                let stop = stop.clone();
                tasks.spawn(async move {
                    let _place = place;
                    let _ = stop.run_until_cancelled(serving).await;
                });
            }
            Err(error) => {
                let (database, replica) = (shared.database, shared.replica);
                tracing::warn!(%database, %replica, %error, "a tunnel cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
