//! Start, stop and the end of an instance.

use super::error::InstanceError;
use super::files::{self, blocking};
use super::process::{self, Process};
use super::session::{lock, within};
use super::settings::Settings;
use super::{Inner, Instance, StopMode, orphan};
use quorate_model::configuration::SENTINEL_SYNC_NAMES;
use rustix::process::Signal;
use std::sync::Arc;
use std::time::Duration;

/// Replaying the log after a crash takes its time; a caller that cannot wait drops the future, and the instance
/// goes on starting.
pub const START_DEADLINE: Duration = Duration::from_secs(300);
/// What a directory's name ends with from when it is no replica's any more until it is deleted.
pub const ASIDE: &str = "dropped";
const DESTROY_STOP_DEADLINE: Duration = Duration::from_secs(2);
const QUICK: Duration = Duration::from_secs(5);

impl Instance {
    /// Starts the instance as a standby, whatever it was before, and returns when it answers queries. Running
    /// already as a standby is fine; as a primary it is an error.
    pub async fn start(&self) -> Result<(), InstanceError> {
        let _only_one = self.inner.lifecycle.lock().await;
        if !self.is_complete() {
            return Err(InstanceError::Incomplete);
        }
        if let Some(reason) = self.distrust() {
            return Err(InstanceError::Distrusted(reason));
        }
        if !self.inner.process.borrow().is_live() {
            {
                // Not while a change is still asking the postmaster before this one.
                let _in_order = self.inner.reconfiguring.lock().await;
                *lock(&self.inner.sync_names) = SENTINEL_SYNC_NAMES.to_owned();
            }
            self.inner.prepare(Role::Standby).await?;
            process::launch(&self.inner).await?;
        }
        self.inner.wait_until_answering(START_DEADLINE).await?;
        if self.inner.is_in_recovery(QUICK).await? { Ok(()) } else { Err(InstanceError::AlreadyRunning) }
    }

    /// Stops the instance, by force when it does not stop within `deadline`. Not running is fine.
    pub async fn stop(&self, mode: StopMode, deadline: Duration) -> Result<(), InstanceError> {
        // Not under the lifecycle's lock: a start that waits for the log's replay must not be in the way.
        process::stop(&self.inner, mode, deadline).await
    }

    /// Ends the instance and deletes what it had. Safe to run again.
    pub async fn destroy(&self) -> Result<(), InstanceError> {
        self.stop(StopMode::Immediate, DESTROY_STOP_DEADLINE).await?;
        let _only_one = self.inner.lifecycle.lock().await;
        let paths = self.inner.paths.clone();
        blocking("deleting the replica", move || {
            orphan::clear(&paths)?;
            // Aside first: a half-deleted directory is never taken for a replica.
            let aside = paths.root.with_extension(ASIDE);
            files::remove_tree(&aside)?;
            if paths.root.exists() {
                files::remove_durably(&paths.complete)?;
                std::fs::rename(&paths.root, &aside)
                    .map_err(InstanceError::file("moving aside", &paths.root))?;
            }
            files::remove_tree(&aside)?;
            files::remove_tree(&paths.sockets)?;
            files::remove_tree(&paths.tunnel)
        })
        .await
    }
}

/// What the next start is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Every start but the first of all.
    Standby,
    /// Right after initdb.
    FirstPrimary,
}

impl Inner {
    /// Makes a data directory ready for a start: nobody else on it, configuration regenerated, role decided.
    pub async fn prepare(self: &Arc<Self>, role: Role) -> Result<(), InstanceError> {
        let inner = self.clone();
        blocking("preparing the data directory", move || {
            inner.paths.prepare(&inner.user)?;
            orphan::clear(&inner.paths)?;
            inner.write_settings()?;
            let signal = |name: &str| inner.paths.data.join(name);
            files::remove(&signal("recovery.signal"))?;
            files::remove(&signal("promote"))?;
            match role {
                Role::Standby => files::replace(
                    &signal("standby.signal"),
                    "",
                    files::Durability::Durable,
                    Some(&inner.user),
                ),
                Role::FirstPrimary => files::remove(&signal("standby.signal")),
            }
        })
        .await
    }

    /// Blocking.
    pub fn write_settings(&self) -> Result<(), InstanceError> {
        let sync_names = lock(&self.sync_names).clone();
        self.settings(&sync_names).write_all(&self.user)
    }

    pub fn settings<'a>(&'a self, sync_names: &'a str) -> Settings<'a> {
        Settings {
            paths: &self.paths,
            replica: self.replica,
            limits: &self.limits,
            version: self.pg.version(),
            sync_names,
        }
    }

    /// Makes the server read its configuration again.
    pub fn reload(&self) {
        if let Some(postmaster) = &*lock(&self.postmaster) {
            postmaster.signal(Signal::HUP);
        }
    }

    pub async fn wait_until_answering(&self, deadline: Duration) -> Result<(), InstanceError> {
        let mut process = self.process.subscribe();
        within("starting the instance", deadline, async {
            let settled = process.wait_for(|state| !matches!(state, Process::Starting { .. }));
            match settled.await.as_deref() {
                Ok(Process::Exited { reason, .. }) => Err(InstanceError::Exited(reason.clone())),
                Ok(Process::Running { .. } | Process::Hung { .. }) => Ok(()),
                _ => Err(InstanceError::NotRunning),
            }
        })
        .await
    }

    pub async fn is_in_recovery(&self, deadline: Duration) -> Result<bool, InstanceError> {
        self.sessions
            .row("asking for the role", "SELECT pg_catalog.pg_is_in_recovery()", deadline)
            .await?
            .is_true(0)
    }
}
