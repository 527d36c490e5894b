//! The handle by which the daemon holds its ring, and the thread behind it.

use crate::clock::{boot_now, millis_between};
use crate::driver::{Driver, Snapshot};
use crate::event::{RingEvent, RingMember};
use crate::lease::Leases;
use crate::udp::{self, Datagrams, Udp};
use quorate_model::NodeId;
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Events that may wait for the daemon; more are dropped, and told in the log.
const MAX_EVENTS: usize = 1_024;
/// Doubts that may wait for the ring; more are dropped.
const MAX_DOUBTS: usize = 64;

#[derive(Clone)]
pub struct RingConfig {
    pub node: NodeId,
    /// UDP.
    pub listen: SocketAddr,
    /// Every node of the ring, this one included.
    pub peers: BTreeMap<NodeId, SocketAddr>,
    /// The cluster's; it signs every datagram.
    pub key: [u8; 32],
    /// How often neighbours hear of us. 50 ms.
    pub heartbeat: Duration,
    /// How long a neighbour may be silent. 300 ms.
    pub suspect_after: Duration,
    /// How long a lease runs. 400 ms; the same on every node.
    pub lease: Duration,
    /// How often leases are asked for. 75 ms.
    pub lease_renew: Duration,
}

/// Cheap to clone. The ring ends with the token that it was started with, not with its handles.
#[derive(Clone)]
pub struct Ring {
    shared: Arc<Shared>,
    doubts: mpsc::Sender<NodeId>,
}

/// What the handles and the thread have in common.
pub(crate) struct Shared {
    snapshot: Mutex<Snapshot>,
    pub renew: Notify,
}

impl Shared {
    pub fn publish(&self, snapshot: Snapshot) {
        *self.snapshot() = snapshot;
    }

    fn snapshot(&self) -> MutexGuard<'_, Snapshot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// Takes the port and starts the ring's thread. Events end when the ring does.
    pub async fn start(
        config: RingConfig,
        leases: Arc<dyn Leases>,
        stop: CancellationToken,
    ) -> io::Result<(Ring, mpsc::Receiver<RingEvent>)> {
        check(&config)?;
        let socket = udp::bind(config.listen)?;
        Ring::start_on(socket, config, leases, stop).await
    }

    pub(crate) async fn start_on(
        socket: UdpSocket,
        config: RingConfig,
        leases: Arc<dyn Leases>,
        stop: CancellationToken,
    ) -> io::Result<(Ring, mpsc::Receiver<RingEvent>)> {
        let (event_tx, events) = mpsc::channel(MAX_EVENTS);
        let (doubts, doubt_rx) = mpsc::channel(MAX_DOUBTS);
        let shared = Arc::new(Shared { snapshot: Mutex::default(), renew: Notify::new() });
        let (started_tx, started) = oneshot::channel();
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("ring".into()).spawn(move || {
            hurry();
            match attach(socket) {
                Ok((runtime, udp)) => {
                    let driver = Driver::new(config, udp, leases, event_tx, of_thread);
                    // Nobody waits for it any more when the start was given up: then nothing runs.
                    if started_tx.send(Ok(())).is_ok() {
                        runtime.block_on(driver.run(doubt_rx, stop));
                    }
                }
                Err(error) => drop(started_tx.send(Err(error))),
            }
        })?;
        started.await.map_err(io::Error::other)??;
        Ok((Ring { shared, doubts }, events))
    }

    /// A ring over other datagrams than UDP's. Its driver is returned, for the caller to run wherever time passes.
    pub fn over(
        datagrams: impl Datagrams,
        config: RingConfig,
        leases: Arc<dyn Leases>,
        stop: CancellationToken,
    ) -> io::Result<(Ring, mpsc::Receiver<RingEvent>, impl Future<Output = ()> + Send)> {
        check(&config)?;
        let (event_tx, events) = mpsc::channel(MAX_EVENTS);
        let (doubts, doubt_rx) = mpsc::channel(MAX_DOUBTS);
        let shared = Arc::new(Shared { snapshot: Mutex::default(), renew: Notify::new() });
        let driver = Driver::new(config, datagrams, leases, event_tx, Arc::clone(&shared));
        Ok((Ring { shared, doubts }, events, driver.run(doubt_rx, stop)))
    }

    /// The whole ring, as it looks from this node.
    pub fn view(&self) -> Vec<RingMember> {
        let snapshot = self.shared.snapshot().clone();
        let age = millis_between(snapshot.at, boot_now());
        let mut members = snapshot.members;
        for heard in members.iter_mut().filter_map(|member| member.last_heartbeat_ms.as_mut()) {
            *heard = heard.saturating_add(age);
        }
        members
    }

    /// Whether anybody credible suspects that node now.
    pub fn is_suspect(&self, node: NodeId) -> bool {
        self.shared.snapshot().suspects.contains(&node)
    }

    /// Asks for leases now, not at the next turn: a gate is about to open.
    pub fn renew_now(&self) {
        self.shared.renew.notify_one();
    }

    /// Something else (a connection that broke) says that a node may be gone: it is asked at once, and suspected
    /// in half the usual time if it does not answer.
    pub fn doubt(&self, node: NodeId) {
        // A doubt that finds no room is only a hint lost: silence is noticed without it.
        let _ = self.doubts.try_send(node);
    }
}

fn check(config: &RingConfig) -> io::Result<()> {
    let fault = if !config.peers.contains_key(&config.node) {
        "the ring's peers do not name this node"
    } else if config.heartbeat.is_zero() || config.lease_renew.is_zero() {
        "a ring's heartbeat and lease_renew are more than nothing"
    } else if config.heartbeat >= config.suspect_after {
        "a ring's heartbeat is shorter than its suspect_after"
    } else if config.lease_renew >= config.lease {
        "a ring's lease_renew is shorter than its lease"
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, fault))
}

fn attach(socket: UdpSocket) -> io::Result<(Runtime, Udp)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let udp = {
        let _on_its_runtime = runtime.enter();
        Udp::attach(socket)?
    };
    Ok((runtime, udp))
}

/// Lets this thread go before others when the machine is busy, where that is allowed: the ring needs little
/// time, but needs it in time.
fn hurry() {
    const NICE: i32 = -10;
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "the ring's thread keeps its priority");
    }
}
