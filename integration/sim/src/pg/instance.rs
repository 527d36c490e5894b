//! An instance: makes, starts, promotes and ends servers on one disk, with the promises of the real one.

use super::disk::{Content, Disk, Disks};
use super::server::{Role, Server, SyncNames};
use super::tunnel::SimDownstream;
use super::wal::{self, What};
use super::wire::Message;
use crate::dice::Dice;
use crate::oracle::Oracle;
use crate::scene::Conditions;
use crate::trace;
use quorate_model::{DatabaseId, Epoch, Lsn, NodeId, Position, ReplicaId, Timeline};
use quorate_reconfig_agent::agent::host::ReplicaInstance;
use quorate_reconfig_agent::instance::{Bootstrap, InstanceError, Process, Progress, Promoted, StopMode};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const POSITION_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);
/// What a fast stop may take of the world's time beyond its deadline.
const QUIT: Duration = Duration::from_millis(5);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What instances of a node have in common.
#[derive(Clone)]
pub struct Around {
    pub node: NodeId,
    pub disks: Arc<Disks>,
    pub conditions: Arc<Conditions>,
    pub oracle: Arc<Oracle>,
}

pub struct SimInstance {
    around: Around,
    database: DatabaseId,
    pub replica: ReplicaId,
    disk: Disk,
    sockets: PathBuf,
    downstream: Arc<SimDownstream>,
    process: watch::Sender<Process>,
    run: Mutex<Option<Run>>,
    /// Held while the data is made, started or deleted.
    lifecycle: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Run {
    server: Arc<Server>,
    pid: u32,
    /// Ends the walreceiver: a promotion does.
    stop_receiving: CancellationToken,
}

impl SimInstance {
    pub fn new(
        around: Around,
        database: DatabaseId,
        replica: ReplicaId,
        disk: Disk,
        downstream: Arc<SimDownstream>,
    ) -> Arc<SimInstance> {
        Arc::new(SimInstance {
            sockets: PathBuf::from(format!("/sim/{}/{replica}", around.node)),
            around,
            database,
            replica,
            disk,
            downstream,
            process: watch::Sender::new(Process::Down),
            run: Mutex::default(),
            lifecycle: tokio::sync::Mutex::default(),
        })
    }

    pub fn database(&self) -> DatabaseId {
        self.database
    }

    /// The server that runs and answers.
    pub fn server(&self) -> Option<Arc<Server>> {
        self.any_server().filter(|_| matches!(*self.process.borrow(), Process::Running { .. }))
    }

    /// The server, which may be starting or hung.
    pub fn any_server(&self) -> Option<Arc<Server>> {
        locked(&self.run).as_ref().map(|run| run.server.clone()).filter(|server| !server.is_over())
    }

    fn run(&self) -> Result<Run, InstanceError> {
        let run = locked(&self.run).clone().filter(|run| !run.server.is_over());
        let answers = matches!(*self.process.borrow(), Process::Running { .. });
        run.filter(|_| answers).ok_or(InstanceError::NotRunning)
    }

    fn primary(&self) -> Result<Run, InstanceError> {
        let run = self.run()?;
        if run.server.role() != Role::Primary {
            return Err(InstanceError::Sql {
                what: "a statement",
                sqlstate: "25006".to_owned(),
                message: "cannot be executed during recovery".to_owned(),
            });
        }
        Ok(run)
    }

    /// `kill -9` of the postmaster. False when none runs.
    pub fn kill(&self, dice: &mut Dice, forgets: bool) -> bool {
        let Some(run) = locked(&self.run).take().filter(|run| !run.server.is_over()) else { return false };
        run.server.ended.cancel();
        self.disk.content().crash(dice, forgets);
        self.process
            .send_replace(Process::Exited { reason: "signal: 9 (SIGKILL)".to_owned(), at: Instant::now() });
        true
    }

    /// SIGSTOP, as the daemon's probe finds it: of the postmaster, whose children go on with what they do, or of `all` its
    /// processes. False when none runs that answers.
    pub fn hang(&self, all: bool) -> bool {
        let Ok(run) = self.run() else { return false };
        run.server.frozen.send_replace(all);
        self.process.send_replace(Process::Hung { pid: run.pid });
        trace::note(&format!("{} is hung", self.replica));
        true
    }

    /// SIGCONT, if it was not ended meanwhile. Whether it was hung for so long.
    pub fn go_on(&self) -> bool {
        let Some(run) = locked(&self.run).clone() else { return false };
        run.server.frozen.send_replace(false);
        self.process.send_if_modified(|process| {
            let is_hung = *process == Process::Hung { pid: run.pid };
            if is_hung {
                *process = Process::Running { pid: run.pid };
            }
            is_hung
        })
    }

    fn end(&self, run: &Run, immediate: bool) {
        run.server.ended.cancel();
        if immediate {
            // The operating system stays: what was written is on its way to the disk.
            let mut dice = self.around.conditions.dice();
            self.disk.content().crash(&mut dice, false);
        }
        locked(&self.run).take();
        self.process.send_replace(Process::Down);
    }

    fn launch(&self, role: Role, names: SyncNames) -> Run {
        let around = &self.around;
        let server = Server::new(
            (around.node, self.database, self.replica),
            self.disk.clone(),
            around.conditions.clone(),
            around.oracle.clone(),
        );
        server.set_names(names);
        server.set_role(role);
        // What was written before a crash, and kept, was flushed by nobody.
        let row = wal::epoch_of(&self.disk.content().records);
        around.oracle.epoch_row_flushed(self.database, self.replica, row);
        let run = Run {
            server: server.clone(),
            pid: around.conditions.pid(),
            stop_receiving: CancellationToken::new(),
        };
        if role == Role::Standby {
            tokio::spawn(self.downstream.clone().receive(server, run.stop_receiving.clone()));
        }
        *locked(&self.run) = Some(run.clone());
        run
    }

    /// No walreceiver is left: what it received is durable.
    async fn detached(&self, server: &Server) {
        while self.downstream.is_receiving() && !server.is_over() {
            sleep(POLL).await;
        }
    }

    /// A commit through the quorum.
    async fn barrier(&self, server: &Server, what: &'static str) -> Result<Lsn, InstanceError> {
        let lost = |_| InstanceError::Lost { what };
        let index = server.append(What::Barrier, self.around.conditions.serial());
        let index = index.ok_or(InstanceError::NotRunning)?;
        let lsn = wal::end_of(index + 1);
        server.flush(index + 1).await.map_err(lost)?;
        server.released(lsn).await.map_err(lost)?;
        server.thawed().await.map_err(lost)?;
        if !server.is_met(lsn) {
            let detail = format!("too few of the named standbys say that they have {lsn}");
            return Err(InstanceError::Doubt { what, detail });
        }
        Ok(lsn)
    }

    async fn write_epoch_row(&self, server: &Server, epoch: Epoch) -> Result<(), InstanceError> {
        let (found, end) = {
            let content = server.disk.content();
            (wal::epoch_of(&content.records), content.records.len())
        };
        if found > epoch {
            return Err(InstanceError::EpochWentBack { found, wanted: epoch });
        }
        let count = if found == epoch {
            // PostgreSQL shows a row when it is durable: where an earlier try gave up on a slow flush, this one waits.
            end
        } else {
            let index = server.append(What::EpochRow(epoch), self.around.conditions.serial());
            index.ok_or(InstanceError::NotRunning)? + 1
        };
        server.flush(count).await.map_err(|_| InstanceError::Lost { what: "the epoch row" })
    }

    fn promoted(content: &Content) -> Promoted {
        let lsn = content.history.last().map_or(Lsn(0), |(_, left)| *left);
        let (timeline, history) = (content.timeline(), content.history.clone());
        Promoted { timeline, history, rows: wal::rows_of(&content.records), lsn }
    }

    async fn become_primary(&self, run: &Run) -> Result<(), InstanceError> {
        let lost = |_| InstanceError::Lost { what: "promoting" };
        let server = &run.server;
        self.disk.content().promoting = true;
        run.stop_receiving.cancel();
        self.detached(server).await;
        sleep(self.around.conditions.promotion()).await;
        if server.is_over() {
            return Err(InstanceError::NotRunning);
        }
        let chosen = {
            let mut content = self.disk.content();
            let chosen = Timeline(content.highest.0.max(content.timeline().0) + 1);
            content.highest = chosen;
            chosen
        };
        sleep(self.around.conditions.promotion()).await;
        let count = {
            if server.is_over() {
                return Err(InstanceError::NotRunning);
            }
            let mut content = self.disk.content();
            let (left, end) = (content.timeline(), wal::end_of(content.records.len()));
            content.history.push((left, end));
            let serial = self.around.conditions.serial();
            content.records.push(wal::Record { serial, timeline: chosen, what: What::Promotion });
            content.records.len()
        };
        server.flush(count).await.map_err(lost)?;
        self.disk.content().promoting = false;
        server.set_role(Role::Primary);
        trace::note(&format!("{} promoted on timeline {}", self.replica, chosen.0));
        Ok(())
    }
}

#[async_trait::async_trait]
impl ReplicaInstance for SimInstance {
    fn process(&self) -> watch::Receiver<Process> {
        self.process.subscribe()
    }

    fn is_complete(&self) -> bool {
        self.disk.content().complete
    }

    fn data_directory(&self) -> PathBuf {
        self.sockets.join("data")
    }

    fn sockets(&self) -> &Path {
        &self.sockets
    }

    async fn bootstrap(&self, plan: &Bootstrap) -> Result<(), InstanceError> {
        let _only_one = self.lifecycle.lock().await;
        if self.is_complete() {
            return Err(InstanceError::AlreadyComplete);
        }
        sleep(self.around.conditions.copy()).await;
        let serial = self.around.conditions.serial();
        {
            let mut content = self.disk.content();
            let promise = content.promise;
            *content = Content { promise, highest: Timeline(1), complete: true, ..Content::default() };
            content.records =
                vec![wal::Record { serial, timeline: Timeline(1), what: What::EpochRow(plan.epoch) }];
            content.flushed = 1;
        }
        self.around.oracle.epoch_row_flushed(self.database, self.replica, plan.epoch);
        let names = SyncNames::parse(&plan.sync_names)
            .ok_or_else(|| InstanceError::BadSyncNames(plan.sync_names.clone()))?;
        let run = self.launch(Role::Primary, names);
        self.process.send_replace(Process::Running { pid: run.pid });
        Ok(())
    }

    async fn seed(&self) -> Result<(), InstanceError> {
        const WHAT: &str = "pg_basebackup";
        let _only_one = self.lifecycle.lock().await;
        if self.process.borrow().is_live() {
            return Err(InstanceError::AlreadyRunning);
        }
        {
            let mut content = self.disk.content();
            *content = Content { promise: content.promise, ..Content::default() };
        }
        self.around.oracle.emptied(self.replica);
        let copied = timeout(Duration::from_secs(60), self.downstream.backup()).await;
        let Ok(Some(Message::Backup { records, history })) = copied else {
            return Err(InstanceError::Lost { what: WHAT });
        };
        sleep(self.around.conditions.fsync(self.around.node)).await;
        let row = {
            let mut content = self.disk.content();
            content.complete = true;
            content.take_log(&records, &history)
        };
        self.around.oracle.epoch_row_flushed(self.database, self.replica, row);
        Ok(())
    }

    async fn start(&self) -> Result<(), InstanceError> {
        let _only_one = self.lifecycle.lock().await;
        if !self.is_complete() {
            return Err(InstanceError::Incomplete);
        }
        if !self.process.borrow().is_live() {
            let run = self.launch(Role::Standby, SyncNames::default());
            self.process.send_replace(Process::Starting { pid: run.pid });
            // Replays its log.
            sleep(self.around.conditions.start()).await;
            if run.server.is_over() {
                return Err(InstanceError::Exited("while it was starting".to_owned()));
            }
            self.process.send_replace(Process::Running { pid: run.pid });
        }
        match self.run()?.server.role() {
            Role::Standby => Ok(()),
            Role::Primary | Role::Stopping => Err(InstanceError::AlreadyRunning),
        }
    }

    async fn stop(&self, mode: StopMode, deadline: Duration) -> Result<(), InstanceError> {
        let Some(run) = locked(&self.run).clone() else {
            self.process.send_if_modified(|state| {
                let ended = matches!(state, Process::Exited { .. });
                if ended {
                    *state = Process::Down;
                }
                ended
            });
            return Ok(());
        };
        let server = &run.server;
        // One that is stopped (SIGSTOP) hears nothing but SIGKILL.
        let is_hung = matches!(*self.process.borrow(), Process::Hung { .. });
        let mut clean = mode == StopMode::Fast && !is_hung;
        if clean {
            // Its sessions end; then it writes a checkpoint, and its walsenders see to it that the standbys have it.
            let was_primary = server.role() == Role::Primary;
            server.set_role(Role::Stopping);
            let ending = async {
                let serial = self.around.conditions.serial();
                let last = if was_primary { server.append(What::Shutdown, serial) } else { None };
                let count = last.map_or(server.disk.content().records.len(), |index| index + 1);
                server.flush(count).await?;
                while was_primary && !server.all_have(wal::end_of(count)) && !server.is_over() {
                    sleep(POLL).await;
                }
                Ok::<(), super::server::NoResult>(())
            };
            clean = matches!(timeout(deadline, ending).await, Ok(Ok(())));
        } else {
            sleep(QUIT).await;
        }
        if !server.is_over() {
            self.end(&run, !clean);
        }
        Ok(())
    }

    async fn destroy(&self) -> Result<(), InstanceError> {
        self.stop(StopMode::Immediate, Duration::ZERO).await?;
        let _only_one = self.lifecycle.lock().await;
        self.around.disks.remove(self.around.node, self.replica);
        self.around.oracle.destroyed(self.replica);
        Ok(())
    }

    async fn position(&self) -> Result<Position, InstanceError> {
        const WHAT: &str = "finding the end of the log";
        let finding = async {
            let run = self.run()?;
            let server = &run.server;
            if server.role() == Role::Standby {
                self.detached(server).await;
                let received = server.disk.content().records.len();
                server.flush(received).await.map_err(|_| InstanceError::NotRunning)?;
            }
            let content = server.disk.content();
            let timeline = if content.promoting { content.highest } else { content.timeline() };
            let epoch = wal::epoch_of(&content.records[..content.flushed]);
            Ok(Position { epoch, lsn: content.end(), timeline })
        };
        match timeout(POSITION_DEADLINE, finding).await {
            Ok(found) => found,
            Err(_) => Err(InstanceError::Timeout { what: WHAT, after: POSITION_DEADLINE }),
        }
    }

    async fn progress(&self) -> Result<Progress, InstanceError> {
        let server = self.run()?.server;
        let content = server.disk.content();
        let end = content.end();
        Ok(Progress {
            in_recovery: server.role() == Role::Standby,
            receive_lsn: Some(end),
            replay_lsn: Some(end),
            flush_lsn: end,
            timeline: content.timeline(),
            epoch: wal::epoch_of(&content.records[..content.flushed]),
            size_bytes: end.0,
        })
    }

    async fn promote(&self) -> Result<Promoted, InstanceError> {
        let run = self.run()?;
        if run.server.role() == Role::Standby {
            let deadline = Duration::from_secs(30);
            match timeout(deadline, self.become_primary(&run)).await {
                Ok(done) => done?,
                Err(_) => return Err(InstanceError::Timeout { what: "promoting", after: deadline }),
            }
        }
        let run = self.primary()?;
        let content = run.server.disk.content();
        Ok(Self::promoted(&content))
    }

    async fn set_sync_names(&self, names: &str) -> Result<(), InstanceError> {
        let parsed = SyncNames::parse(names).ok_or_else(|| InstanceError::BadSyncNames(names.to_owned()))?;
        let run = self.run()?;
        if run.server.role() == Role::Primary {
            self.around.oracle.named(self.database, self.replica, &parsed.names);
        }
        run.server.set_names(parsed);
        sleep(POLL).await;
        Ok(())
    }

    async fn ensure_slots(&self, _names: &BTreeSet<String>) -> Result<bool, InstanceError> {
        // The simulated log is never recycled.
        self.run().map(|_| true)
    }

    async fn write_epoch(
        &self,
        epoch: Epoch,
        _uuid: uuid::Uuid,
        deadline: Duration,
    ) -> Result<Lsn, InstanceError> {
        const WHAT: &str = "the epoch row";
        let run = self.primary()?;
        let writing = async {
            self.write_epoch_row(&run.server, epoch).await?;
            self.barrier(&run.server, WHAT).await
        };
        match timeout(deadline, writing).await {
            Ok(written) => written,
            Err(_) => Err(InstanceError::Timeout { what: WHAT, after: deadline }),
        }
    }

    async fn write_epoch_alone(
        &self,
        epoch: Epoch,
        _uuid: uuid::Uuid,
        deadline: Duration,
    ) -> Result<Lsn, InstanceError> {
        const WHAT: &str = "the epoch row";
        let run = self.primary()?;
        match timeout(deadline, self.write_epoch_row(&run.server, epoch)).await {
            Ok(written) => written.map(|()| run.server.disk.content().end()),
            Err(_) => Err(InstanceError::Timeout { what: WHAT, after: deadline }),
        }
    }

    fn distrust(&self) -> Option<String> {
        self.disk.content().rewinding.then(|| "a rewind did not reach its end".to_owned())
    }

    fn was_rewound(&self) -> bool {
        self.disk.content().rewound
    }

    /// What PostgreSQL's tool leaves: the source's log, as far as the source had it.
    async fn rewind(&self) -> Result<(), InstanceError> {
        const SOURCE_DEADLINE: Duration = Duration::from_secs(10);
        let _only_one = self.lifecycle.lock().await;
        if !self.is_complete() {
            return Err(InstanceError::Incomplete);
        }
        if let Some(reason) = self.distrust() {
            return Err(InstanceError::Distrusted(reason));
        }
        self.stop(StopMode::Fast, SOURCE_DEADLINE).await?;
        let source = timeout(SOURCE_DEADLINE, self.downstream.source()).await;
        let Ok(Some(Message::Backup { records, history })) = source else {
            return Err(InstanceError::SourceNotReady("it does not answer".to_owned()));
        };
        {
            let mut content = self.disk.content();
            // Judged as PostgreSQL does, by timelines and positions and not by what is there.
            let end = wal::end_of(content.records.len());
            let timeline = content.timeline();
            let left = history.iter().find(|(t, _)| *t == timeline).map(|(_, left)| *left);
            let is_same = records.last().is_some_and(|r| r.timeline == timeline);
            content.rewinding = true;
            if is_same || left.is_some_and(|left| end <= left) {
                return Err(InstanceError::NotRewound("no rewind required".to_owned()));
            }
        }
        sleep(self.around.conditions.copy()).await;
        self.around.oracle.emptied(self.replica);
        let row = {
            let mut content = self.disk.content();
            content.promoting = false;
            content.take_log(&records, &history)
        };
        self.around.oracle.epoch_row_flushed(self.database, self.replica, row);
        Ok(())
    }

    async fn finish_rewind(&self) -> Result<(), InstanceError> {
        self.start().await?;
        let mut content = self.disk.content();
        content.rewinding = false;
        content.rewound = true;
        Ok(())
    }

    async fn forget_rewind(&self) -> Result<(), InstanceError> {
        self.disk.content().rewound = false;
        Ok(())
    }

    async fn checkpoint(&self) -> Result<(), InstanceError> {
        let run = self.run()?;
        sleep(self.around.conditions.fsync(run.server.node)).await;
        Ok(())
    }
}
