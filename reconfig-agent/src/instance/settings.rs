//! The configuration of an instance, as text. It is generated before every start and belongs to the daemon: what
//! a base backup, pg_rewind or ALTER SYSTEM left behind is overwritten.

use super::error::InstanceError;
use super::files::{self, Durability};
use super::limits::Limits;
use super::paths::Paths;
use super::user::OsUser;
use super::version::Version;
use quorate_model::ReplicaId;
use quorate_model::configuration::SENTINEL_SYNC_NAMES;
use std::fmt::Write;
use std::path::Path;

/// The role that initdb makes: the daemon's own, a superuser; never a tenant's.
pub const SUPERUSER: &str = "quorate";
/// The database of the daemon's own table.
pub const MAINTENANCE_DATABASE: &str = "postgres";
/// In PGDATA, beside postgresql.conf, which only includes it.
const DAEMON_FILE: &str = "quorate.conf";

/// The access rules: whoever reaches the socket is the daemon or was authenticated by it.
const HBA: &str = "\
# Written by quorate before every start.
local all all trust
local replication quorate trust
";

/// What one instance's configuration depends on.
pub struct Settings<'a> {
    pub paths: &'a Paths,
    pub replica: ReplicaId,
    pub limits: &'a Limits,
    pub version: Version,
    /// Never empty (R5).
    pub sync_names: &'a str,
}

impl Settings<'_> {
    /// Writes every configuration file, and empties what ALTER SYSTEM wrote. Blocking.
    pub fn write_all(&self, user: &OsUser) -> Result<(), InstanceError> {
        let data = &self.paths.data;
        self.put(user, &data.join("postgresql.conf"), &main_file())?;
        self.put(user, &data.join("pg_hba.conf"), HBA)?;
        self.put(user, &data.join("pg_ident.conf"), "")?;
        self.put(user, &data.join("postgresql.auto.conf"), "")?;
        self.write_daemon_file(user)
    }

    /// Only the part that changes while an instance runs. Not flushed: a start writes it anew.
    pub fn write_daemon_file(&self, user: &OsUser) -> Result<(), InstanceError> {
        self.put(user, &self.paths.data.join(DAEMON_FILE), &self.daemon_file())
    }

    fn put(&self, user: &OsUser, path: &Path, text: &str) -> Result<(), InstanceError> {
        files::replace(path, text, Durability::Volatile, Some(user))
    }

    fn daemon_file(&self) -> String {
        let l = self.limits;
        let mut out = String::from("# Written by quorate; changes are lost.\n");
        let mut set = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name} = {}", quoted(value));
        };
        set("listen_addresses", "");
        set("port", "5432");
        set("unix_socket_directories", &self.paths.sockets.to_string_lossy());
        set("unix_socket_permissions", "0700");
        set("max_connections", &l.max_connections.to_string());
        set("superuser_reserved_connections", &l.reserved_connections.to_string());
        set("max_prepared_transactions", &l.max_prepared_transactions.to_string());
        set("shared_buffers", &format!("{}MB", l.shared_buffers_mib));

        set("wal_level", "replica");
        set("fsync", "on");
        set("full_page_writes", "on");
        set("wal_log_hints", "on");
        set("synchronous_commit", "on");
        set("synchronous_standby_names", self.sync_names);
        // Where no commit can be acknowledged, a client that did not insist is told at once instead of waiting.
        let read_only = self.sync_names == SENTINEL_SYNC_NAMES;
        set("default_transaction_read_only", if read_only { "on" } else { "off" });
        set("max_wal_size", &format!("{}MB", l.max_wal_size_mib));
        set("min_wal_size", "80MB");
        set("checkpoint_timeout", "5min");
        set("checkpoint_completion_target", "0.9");

        set("max_wal_senders", &l.max_wal_senders.to_string());
        set("max_replication_slots", &l.max_replication_slots.to_string());
        set("wal_keep_size", &format!("{}MB", l.wal_keep_size_mib));
        set("max_slot_wal_keep_size", &format!("{}MB", l.max_slot_wal_keep_size_mib));
        set("wal_sender_timeout", &format!("{}ms", l.wal_sender_timeout_ms));
        set("wal_receiver_timeout", &format!("{}ms", l.wal_receiver_timeout_ms));
        set("wal_receiver_status_interval", "1s");
        // The tunnel holds whoever comes too early, so that this is seldom more than one attempt. It is what a standby
        // sleeps before it follows another primary.
        set("wal_retrieve_retry_interval", "20ms");
        set("hot_standby", "on");
        // Replay never waits for a reader: a fence needs it to reach the end of the log.
        set("max_standby_streaming_delay", "0");
        set("max_standby_archive_delay", "0");
        set("primary_conninfo", &self.primary_conninfo());
        set("primary_slot_name", &self.replica.standby_name());
        set("recovery_target_timeline", "latest");
        set("restore_command", "");
        set("archive_mode", "off");

        // Before it replays the log after a crash, the server flushes what it may have written before: one call
        // instead of one for each of a thousand files.
        set("recovery_init_sync_method", "syncfs");
        // What was not acknowledged would become visible without anybody's noticing.
        set("restart_after_crash", "off");
        set("password_encryption", "scram-sha-256");
        set("timezone", "UTC");
        set("log_timezone", "UTC");
        set("default_text_search_config", "pg_catalog.english");
        for name in ["lc_messages", "lc_monetary", "lc_numeric", "lc_time"] {
            set(name, "C");
        }

        // The log is for the operator: a tenant's errors and statements, which may hold secrets, stay out.
        set("log_destination", "stderr");
        set("logging_collector", "off");
        set("log_min_messages", "log");
        set("log_min_error_statement", "panic");
        set("log_checkpoints", "off");
        set("log_line_prefix", "%m [%p] ");
        for (name, value) in self.version.settings() {
            set(name, value);
        }
        out
    }

    /// Always the tunnel, whoever the primary is.
    fn primary_conninfo(&self) -> String {
        format!(
            "host={} port=5432 user={SUPERUSER} application_name={} sslmode=disable gssencmode=disable",
            conninfo_value(&self.paths.tunnel.to_string_lossy()),
            self.replica.standby_name(),
        )
    }
}

fn main_file() -> String {
    format!("# Written by quorate before every start; changes are lost.\ninclude '{DAEMON_FILE}'\n")
}

/// A string of postgresql.conf: quotes are doubled, and backslashes, which it unescapes.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// A value of a libpq connection string.
pub fn conninfo_value(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::unwrap_used)]
    fn a_tunnel_path_with_quotes_survives_both_layers() {
        let paths = Paths::new(Path::new("/var/q"), Path::new("/run/o'q"), ReplicaId(9)).unwrap();
        let settings = Settings {
            paths: &paths,
            replica: ReplicaId(9),
            limits: &Limits::default(),
            version: Version { major: 15, minor: 0 },
            sync_names: SENTINEL_SYNC_NAMES,
        };
        let text = settings.daemon_file();
        assert!(text.contains(r"primary_conninfo = 'host=''/run/o\\''q/9t'' port=5432"), "{text}");
        assert!(text.contains("synchronous_standby_names = 'ANY 1 (quorate_nobody)'"));
        assert!(text.contains("primary_slot_name = 'r9'"));
        assert!(text.contains("default_transaction_read_only = 'on'"));
        assert!(!text.contains("allow_alter_system"));
    }
}
