//! What this node tells of its replicas: sampled regularly, pushed to the coordinator at every change.

use super::Agent;
use super::message::{Request, Response};
use super::replica::Replica;
use crate::instance::Process;
use quorate_model::{GateReport, InstanceRole, Lsn, NodeId, Position, ReplicaReport, RunState, Timeline};
use quorate_transport::{PeerNetwork, Service, decode, encode};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const SAMPLE: Duration = Duration::from_millis(250);
const SAMPLE_DEADLINE: Duration = Duration::from_millis(500);
/// Less than what an operator's question waits for a node's answer.
const ANSWER_DEADLINE: Duration = Duration::from_millis(250);
const PUSH_EVERY: Duration = Duration::from_millis(200);
const PUSH_DEADLINE: Duration = Duration::from_millis(500);

impl Agent {
    /// Asks each instance how far it is, a few times a second, so that a report never waits for Postgres.
    pub(super) async fn sample(self) {
        let mut tick = tokio::time::interval(SAMPLE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.0.stop.cancelled() => return,
            }
            let replicas = self.replicas();
            let samples = replicas.iter().map(|replica| sample_one(replica, SAMPLE_DEADLINE));
            futures::future::join_all(samples).await;
        }
    }

    /// As [`Agent::reports`]; a replica that started too lately to have been asked is asked now.
    pub(super) async fn answer_reports(&self) -> Vec<ReplicaReport> {
        let replicas = self.replicas();
        let unasked = replicas.iter().filter(|replica| replica.state().position().is_none());
        futures::future::join_all(unasked.map(|replica| sample_one(replica, ANSWER_DEADLINE))).await;
        self.reports()
    }

    /// All replicas here, as they are now: the sampled figures with the present states.
    pub fn reports(&self) -> Vec<ReplicaReport> {
        self.replicas().iter().map(|replica| self.report(replica)).collect()
    }

    fn report(&self, replica: &Arc<Replica>) -> ReplicaReport {
        let mut report = self_report(replica);
        report.node = self.0.node;
        let leads = replica.state().leading.is_some();
        if leads || replica.state().role == InstanceRole::Primary {
            (report.gate, report.sessions) = self.gates().report(replica.database);
        }
        let tunnel = replica.downstream.status();
        report.streaming = tunnel.streaming;
        if report.role == InstanceRole::Standby {
            report.flush_lsn = report.flush_lsn.max(tunnel.acknowledged);
            report.lag_bytes = tunnel.upstream_end.since(report.flush_lsn);
        }
        report
    }

    /// Tells the coordinator, wherever it is; a report that is lost is followed by the next.
    pub(super) async fn push(self) {
        let mut tick = tokio::time::interval(PUSH_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leader = self.0.leader.clone();
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.0.changed.notified() => {}
                changed = leader.changed() => if changed.is_err() { return },
                () = self.0.stop.cancelled() => return,
            }
            self.push_now().await;
        }
    }

    pub(super) async fn push_now(&self) {
        let Some(leader) = self.0.leader.borrow().node else { return };
        let body = encode(&Request::Push(self.reports()));
        if let Err(error) = self.0.peers.call(leader, Service::Agent, body, PUSH_DEADLINE).await {
            tracing::debug!(%leader, %error, "a report was not delivered");
        }
    }
}

/// Asks a running instance how far it is, and keeps the answer for reports.
async fn sample_one(replica: &Replica, deadline: Duration) {
    if !matches!(*replica.instance.process().borrow(), Process::Running { .. }) {
        return;
    }
    let Ok(Ok(progress)) = tokio::time::timeout(deadline, replica.instance.progress()).await else { return };
    let mut report = self_report(replica);
    report.position =
        Some(Position { epoch: progress.epoch, lsn: progress.flush_lsn, timeline: progress.timeline });
    report.timeline = progress.timeline;
    report.flush_lsn = progress.flush_lsn;
    report.size_bytes = progress.size_bytes;
    replica.state().report = Some(report);
}

fn self_report(replica: &Replica) -> ReplicaReport {
    let state = replica.state();
    let (pid, run) = match (&*replica.instance.process().borrow(), &state.run) {
        // The process's end is known here before its keeper has looked.
        (Process::Exited { reason, .. }, RunState::Running) => (None, RunState::Stopped(reason.clone())),
        (Process::Hung { pid }, RunState::Running) => (Some(*pid), RunState::Hung),
        (Process::Running { pid } | Process::Hung { pid } | Process::Starting { pid }, run) => {
            (Some(*pid), run.clone())
        }
        (_, run) => (None, run.clone()),
    };
    let sampled = state.report.as_ref();
    ReplicaReport {
        replica: replica.id,
        database: replica.database,
        node: sampled.map_or(NodeId(0), |r| r.node),
        run,
        role: state.role,
        promise: state.promise(),
        position: state.position(),
        streaming: None,
        timeline: sampled.map_or(Timeline(0), |r| r.timeline),
        flush_lsn: sampled.map_or(Lsn(0), |r| r.flush_lsn),
        lag_bytes: 0,
        gate: GateReport::Closed,
        pid,
        data_directory: replica.instance.data_directory().display().to_string(),
        socket: replica.instance.sockets().display().to_string(),
        sessions: 0,
        size_bytes: sampled.map_or(0, |r| r.size_bytes),
    }
}

/// Asks every node what it holds; nodes that do not answer in time are left out.
pub async fn collect_reports(peers: &dyn PeerNetwork, deadline: Duration) -> Vec<ReplicaReport> {
    let mut all: Vec<ReplicaReport> = ask_reports(peers, deadline).await.into_values().flatten().collect();
    all.sort_by_key(|r| (r.database, r.replica));
    all
}

/// What each node holds that answers in time, this one too.
pub async fn ask_reports(
    peers: &dyn PeerNetwork,
    deadline: Duration,
) -> BTreeMap<NodeId, Vec<ReplicaReport>> {
    let asked = peers.nodes().into_iter().map(|node| async move {
        let body = encode(&Request::Reports);
        let answer = peers.call(node, Service::Agent, body, deadline).await.ok()?;
        match decode::<Response>(&answer) {
            Ok(Response::Reports(reports)) => Some((node, reports)),
            _ => None,
        }
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}
