//! Admission of sessions: a count a node and a count a logical server, each with a limit.
//!
//! Promises: the counts never exceed their limits, not even for an instant, and every admitted session is
//! given back exactly once, however it ends, because the [`Permit`] releases when it is dropped. A refusal
//! changes nothing. One short mutex guards both counts, so that they are decided together: it is taken once
//! when a session starts and once when it ends, never on the path of a query.

use quorate_model::ServerId;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The sessions of one node: how many there are, and how many there may be.
#[derive(Debug)]
pub struct Admission {
    max_node: u32,
    max_server: u32,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Always the sum of `servers`.
    node: u32,
    /// Only servers that have a session: bounded by `max_node`, whatever names clients try.
    servers: BTreeMap<ServerId, u32>,
}

/// One admitted session. Dropping it gives the place back.
#[derive(Debug)]
#[must_use = "dropping a permit at once admits nobody"]
pub struct Permit {
    admission: Arc<Admission>,
    server: ServerId,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The node's: every tenant's sessions together.
    Node,
    /// The logical server's on this node.
    Server,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scope::Node => "this node",
            Scope::Server => "this logical server on this node",
        })
    }
}

/// A session that was not admitted. Safe to show to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "too many connections: the limit of {limit} sessions of {scope} is reached; close idle connections or retry later"
)]
pub struct Full {
    pub scope: Scope,
    /// Sessions; the limit that was reached.
    pub limit: u32,
}

impl Full {
    /// `too_many_connections`, what Postgres itself says.
    pub const fn sqlstate(&self) -> &'static str {
        "53300"
    }
}

impl Admission {
    /// At most `max_node` sessions on this node, of which at most `max_server` of any one logical server.
    pub fn new(max_node: u32, max_server: u32) -> Arc<Admission> {
        Arc::new(Admission { max_node, max_server, counts: Mutex::default() })
    }

    /// Takes a place for a session of `server`, or says which limit forbids it. The server's own limit is
    /// named first: it is the one that its owner can do something about.
    pub fn admit(self: &Arc<Self>, server: ServerId) -> Result<Permit, Full> {
        let mut counts = self.counts();
        let of_server = counts.servers.get(&server).copied().unwrap_or(0);
        if of_server >= self.max_server {
            return Err(Full { scope: Scope::Server, limit: self.max_server });
        }
        if counts.node >= self.max_node {
            return Err(Full { scope: Scope::Node, limit: self.max_node });
        }
        counts.node += 1;
        counts.servers.insert(server, of_server + 1);
        Ok(Permit { admission: Arc::clone(self), server })
    }

    /// Sessions admitted on this node now.
    pub fn in_use(&self) -> u32 {
        self.counts().node
    }

    /// Sessions of one logical server admitted on this node now.
    pub fn in_use_by(&self, server: ServerId) -> u32 {
        self.counts().servers.get(&server).copied().unwrap_or(0)
    }

    /// The most sessions this node admits.
    pub fn max_node(&self) -> u32 {
        self.max_node
    }

    /// The most sessions this node admits of one logical server.
    pub fn max_server(&self) -> u32 {
        self.max_server
    }

    fn release(&self, server: ServerId) {
        let mut counts = self.counts();
        counts.node = counts.node.saturating_sub(1);
        if let Some(count) = counts.servers.get_mut(&server) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.servers.remove(&server);
            }
        }
    }

    /// Nothing that holds the lock can leave the counts half changed, so a panic elsewhere does not matter.
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    pub fn server(&self) -> ServerId {
        self.server
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.release(self.server);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const A: ServerId = ServerId(1);
    const B: ServerId = ServerId(2);

    #[test]
    fn a_server_is_stopped_at_its_own_limit() {
        let admission = Admission::new(10, 2);
        let first = admission.admit(A).unwrap();
        let _second = admission.admit(A).unwrap();
        let full = admission.admit(A).unwrap_err();
        assert_eq!(full, Full { scope: Scope::Server, limit: 2 });
        assert_eq!(full.sqlstate(), "53300");
        assert_eq!(
            full.to_string(),
            "too many connections: the limit of 2 sessions of this logical server on this node is reached; \
             close idle connections or retry later"
        );
        let _other = admission.admit(B).unwrap();
        drop(first);
        assert_eq!(admission.in_use_by(A), 1);
        let _third = admission.admit(A).unwrap();
        assert_eq!(admission.in_use(), 3);
    }

    #[test]
    fn a_node_is_stopped_at_its_limit() {
        let admission = Admission::new(2, 2);
        let a = admission.admit(A).unwrap();
        let _b = admission.admit(B).unwrap();
        assert_eq!(admission.admit(B).unwrap_err(), Full { scope: Scope::Node, limit: 2 });
        assert_eq!(admission.in_use(), 2, "a refusal changes nothing");
        drop(a);
        assert!(admission.admit(B).is_ok());
    }

    #[test]
    fn a_limit_of_zero_admits_nobody() {
        assert_eq!(Admission::new(0, 5).admit(A).unwrap_err().scope, Scope::Node);
        assert_eq!(Admission::new(5, 0).admit(A).unwrap_err().scope, Scope::Server);
    }

    #[test]
    fn idle_servers_are_forgotten() {
        let admission = Admission::new(4, 4);
        for server in 0..1_000 {
            let _ = admission.admit(ServerId(server)).unwrap();
        }
        assert!(admission.counts().servers.is_empty());
        assert_eq!(admission.in_use(), 0);
    }

    /// Many threads, two tenants: nobody ever sees more than the limits, and in the end all places are free.
    #[test]
    fn threads_never_exceed_the_limits() {
        const NODE: u32 = 5;
        const SERVER: u32 = 3;
        let admission = Admission::new(NODE, SERVER);
        let held = [AtomicU32::new(0), AtomicU32::new(0)];
        let admitted = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for thread in 0..8_usize {
                let (admission, held, admitted) = (&admission, &held, &admitted);
                scope.spawn(move || {
                    let which = thread % 2;
                    for _ in 0..20_000 {
                        let Ok(permit) = admission.admit(ServerId(which as u64)) else { continue };
                        admitted.fetch_add(1, Ordering::Relaxed);
                        let mine = held[which].fetch_add(1, Ordering::SeqCst) + 1;
                        assert!(mine <= SERVER, "{mine} sessions of one server");
                        let all = admission.in_use();
                        assert!(all <= NODE, "{all} sessions on the node");
                        held[which].fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                });
            }
        });
        assert!(admitted.load(Ordering::Relaxed) > 0);
        assert_eq!(admission.in_use(), 0);
        assert!(admission.counts().servers.is_empty());
    }
}
