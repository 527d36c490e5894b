//! What one instance may use. Equal on every node of a cluster: a standby refuses to replay a log whose primary
//! allowed more connections, prepared transactions or walsenders than itself.

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_connections: u32,
    /// Of `max_connections`: kept for the daemon's own, so that tenants cannot lock it out.
    pub reserved_connections: u32,
    pub max_prepared_transactions: u32,
    pub max_wal_senders: u32,
    pub max_replication_slots: u32,
    pub shared_buffers_mib: u32,
    pub max_wal_size_mib: u32,
    /// Log kept for replicas that come back and for pg_rewind, beyond what slots ask for.
    pub wal_keep_size_mib: u32,
    /// The most that a slot of a replica which does not come back may hold.
    pub max_slot_wal_keep_size_mib: u32,
    pub wal_sender_timeout_ms: u32,
    pub wal_receiver_timeout_ms: u32,
    /// Caps a base backup; none means as fast as it goes.
    pub seed_rate_kib_per_s: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 120,
            reserved_connections: 12,
            max_prepared_transactions: 32,
            max_wal_senders: 16,
            max_replication_slots: 16,
            shared_buffers_mib: 64,
            max_wal_size_mib: 512,
            wal_keep_size_mib: 256,
            max_slot_wal_keep_size_mib: 2048,
            wal_sender_timeout_ms: 30_000,
            wal_receiver_timeout_ms: 30_000,
            seed_rate_kib_per_s: None,
        }
    }
}
