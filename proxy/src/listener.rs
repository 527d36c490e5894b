//! The client port: one listener and one runtime a worker thread, so that a session's sockets stay on one core.

use crate::cancel::Cancels;
use crate::config::{KEEPALIVE_AFTER, KEEPALIVE_EVERY, MAX_LOGINS, ProxyConfig, STOP_GRACE};
use crate::gate::Gates;
use crate::gate::audit;
use crate::gate::serve::GateServer;
use crate::pool::{PoolRow, SWEEP_EVERY, set_worker};
use crate::priority;
use crate::relay::busy_poll;
use crate::rpc::ProxyService;
use crate::session::hello::end;
use crate::session::login::serve;
use crate::session::shared::Shared;
use crate::stream::Stream;
use crate::wire::reply::ErrorReply;
use quorate_model::{DatabaseId, PartitionMap};
use quorate_throttle::Admission;
use quorate_transport::{Peers, Service, StreamKind};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Connections that the kernel keeps for a worker.
const BACKLOG: i32 = 1024;
/// Pause after the kernel could not hand over a connection (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often ending sessions are counted when the node stops.
const STOP_LOOK: Duration = Duration::from_millis(20);

/// The proxy of a node: it serves until its token is cancelled.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Listens at once; also takes gate streams and questions of other nodes from here on.
    pub fn start(
        config: ProxyConfig,
        map: watch::Receiver<Arc<PartitionMap>>,
        peers: Arc<Peers>,
        gates: Arc<Gates>,
        admission: Arc<Admission>,
        stop: CancellationToken,
    ) -> io::Result<Proxy> {
        let node = config.node;
        let cancels = Cancels::new(Arc::clone(&peers), Arc::clone(&gates));
        let mut address = config.listen;
        let mut listeners = Vec::new();
        for _ in 0..config.workers.max(1) {
            let listener = listen(address)?;
            // All share the port that the first was given.
            address = listener.local_addr()?;
            listeners.push(listener);
        }
        peers.register_stream(StreamKind::Gate, Arc::new(GateServer { node, gates: Arc::clone(&gates) }));
        let service = ProxyService { gates: Arc::clone(&gates), cancels: Arc::clone(&cancels) };
        peers.register(Service::Proxy, Arc::new(service));
        let shared = Shared::new(config, map, peers, gates, admission, cancels, stop);
        let mut threads = Vec::new();
        for (number, listener) in listeners.into_iter().enumerate() {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("proxy-{number}"));
            threads.push(thread.spawn(move || {
                priority::begin_worker();
                set_worker(number);
                busy_poll::begin_worker(number, shared.config.busy_poll);
                runtime.block_on(work(shared, listener, number == 0));
                runtime.shutdown_background();
            })?);
        }
        tracing::info!(%node, %address, workers = threads.len(), "client port open");
        Ok(Proxy { address, shared, threads })
    }

    /// Where it listens: with the port that was chosen, if the configuration left that open.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Clients with a session on this node.
    pub fn sessions(&self) -> usize {
        self.shared.routes.sessions()
    }

    /// The pools of databases in transaction mode, on this node; and why sessions of each keep a server.
    pub fn pools(&self) -> (Vec<PoolRow>, Vec<(DatabaseId, Box<str>)>) {
        self.pools_teller()()
    }

    /// What tells [`Proxy::pools`] at any time.
    pub fn pools_teller(
        &self,
    ) -> impl Fn() -> (Vec<PoolRow>, Vec<(DatabaseId, Box<str>)>) + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || (shared.pools.rows(), shared.routes.pinned())
    }

    /// Waits for the workers; only after the token was cancelled does that end. Blocks.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker of the proxy panicked");
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// One worker's life. The first also follows the map for all of them.
async fn work(shared: Arc<Shared>, listener: std::net::TcpListener, is_first: bool) {
    if is_first {
        let (routes, map, stop) = (Arc::clone(&shared.routes), shared.map.clone(), shared.stop.clone());
        tokio::spawn(audit::run(Arc::clone(&shared.gates), map.clone(), stop.clone()));
        tokio::spawn(async move { routes.run(map, stop).await });
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                let map = Arc::clone(&shared.map.borrow());
                shared.pools.sweep(&map);
            }
        });
    }
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a worker of the proxy cannot listen"),
    };
    let logins = Arc::new(Semaphore::new(MAX_LOGINS));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => accept(&shared, &logins, tcp),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = shared.stop.cancelled() => break,
        }
    }
    drop(listener);
    let until = Instant::now() + STOP_GRACE;
    while shared.routes.sessions() > 0 && Instant::now() < until {
        tokio::time::sleep(STOP_LOOK).await;
    }
}

fn accept(shared: &Arc<Shared>, logins: &Arc<Semaphore>, tcp: TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
    // Without it, answers would wait for acknowledgements.
    let set = tcp.set_nodelay(true).and_then(|()| SockRef::from(&tcp).set_tcp_keepalive(&keepalive));
    match (set, Arc::clone(logins).try_acquire_owned()) {
        (Ok(()), Ok(login)) => {
            tokio::spawn(serve(Arc::clone(shared), tcp, login));
        }
        (Ok(()), Err(_)) => {
            let error = ErrorReply::fatal("53300", "too many clients are logging in to this node")
                .hint("Retry after 10 seconds, or at another node.");
            tokio::spawn(async move { end(Stream::Tcp(tcp), &error.bytes()).await });
        }
        // The client is gone already.
        (Err(_), _) => {}
    }
}
