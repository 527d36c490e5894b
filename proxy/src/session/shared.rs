//! What the sessions of one node share.

use crate::cancel::Cancels;
use crate::config::ProxyConfig;
use crate::gate::Gates;
use crate::gate::slot::{Slot, locked};
use crate::route::{Place, place};
use crate::wire::lane::LANE_BYTES;
use quorate_model::{DatabaseId, PartitionMap};
use quorate_throttle::Admission;
use quorate_transport::Peers;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub struct Shared {
    pub config: ProxyConfig,
    pub map: watch::Receiver<Arc<PartitionMap>>,
    pub peers: Arc<Peers>,
    pub gates: Arc<Gates>,
    pub admission: Arc<Admission>,
    pub cancels: Arc<Cancels>,
    pub routes: Arc<Routes>,
    pub stop: CancellationToken,
    /// Clients that wait for their databases.
    held: AtomicUsize,
}

/// One client's place among those that wait.
pub struct Held<'a>(&'a AtomicUsize);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    pub fn new(
        config: ProxyConfig,
        map: watch::Receiver<Arc<PartitionMap>>,
        peers: Arc<Peers>,
        gates: Arc<Gates>,
        admission: Arc<Admission>,
        cancels: Arc<Cancels>,
        stop: CancellationToken,
    ) -> Arc<Shared> {
        let (routes, held) = (Arc::default(), AtomicUsize::new(0));
        Arc::new(Shared { config, map, peers, gates, admission, cancels, routes, stop, held })
    }

    /// A place among the clients that wait, if there is memory for one more.
    pub fn hold(&self) -> Option<Held<'_>> {
        let before = self.held.fetch_add(1, Ordering::Relaxed);
        let held = Held(&self.held);
        ((before + 1) * LANE_BYTES <= self.config.max_held_bytes).then_some(held)
    }
}

/// The sessions of each database, to be woken when its primary moves.
#[derive(Default)]
pub struct Routes {
    databases: Mutex<HashMap<DatabaseId, Route>>,
}

struct Route {
    place: Place,
    next: u64,
    sessions: HashMap<u64, Arc<Slot>>,
}

/// A session's registration; it ends with it.
pub struct RouteEntry {
    routes: Arc<Routes>,
    database: DatabaseId,
    number: u64,
}

impl Routes {
    pub fn register(self: &Arc<Self>, database: DatabaseId, slot: &Arc<Slot>, now: Place) -> RouteEntry {
        let mut databases = locked(&self.databases);
        let route = databases.entry(database).or_insert_with(|| Route {
            place: now,
            next: 0,
            sessions: HashMap::new(),
        });
        let number = route.next;
        route.next += 1;
        route.sessions.insert(number, Arc::clone(slot));
        drop(databases);
        RouteEntry { routes: Arc::clone(self), database, number }
    }

    /// Wakes the sessions of every database whose primary is elsewhere than before.
    fn follow(&self, map: &PartitionMap) {
        for (id, route) in locked(&self.databases).iter_mut() {
            let now = place(map, *id);
            if now != route.place {
                route.place = now;
                route.sessions.values().for_each(|slot| slot.signal());
            }
        }
    }

    fn signal_all(&self) {
        locked(&self.databases).values().flat_map(|r| r.sessions.values()).for_each(|slot| slot.signal());
    }

    pub fn sessions(&self) -> usize {
        locked(&self.databases).values().map(|r| r.sessions.len()).sum()
    }

    /// Runs until `stop`, and then wakes everybody once more.
    pub async fn run(&self, mut map: watch::Receiver<Arc<PartitionMap>>, stop: CancellationToken) {
        loop {
            let now = Arc::clone(&map.borrow_and_update());
            self.follow(&now);
            tokio::select! {
                changed = map.changed() => if changed.is_err() { break },
                () = stop.cancelled() => break,
            }
        }
        stop.cancelled().await;
        self.signal_all();
    }
}

impl Drop for RouteEntry {
    fn drop(&mut self) {
        let mut databases = locked(&self.routes.databases);
        if let Some(route) = databases.get_mut(&self.database) {
            route.sessions.remove(&self.number);
            if route.sessions.is_empty() {
                databases.remove(&self.database);
            }
        }
    }
}
