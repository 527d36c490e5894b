//! Carrying out the coordinator's orders. Each may come twice; an order of an epoch older than the promise is
//! refused and changes nothing.

use super::Agent;
use super::lease::boottime;
use super::replica::Replica;
use super::standing::FenceEffect;
use crate::decide::{Behalf, Failure, Fenced, Order, Promoted, Reply, What};
use crate::instance::{InstanceError, StopMode};
use crate::tunnel::Route;
use quorate_model::configuration::SENTINEL_SYNC_NAMES;
use quorate_model::position::{Relation, relate};
use quorate_model::{Epoch, InstanceRole, Lineage, NodeId, Position, ReplicaId, RunState};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A fence that cannot find the end of the log in this time answers without.
const POSITION_DEADLINE: Duration = Duration::from_millis(1_500);
/// A barrier that the quorum does not acknowledge in this time is given up and ordered again.
const BARRIER_DEADLINE: Duration = Duration::from_secs(4);
/// The epoch row waits for no quorum.
const ROW_DEADLINE: Duration = Duration::from_secs(4);
const STOP_DEADLINE: Duration = Duration::from_secs(15);

fn failed(error: InstanceError) -> Failure {
    Failure::Instance(error.to_string())
}

impl Agent {
    pub(super) async fn obey(&self, order: Order) -> Result<Reply, Failure> {
        let replica = self.replica(order.replica).ok_or(Failure::NotHere(order.replica))?;
        if let Some(behalf) = order.behalf {
            self.accept_attempt(&replica, behalf)?;
        }
        let epoch = order.epoch;
        let result = match order.what {
            What::Fence => self.fence(&replica, epoch).await,
            What::Promote { sync_names, allowed, uuid } => {
                self.promote(&replica, epoch, &sync_names, allowed, uuid).await
            }
            What::Attach { primary, node, history } => {
                self.attach(&replica, epoch, primary, node, history).await
            }
            What::Barrier { sync_names, allowed, uuid } => {
                self.barrier(&replica, epoch, &sync_names, allowed, uuid).await
            }
            What::Open => self.open(&replica, epoch),
            What::Checkpoint => {
                replica.state().obeys(replica.id, epoch)?;
                replica.instance.checkpoint().await.map_err(failed)?;
                Ok(Reply::Done)
            }
            What::PrepareSource => {
                replica.state().leads(replica.id, epoch)?;
                replica.instance.prepare_source().await.map_err(failed)?;
                Ok(Reply::Done)
            }
            What::Retire { drain_ms } => self.retire(&replica, epoch, drain_ms).await,
        };
        replica.wake.notify_one();
        self.0.changed.notify_one();
        result
    }

    /// I13: whoever has been replaced as an operation's executor is refused, as far as this node has heard.
    fn accept_attempt(&self, replica: &Replica, behalf: Behalf) -> Result<(), Failure> {
        let Behalf { operation, attempt } = behalf;
        if let Some(known) = self.map().operations.get(&operation)
            && (known.attempt > attempt || known.state.is_over())
        {
            return Err(Failure::Superseded { operation, attempt: known.attempt });
        }
        let mut state = replica.state();
        if let Some(latest) = state.latest_order_for
            && behalf.yields_to(latest)
        {
            return Err(Failure::Superseded { operation, attempt: latest.attempt });
        }
        state.latest_order_for = Some(behalf);
        Ok(())
    }

    fn promised(&self, replica: &Replica, epoch: Epoch) -> Result<(), Failure> {
        let mut state = replica.state();
        match state.make_promise(epoch) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(promise)) => Err(Failure::Promised { replica: replica.id, promise }),
            Err(e) => Err(Failure::Instance(format!("the promise cannot be written: {e}"))),
        }
    }

    /// After the promise to `epoch`: closes the gate and the tunnels of every older reign.
    async fn close_older(&self, replica: &Arc<Replica>, epoch: Epoch) -> FenceEffect {
        let effect = {
            let mut state = replica.state();
            let effect = state.fence(epoch, boottime());
            if effect.hold_gate {
                self.gates().drop_lease(replica.database);
                self.gates().hold(replica.database);
            }
            effect
        };
        if effect.cut {
            self.0.upstreams.cut_all(replica.database).await;
            // Not a copy or a rewind from the primary of this reign: its keeper brings it about, and nobody would open
            // its tunnel again.
            replica.downstream.cut_older(epoch).await;
        }
        effect
    }

    async fn fence(&self, replica: &Arc<Replica>, epoch: Epoch) -> Result<Reply, Failure> {
        self.promised(replica, epoch)?;
        let effect = self.close_older(replica, epoch).await;
        let (role, lease_left_ms) = (effect.role, effect.lease_left.div_ceil(1_000_000));
        let run = replica.state().run.clone();
        // A divergent copy has its log and its promise: what it cannot do is follow. Without its word a cover that needs
        // it would never come about.
        let (position, note) = if !matches!(run, RunState::Running | RunState::Divergent) {
            // Asked again until it runs: an answer at once tells that gate and tunnels are closed.
            (None, format!("{} is {}", replica.id, run.name()))
        } else {
            match tokio::time::timeout(POSITION_DEADLINE, replica.instance.position()).await {
                Ok(Ok(position)) => (Some(position), String::new()),
                Ok(Err(e)) => (None, e.to_string()),
                Err(_) => (None, format!("{} did not say where its log ends in time", replica.id)),
            }
        };
        tracing::info!(
            database = %replica.database, replica = %replica.id, %epoch, lease_left_ms,
            position = ?position.map(|p| (p.epoch.to_string(), p.lsn.to_string())), note, "fenced"
        );
        Ok(Reply::Fenced(Fenced { position, role, lease_left_ms, note }))
    }

    async fn promote(
        &self,
        replica: &Arc<Replica>,
        epoch: Epoch,
        sync_names: &str,
        allowed: BTreeSet<ReplicaId>,
        uuid: uuid::Uuid,
    ) -> Result<Reply, Failure> {
        self.promised(replica, epoch)?;
        let _changing = replica.changing.lock().await;
        replica.state().arranges(replica.id, epoch)?;
        replica.downstream.cut().await;
        // R6: whoever may acknowledge is named before the first write of the reign.
        replica.instance.set_sync_names(sync_names).await.map_err(failed)?;
        let was_primary = replica.state().role == InstanceRole::Primary;
        let promoted = replica.instance.promote().await.map_err(failed)?;
        {
            let mut state = replica.state();
            state.became_primary(epoch, was_primary);
            state.obeys(replica.id, epoch)?;
        }
        // The row comes before anybody follows: a log with this promotion and without its row would be known to nobody
        // (see `quorate_model::position::written_out`).
        let (slots, row) = tokio::join!(
            replica.arrange_slots(allowed.iter().copied()),
            replica.instance.write_epoch_alone(epoch, uuid, ROW_DEADLINE)
        );
        slots.and(row).map_err(failed)?;
        let since = {
            let mut state = replica.state();
            let since = state.lead(replica.id, epoch, was_primary)?;
            let sockets = replica.instance.sockets().to_owned();
            self.0.upstreams.admit(replica.database, replica.id, epoch.reign(), sockets, allowed);
            since
        };
        self.gates().renew_leases();
        tracing::info!(
            database = %replica.database, replica = %replica.id, %epoch,
            timeline = %promoted.timeline, promoted = !was_primary, "primary"
        );
        Ok(Reply::Promoted(Promoted {
            promoted: !was_primary,
            since,
            timeline: promoted.timeline,
            history: promoted.history,
            rows: promoted.rows,
            lsn: promoted.lsn,
            uuid,
        }))
    }

    async fn attach(
        &self,
        replica: &Arc<Replica>,
        epoch: Epoch,
        primary: ReplicaId,
        node: NodeId,
        history: Vec<Lineage>,
    ) -> Result<Reply, Failure> {
        self.promised(replica, epoch)?;
        let route = Route { node, primary, epoch: epoch.reign() };
        if replica.state().role == InstanceRole::Primary {
            self.demote(replica, epoch, "another replica is primary now").await?;
            return Err(Failure::Instance(format!("{} is being demoted", replica.id)));
        }
        // Its fence may have failed: this order is one as well.
        self.close_older(replica, epoch).await;
        self.attach_checked(replica, route, &history).await?;
        Ok(Reply::Done)
    }

    /// Attaches a standby to a primary if its log is a prefix of the history, once a reign.
    pub(super) async fn attach_checked(
        &self,
        replica: &Arc<Replica>,
        route: Route,
        lineage: &[Lineage],
    ) -> Result<(), Failure> {
        let reign = route.epoch;
        let is_new = {
            let state = replica.state();
            state.obeys(replica.id, reign)?;
            if state.is_copying() {
                return Err(Failure::Instance(format!("{} is {}", replica.id, state.run.name())));
            }
            state.needs_check(reign)
        };
        if is_new {
            replica.downstream.cut().await;
            // A former primary may still admit replicas of its own reign, and a fence of this one, when it comes late,
            // finds nothing older to cut (I2). Not when a promotion has promised more meanwhile: its admission stays.
            let follows = {
                let state = replica.state();
                state.leading.is_none() && state.obeys(replica.id, reign).is_ok()
            };
            if follows {
                self.0.upstreams.cut_all(replica.database).await;
            }
            let position = replica.instance.position().await.map_err(failed)?;
            if relate(lineage, &position) == Relation::Divergent {
                replica.set_divergent(reign, &position)?;
                self.0.changed.notify_one();
                return Err(Failure::Divergent {
                    replica: replica.id,
                    lsn: position.lsn,
                    timeline: position.timeline,
                });
            }
            self.take_torn_off(replica, reign, &position, lineage).await?;
        }
        let mut state = replica.state();
        let first = state.follow(replica.id, reign)?;
        replica.downstream.attach(route);
        drop(state);
        if first {
            // Sessions that this replica kept as a former primary have another one to go to.
            self.gates().close(replica.database, "another replica is primary now");
        }
        Ok(())
    }

    /// A log that ends inside a record cannot go on from before it. Where it is so, this takes the record off and fails:
    /// the keeper starts the instance again, and the next try finds its log whole.
    async fn take_torn_off(
        &self,
        replica: &Arc<Replica>,
        reign: Epoch,
        position: &Position,
        lineage: &[Lineage],
    ) -> Result<(), Failure> {
        let goes_on = lineage.last().is_none_or(|present| present.timeline == position.timeline);
        if goes_on || !replica.instance.is_torn(position.lsn).await.map_err(failed)? {
            return Ok(());
        }
        let _changing = replica.changing.lock().await;
        let end = replica.instance.position().await.map_err(failed)?.lsn;
        let is_torn = replica.instance.is_torn(end).await.map_err(failed)?;
        let may_follow = {
            let state = replica.state();
            state.obeys(replica.id, reign)?;
            // If it has begun to follow meanwhile, it was found whole, and there is more behind this end by now.
            state.role == InstanceRole::Standby && state.needs_check(reign)
        };
        if is_torn && may_follow {
            tracing::warn!(
                database = %replica.database, replica = %replica.id, %end,
                "the log ends inside a record that the history does not hold; it is taken off"
            );
            replica.instance.take_torn_off(end).await.map_err(failed)?;
        }
        Err(Failure::Instance(format!("{} starts again, without a record that was torn", replica.id)))
    }

    async fn barrier(
        &self,
        replica: &Arc<Replica>,
        epoch: Epoch,
        sync_names: &str,
        allowed: BTreeSet<ReplicaId>,
        uuid: uuid::Uuid,
    ) -> Result<Reply, Failure> {
        // One arrangement at a time, so that the names of an older record are never the last to be set.
        let changing = replica.changing.lock().await;
        // R2: first nobody else replicates, then the names, then the write.
        {
            let mut state = replica.state();
            state.leads(replica.id, epoch)?;
            state.arranges(replica.id, epoch)?;
            let sockets = replica.instance.sockets().to_owned();
            self.0.upstreams.admit(replica.database, replica.id, epoch.reign(), sockets, allowed.clone());
        }
        replica.arrange_slots(allowed.iter().copied()).await.map_err(failed)?;
        replica.instance.set_sync_names(sync_names).await.map_err(failed)?;
        drop(changing);
        // A lone primary has no quorum to wait for: its barrier says only that nothing else can be acknowledged.
        let lsn = if sync_names == SENTINEL_SYNC_NAMES {
            replica.instance.write_epoch_alone(epoch, uuid, BARRIER_DEADLINE).await
        } else {
            replica.instance.write_epoch(epoch, uuid, BARRIER_DEADLINE).await
        };
        let lsn = lsn.map_err(failed)?;
        replica.state().leads(replica.id, epoch)?;
        Ok(Reply::Passed { lsn })
    }

    fn open(&self, replica: &Arc<Replica>, epoch: Epoch) -> Result<Reply, Failure> {
        let state = replica.state();
        state.leads(replica.id, epoch)?;
        if let Some(record) = self.map().databases.get(&replica.database) {
            self.gates().set_rules(replica.database, record.options.reads, record.options.commits);
        }
        self.gates().open(replica.database, epoch.reign(), replica.instance.sockets());
        drop(state);
        self.lease_alone(replica);
        self.gates().renew_leases();
        Ok(Reply::Done)
    }

    async fn retire(&self, replica: &Arc<Replica>, epoch: Epoch, drain_ms: u64) -> Result<Reply, Failure> {
        replica.state().leads(replica.id, epoch)?;
        let (kept, cut) = self.gates().park(replica.database, Duration::from_millis(drain_ms)).await;
        let _changing = replica.changing.lock().await;
        {
            let mut state = replica.state();
            // Parking takes as long as transactions do. Its coordinator may have been lost meanwhile, and this replica
            // elected again: what would be stopped then is the primary of a newer reign.
            state.leads(replica.id, epoch)?;
            state.retired = true;
            state.led_until = Some(Instant::now());
        }
        let stopped = replica.instance.stop(StopMode::Fast, STOP_DEADLINE).await.map_err(failed);
        replica.state().stopped("stopped for a switchover");
        stopped?;
        Ok(Reply::Retired { kept, cut })
    }

    /// A primary that was replaced in the reign of `epoch`: its sessions end, its instance stops where it is and starts
    /// as a standby.
    pub(super) async fn demote(
        &self,
        replica: &Arc<Replica>,
        epoch: Epoch,
        why: &str,
    ) -> Result<(), Failure> {
        let _changing = replica.changing.lock().await;
        {
            let mut state = replica.state();
            // What was waited for may have been its promotion in a newer reign.
            if !state.demote(replica.id, epoch.reign())? {
                return Ok(());
            }
            self.gates().drop_lease(replica.database);
            self.gates().close(replica.database, why);
        }
        self.0.upstreams.cut_all(replica.database).await;
        // Not a fast stop: its shutdown checkpoint would be one more record that the history does not hold.
        replica.instance.stop(StopMode::Immediate, STOP_DEADLINE).await.map_err(failed)?;
        replica.state().stopped(why);
        Ok(())
    }
}
