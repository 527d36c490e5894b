//! Transaction pooling: the clients of a node share server connections of their database, each for a transaction.
//!
//! A client keeps a server for longer while that holds something of the session that cannot be made elsewhere
//! ([`Kept::holds`](crate::wire::kept::Kept::holds)): it is *pinned*. What can be, settings and prepared statements, follows it
//! to whatever server it gets next.

pub mod places;
pub mod server;

use crate::gate::slot::locked;
use crate::route::{Place as Where, Target, place};
use crate::session::follow::Primary;
use crate::session::params::Params;
use crate::wire::statements::Statements;
use places::{Asked, Asker, Places, Row};
use quorate_model::{DatabaseId, NodeId, PartitionMap, PoolMode, ServerId};
use server::Idle;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// A server that was idle for so long is closed.
const IDLE_FOR: Duration = Duration::from_secs(600);
/// How often idle servers are looked through.
pub const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Keys that are remembered before those that nobody uses are forgotten.
const MAX_KEYS: usize = 1024;

thread_local! {
    static WORKER: Cell<usize> = const { Cell::new(0) };
}

/// This thread is that worker from now on.
pub fn set_worker(number: usize) {
    WORKER.set(number);
}

/// Whom a server is for. Clients of equal keys share servers.
#[derive(Debug)]
pub struct Key {
    user: String,
    parameters: Vec<(String, String)>,
    /// What a server says of its parameters at its start.
    pub welcome: OnceLock<Params>,
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        std::ptr::eq(self, other) || self.user == other.user && self.parameters == other.parameters
    }
}

/// An idle server, and the worker in whose runtime its socket is.
type Server = (usize, Box<Idle>);

pub struct Pools {
    node: NodeId,
    places: Mutex<Places<Arc<Key>, Server, oneshot::Sender<Place>>>,
    keys: Mutex<HashMap<DatabaseId, Vec<Arc<Key>>>>,
    pub statements: Arc<Statements>,
    began: Instant,
}

/// The right to one server connection. Dropped, it is free for somebody else.
pub struct Place {
    pools: Arc<Pools>,
    database: DatabaseId,
    key: Arc<Key>,
    since: Instant,
    server: Option<Server>,
    /// It was given back.
    over: bool,
}

/// What becomes of a client that asks for a place.
pub enum Line {
    Place(Place),
    Wait(Waiting),
    /// Too many clients of the tenant wait on this node.
    Full,
}

/// A place in the line. Dropped, it is given up.
pub struct Waiting {
    pools: Arc<Pools>,
    database: DatabaseId,
    ticket: u64,
    granted: oneshot::Receiver<Place>,
}

/// One database's pool on this node, for reports.
pub type PoolRow = Row;

impl Pools {
    /// At most `limit` places on this node; at most `max_waiting` clients of one tenant wait.
    pub fn new(node: NodeId, limit: usize, max_waiting: usize) -> Arc<Pools> {
        Arc::new(Pools {
            node,
            places: Mutex::new(Places::new(limit, max_waiting)),
            keys: Mutex::default(),
            statements: Arc::default(),
            began: Instant::now(),
        })
    }

    /// The key of that user's sessions with these parameters.
    pub fn key(&self, target: &Target, parameters: &[(String, String)]) -> Arc<Key> {
        let mut keys = locked(&self.keys);
        if keys.values().map(Vec::len).sum::<usize>() >= MAX_KEYS {
            keys.retain(|_, keys| {
                keys.retain(|key| Arc::strong_count(key) > 1);
                !keys.is_empty()
            });
        }
        let keys = keys.entry(target.database).or_default();
        if let Some(known) = keys.iter().find(|k| k.user == target.user && k.parameters == parameters) {
            return Arc::clone(known);
        }
        let key = Arc::new(Key {
            user: target.user.clone(),
            parameters: parameters.to_vec(),
            welcome: OnceLock::new(),
        });
        keys.push(Arc::clone(&key));
        key
    }

    /// A place among the `size` of the database, or one in the line.
    pub fn ask(self: &Arc<Self>, database: DatabaseId, tenant: ServerId, size: u16, key: &Arc<Key>) -> Line {
        let (teller, granted) = oneshot::channel();
        let asker = Asker {
            database,
            tenant,
            size: usize::from(size),
            key,
            worker: WORKER.get(),
            now: self.began.elapsed(),
        };
        let asked = locked(&self.places).ask(asker, teller);
        match asked {
            Asked::Granted { server, evicted } => {
                drop(evicted);
                Line::Place(self.place(database, key, server))
            }
            Asked::Wait(ticket) => Line::Wait(Waiting { pools: Arc::clone(self), database, ticket, granted }),
            Asked::Full => Line::Full,
        }
    }

    fn place(self: &Arc<Self>, database: DatabaseId, key: &Arc<Key>, server: Option<Server>) -> Place {
        let (pools, key, since) = (Arc::clone(self), Arc::clone(key), Instant::now());
        Place { pools, database, key, since, server, over: false }
    }

    fn give_back(self: &Arc<Self>, place: &Place, server: Option<Idle>) {
        let server =
            server.map(|idle| (Arc::clone(&place.key), WORKER.get(), (WORKER.get(), Box::new(idle))));
        let now = self.began.elapsed();
        let mut places = locked(&self.places);
        let closed = places.give_back(place.database, place.since.elapsed(), server, now);
        let mut grants = Vec::new();
        while let Some(grant) = places.next() {
            grants.push(grant);
        }
        drop(places);
        drop(closed);
        for grant in grants {
            drop(grant.evicted);
            let place = self.place(grant.database, &grant.key, grant.server);
            // Who has stopped waiting meanwhile gives it back by dropping it.
            drop(grant.teller.send(place));
        }
    }

    /// Closes idle servers that nobody needs or that cannot be used any more.
    pub fn sweep(&self, map: &PartitionMap) {
        let before = self.began.elapsed().saturating_sub(IDLE_FOR);
        let primary = |database| match place(map, database) {
            Where::At { node, replica, epoch } => Some(Primary { node, replica, epoch }),
            _ => None,
        };
        // Of those who still share servers there only a few are left: the connections are better free for sessions.
        let shares = |database| {
            map.databases.get(&database).is_some_and(|d| d.options.pool_mode == PoolMode::Transaction)
        };
        let over =
            |database, (_, idle): &Server| !shares(database) || idle.is_over(self.node, primary(database));
        let swept = locked(&self.places).sweep(before, over);
        drop(swept);
    }

    pub fn rows(&self) -> Vec<PoolRow> {
        locked(&self.places).rows(self.began.elapsed())
    }
}

impl Place {
    /// The idle server in it, and whether its socket is this worker's.
    pub fn take_server(&mut self) -> Option<(Idle, bool)> {
        self.server.take().map(|(worker, idle)| (*idle, worker == WORKER.get()))
    }

    /// The session needs it no longer; its server is for the next one.
    pub fn release(mut self, server: Idle) {
        self.over = true;
        Arc::clone(&self.pools).give_back(&self, Some(server));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.over {
            self.over = true;
            self.server = None;
            Arc::clone(&self.pools).give_back(self, None);
        }
    }
}

impl Waiting {
    /// Ends when a place is there.
    pub async fn granted(&mut self) -> Option<Place> {
        (&mut self.granted).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        locked(&self.pools.places).give_up(self.database, self.ticket);
    }
}
