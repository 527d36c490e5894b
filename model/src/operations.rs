//! Operations in the map: begun, taken over, advanced, cancelled, ended (DESIGN §8).

use crate::command::{Applied, Change, Command, Refusal};
use crate::map::MAX_ENDED_OPERATIONS;
use crate::operation::{self, MAX_KEY};
use crate::*;

impl PartitionMap {
    /// The operation that was begun with this key.
    pub fn operation_keyed(&self, key: &str) -> Option<&Operation> {
        self.operations.values().find(|o| o.key.as_deref() == Some(key))
    }

    /// Begins an operation once for each key.
    pub(crate) fn keyed(&mut self, key: String, command: Command) -> Result<Applied, Refusal> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(Refusal::InvalidName(format!("a key has 1 to {MAX_KEY} bytes")));
        }
        if let Some(known) = self.operation_keyed(&key) {
            if known.answers(&command) {
                return Ok(Applied::Operation { id: known.id, database: known.database });
            }
            return Err(Refusal::KeyTaken { key, operation: known.id });
        }
        let applied = self.apply(command)?;
        if let Applied::Operation { id, .. } = applied
            && let Some(operation) = self.operations.get_mut(&id)
        {
            operation.key = Some(key);
        }
        Ok(applied)
    }

    fn running(&mut self, id: OperationId) -> Result<&mut Operation, Refusal> {
        let operation = self.operations.get_mut(&id).ok_or(Refusal::NoSuchOperation(id))?;
        if operation.state.is_over() {
            return Err(Refusal::WrongPhase(format!("operation {id} has already ended")));
        }
        Ok(operation)
    }

    /// The operation, if it still is in this attempt (I13).
    pub(crate) fn attempted(&mut self, id: OperationId, attempt: u32) -> Result<&mut Operation, Refusal> {
        let operation = self.running(id)?;
        if operation.attempt != attempt {
            return Err(Refusal::Superseded { operation: id, attempt: operation.attempt });
        }
        Ok(operation)
    }

    pub(crate) fn claim(
        &mut self,
        id: OperationId,
        attempt: u32,
        owner: NodeId,
        now_ms: u64,
    ) -> Result<Applied, Refusal> {
        let operation = self.attempted(id, attempt)?;
        operation.attempt += 1;
        operation.owner = Some(owner);
        operation.updated_ms = now_ms;
        Ok(Applied::Attempt(operation.attempt))
    }

    pub(crate) fn advance(
        &mut self,
        id: OperationId,
        attempt: u32,
        step: Step,
        change: Option<(u64, Change)>,
        now_ms: u64,
    ) -> Result<Applied, Refusal> {
        let operation = self.attempted(id, attempt)?;
        let database = operation.database;
        // Nor by an order that was taken back.
        let is_word = matches!(operation.kind, OperationKind::ForceRecover { .. })
            && operation.state == OperationState::Running;
        if matches!(change, Some((_, Change::Recover { .. }))) && !is_word {
            return Err(Refusal::Unsafe(format!("operation {id} is no order to recover by force (I10)")));
        }
        let applied = match change {
            Some((version, change)) => self.reconfigure(database, version, change)?,
            None => Applied::Done,
        };
        let operation = self.attempted(id, attempt)?;
        operation.step = step;
        operation.updated_ms = now_ms;
        Ok(applied)
    }

    pub(crate) fn cancel_operation(
        &mut self,
        id: OperationId,
        attempt: Option<u32>,
        because: Option<String>,
        now_ms: u64,
    ) -> Result<Applied, Refusal> {
        let operation = match attempt {
            Some(attempt) => self.attempted(id, attempt)?,
            None => self.operations.get_mut(&id).ok_or(Refusal::NoSuchOperation(id))?,
        };
        operation
            .can_be_cancelled()
            .map_err(|reason| Refusal::NotCancellable { operation: id, reason: reason.to_owned() })?;
        operation.state = OperationState::Cancelling { because };
        operation.updated_ms = now_ms;
        let (database, creating) = (operation.database, operation.kind == OperationKind::CreateDatabase);
        if let Some(record) = self.databases.get_mut(&database) {
            // The way back of a create is a drop.
            if creating {
                record.phase = Phase::Dropping;
                record.previous.clear();
            }
            record.version += 1;
        }
        Ok(Applied::Operation { id, database })
    }

    pub(crate) fn drop_database(
        &mut self,
        server: &str,
        name: &str,
        now_ms: u64,
    ) -> Result<Applied, Refusal> {
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
        self.supersede(id, "the database is being dropped", now_ms)?;
        if let Some(database) = self.databases.get_mut(&id) {
            database.phase = Phase::Dropping;
            database.version += 1;
        }
        Ok(self.begin_operation(id, OperationKind::DropDatabase, target, now_ms))
    }

    /// Ends what is under way for a database, because something else overrides it.
    fn supersede(&mut self, id: DatabaseId, why: &str, now_ms: u64) -> Result<(), Refusal> {
        if let Some(operation) = self.database(id)?.operation {
            self.end_operation(operation, OperationState::Failed(why.to_owned()), now_ms)?;
        }
        Ok(())
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

    pub(crate) fn begin_switchover(
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

    pub(crate) fn begin_move(
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
        let clash = database.copies().filter(|id| *id != moved).any(|id| {
            let record = database.node_of(id).and_then(|n| self.nodes.get(&n));
            record.is_some_and(|n| n.fault_domain == node.fault_domain)
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
        let kind = OperationKind::MoveReplica { from: moved, from_node: from, to, built };
        Ok(self.begin_operation(id, kind, target, now_ms))
    }

    pub(crate) fn begin_force_recover(
        &mut self,
        id: DatabaseId,
        candidate: Option<NodeId>,
        now_ms: u64,
    ) -> Result<Applied, Refusal> {
        let database = self.database(id)?;
        let target = self.full_name(database);
        operation::may_force_recover(database)
            .map_err(|reason| Refusal::WrongPhase(format!("database \"{target}\": {reason}")))?;
        if let Some(node) = candidate {
            if !self.nodes.contains_key(&node) {
                return Err(Refusal::NoSuchNode(node.to_string()));
            }
            if database.replicas_on(node).next().is_none() {
                return Err(Refusal::Unsafe(format!("{node} holds no replica of \"{target}\"")));
            }
        }
        let same = database.operation.and_then(|o| self.operations.get(&o));
        if let Some(under_way) = same.filter(|o| matches!(o.kind, OperationKind::ForceRecover { .. })) {
            return Err(Refusal::Busy(under_way.id));
        }
        self.supersede(id, "the database is being recovered by force", now_ms)?;
        Ok(self.begin_operation(id, OperationKind::ForceRecover { candidate }, target, now_ms))
    }

    pub(crate) fn begin_operation(
        &mut self,
        database: DatabaseId,
        kind: OperationKind,
        target: String,
        now_ms: u64,
    ) -> Applied {
        let id = OperationId(self.next_id());
        let operation = Operation {
            id,
            key: None,
            kind,
            database,
            target,
            step: Step::Recorded,
            attempt: 0,
            owner: None,
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

    pub(crate) fn end_operation(
        &mut self,
        id: OperationId,
        state: OperationState,
        now_ms: u64,
    ) -> Result<Applied, Refusal> {
        let operation = self.running(id)?;
        operation.state = state;
        operation.updated_ms = now_ms;
        let database = operation.database;
        let record = self.databases.get_mut(&database).filter(|d| d.operation == Some(id));
        if let Some(record) = record {
            record.operation = None;
            record.version += 1;
            // Whoever waited for the end may use the name again.
            if record.phase == Phase::Dropping {
                self.databases.remove(&database);
            }
        }
        let ended: Vec<OperationId> =
            self.operations.values().filter(|o| o.state.is_over()).map(|o| o.id).collect();
        for old in ended.iter().take(ended.len().saturating_sub(MAX_ENDED_OPERATIONS)) {
            self.operations.remove(old);
        }
        Ok(Applied::Done)
    }
}
