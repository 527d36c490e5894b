//! What the sessions of one node share.

use crate::cancel::Cancels;
use crate::config::{CALL_DEADLINE, HOLD_PARTS, ProxyConfig};
use crate::gate::Gates;
use crate::gate::slot::{Slot, locked};
use crate::pool::Pools;
use crate::route::{Place, place};
use crate::rpc::{Question, Reply, answer};
use crate::wire::lane::LANE_BYTES;
use quorate_model::{DatabaseId, NodeId, Outcomes, PartitionMap, ServerId};
use quorate_throttle::{Admission, Logins};
use quorate_transport::{Peers, Service, decode, encode};
use std::collections::HashMap;
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
    pub logins: Logins,
    pub pools: Arc<Pools>,
    holds: Mutex<Holds>,
}

/// Clients that wait for their databases.
#[derive(Debug, Default)]
struct Holds {
    all: usize,
    of_server: HashMap<ServerId, usize>,
}

/// Whose clients wait in too great a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crowded {
    Node,
    Server,
}

impl Holds {
    /// A place, if fewer than `limit` clients wait; of one tenant fewer than its part of them, so that the databases of one
    /// that are closed for long do not keep the clients of others out.
    fn take(&mut self, server: ServerId, limit: usize) -> Result<(), Crowded> {
        let of_server = self.of_server.get(&server).copied().unwrap_or(0);
        if self.all >= limit {
            return Err(Crowded::Node);
        }
        if of_server >= (limit / HOLD_PARTS).max(1) {
            return Err(Crowded::Server);
        }
        self.all += 1;
        self.of_server.insert(server, of_server + 1);
        Ok(())
    }

    fn leave(&mut self, server: ServerId) {
        self.all = self.all.saturating_sub(1);
        if let Some(count) = self.of_server.get_mut(&server) {
            *count -= 1;
            if *count == 0 {
                self.of_server.remove(&server);
            }
        }
    }
}

/// One client's place among those that wait.
pub struct Held<'a> {
    holds: &'a Mutex<Holds>,
    server: ServerId,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        locked(self.holds).leave(self.server);
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
        let (routes, holds) = (Arc::default(), Mutex::default());
        let logins = Logins::new(config.logins_per_second);
        let max_waiting = config.max_held_bytes / LANE_BYTES / HOLD_PARTS;
        let pools = Pools::new(config.node, config.max_pooled, max_waiting);
        Arc::new(Shared { config, map, peers, gates, admission, cancels, routes, stop, logins, pools, holds })
    }

    /// Asks the gate of a primary, on this node or another one. The error says why there is no answer.
    pub async fn ask(&self, node: NodeId, question: Question) -> Result<Reply, String> {
        if node == self.config.node {
            return Ok(answer(&self.gates, question).await);
        }
        let answer = self.peers.call(node, Service::Proxy, encode(&question), CALL_DEADLINE).await;
        let answer = answer.map_err(|_| "the primary's node cannot be reached".to_owned())?;
        decode::<Reply>(&answer).map_err(|fault| fault.to_string())
    }

    /// Whether the outcome of commits whose answers are lost is found out.
    pub fn tracks_outcomes(&self, database: DatabaseId) -> bool {
        self.map.borrow().databases.get(&database).is_some_and(|d| d.options.outcomes == Outcomes::Tracked)
    }

    /// A place among the clients that wait, if there is memory for one more of this tenant.
    pub fn hold(&self, server: ServerId) -> Result<Held<'_>, Crowded> {
        locked(&self.holds).take(server, self.config.max_held_bytes / LANE_BYTES)?;
        Ok(Held { holds: &self.holds, server })
    }
}

/// The sessions of each database, to be woken when its primary moves.
#[derive(Default)]
pub struct Routes {
    databases: Mutex<HashMap<DatabaseId, Route>>,
}

struct Route {
    place: Place,
    outcomes: Option<Outcomes>,
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
            outcomes: None,
            next: 0,
            sessions: HashMap::new(),
        });
        let number = route.next;
        route.next += 1;
        route.sessions.insert(number, Arc::clone(slot));
        drop(databases);
        RouteEntry { routes: Arc::clone(self), database, number }
    }

    /// Wakes the sessions of every database whose primary is elsewhere than before, or whose options have changed.
    fn follow(&self, map: &PartitionMap) {
        for (id, route) in locked(&self.databases).iter_mut() {
            let now = (place(map, *id), map.databases.get(id).map(|d| d.options.outcomes));
            if now != (route.place, route.outcomes) {
                (route.place, route.outcomes) = now;
                route.sessions.values().for_each(|slot| slot.signal());
            }
        }
    }

    fn signal_all(&self) {
        locked(&self.databases).values().flat_map(|r| r.sessions.values()).for_each(|slot| slot.signal());
    }

    /// Why sessions of each database that share their servers keep one.
    pub fn pinned(&self) -> Vec<(DatabaseId, Box<str>)> {
        let databases = locked(&self.databases);
        let slots =
            databases.iter().flat_map(|(id, route)| route.sessions.values().map(move |slot| (*id, slot)));
        slots.filter_map(|(id, slot)| Some((id, slot.pinned()?))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_of_one_tenant_leave_room_for_those_of_others() {
        let mut holds = Holds::default();
        let (one, other) = (ServerId(1), ServerId(2));
        let limit = 2 * HOLD_PARTS;
        assert_eq!([holds.take(one, limit), holds.take(one, limit)], [Ok(()); 2]);
        assert_eq!(holds.take(one, limit), Err(Crowded::Server));
        assert_eq!(holds.take(other, limit), Ok(()));
        holds.leave(one);
        assert_eq!(holds.take(one, limit), Ok(()));
        for server in 3.. {
            if holds.all == limit {
                break;
            }
            assert_eq!(holds.take(ServerId(server), limit), Ok(()));
        }
        assert_eq!(holds.take(other, limit), Err(Crowded::Node));
        for _ in 0..2 {
            holds.leave(one);
        }
        assert!(!holds.of_server.contains_key(&one));
    }
}
