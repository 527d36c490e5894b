//! The primary's end: takes streams of the replicas that the current reign admits, and of nobody else.
//!
//! Nothing is admitted until the replica agent says so (R7), an admission names the reign and every replica, and taking
//! it back closes the streams before it returns. So an acknowledgement reaches the instance only in the reign, and
//! only from the replica, for which it was meant.

use super::hello::{Hello, Purpose, Refusal};
use super::hold::Quorum;
use super::leash::{Leash, locked};
use super::primary::serve_primary;
use super::relay::Relay;
use super::sentry::{Flush, Sentry, Standby};
use super::telemetry::{self, Side};
use super::turns::Lead;
use async_trait::async_trait;
use bytes::Bytes;
use quorate_model::{DatabaseId, Epoch, Lsn, NodeId, ReplicaId};
use quorate_transport::{LocalStream, PeerStream, StreamHandler};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Streams of one replica: its walreceiver, a base backup's two, and as many that have not noticed their end yet.
const MAX_STREAMS_PER_REPLICA: usize = 8;

/// Finds the node on which a replica lives.
type Residence = Box<dyn Fn(ReplicaId) -> Option<NodeId> + Send + Sync>;

pub(super) type UpLeash = Leash<Relay<PeerStream, LocalStream, Sentry>>;

/// Every tunnel that ends at primaries of this node.
pub struct Upstreams {
    served: Mutex<BTreeMap<DatabaseId, Served>>,
    residence: Option<Residence>,
}

/// What is known of one database. The lock around it is taken when streams come, end or are cut, never while they flow.
#[derive(Default)]
struct Served {
    admission: Option<Admission>,
    /// Those of the admitted that may rewind from here, in this reign.
    rewinders: BTreeSet<ReplicaId>,
    /// Of the current reign only: a flush of a former one says nothing.
    standbys: BTreeMap<ReplicaId, Arc<Standby>>,
    /// Of the current reign only.
    lead: Arc<Lead>,
    /// Of the current reign only.
    quorum: Arc<Quorum>,
    voting: Voting,
    streams: BTreeMap<u64, Stream>,
    serial: u64,
}

/// For whom a commit waits.
#[derive(Default, PartialEq, Eq)]
struct Voting {
    voters: BTreeSet<ReplicaId>,
    k: usize,
    /// No change of them is under way.
    settled: bool,
}

impl Voting {
    /// A commit waits for this one or another: it may wait for its turn when it is not the first to acknowledge.
    fn takes_turns(&self, replica: ReplicaId) -> bool {
        self.settled && self.k == 1 && self.voters.contains(&replica)
    }
}

struct Stream {
    replica: ReplicaId,
    purpose: Purpose,
    leash: Arc<UpLeash>,
}

#[derive(Clone, PartialEq, Eq)]
struct Admission {
    primary: ReplicaId,
    epoch: Epoch,
    socket_dir: PathBuf,
    allowed: BTreeSet<ReplicaId>,
}

impl Upstreams {
    /// Admits nothing yet. Believes a node that it holds the replica in whose name it asks.
    pub fn new() -> Arc<Upstreams> {
        Arc::new(Upstreams { served: Mutex::default(), residence: None })
    }

    /// As [`Upstreams::new`], but a replica may ask only from the node on which `residence` says that it lives.
    pub fn with_residence(
        residence: impl Fn(ReplicaId) -> Option<NodeId> + Send + Sync + 'static,
    ) -> Arc<Upstreams> {
        Arc::new(Upstreams { served: Mutex::default(), residence: Some(Box::new(residence)) })
    }

    /// Streams for this reign may come, from these replicas, to the instance in `socket_dir`. Replaces the database's
    /// former admission: streams of another reign, and of replicas no longer allowed, are closed when it returns.
    pub fn admit(
        &self,
        database: DatabaseId,
        primary: ReplicaId,
        epoch: Epoch,
        socket_dir: PathBuf,
        allowed: BTreeSet<ReplicaId>,
    ) {
        let admission = Admission { primary, epoch: epoch.reign(), socket_dir, allowed };
        let mut served = locked(&self.served);
        let served = served.entry(database).or_default();
        if served.admission.as_ref() == Some(&admission) {
            return;
        }
        let goes_on = served.admission.as_ref().is_some_and(|former| former.same_reign(&admission));
        served.cut(database, |s| !goes_on || !admission.allowed.contains(&s.replica));
        served.forget_standbys(|replica| !goes_on || !admission.allowed.contains(&replica));
        served.rewinders.retain(|replica| goes_on && admission.allowed.contains(replica));
        if !goes_on {
            served.lead = Arc::default();
            served.quorum = Arc::default();
            served.voting = Voting::default();
        }
        served.admission = Some(admission);
        tracing::info!(%database, replica = %primary, epoch = %epoch.reign(), "tunnels admitted");
    }

    /// These replicas may rewind from the primary, in the reign that is admitted, if it is this one. Rewinds of others
    /// are closed when it returns.
    pub fn admit_rewinds(&self, database: DatabaseId, epoch: Epoch, rewinders: BTreeSet<ReplicaId>) {
        let mut served = locked(&self.served);
        let Some(served) = served.get_mut(&database) else { return };
        let Some(admission) = served.admission.as_ref().filter(|a| a.epoch.same_reign(epoch)) else { return };
        let rewinders: BTreeSet<ReplicaId> = rewinders.intersection(&admission.allowed).copied().collect();
        if rewinders != served.rewinders {
            served.cut(database, |s| s.purpose == Purpose::Rewind && !rewinders.contains(&s.replica));
            served.rewinders = rewinders;
        }
    }

    /// A commit waits for `k` of these voters: whoever is none of them is held back to what so many have (see `hold`).
    /// `settled`: no change of voters is under way, so where a commit waits for one of them the others may be fed in
    /// turns (see `turns`).
    pub fn count(&self, database: DatabaseId, voters: &BTreeSet<ReplicaId>, k: usize, settled: bool) {
        let mut served = locked(&self.served);
        let Some(served) = served.get_mut(&database) else { return };
        let voting = Voting { voters: voters.clone(), k, settled };
        if voting != served.voting {
            for (replica, standby) in &served.standbys {
                standby.take_turns(voting.takes_turns(*replica));
            }
            served.voting = voting;
            served.tell_quorum();
        }
    }

    /// The fence: when it returns, no byte passes, and nothing is admitted until the next [`Upstreams::admit`].
    pub async fn cut_all(&self, database: DatabaseId) {
        let victims = {
            let mut served = locked(&self.served);
            let Some(served) = served.get_mut(&database) else { return };
            served.admission = None;
            served.rewinders.clear();
            served.cut(database, |_| true)
        };
        let_go(victims).await;
    }

    /// Cuts one replica off (R2): it is not admitted again until [`Upstreams::admit`] names it.
    pub async fn cut(&self, database: DatabaseId, replica: ReplicaId) {
        let victims = {
            let mut served = locked(&self.served);
            let Some(served) = served.get_mut(&database) else { return };
            if let Some(admission) = &mut served.admission {
                admission.allowed.remove(&replica);
            }
            served.rewinders.remove(&replica);
            served.forget_standbys(|other| other == replica);
            served.cut(database, |s| s.replica == replica)
        };
        let_go(victims).await;
    }

    /// As [`Upstreams::cut_all`], and forgets what the database's standbys acknowledged: it has left this node.
    pub async fn forget(&self, database: DatabaseId) {
        self.cut_all(database).await;
        if let Some(mut served) = locked(&self.served).remove(&database) {
            served.forget_standbys(|_| true);
        }
    }

    /// What each replica acknowledged to the primary in the current reign.
    pub fn flushes(&self, database: DatabaseId) -> BTreeMap<ReplicaId, Flush> {
        let served = locked(&self.served);
        let standbys = served.get(&database).map(|s| &s.standbys);
        standbys.into_iter().flatten().map(|(replica, standby)| (*replica, standby.flush())).collect()
    }

    /// Waits until a replica has acknowledged `lsn` to the primary, in the reign admitted by then; false when `deadline`
    /// has passed.
    pub async fn flushed(
        &self,
        database: DatabaseId,
        replica: ReplicaId,
        lsn: Lsn,
        deadline: Duration,
    ) -> bool {
        let deadline = Instant::now() + deadline;
        loop {
            let standby = locked(&self.served).entry(database).or_default().standby(replica);
            match timeout_at(deadline, standby.reached(lsn)).await {
                Ok(true) => return true,
                // Another reign began; its standbys are others.
                Ok(false) => {}
                Err(_) => return false,
            }
        }
    }

    /// Decides on a stream and registers it.
    pub(super) fn enter(&self, from: NodeId, hello: &Hello) -> Result<Ticket<'_>, Refusal> {
        if let Some(residence) = &self.residence
            && residence(hello.replica) != Some(from)
        {
            return Err(Refusal::WrongNode);
        }
        let mut served = locked(&self.served);
        let served = served.get_mut(&hello.database).ok_or(Refusal::NotAdmitted)?;
        let socket_dir = served.check(hello)?;
        let standby = (hello.purpose == Purpose::Stream).then(|| {
            // A standby has one walreceiver. When another comes, the former has ended, though its connection may not
            // have been heard to end; it would keep the replica's slot.
            served.cut(hello.database, |s| s.replica == hello.replica && s.purpose == Purpose::Stream);
            served.standby(hello.replica)
        });
        if served.streams.values().filter(|s| s.replica == hello.replica).count() >= MAX_STREAMS_PER_REPLICA {
            return Err(Refusal::TooMany);
        }
        let leash = Arc::new(UpLeash::default());
        let stream = Stream { replica: hello.replica, purpose: hello.purpose, leash: leash.clone() };
        served.serial += 1;
        served.streams.insert(served.serial, stream);
        Ok(Ticket {
            upstreams: self,
            database: hello.database,
            number: served.serial,
            socket_dir,
            sentry: Some(Sentry::new(standby)),
            leash,
        })
    }
}

#[async_trait]
impl StreamHandler for Upstreams {
    async fn accept(&self, from: NodeId, hello: Bytes, stream: PeerStream) {
        serve_primary(self, from, hello, stream).await;
    }
}

impl Admission {
    /// Whether streams of one may go on under the other, their replica allowed.
    fn same_reign(&self, other: &Admission) -> bool {
        (self.primary, self.epoch, &self.socket_dir) == (other.primary, other.epoch, &other.socket_dir)
    }
}

impl Served {
    fn check(&self, hello: &Hello) -> Result<PathBuf, Refusal> {
        let admission = self.admission.as_ref().ok_or(Refusal::NotAdmitted)?;
        if admission.epoch != hello.epoch {
            return Err(Refusal::WrongReign(admission.epoch));
        }
        if admission.primary != hello.primary {
            return Err(Refusal::WrongPrimary(admission.primary));
        }
        let may = match hello.purpose {
            Purpose::Stream | Purpose::Copy => &admission.allowed,
            Purpose::Rewind => &self.rewinders,
        };
        if !may.contains(&hello.replica) {
            return Err(Refusal::NotAllowed);
        }
        Ok(admission.socket_dir.clone())
    }

    fn standby(&mut self, replica: ReplicaId) -> Arc<Standby> {
        if let Some(standby) = self.standbys.get(&replica) {
            return standby.clone();
        }
        let turns = self.voting.takes_turns(replica);
        let standby = Arc::new(Standby::new(replica, self.lead.clone(), &self.quorum, turns));
        self.standbys.insert(replica, standby.clone());
        self.tell_quorum();
        standby
    }

    /// The voters that have a stream here, or had one in this reign.
    fn tell_quorum(&self) {
        let Voting { voters, k, .. } = &self.voting;
        let known = self.standbys.iter().filter(|(replica, _)| voters.contains(replica));
        self.quorum.set(*k, known.map(|(replica, standby)| (*replica, standby.clone())).collect());
    }

    /// Cuts the streams that are meant. Under the lock, so that whoever comes next finds them cut, not only gone.
    fn cut(&mut self, database: DatabaseId, mut which: impl FnMut(&Stream) -> bool) -> Vec<Arc<UpLeash>> {
        let mut victims = Vec::new();
        self.streams.retain(|_, stream| {
            let cut = which(stream);
            if cut {
                stream.leash.cut();
                tracing::info!(%database, replica = %stream.replica, purpose = ?stream.purpose, "tunnel cut");
                victims.push(stream.leash.clone());
            }
            !cut
        });
        telemetry::cut(Side::Upstream, victims.len());
        victims
    }

    fn forget_standbys(&mut self, mut which: impl FnMut(ReplicaId) -> bool) {
        self.standbys.retain(|replica, standby| {
            let forget = which(*replica);
            if forget {
                standby.retire();
            }
            !forget
        });
        self.tell_quorum();
    }
}

async fn let_go(victims: Vec<Arc<UpLeash>>) {
    for victim in victims {
        victim.let_go().await;
    }
}

/// A stream that was admitted. Dropped, the stream is over.
pub(super) struct Ticket<'a> {
    upstreams: &'a Upstreams,
    database: DatabaseId,
    number: u64,
    pub socket_dir: PathBuf,
    /// Taken by the relay.
    pub sentry: Option<Sentry>,
    pub leash: Arc<UpLeash>,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.leash.cut();
        if let Some(served) = locked(&self.upstreams.served).get_mut(&self.database) {
            served.streams.remove(&self.number);
        }
        self.leash.mark_let_go();
    }
}
