//! Keepers: one task a replica makes the present follow the map.

use super::Agent;
use super::host::Failed;
use super::lease::{MAX_LEASE, boottime};
use super::replica::Replica;
use super::standing::{Duty, rewinders, route};
use crate::instance::{Bootstrap, InstanceError, Process, StopMode};
use crate::tunnel::Route;
use quorate_model::{Database, DatabaseId, PartitionMap, Phase, ReplicaId, RunState};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// A keeper looks at least so often, and at every change of the map, of the process and after every order.
const LOOK: Duration = Duration::from_millis(250);
/// Pause after a failed attempt to build or start, doubled up to the maximum.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A secondary's postmaster that does not answer for so long is stopped and started.
const HUNG_LIMIT: Duration = Duration::from_secs(10);
/// A learner whose postmaster ends so often in a row before it answers is built anew.
const MAX_FAILED_STARTS: u32 = 5;
const STOP_DEADLINE: Duration = Duration::from_secs(10);

impl Agent {
    /// Gives every replica that the map places here a keeper, and removes directories of replicas that the map
    /// no longer knows.
    pub(super) async fn keep(self) {
        let mut watch = self.0.watch.clone();
        loop {
            let map = watch.borrow_and_update().clone();
            for database in map.databases.values() {
                for id in database.replicas_on(self.0.node) {
                    if self.replica(id).is_none() && database.phase != Phase::Dropping {
                        self.adopt(database.id, id);
                    }
                }
            }
            self.sweep(&map).await;
            for replica in self.replicas() {
                replica.wake.notify_one();
            }
            tokio::select! {
                changed = watch.changed() => if changed.is_err() { return },
                () = self.0.stop.cancelled() => return,
            }
        }
    }

    fn adopt(&self, database: DatabaseId, id: ReplicaId) {
        match self.assemble(database, id) {
            Ok(replica) => {
                let replica = Arc::new(replica);
                self.0.replicas.write().unwrap_or_else(PoisonError::into_inner).insert(id, replica.clone());
                self.0.keepers.spawn(self.clone().keep_replica(replica));
            }
            Err(error) => {
                tracing::error!(%database, replica = %id, %error, "the replica cannot be kept here")
            }
        }
    }

    fn assemble(&self, database: DatabaseId, id: ReplicaId) -> Result<Replica, Failed> {
        let parts = self.0.host.assemble(database, id)?;
        let granted_until = boottime() + MAX_LEASE.as_nanos() as u64;
        Ok(Replica::new(database, id, parts, granted_until))
    }

    /// Deletes directories of replicas that were dropped while this node was away. An id that the map has not
    /// handed out yet, as this node knows it, is left alone.
    async fn sweep(&self, map: &PartitionMap) {
        let known: BTreeSet<ReplicaId> =
            map.databases.values().flat_map(|d| d.replicas.keys().copied()).collect();
        for id in self.0.host.found() {
            if known.contains(&id) || id.0 > map.last_id || self.replica(id).is_some() {
                continue;
            }
            match self.assemble(DatabaseId(0), id) {
                Ok(orphan) => {
                    tracing::info!(replica = %id, "deleting a replica that the map has dropped");
                    orphan.downstream.stop().await;
                    if let Err(error) = orphan.instance.destroy().await {
                        tracing::warn!(replica = %id, %error, "it could not be deleted");
                    }
                }
                Err(error) => tracing::warn!(replica = %id, %error, "it could not be deleted"),
            }
        }
    }

    async fn keep_replica(self, replica: Arc<Replica>) {
        let mut pause = FIRST_PAUSE;
        let mut process = replica.instance.process();
        let mut tunnel = replica.downstream.watch();
        let mut hung_since: Option<Instant> = None;
        loop {
            let before = replica.state().run.clone();
            let outcome = self.look(&replica, &mut hung_since).await;
            if replica.state().run != before {
                self.0.changed.notify_one();
            }
            // The end of a postmaster that did not start is no news: the pause after it counts.
            let failed = outcome.is_err();
            let wait = match outcome {
                Ok(Next::Gone) => break,
                Ok(Next::Look) => {
                    pause = FIRST_PAUSE;
                    LOOK
                }
                Err(error) => {
                    tracing::warn!(database = %replica.database, replica = %replica.id, %error, "trying again");
                    let wait = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
            };
            tokio::select! {
                () = replica.wake.notified() => {}
                _ = process.changed(), if !failed => {}
                _ = tunnel.changed() => self.0.changed.notify_one(),
                () = tokio::time::sleep(wait) => {}
                () = self.0.stop.cancelled() => {
                    let _changing = replica.changing.lock().await;
                    replica.downstream.stop().await;
                    self.0.upstreams.cut_all(replica.database).await;
                    if let Err(error) = replica.instance.stop(StopMode::Fast, STOP_DEADLINE).await {
                        tracing::warn!(replica = %replica.id, %error, "the instance did not stop");
                    }
                    return;
                }
            }
        }
        self.0.replicas.write().unwrap_or_else(PoisonError::into_inner).remove(&replica.id);
        if self.replica_of(replica.database).is_none() {
            self.gates().remove(replica.database);
        }
        self.0.changed.notify_one();
    }

    /// One look at the map and the instance, and the one thing to do about it.
    pub(super) async fn look(
        &self,
        replica: &Arc<Replica>,
        hung_since: &mut Option<Instant>,
    ) -> Result<Next, Failed> {
        let map = self.map();
        let database = map.databases.get(&replica.database);
        let Some(database) =
            database.filter(|d| d.phase != Phase::Dropping && d.replicas.contains_key(&replica.id))
        else {
            return self.discard(replica, &map).await;
        };
        if database.is_quarantined(replica.id) {
            return self.set_aside(replica).await;
        }
        let duty = replica.state().duty(replica.id, database);
        if let Duty::Rewind(route) = duty {
            return self.rewind(replica, database, route).await;
        }
        let process = replica.instance.process().borrow().clone();
        if !matches!(process, Process::Hung { .. }) {
            *hung_since = None;
        }
        match process {
            Process::Running { .. } => self.keep_running(replica, database).await,
            Process::Starting { .. } => Ok(Next::Look),
            Process::Hung { .. } => {
                replica.set_run(RunState::Hung);
                let since = *hung_since.get_or_insert_with(Instant::now);
                if since.elapsed() > HUNG_LIMIT && database.current.primary != replica.id {
                    self.stop_hung(replica, database).await?;
                }
                Ok(Next::Look)
            }
            Process::Exited { reason, .. } => {
                self.ended(replica, &reason);
                self.bring_up(replica, database).await
            }
            Process::Down => self.bring_up(replica, database).await,
        }
    }

    /// A secondary that answers nobody may as well be started anew.
    async fn stop_hung(&self, replica: &Arc<Replica>, database: &Database) -> Result<(), Failed> {
        let _changing = replica.changing.lock().await;
        let is_hung = matches!(*replica.instance.process().borrow(), Process::Hung { .. });
        {
            let state = replica.state();
            // What was waited for may have been its promotion: it answers again, and leads.
            if !is_hung || state.leading.is_some() || state.obeys(replica.id, database.epoch).is_err() {
                return Ok(());
            }
        }
        replica.instance.stop(StopMode::Immediate, STOP_DEADLINE).await?;
        Ok(())
    }

    /// The postmaster is gone: nothing of what it served may go on, and the coordinator hears of it at once.
    fn ended(&self, replica: &Arc<Replica>, reason: &str) {
        let mut state = replica.state();
        let ran = state.run == RunState::Running;
        if state.ended(reason) {
            state.led_until = Some(Instant::now());
            self.gates().drop_lease(replica.database);
            self.gates().hold(replica.database);
        }
        if ran {
            self.0.changed.notify_one();
        }
    }

    async fn bring_up(&self, replica: &Arc<Replica>, database: &Database) -> Result<Next, Failed> {
        if !replica.state().may_be_started(database) {
            return Ok(Next::Look);
        }
        if let Some(reason) = replica.instance.distrust() {
            tracing::error!(database = %replica.database, replica = %replica.id, reason, "not started again");
            replica.set_run(RunState::Failed(reason));
            return Ok(Next::Look);
        }
        if !replica.instance.is_complete() {
            return self.build(replica, database).await;
        }
        let _changing = replica.changing.lock().await;
        {
            let mut state = replica.state();
            // It may have been retired just now, and is to stay down.
            let down_for = state.led_until.map(|at| at.elapsed());
            if down_for.is_some_and(|down_for| state.may_rest(replica.id, database, down_for)) {
                return Ok(Next::Look);
            }
            state.retired = false;
            state.led_until = None;
        }
        replica.downstream.cut().await;
        // Its end has been reported by now; the gate was held when it ended.
        if matches!(replica.state().run, RunState::Stopped(_)) {
            self.push_now().await;
        }
        let divergent = replica.state().run == RunState::Divergent;
        replica.set_run(RunState::Starting);
        self.0.changed.notify_one();
        if let Err(error) = replica.instance.start().await {
            if divergent {
                replica.set_run(RunState::Divergent);
            }
            return self.did_not_start(replica, database, error);
        }
        replica.failed_starts.store(0, Ordering::Relaxed);
        if divergent {
            replica.state().started_divergent();
        } else {
            replica.state().started();
        }
        self.0.changed.notify_one();
        replica.wake.notify_one();
        Ok(Next::Look)
    }

    /// A standby that was ended in the middle of a switch of timelines may refuse its own log ever after ("previous
    /// recovered WAL file came from timeline …"). What counts is tried again, since its log may be needed; a learner's is
    /// not, and a copy that works takes its place.
    fn did_not_start(
        &self,
        replica: &Arc<Replica>,
        database: &Database,
        error: InstanceError,
    ) -> Result<Next, Failed> {
        let ended = matches!(error, InstanceError::Exited(_));
        let failed = replica.failed_starts.fetch_add(u32::from(ended), Ordering::Relaxed) + u32::from(ended);
        if failed < MAX_FAILED_STARTS || database.members().contains(&replica.id) {
            return Err(error.into());
        }
        tracing::error!(database = %replica.database, replica = %replica.id, failed, %error, "given up");
        replica.set_run(RunState::Failed(error.to_string()));
        self.0.changed.notify_one();
        Ok(Next::Look)
    }

    async fn build(&self, replica: &Arc<Replica>, database: &Database) -> Result<Next, Failed> {
        let creating = database.phase == Phase::Creating;
        if !creating && database.members().contains(&replica.id) {
            // I12: a member without its data must never answer for what it once held.
            replica.set_run(RunState::Failed("its data directory is gone".to_owned()));
            return Ok(Next::Look);
        }
        let _changing = replica.changing.lock().await;
        replica.set_run(RunState::Building);
        self.0.changed.notify_one();
        if creating && database.current.primary == replica.id {
            return self.bootstrap(replica, database).await;
        }
        let Some(route) = route(database).filter(|r| replica.attach(r.clone()).is_ok()) else {
            return Ok(Next::Look);
        };
        let seeded = tokio::select! {
            seeded = replica.instance.seed() => seeded,
            () = self.superseded(replica.id, &route) => {
                replica.downstream.cut().await;
                return Ok(Next::Look);
            }
        };
        seeded?;
        replica.downstream.cut().await;
        replica.instance.start().await?;
        let mut state = replica.state();
        state.started();
        if state.promise() <= route.epoch {
            state.validated = Some(route.epoch);
        }
        drop(state);
        replica.wake.notify_one();
        Ok(Next::Look)
    }

    /// Returns when the map has no more use for a copy from this primary.
    pub(super) async fn superseded(&self, id: ReplicaId, from: &Route) {
        let mut watch = self.0.watch.clone();
        loop {
            {
                let map = watch.borrow_and_update();
                let database = map.databases.values().find(|d| d.replicas.contains_key(&id));
                let wanted = database.is_some_and(|d| {
                    d.phase != Phase::Dropping
                        && d.current.primary == from.primary
                        && d.epoch.reign() == from.epoch
                });
                if !wanted {
                    return;
                }
            }
            if watch.changed().await.is_err() {
                return;
            }
        }
    }

    async fn bootstrap(&self, replica: &Arc<Replica>, database: &Database) -> Result<Next, Failed> {
        let map = self.map();
        let server = map.servers.get(&database.server).ok_or("the server of this database is gone")?;
        let reign = database.epoch.reign();
        if let Err(promise) = replica.state().make_promise(reign)? {
            return Err(format!("{} has promised epoch {promise}", replica.id).into());
        }
        replica
            .instance
            .bootstrap(&Bootstrap {
                database_name: database.name.clone(),
                login: server.admin.clone(),
                verifier: server.verifier.clone(),
                epoch: database.epoch,
                uuid: uuid::Uuid::from_u128(database.id.0.into()),
                sync_names: database.current.sync_names(),
            })
            .await?;
        replica.state().founded(reign);
        self.keep_running(replica, database).await
    }

    async fn keep_running(&self, replica: &Arc<Replica>, database: &Database) -> Result<Next, Failed> {
        let duty = {
            let mut state = replica.state();
            if !state.is_failed() {
                state.run = RunState::Running;
            }
            state.duty(replica.id, database)
        };
        if replica.state().leading.is_some() {
            self.gates().set_rules(replica.database, database.options.reads, database.options.commits);
            let (current, settled) = (&database.current, database.phase == Phase::Stable);
            self.0.upstreams.count(replica.database, &current.voters, current.k as usize, settled);
            self.lease_alone(replica);
        }
        match duty {
            Duty::Nothing => {}
            Duty::Admit(allowed) => self.admit_replicas(replica, database, allowed).await?,
            Duty::Demote => self.demote(replica, database.epoch, "another replica is primary now").await?,
            Duty::Follow(route) => {
                self.attach_checked(replica, route, &database.lineage).await?;
                replica.arrange_slots(database.replicas.keys().copied()).await?;
                if replica.downstream.status().streaming.is_none() && replica.instance.is_log_gone().await {
                    let mut state = replica.state();
                    // Not when it was elected while the primary's words were looked at.
                    if state.obeys(replica.id, database.epoch).is_ok() {
                        state.run = RunState::Failed("the primary no longer has the log it needs".to_owned());
                    }
                }
            }
            // Looked at before the process.
            Duty::Rewind(_) => {}
        }
        if !database.is_barred(replica.id) && replica.instance.was_rewound() {
            replica.instance.forget_rewind().await?;
        }
        Ok(Next::Look)
    }

    /// New learners may replicate; those that the record no longer has may not.
    async fn admit_replicas(
        &self,
        replica: &Arc<Replica>,
        database: &Database,
        allowed: BTreeSet<ReplicaId>,
    ) -> Result<(), Failed> {
        replica.arrange_slots(allowed.iter().copied()).await?;
        let mut state = replica.state();
        let reign = database.epoch.reign();
        // The map may be older than the orders that came meanwhile.
        if state.leads(replica.id, reign).is_ok() && state.arranges(replica.id, database.epoch).is_ok() {
            let sockets = replica.instance.sockets().to_owned();
            self.0.upstreams.admit(replica.database, replica.id, reign, sockets, allowed);
            self.0.upstreams.admit_rewinds(replica.database, reign, rewinders(database));
        }
        Ok(())
    }

    /// Given up by a forced recovery: nothing of it goes on, its data stays as it is, and it is kept no longer.
    async fn set_aside(&self, replica: &Arc<Replica>) -> Result<Next, Failed> {
        tracing::warn!(
            database = %replica.database, replica = %replica.id,
            data = %replica.instance.data_directory().display(), "quarantined; its data is kept for salvage"
        );
        let _changing = replica.changing.lock().await;
        self.end_service(replica, "this copy was given up by a forced recovery").await;
        // As in a crash: whoever salvages finds the log as it was.
        replica.instance.stop(StopMode::Immediate, STOP_DEADLINE).await?;
        Ok(Next::Gone)
    }

    /// Gate and tunnels of a replica that is to go.
    async fn end_service(&self, replica: &Arc<Replica>, why: &str) {
        {
            let mut state = replica.state();
            if state.leading.take().is_some() {
                self.gates().drop_lease(replica.database);
                self.gates().close(replica.database, why);
            }
        }
        replica.downstream.stop().await;
        if self.replica_of(replica.database).is_some_and(|r| r.id == replica.id) {
            self.0.upstreams.cut_all(replica.database).await;
        }
    }

    async fn discard(&self, replica: &Arc<Replica>, map: &PartitionMap) -> Result<Next, Failed> {
        if replica.id.0 > map.last_id {
            return Ok(Next::Look);
        }
        tracing::info!(database = %replica.database, replica = %replica.id, "dropped from the map; deleting it");
        let _changing = replica.changing.lock().await;
        self.end_service(replica, "the database was dropped").await;
        replica.instance.destroy().await?;
        Ok(Next::Gone)
    }
}

pub(super) enum Next {
    Look,
    Gone,
}
