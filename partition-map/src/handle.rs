//! The map as the rest of the node uses it.

use crate::batch::Batcher;
use crate::contact::{Contact, Leadership, leadership};
use crate::election::{self, Campaign};
use crate::network::Network;
use crate::services::{MapService, RaftService};
use crate::store::{self, MemoryDisk, Views};
use crate::types::{LogId, Metrics, Proposal, ProposalId, Raft};
use crate::wire::{Answer, Question};
use crate::{MapConfig, MapError, StartError, members};
use futures::future::BoxFuture;
use openraft::ServerState;
use quorate_model::{Applied, Command, NodeId, PartitionMap};
use quorate_transport::{PeerNetwork, Service, decode, encode};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval, sleep, timeout};

const FILE: &str = "map.redb";
/// For a proposal or a barrier as a whole.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// For one question to one node; the next is asked after it.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Between questions that came to nothing.
const ASK_PAUSE: Duration = Duration::from_millis(15);
/// The largest command, encoded.
pub const MAX_COMMAND_BYTES: usize = 4 * 1024 * 1024;

/// This node's part of the partition map. Clones are the same.
#[derive(Clone)]
pub struct MapHandle(Arc<Inner>);

struct Inner {
    node: NodeId,
    first_voters: BTreeSet<NodeId>,
    raft: Raft,
    metrics: watch::Receiver<Metrics>,
    peers: Arc<dyn PeerNetwork>,
    service: MapService,
    views: Views,
    leadership: watch::Receiver<Leadership>,
    life: u64,
    next_number: AtomicU64,
    tasks: Mutex<JoinSet<()>>,
}

impl MapHandle {
    /// Opens the log, registers `Service::Raft` and `Service::Map`, and takes part from then on.
    pub async fn start(config: MapConfig, peers: Arc<dyn PeerNetwork>) -> Result<MapHandle, StartError> {
        config.check()?;
        let opened = open(&config).await?;
        MapHandle::start_on(opened, config, peers).await
    }

    /// The same with its log on a simulated disk; `config.dir` is not used.
    pub async fn start_in_memory(
        config: MapConfig,
        disk: MemoryDisk,
        peers: Arc<dyn PeerNetwork>,
    ) -> Result<MapHandle, StartError> {
        config.check()?;
        let opened = store::open_in_memory(disk, config.node)
            .map_err(|e| StartError::Storage { path: PathBuf::new(), reason: e.to_string() })?;
        MapHandle::start_on(opened, config, peers).await
    }

    /// Not an `async fn`: the compiler makes code of those where they are awaited, and with this one of all of Raft, again
    /// in every program and every test.
    fn start_on(
        (log, machine, views): Opened,
        config: MapConfig,
        peers: Arc<dyn PeerNetwork>,
    ) -> BoxFuture<'static, Result<MapHandle, StartError>> {
        Box::pin(async move {
            let raft_config = Arc::new(config.raft()?);
            let contact = Arc::new(Contact::new(Instant::now()));
            let network = Network(peers.clone());
            let raft = Raft::new(config.node.0, raft_config, network, log.clone(), machine)
                .await
                .map_err(|e| StartError::Raft(e.to_string()))?;
            let (batcher, batching) = Batcher::new(raft.clone());
            let service = MapService {
                raft: raft.clone(),
                batcher,
                store: log.clone(),
                contact: contact.clone(),
                lease: config.lease(),
            };
            peers.register(
                Service::Raft,
                Arc::new(RaftService { raft: raft.clone(), contact: contact.clone() }),
            );
            peers.register(Service::Map, Arc::new(service.clone()));
            let (leader, leadership) = watch::channel(Leadership::default());
            let campaign = Campaign {
                node: config.node,
                schedule: Campaign::times(config.lease(), config.election_min_ms, config.election_max_ms),
                raft: raft.clone(),
                peers: peers.clone(),
                store: log,
                contact: contact.clone(),
            };
            let mut tasks = JoinSet::new();
            tasks.spawn(batching);
            tasks.spawn(observe(raft.metrics(), contact, leader, config.node));
            tasks.spawn(beat(raft.clone(), config.heartbeat()));
            tasks.spawn(election::run(campaign));
            tasks.spawn(members::found(raft.clone(), peers.clone(), config.node, config.voters.clone()));
            tasks.spawn(members::complete(raft.clone(), config.node, config.nodes.clone()));
            let life = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
            Ok(MapHandle(Arc::new(Inner {
                node: config.node,
                first_voters: config.voters,
                metrics: raft.metrics(),
                raft,
                peers,
                service,
                views,
                leadership,
                life,
                next_number: AtomicU64::new(0),
                tasks: Mutex::new(tasks),
            })))
        })
    }

    /// What this node has applied. May be behind the leader; never shows what is not committed.
    pub fn watch(&self) -> watch::Receiver<Arc<PartitionMap>> {
        self.0.views.map.clone()
    }

    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.leadership.clone()
    }

    /// `leader`, `follower`, `learner` or `unknown`.
    pub fn role_of(&self, node: NodeId) -> &'static str {
        let metrics = self.0.metrics.borrow();
        let membership = metrics.membership_config.membership();
        if metrics.current_leader == Some(node.0) {
            "leader"
        } else if membership.voter_ids().any(|id| id == node.0) {
            "follower"
        } else if membership.get_node(&node.0).is_some() {
            "learner"
        } else {
            "unknown"
        }
    }

    /// Has a command carried out, once, by whoever leads, and returns what it did. Follows changes of the
    /// leadership.
    pub async fn propose(&self, command: Command) -> Result<Applied, MapError> {
        let number = self.0.next_number.fetch_add(1, Ordering::Relaxed);
        let id = ProposalId { node: self.0.node, life: self.0.life, number };
        let question = Question::Propose(Box::new(Proposal { id, command }));
        match self.ask(question).await? {
            Answer::Outcome(outcome) => Ok(outcome?),
            _ => Err(MapError::NoLeader),
        }
    }

    /// Returns once the local map is at least as new as what was committed when this was called.
    pub async fn read_barrier(&self) -> Result<(), MapError> {
        let begun = Instant::now();
        let Answer::Index(index) = self.ask(Question::ReadIndex).await? else {
            return Err(MapError::NoLeader);
        };
        let left = ASK_TIMEOUT.saturating_sub(begun.elapsed());
        let mut applied = self.0.views.applied.clone();
        match timeout(left, applied.wait_for(|applied| at_least(*applied, index))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(MapError::Stopped),
            Err(_) => Err(MapError::Timeout(ASK_TIMEOUT)),
        }
    }

    /// Stops taking part and closes the log. Everything acknowledged is on disk already.
    pub async fn shutdown(&self) {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(node = %self.0.node, %error, "the map did not stop cleanly");
        }
        self.0.service.store.close().await;
    }

    /// Asks until somebody who leads has answered, or time is up.
    async fn ask(&self, question: Question) -> Result<Answer, MapError> {
        let body = encode(&question);
        if body.len() > MAX_COMMAND_BYTES {
            return Err(MapError::TooLarge(body.len()));
        }
        let begun = Instant::now();
        let mut asked_leader = false;
        let mut hint = None;
        for attempt in 0.. {
            if self.0.metrics.borrow().running_state.is_err() {
                return Err(MapError::Stopped);
            }
            let left = ASK_TIMEOUT.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break;
            }
            let Some(target) = self.target(hint.take(), attempt) else {
                sleep(ASK_PAUSE).await;
                continue;
            };
            let answer =
                self.0.peers.call(target, Service::Map, body.clone(), QUESTION_TIMEOUT.min(left)).await;
            match answer.map(|body| decode(&body)) {
                Ok(Ok(Answer::NotLeader { leader: Some(leader) })) if leader != target.0 => {
                    hint = Some(NodeId(leader));
                }
                Ok(Ok(Answer::NotLeader { .. })) => {}
                Ok(Ok(Answer::Uncertain)) | Err(_) => asked_leader = true,
                Ok(Ok(answer)) => return Ok(answer),
                // A node that does not offer the service (yet), or not in this version.
                Ok(Err(_)) => {}
            }
            if hint.is_none() {
                sleep(ASK_PAUSE).await;
            }
        }
        if asked_leader { Err(MapError::Timeout(ASK_TIMEOUT)) } else { Err(MapError::NoLeader) }
    }

    /// Whom to ask: who is said to lead, else voters in turn.
    fn target(&self, hint: Option<NodeId>, attempt: usize) -> Option<NodeId> {
        let metrics = self.0.metrics.borrow();
        if let Some(leader) = hint.or(metrics.current_leader.map(NodeId)) {
            return Some(leader);
        }
        let mut voters: Vec<NodeId> =
            metrics.membership_config.membership().voter_ids().map(NodeId).collect();
        if voters.is_empty() {
            voters = self.0.first_voters.iter().copied().collect();
        }
        voters.retain(|id| *id != self.0.node || metrics.state == ServerState::Leader);
        (!voters.is_empty()).then(|| voters[attempt % voters.len()])
    }
}

/// Whether a log applied up to there contains that entry. Indexes alone decide: both are committed.
fn at_least(applied: Option<LogId>, index: Option<LogId>) -> bool {
    applied.map(|id| id.index) >= index.map(|id| id.index)
}

type Opened = (store::LogStore, store::Machine, Views);

async fn open(config: &MapConfig) -> Result<Opened, StartError> {
    let (dir, node) = (config.dir.clone(), config.node);
    let path = dir.join(FILE);
    let opened = tokio::task::spawn_blocking({
        let path = path.clone();
        move || {
            std::fs::create_dir_all(&dir)?;
            store::open(&path, node)
        }
    });
    match opened.await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(error)) => Err(StartError::Storage { path, reason: error.to_string() }),
        Err(error) => Err(StartError::Storage { path, reason: error.to_string() }),
    }
}

/// Passes on what Raft reports.
async fn observe(
    mut metrics: watch::Receiver<Metrics>,
    contact: Arc<Contact>,
    leader: watch::Sender<Leadership>,
    node: NodeId,
) {
    loop {
        let (next, stopped) = {
            let seen = metrics.borrow_and_update();
            contact.reported(&seen, Instant::now());
            (leadership(&seen), seen.running_state.is_err())
        };
        let next = if stopped { Leadership { term: next.term, ..Leadership::default() } } else { next };
        leader.send_if_modified(|current| {
            let changed = *current != next;
            if changed {
                let Leadership { leader, term, is_me } = next;
                tracing::info!(node = %node, ?leader, term, is_me, "leadership of the map");
                *current = next;
            }
            changed
        });
        if stopped || metrics.changed().await.is_err() {
            return;
        }
    }
}

/// A leader's heartbeats.
async fn beat(raft: Raft, every: Duration) {
    let mut metrics = raft.metrics();
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let stopped = {
            // Nobody else is woken for it.
            let seen = metrics.wait_for(|m| m.state == ServerState::Leader || m.running_state.is_err()).await;
            seen.map_or(true, |seen| seen.running_state.is_err())
        };
        if stopped {
            return;
        }
        ticks.tick().await;
        let leads = metrics.borrow().state == ServerState::Leader;
        if leads && raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}
