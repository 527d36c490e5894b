//! The map's record of a database (DESIGN §4).

use crate::{Configuration, DatabaseId, Epoch, Lineage, NodeId, OperationId, Position, ReplicaId, ServerId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Database {
    pub id: DatabaseId,
    pub server: ServerId,
    pub name: String,
    /// Compare-and-set token: bumped by every change, so that a decision is carried out only against the record
    /// it was made from (R4).
    pub version: u64,
    pub epoch: Epoch,
    pub phase: Phase,
    /// The configuration in force, or being brought into force.
    pub current: Configuration,
    /// The reign since which its primary has been the primary, or the only candidate, without another between.
    pub primary_since: Epoch,
    /// Configurations that a fence set must cover besides `current` (R3): set in Joint, Electing, Promoting and
    /// QuorumLost, empty in Stable. More than one, when an election interrupted a change before its barrier.
    pub previous: Vec<Configuration>,
    /// Every copy that counts or may come to count. Those in no configuration are learners.
    pub replicas: BTreeMap<ReplicaId, Replica>,
    pub lineage: Vec<Lineage>,
    pub operation: Option<OperationId>,
    /// Copies to keep, the primary included.
    pub copies: u32,
    pub options: Options,
}

/// What an operator has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Options {
    pub reads: Reads,
    pub commits: Commits,
    pub outcomes: Outcomes,
    pub pool_mode: PoolMode,
    /// Server connections that the sessions of one node may share, in transaction mode.
    pub pool_size: u16,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            reads: Reads::default(),
            commits: Commits::default(),
            outcomes: Outcomes::default(),
            pool_mode: PoolMode::default(),
            pool_size: DEFAULT_POOL_SIZE,
        }
    }
}

/// As PgBouncer's `default_pool_size`: enough to keep several processors busy, and four nodes of it are less than an
/// instance has connections.
pub const DEFAULT_POOL_SIZE: u16 = 20;

impl Options {
    pub fn set(&mut self, option: DatabaseOption) {
        match option {
            DatabaseOption::Reads(reads) => self.reads = reads,
            DatabaseOption::Commits(commits) => self.commits = commits,
            DatabaseOption::Outcomes(outcomes) => self.outcomes = outcomes,
            DatabaseOption::PoolMode(mode) => self.pool_mode = mode,
            DatabaseOption::PoolSize(size) => self.pool_size = size,
        }
    }
}

/// When the primary's gate may release a result (DESIGN §5 *Reads*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reads {
    /// While it holds a lease of its voters.
    #[default]
    Lease,
    /// After one round in which a voter confirms that the primary still is one: no clock is trusted.
    Confirm,
}

impl Reads {
    pub fn name(self) -> &'static str {
        match self {
            Reads::Lease => "lease",
            Reads::Confirm => "confirm",
        }
    }

    pub fn named(name: &str) -> Option<Reads> {
        [Reads::Lease, Reads::Confirm].into_iter().find(|r| r.name() == name)
    }
}

/// What the acknowledgement of a commit rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Commits {
    /// On Postgres, which waits for the quorum unless it was told not to, and on the guard, which refuses the telling.
    #[default]
    Guarded,
    /// On the positions that a quorum has acknowledged, whatever Postgres was told.
    Strict,
}

impl Commits {
    pub fn name(self) -> &'static str {
        match self {
            Commits::Guarded => "guarded",
            Commits::Strict => "strict",
        }
    }

    pub fn named(name: &str) -> Option<Commits> {
        [Commits::Guarded, Commits::Strict].into_iter().find(|c| c.name() == name)
    }
}

/// Whether a commit whose answer is lost with its primary is asked for at the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcomes {
    /// The id of a transaction is asked for in front of its commit.
    #[default]
    Tracked,
    Untracked,
}

impl Outcomes {
    pub fn name(self) -> &'static str {
        match self {
            Outcomes::Tracked => "tracked",
            Outcomes::Untracked => "untracked",
        }
    }

    pub fn named(name: &str) -> Option<Outcomes> {
        [Outcomes::Tracked, Outcomes::Untracked].into_iter().find(|o| o.name() == name)
    }
}

/// For how long a client has a server connection of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PoolMode {
    /// As long as it is connected.
    #[default]
    Session,
    /// For a transaction; and on, while the server holds something of the session that cannot be made elsewhere.
    Transaction,
}

impl PoolMode {
    pub fn name(self) -> &'static str {
        match self {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        }
    }

    pub fn named(name: &str) -> Option<PoolMode> {
        [PoolMode::Session, PoolMode::Transaction].into_iter().find(|m| m.name() == name)
    }
}

/// What an operator may choose for a database at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DatabaseOption {
    Reads(Reads),
    Commits(Commits),
    Outcomes(Outcomes),
    PoolMode(PoolMode),
    /// At least 1.
    PoolSize(u16),
}

impl std::fmt::Display for DatabaseOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DatabaseOption::Reads(reads) => write!(f, "reads = {}", reads.name()),
            DatabaseOption::Commits(commits) => write!(f, "commits = {}", commits.name()),
            DatabaseOption::Outcomes(outcomes) => write!(f, "outcomes = {}", outcomes.name()),
            DatabaseOption::PoolMode(mode) => write!(f, "pool_mode = {}", mode.name()),
            DatabaseOption::PoolSize(size) => write!(f, "pool_size = {size}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Replica {
    pub node: NodeId,
    pub state: ReplicaState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReplicaState {
    Up,
    /// Not heard of since then (Unix milliseconds by the recorder's clock; drives the slow replacement only).
    Down {
        since_ms: u64,
    },
    /// Given up by a forced recovery: it never counts again and is not started. Its data stays on its node until an
    /// operator drops it.
    Quarantined,
    /// It discards the end of its log, which the history does not hold, and may hold less than it once acknowledged
    /// until it is past `floor`: where its log ended (I12).
    Incomplete {
        floor: Position,
    },
}

impl ReplicaState {
    /// Whether a replica in this state may be a member of a configuration, and its answer to a fence a part of a
    /// cover (I11, I12).
    pub fn may_count(self) -> bool {
        !matches!(self, ReplicaState::Incomplete { .. } | ReplicaState::Quarantined)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Its first primary is being made and its first voters copied. The gate has never been open.
    Creating,
    Stable,
    /// Voters are being changed; commits may be acknowledged under `previous` or `current`.
    Joint,
    Electing {
        coordinator: NodeId,
    },
    Promoting {
        coordinator: NodeId,
    },
    /// The gate parks sessions while the log moves to `to`.
    Switching {
        coordinator: NodeId,
        to: Option<ReplicaId>,
    },
    /// No fence set covers: the answers of `missing` (any that completes the cover) are waited for.
    QuorumLost {
        coordinator: NodeId,
        missing: Vec<ReplicaId>,
    },
    Dropping,
}

impl Phase {
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Creating => "creating",
            Phase::Stable => "stable",
            Phase::Joint => "joint",
            Phase::Electing { .. } => "electing",
            Phase::Promoting { .. } => "promoting",
            Phase::Switching { .. } => "switching",
            Phase::QuorumLost { .. } => "quorum lost",
            Phase::Dropping => "dropping",
        }
    }

    pub fn coordinator(&self) -> Option<NodeId> {
        match self {
            Phase::Electing { coordinator }
            | Phase::Promoting { coordinator }
            | Phase::Switching { coordinator, .. }
            | Phase::QuorumLost { coordinator, .. } => Some(*coordinator),
            _ => None,
        }
    }
}

impl Database {
    /// The primary that clients may be sent to: none while one is being elected.
    pub fn primary(&self) -> Option<ReplicaId> {
        match self.phase {
            Phase::Stable | Phase::Joint | Phase::Promoting { .. } | Phase::Switching { .. } => {
                Some(self.current.primary)
            }
            _ => None,
        }
    }

    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.replicas.get(&replica).map(|r| r.node)
    }

    pub fn primary_node(&self) -> Option<NodeId> {
        self.node_of(self.primary()?)
    }

    /// All configurations that a fence set must cover (R3).
    pub fn configurations(&self) -> impl Iterator<Item = &Configuration> {
        std::iter::once(&self.current).chain(self.previous.iter())
    }

    /// Members of any configuration in force. Nobody else's flush counts (I9, I11).
    pub fn members(&self) -> BTreeSet<ReplicaId> {
        self.configurations().flat_map(|c| c.members()).collect()
    }

    /// Whether the fence set covers every configuration in force (R3).
    pub fn is_covered_by(&self, fenced: &BTreeSet<ReplicaId>) -> bool {
        self.configurations().all(|c| c.is_covered_by(fenced))
    }

    pub fn missing_for_cover(&self, fenced: &BTreeSet<ReplicaId>) -> Vec<ReplicaId> {
        let missing: BTreeSet<ReplicaId> =
            self.configurations().flat_map(|c| c.missing_for_cover(fenced)).collect();
        missing.into_iter().collect()
    }

    /// Whether a replica is known not to count: see [`ReplicaState::may_count`].
    pub fn is_barred(&self, replica: ReplicaId) -> bool {
        self.replicas.get(&replica).is_some_and(|r| !r.state.may_count())
    }

    /// Copies that may come to count but do not yet.
    pub fn learners(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        let members = self.members();
        self.copies().filter(move |r| !members.contains(r))
    }

    /// Every replica that counts or may come to count: all but the quarantined.
    pub fn copies(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        self.replicas.iter().filter(|(_, r)| r.state != ReplicaState::Quarantined).map(|(id, _)| *id)
    }

    pub fn is_quarantined(&self, replica: ReplicaId) -> bool {
        self.replicas.get(&replica).is_some_and(|r| r.state == ReplicaState::Quarantined)
    }

    /// The copies on a node; a quarantined one there is in nobody's way.
    pub fn replicas_on(&self, node: NodeId) -> impl Iterator<Item = ReplicaId> + '_ {
        self.copies().filter(move |id| self.node_of(*id) == Some(node))
    }

    /// Whether nobody could acknowledge a commit: after a forced recovery, until a second copy exists.
    pub fn is_read_only(&self) -> bool {
        self.current.is_lone()
    }

    /// Invariants of the record itself (I9). Checked after every change.
    pub fn check(&self) -> Result<(), &'static str> {
        for c in self.configurations() {
            if !c.is_valid() {
                return Err("a configuration must have k >= 1 voters besides its primary");
            }
        }
        if !self.current.members().all(|r| self.replicas.contains_key(&r)) {
            return Err("a member of the current configuration is not among the replicas");
        }
        if self.members().iter().any(|r| self.is_quarantined(*r)) {
            return Err("a quarantined replica never counts");
        }
        if self.epoch.data_loss == 0 && self.configurations().any(Configuration::is_lone) {
            return Err("only an operator's word leaves a primary without voters");
        }
        if self.members().into_iter().any(|r| self.is_barred(r)) {
            return Err("a replica that is incomplete cannot be a member of a configuration");
        }
        if matches!(self.phase, Phase::Stable | Phase::Creating | Phase::Switching { .. })
            && !self.previous.is_empty()
        {
            return Err("a settled database has no previous configuration");
        }
        if self.phase == Phase::Joint && self.previous.is_empty() {
            return Err("a joint configuration needs its previous one");
        }
        Ok(())
    }
}
