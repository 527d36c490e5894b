//! The partition map: the replicated record of nodes, servers, databases, operations and events, and the only
//! function that changes it. `apply` is deterministic: every replica of the map computes the same.

use crate::command::{Applied, Change, Command, Refusal};
use crate::transition::wrong_phase;
use crate::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Events kept in the map, newest last.
pub const MAX_EVENTS: usize = 512;
/// Operations kept after they ended, newest last.
pub const MAX_ENDED_OPERATIONS: usize = 256;
/// Databases one map holds.
pub const MAX_DATABASES: usize = 10_000;
/// Replicas one database may have at a time, learners included.
pub const MAX_REPLICAS: usize = 8;
/// Configurations a fence set can be asked to cover; an election that would need more is refused.
pub const MAX_PREVIOUS: usize = 16;
/// Longest name, as in PostgreSQL (`NAMEDATALEN - 1`).
pub const MAX_NAME: usize = 63;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionMap {
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    pub servers: BTreeMap<ServerId, Server>,
    pub databases: BTreeMap<DatabaseId, Database>,
    pub operations: BTreeMap<OperationId, Operation>,
    pub events: VecDeque<Event>,
    /// The last number handed out, for every kind of id: none is ever used twice.
    pub last_id: u64,
    pub last_event: u64,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub id: NodeId,
    pub name: String,
    pub fault_domain: String,
    pub update_domain: String,
    pub region: String,
    /// `host:port` of the peer port (and of the ring's UDP).
    pub peer: String,
    pub client: String,
    pub admin: String,
    pub http: String,
    /// Version of the daemon.
    pub version: String,
}

impl PartitionMap {
    pub fn server_named(&self, name: &str) -> Option<&Server> {
        self.servers.values().find(|s| s.name == name)
    }

    pub fn node_named(&self, name: &str) -> Option<&NodeRecord> {
        self.nodes.values().find(|n| n.name == name)
    }

    pub fn database_named(&self, server: &str, name: &str) -> Option<&Database> {
        let server = self.server_named(server)?.id;
        self.databases.values().find(|d| d.server == server && d.name == name)
    }

    /// Databases of that name on any server: routing by name alone works while there is one.
    pub fn databases_called<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Database> {
        self.databases.values().filter(move |d| d.name == name)
    }

    /// `server.database`
    pub fn full_name(&self, database: &Database) -> String {
        let server = self.servers.get(&database.server).map_or("?", |s| s.name.as_str());
        format!("{server}.{}", database.name)
    }

    /// Carries out one command, or refuses it and changes nothing.
    pub fn apply(&mut self, command: Command) -> Result<Applied, Refusal> {
        match command {
            Command::RegisterNode(record) => self.register_node(record),
            Command::CreateServer { name, admin, verifier } => self.create_server(name, admin, verifier),
            Command::DropServer { name } => self.drop_server(&name),
            Command::SetServerOption { server, option } => self.set_server_option(&server, option),
            Command::CreateDatabase { server, name, placement, now_ms } => {
                self.create_database(&server, name, &placement, now_ms)
            }
            Command::DropDatabase { server, name, now_ms } => self.drop_database(&server, &name, now_ms),
            Command::BeginSwitchover { database, to, now_ms } => self.begin_switchover(database, to, now_ms),
            Command::BeginMove { database, from, to, now_ms } => self.begin_move(database, from, to, now_ms),
            Command::BeginForceRecover { database, candidate, now_ms } => {
                self.begin_force_recover(database, candidate, now_ms)
            }
            Command::Keyed { key, command } => self.keyed(key, *command),
            Command::CancelOperation { operation, attempt, because, now_ms } => {
                self.cancel_operation(operation, attempt, because, now_ms)
            }
            Command::Claim { operation, attempt, owner, now_ms } => {
                self.claim(operation, attempt, owner, now_ms)
            }
            Command::Advance { operation, attempt, step, change, now_ms } => {
                self.advance(operation, attempt, step, change, now_ms)
            }
            Command::EndOperation { operation, attempt, state, now_ms } => {
                self.attempted(operation, attempt)?;
                self.end_operation(operation, state, now_ms)
            }
            Command::SetOption { server, name, option } => self.set_option(&server, &name, option),
            // I10: what may be lost is given up by an operator's word, which is an operation.
            Command::Reconfigure { change: Change::Recover { .. }, .. } => {
                Err(Refusal::Unsafe("a recovery by force is a step of an operator's order (I10)".to_owned()))
            }
            Command::Reconfigure { database, version, change } => self.reconfigure(database, version, change),
            Command::Batch(commands) => {
                Ok(Applied::Batch(commands.into_iter().map(|c| self.apply(c)).collect()))
            }
            Command::Record(event) => {
                self.record(event);
                Ok(Applied::Done)
            }
            Command::Noted { command, mut event } => {
                let applied = self.apply(*command)?;
                event.epoch = self.databases.get(&event.database).map_or(Epoch::default(), |d| d.epoch);
                self.record(event);
                Ok(applied)
            }
        }
    }

    fn record(&mut self, mut event: Event) {
        self.last_event += 1;
        event.id = self.last_event;
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS {
            self.events.pop_front();
        }
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    pub(crate) fn database(&self, id: DatabaseId) -> Result<&Database, Refusal> {
        self.databases.get(&id).ok_or_else(|| Refusal::NoSuchDatabase(id.to_string()))
    }

    fn register_node(&mut self, record: NodeRecord) -> Result<Applied, Refusal> {
        if self.nodes.values().any(|n| n.name == record.name && n.id != record.id) {
            return Err(Refusal::AlreadyExists(format!("node \"{}\"", record.name)));
        }
        self.nodes.insert(record.id, record);
        Ok(Applied::Done)
    }

    fn create_server(&mut self, name: String, admin: String, verifier: String) -> Result<Applied, Refusal> {
        check_name("server", &name)?;
        check_name("login", &admin)?;
        if admin.starts_with("pg_") || RESERVED_LOGINS.contains(&admin.as_str()) {
            return Err(Refusal::InvalidName(format!("login \"{admin}\" is reserved")));
        }
        if self.server_named(&name).is_some() {
            return Err(Refusal::AlreadyExists(format!("server \"{name}\"")));
        }
        let id = ServerId(self.next_id());
        let (allow, client_auth, client_ca) = Default::default();
        self.servers.insert(id, Server { id, name, admin, verifier, allow, client_auth, client_ca });
        Ok(Applied::Server(id))
    }

    fn drop_server(&mut self, name: &str) -> Result<Applied, Refusal> {
        let id = self.server_named(name).ok_or_else(|| Refusal::NoSuchServer(name.to_owned()))?.id;
        if self.databases.values().any(|d| d.server == id) {
            return Err(Refusal::ServerNotEmpty(name.to_owned()));
        }
        self.servers.remove(&id);
        Ok(Applied::Done)
    }

    fn create_database(
        &mut self,
        server: &str,
        name: String,
        placement: &[NodeId],
        now_ms: u64,
    ) -> Result<Applied, Refusal> {
        check_name("database", &name)?;
        if RESERVED_DATABASES.contains(&name.as_str()) {
            return Err(Refusal::InvalidName(format!("database name \"{name}\" is reserved")));
        }
        let server_id = self.server_named(server).ok_or_else(|| Refusal::NoSuchServer(server.to_owned()))?.id;
        if self.database_named(server, &name).is_some() {
            return Err(Refusal::AlreadyExists(format!("database \"{server}.{name}\"")));
        }
        if self.databases.len() >= MAX_DATABASES {
            return Err(Refusal::LimitReached(format!(
                "this cluster holds at most {MAX_DATABASES} databases"
            )));
        }
        if placement.len() < 2 || placement.len() > MAX_REPLICAS {
            return Err(Refusal::Unsafe("a database needs at least two copies".to_owned()));
        }
        if let Some(missing) = placement.iter().find(|n| !self.nodes.contains_key(n)) {
            return Err(Refusal::NoSuchNode(missing.to_string()));
        }
        let id = DatabaseId(self.next_id());
        let replicas: Vec<(ReplicaId, Replica)> = placement
            .iter()
            .map(|node| (ReplicaId(self.next_id()), Replica { node: *node, state: ReplicaState::Up }))
            .collect();
        let primary = replicas[0].0;
        let voters = replicas[1..].iter().map(|(id, _)| *id);
        let target = format!("{server}.{name}");
        let database = Database {
            id,
            server: server_id,
            name,
            version: 1,
            epoch: Epoch::new(0, 1, 0),
            phase: Phase::Creating,
            current: Configuration::new(primary, voters, 1),
            primary_since: Epoch::new(0, 1, 0),
            previous: Vec::new(),
            copies: replicas.len() as u32,
            replicas: replicas.into_iter().collect(),
            lineage: Vec::new(),
            operation: None,
            options: Options::default(),
        };
        self.databases.insert(id, database);
        Ok(self.begin_operation(id, OperationKind::CreateDatabase, target, now_ms))
    }

    fn set_option(&mut self, server: &str, name: &str, option: DatabaseOption) -> Result<Applied, Refusal> {
        if self.server_named(server).is_none() {
            return Err(Refusal::NoSuchServer(server.to_owned()));
        }
        let id = self.database_named(server, name).map(|d| d.id);
        let database = id.and_then(|id| self.databases.get_mut(&id));
        let database = database.ok_or_else(|| Refusal::NoSuchDatabase(format!("{server}.{name}")))?;
        let mut options = database.options;
        options.set(option);
        if options != database.options {
            database.options = options;
            database.version += 1;
        }
        Ok(Applied::Done)
    }

    pub(crate) fn reconfigure(
        &mut self,
        id: DatabaseId,
        version: u64,
        change: Change,
    ) -> Result<Applied, Refusal> {
        let found = self.database(id)?.version;
        if found != version {
            return Err(Refusal::Stale { database: id, expected: version, found });
        }
        if change == Change::Remove {
            if self.database(id)?.phase != Phase::Dropping {
                return Err(Refusal::WrongPhase(
                    "only a database that is being dropped can be removed".to_owned(),
                ));
            }
            self.databases.remove(&id);
            return Ok(Applied::Done);
        }
        let mut next = self.database(id)?.clone();
        let mut applied = Applied::Version(version + 1);
        if let Change::AllocateReplica { node } = change {
            if !self.nodes.contains_key(&node) {
                return Err(Refusal::NoSuchNode(node.to_string()));
            }
            if next.phase == Phase::Dropping || next.phase == Phase::Creating {
                return Err(wrong_phase(&next, "get another replica"));
            }
            if next.replicas.len() >= MAX_REPLICAS || next.replicas_on(node).next().is_some() {
                return Err(Refusal::Unsafe(format!("{node} cannot take another replica of this database")));
            }
            let replica = ReplicaId(self.next_id());
            next.replicas.insert(replica, Replica { node, state: ReplicaState::Up });
            applied = Applied::Replica(replica);
        } else {
            next.change(change)?;
        }
        next.version = version + 1;
        next.check().map_err(|broken| Refusal::Unsafe(broken.to_owned()))?;
        self.databases.insert(id, next);
        Ok(applied)
    }
}

/// Roles that the daemon keeps for itself in every instance.
pub const RESERVED_LOGINS: [&str; 4] = ["postgres", "quorate", "quorate_rewind", "public"];
/// Databases that every instance has or that clients reach otherwise.
pub const RESERVED_DATABASES: [&str; 4] = ["postgres", "template0", "template1", "quorate"];

/// Names are lower-case identifiers, so that they need no quotes in SQL, DNS labels or file names.
fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let all_well = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-');
    if starts_well && all_well && name.len() <= MAX_NAME {
        return Ok(());
    }
    Err(Refusal::InvalidName(format!(
        "{what} name \"{name}\" is not usable: a lower-case letter or underscore, then up to {} lower-case letters, digits, \"_\" or \"-\"",
        MAX_NAME - 1
    )))
}
