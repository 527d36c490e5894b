//! The partition map: the replicated record of nodes, servers, databases, operations and events, and the only
//! function that changes it. `apply` is deterministic: every replica of the map computes the same.

use crate::command::{Applied, Change, Command, Refusal};
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

/// A logical server: a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub id: ServerId,
    pub name: String,
    /// The tenant's login, made in each of its databases.
    pub admin: String,
    /// Its SCRAM-SHA-256 verifier, in PostgreSQL's form. Never a password.
    pub verifier: String,
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
            Command::CreateDatabase { server, name, placement, now_ms } => {
                self.create_database(&server, name, &placement, now_ms)
            }
            Command::DropDatabase { server, name, now_ms } => self.drop_database(&server, &name, now_ms),
            Command::BeginSwitchover { database, to, now_ms } => self.begin_switchover(database, to, now_ms),
            Command::BeginMove { database, from, to, now_ms } => self.begin_move(database, from, to, now_ms),
            Command::Progress { operation, step, now_ms } => {
                let operation = self.running(operation)?;
                operation.step = step;
                operation.updated_ms = now_ms;
                Ok(Applied::Done)
            }
            Command::EndOperation { operation, state, now_ms } => {
                self.end_operation(operation, state, now_ms)
            }
            Command::Reconfigure { database, version, change } => self.reconfigure(database, version, change),
            Command::Batch(commands) => {
                Ok(Applied::Batch(commands.into_iter().map(|c| self.apply(c)).collect()))
            }
            Command::Record(mut event) => {
                self.last_event += 1;
                event.id = self.last_event;
                self.events.push_back(event);
                while self.events.len() > MAX_EVENTS {
                    self.events.pop_front();
                }
                Ok(Applied::Done)
            }
        }
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn running(&mut self, id: OperationId) -> Result<&mut Operation, Refusal> {
        let operation = self.operations.get_mut(&id).ok_or(Refusal::NoSuchOperation(id))?;
        if operation.state.is_over() {
            return Err(Refusal::WrongPhase(format!("operation {id} has already ended")));
        }
        Ok(operation)
    }

    fn database(&self, id: DatabaseId) -> Result<&Database, Refusal> {
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
        self.servers.insert(id, Server { id, name, admin, verifier });
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
            previous: Vec::new(),
            copies: replicas.len() as u32,
            replicas: replicas.into_iter().collect(),
            lineage: Vec::new(),
            operation: None,
        };
        self.databases.insert(id, database);
        Ok(self.begin_operation(id, OperationKind::CreateDatabase, target, now_ms))
    }

    fn drop_database(&mut self, server: &str, name: &str, now_ms: u64) -> Result<Applied, Refusal> {
        let target = format!("{server}.{name}");
        if self.server_named(server).is_none() {
            return Err(Refusal::NoSuchServer(server.to_owned()));
        }
        let database =
            self.database_named(server, name).ok_or_else(|| Refusal::NoSuchDatabase(target.clone()))?;
        let id = database.id;
        if database.phase == Phase::Dropping {
            return Err(Refusal::WrongPhase(format!("database \"{target}\" is already being dropped")));
        }
        // Dropping overrides whatever else is under way: the record stays, so the numbers stay taken.
        if let Some(operation) = database.operation {
            let state = OperationState::Failed("the database is being dropped".to_owned());
            self.end_operation(operation, state, now_ms)?;
        }
        if let Some(database) = self.databases.get_mut(&id) {
            database.phase = Phase::Dropping;
            database.version += 1;
        }
        Ok(self.begin_operation(id, OperationKind::DropDatabase, target, now_ms))
    }

    fn settled(&self, id: DatabaseId) -> Result<&Database, Refusal> {
        let database = self.database(id)?;
        if let Some(operation) = database.operation {
            return Err(Refusal::Busy(operation));
        }
        if database.phase != Phase::Stable {
            return Err(Refusal::WrongPhase(format!(
                "database \"{}\" is {}; wait until it is stable",
                self.full_name(database),
                database.phase.name()
            )));
        }
        Ok(database)
    }

    fn begin_switchover(
        &mut self,
        id: DatabaseId,
        to: Option<NodeId>,
        now_ms: u64,
    ) -> Result<Applied, Refusal> {
        let database = self.settled(id)?;
        let target = self.full_name(database);
        if let Some(node) = to {
            if !self.nodes.contains_key(&node) {
                return Err(Refusal::NoSuchNode(node.to_string()));
            }
            if database.primary_node() == Some(node) {
                return Err(Refusal::Unsafe(format!("{node} already holds the primary of \"{target}\"")));
            }
            if !database.replicas_on(node).any(|r| database.current.voters.contains(&r)) {
                return Err(Refusal::Unsafe(format!(
                    "{node} holds no voter of \"{target}\", so it cannot become its primary"
                )));
            }
        }
        Ok(self.begin_operation(id, OperationKind::Switchover { to }, target, now_ms))
    }

    fn begin_move(
        &mut self,
        id: DatabaseId,
        from: NodeId,
        to: NodeId,
        now_ms: u64,
    ) -> Result<Applied, Refusal> {
        let database = self.settled(id)?;
        let target = self.full_name(database);
        let node = self.nodes.get(&to).ok_or_else(|| Refusal::NoSuchNode(to.to_string()))?;
        let moved = database
            .replicas_on(from)
            .next()
            .ok_or_else(|| Refusal::Unsafe(format!("{from} holds no replica of \"{target}\"")))?;
        if database.replicas_on(to).next().is_some() {
            return Err(Refusal::Unsafe(format!("{to} already holds a replica of \"{target}\"")));
        }
        if moved == database.current.primary {
            return Err(Refusal::Unsafe(format!(
                "{from} holds the primary of \"{target}\"; switch over to another node first"
            )));
        }
        let clash = database.replicas.iter().any(|(id, r)| {
            *id != moved && self.nodes.get(&r.node).is_some_and(|n| n.fault_domain == node.fault_domain)
        });
        if clash {
            return Err(Refusal::Unsafe(format!(
                "fault domain \"{}\" of {to} already holds a replica of \"{target}\"",
                node.fault_domain
            )));
        }
        let built = ReplicaId(self.next_id());
        if let Some(database) = self.databases.get_mut(&id) {
            database.replicas.insert(built, Replica { node: to, state: ReplicaState::Up });
            database.version += 1;
        }
        Ok(self.begin_operation(id, OperationKind::MoveReplica { from: moved, to, built }, target, now_ms))
    }

    fn begin_operation(
        &mut self,
        database: DatabaseId,
        kind: OperationKind,
        target: String,
        now_ms: u64,
    ) -> Applied {
        let id = OperationId(self.next_id());
        let operation = Operation {
            id,
            kind,
            database,
            target,
            step: "recorded".to_owned(),
            state: OperationState::Running,
            started_ms: now_ms,
            updated_ms: now_ms,
        };
        self.operations.insert(id, operation);
        if let Some(record) = self.databases.get_mut(&database) {
            record.operation = Some(id);
            record.version += 1;
        }
        Applied::Operation { id, database }
    }

    fn end_operation(
        &mut self,
        id: OperationId,
        state: OperationState,
        now_ms: u64,
    ) -> Result<Applied, Refusal> {
        let operation = self.running(id)?;
        operation.state = state;
        operation.updated_ms = now_ms;
        let database = operation.database;
        if let Some(record) = self.databases.get_mut(&database) {
            if record.operation == Some(id) {
                record.operation = None;
                record.version += 1;
            }
        }
        let ended: Vec<OperationId> =
            self.operations.values().filter(|o| o.state.is_over()).map(|o| o.id).collect();
        for old in ended.iter().take(ended.len().saturating_sub(MAX_ENDED_OPERATIONS)) {
            self.operations.remove(old);
        }
        Ok(Applied::Done)
    }

    fn reconfigure(&mut self, id: DatabaseId, version: u64, change: Change) -> Result<Applied, Refusal> {
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

fn wrong_phase(database: &Database, what: &str) -> Refusal {
    Refusal::WrongPhase(format!("a database that is {} cannot {what}", database.phase.name()))
}

impl Database {
    /// The transitions of the record. `apply` checks the version before and the invariants after.
    fn change(&mut self, change: Change) -> Result<(), Refusal> {
        match change {
            // Both need the map around the database and are done by the caller.
            Change::AllocateReplica { .. } | Change::Remove => {
                return Err(wrong_phase(self, "be changed so"));
            }
            Change::DropReplica { replica } => {
                if self.members().contains(&replica) {
                    return Err(Refusal::Unsafe(format!(
                        "{replica} counts in a configuration in force; take it out first"
                    )));
                }
                self.replicas.remove(&replica).ok_or(Refusal::NoSuchReplica(replica))?;
            }
            Change::MarkReplica { replica, state } => {
                self.replicas.get_mut(&replica).ok_or(Refusal::NoSuchReplica(replica))?.state = state;
            }
            Change::Join { current } => {
                if self.phase != Phase::Stable {
                    return Err(wrong_phase(self, "change its voters"));
                }
                if current.primary != self.current.primary {
                    return Err(Refusal::Unsafe("a change of voters keeps the primary".to_owned()));
                }
                self.previous = vec![std::mem::replace(&mut self.current, current)];
                self.epoch = self.epoch.next_config();
                self.phase = Phase::Joint;
            }
            Change::Stabilize { lineage } => {
                if !matches!(self.phase, Phase::Creating | Phase::Joint | Phase::Promoting { .. }) {
                    return Err(wrong_phase(self, "become stable"));
                }
                self.lineage.extend(lineage);
                self.previous.clear();
                self.phase = Phase::Stable;
            }
            Change::Elect { coordinator } => {
                if matches!(self.phase, Phase::Creating | Phase::Dropping) {
                    return Err(wrong_phase(self, "elect a primary"));
                }
                self.epoch = self.epoch.next_primary();
                self.phase = Phase::Electing { coordinator };
            }
            Change::Promote { coordinator, current } => {
                match self.phase {
                    Phase::Electing { coordinator: c } | Phase::QuorumLost { coordinator: c, .. }
                        if c == coordinator => {}
                    _ => return Err(wrong_phase(self, "promote a replica")),
                }
                let former = std::mem::replace(&mut self.current, current);
                if former != self.current && !self.previous.contains(&former) {
                    self.previous.push(former);
                }
                self.previous.retain(|c| *c != self.current);
                if self.previous.len() > MAX_PREVIOUS {
                    return Err(Refusal::LimitReached("too many interrupted elections".to_owned()));
                }
                self.phase = Phase::Promoting { coordinator };
            }
            Change::LoseQuorum { coordinator, missing } => {
                match self.phase {
                    Phase::Electing { coordinator: c } | Phase::QuorumLost { coordinator: c, .. }
                        if c == coordinator => {}
                    _ => return Err(wrong_phase(self, "lose its quorum")),
                }
                self.phase = Phase::QuorumLost { coordinator, missing };
            }
            Change::Switch { coordinator, to } => {
                if self.phase != Phase::Stable {
                    return Err(wrong_phase(self, "switch over"));
                }
                self.phase = Phase::Switching { coordinator, to };
            }
        }
        Ok(())
    }
}

/// Roles that the daemon keeps for itself in every instance.
pub const RESERVED_LOGINS: [&str; 3] = ["postgres", "quorate", "public"];
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
