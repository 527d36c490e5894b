//! The first copy of a database.
//!
//! Everything here is committed locally, before a quorum exists. It may: nobody can reach the database yet, and
//! the others are copied from the result.

use super::error::InstanceError;
use super::files::{self, Durability, blocking};
use super::lifecycle::Role;
use super::process;
use super::session::{Purpose, Session, lock, quote_identifier, quote_literal, within};
use super::settings::{MAINTENANCE_DATABASE, SUPERUSER};
use super::{Inner, Instance, StopMode, spawn, tool};
use crate::tunnel::REWIND_USER;
use quorate_model::Epoch;
use quorate_model::configuration::SENTINEL_SYNC_NAMES;
use rustix::process::Signal;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const INITDB_DEADLINE: Duration = Duration::from_secs(120);
const FIRST_START_DEADLINE: Duration = Duration::from_secs(60);
const STATEMENTS_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// What the new database is to be.
#[derive(Clone)]
pub struct Bootstrap {
    pub database_name: String,
    /// The tenant's login, owner of the database.
    pub login: String,
    /// The SCRAM verifier of the login's password.
    pub verifier: String,
    pub epoch: Epoch,
    pub uuid: Uuid,
    /// In force from the end of the bootstrap on.
    pub sync_names: String,
}

impl fmt::Debug for Bootstrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bootstrap")
            .field("database_name", &self.database_name)
            .field("login", &self.login)
            .field("epoch", &self.epoch)
            .field("uuid", &self.uuid)
            .field("sync_names", &self.sync_names)
            .finish_non_exhaustive()
    }
}

impl Bootstrap {
    fn check(&self) -> Result<(), InstanceError> {
        let reserved_databases = [MAINTENANCE_DATABASE, "template0", "template1"];
        if reserved_databases.contains(&self.database_name.as_str()) {
            let name = self.database_name.clone();
            return Err(InstanceError::Reserved { kind: "database", name });
        }
        let reserved_login = matches!(self.login.as_str(), SUPERUSER | REWIND_USER | "public" | "none");
        if reserved_login || self.login.starts_with("pg_") {
            return Err(InstanceError::Reserved { kind: "login", name: self.login.clone() });
        }
        Ok(())
    }
}

impl Instance {
    /// Makes the database from nothing and leaves the instance running as its primary. What an earlier attempt
    /// left is wiped; a complete directory is refused.
    pub async fn bootstrap(&self, wanted: &Bootstrap) -> Result<(), InstanceError> {
        wanted.check()?;
        let _only_one = self.inner.lifecycle.lock().await;
        if self.is_complete() {
            return Err(InstanceError::AlreadyComplete);
        }
        process::stop(&self.inner, StopMode::Immediate, STOP_DEADLINE).await?;
        self.inner.wipe().await?;
        self.inner.initdb().await?;
        *lock(&self.inner.sync_names) = SENTINEL_SYNC_NAMES.to_owned();
        self.inner.prepare(Role::FirstPrimary).await?;
        process::launch(&self.inner).await?;
        self.inner.wait_until_answering(FIRST_START_DEADLINE).await?;
        within("making the database", STATEMENTS_DEADLINE, self.inner.fill(wanted)).await?;
        self.set_sync_names(&wanted.sync_names).await?;
        self.inner.mark_complete("bootstrap").await
    }
}

impl Inner {
    /// Empties the data directory. The mark goes first, durably.
    pub async fn wipe(self: &Arc<Self>) -> Result<(), InstanceError> {
        let inner = self.clone();
        blocking("wiping the data directory", move || {
            inner.paths.prepare(&inner.user)?;
            super::orphan::clear(&inner.paths)?;
            files::remove_durably(&inner.paths.complete)?;
            files::remove(&inner.paths.promoting)?;
            files::remove_tree(&inner.paths.data)?;
            inner.paths.forget_faults()?;
            inner.paths.prepare(&inner.user)
        })
        .await
    }

    /// From here on the data directory counts as one.
    pub async fn mark_complete(self: &Arc<Self>, how: &'static str) -> Result<(), InstanceError> {
        let inner = self.clone();
        blocking("marking the data complete", move || {
            files::sync_file_system(&inner.paths.data)?;
            let text = format!("{how} by PostgreSQL {}\n", inner.pg.version());
            files::replace(&inner.paths.complete, &text, Durability::Durable, None)
        })
        .await
    }

    async fn initdb(&self) -> Result<(), InstanceError> {
        let mut command = spawn::command(&self.pg.bin("initdb"), &self.user, Signal::KILL);
        command
            .arg("-D")
            .arg(&self.paths.data)
            .args(["-U", SUPERUSER, "-A", "trust", "--no-sync"])
            .args(self.pg.version().initdb_arguments());
        // Flushed once, with everything else, when the mark is set.
        tool::run("initdb", command, INITDB_DEADLINE, |_| ()).await
    }

    async fn fill(&self, wanted: &Bootstrap) -> Result<(), InstanceError> {
        let session = Session::open(&self.paths.sockets, Purpose::Local).await?;
        let Epoch { data_loss, primary, config } = wanted.epoch;
        let uuid = wanted.uuid;
        let own_table = format!(
            "BEGIN;
             CREATE SCHEMA quorate;
             CREATE TABLE quorate.epoch (
                 the_row bool PRIMARY KEY DEFAULT true CHECK (the_row),
                 data_loss int8 NOT NULL,
                 primary_epoch int8 NOT NULL,
                 config int8 NOT NULL,
                 uuid uuid NOT NULL
             );
             INSERT INTO quorate.epoch (data_loss, primary_epoch, config, uuid)
                 VALUES ({data_loss}, {primary}, {config}, '{uuid}');
             CREATE TABLE quorate.reigns (
                 data_loss int8 NOT NULL,
                 primary_epoch int8 NOT NULL,
                 timeline int8 NOT NULL,
                 -- Of a promotion: the first transaction id that the log before it does not know as ended; -1: not known.
                 horizon int8,
                 PRIMARY KEY (data_loss, primary_epoch)
             );
             INSERT INTO quorate.reigns VALUES ({data_loss}, {primary}, 1);
             REVOKE CONNECT ON DATABASE {MAINTENANCE_DATABASE}, template1 FROM PUBLIC;
             COMMIT"
        );
        session.rows("making the daemon's table", &own_table).await?;
        super::rewind::make_role(&session).await?;

        session.set_secret("quorate.verifier", &wanted.verifier).await?;
        let login = quote_literal(&wanted.login);
        let attributes = self.pg.version().tenant_role_attributes();
        let role = format!(
            "DO $do$ BEGIN
                 EXECUTE pg_catalog.format('CREATE ROLE %I {attributes} PASSWORD %L',
                     {login}, pg_catalog.current_setting('quorate.verifier'));
             END $do$"
        );
        session.rows("making the tenant's login", &role).await?;

        let name = quote_identifier(&wanted.database_name);
        let owner = quote_identifier(&wanted.login);
        let create = format!("CREATE DATABASE {name} OWNER {owner} TEMPLATE template0");
        session.rows("making the tenant's database", &create).await?;
        let revoke = format!("REVOKE CONNECT, TEMPORARY ON DATABASE {name} FROM PUBLIC");
        session.rows("closing the tenant's database", &revoke).await?;
        Ok(())
    }
}
