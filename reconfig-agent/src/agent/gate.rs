//! The gate of a database, as its replica agent controls it. The proxy implements it.

use quorate_model::{Commits, DatabaseId, Epoch, GateReport, Reads};
use std::path::Path;
use std::time::Duration;

/// Nanoseconds of CLOCK_BOOTTIME, the clock of leases: it counts suspension too.
pub type BootTime = u64;

#[async_trait::async_trait]
pub trait GateControl: Send + Sync + 'static {
    /// Sessions pass to the instance behind `socket_dir`, in this reign.
    fn open(&self, database: DatabaseId, epoch: Epoch, socket_dir: &Path);
    /// Sessions and their backends are kept, nothing passes in either direction.
    fn hold(&self, database: DatabaseId);
    /// Every backend's stream ends.
    fn close(&self, database: DatabaseId, reason: &str);
    /// Stops sessions at transaction boundaries; open transactions get `drain`, then they are cut. Returns how
    /// many sessions were kept and how many transactions were cut. The gate is held afterwards.
    async fn park(&self, database: DatabaseId, drain: Duration) -> (u32, u32);
    /// Results may leave until then.
    fn set_lease(&self, database: DatabaseId, until: BootTime);
    fn drop_lease(&self, database: DatabaseId);
    /// When results may leave, beside the lease, and what acknowledgements rest on: told before an opening and again at
    /// every look.
    fn set_rules(&self, database: DatabaseId, reads: Reads, commits: Commits);
    /// Forgets a database that is not here any more.
    fn remove(&self, database: DatabaseId);
    fn report(&self, database: DatabaseId) -> (GateReport, u32);
    /// Asks the ring for lease grants now, because a gate has just opened.
    fn renew_leases(&self);
}
