//! The rules of leases that the model uses: the daemon's, or a mutant's with one of them replaced.

use quorate_model::Epoch;
use quorate_reconfig_agent::agent::MAX_LEASE;
use quorate_reconfig_agent::agent::standing::Standing;
use quorate_ring::BootTime;
use quorate_ring::lease::DRIFT_DIVISOR;
use std::time::Duration;

/// Where the gate asks whether the lease still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// When the query comes.
    Ingress,
    /// When the result leaves.
    Egress,
}

#[derive(Clone, Copy)]
pub struct Rules {
    pub name: &'static str,
    pub check: Check,
    /// The requester's end of a lease that was granted to it until then, as the ring computed it.
    pub believed: fn(until: BootTime, lease: Duration) -> BootTime,
    /// Whether a granter lets the primary of that epoch go on until then.
    pub grant: fn(&mut Standing, Epoch, BootTime) -> bool,
    /// The end of grants that a restarted granter may have given and does not remember.
    pub forgotten: fn(now: BootTime) -> BootTime,
    /// Whether the coordinator waits for what the fences say of leases.
    pub waits: bool,
}

pub const DAEMON: Rules = Rules {
    name: "the daemon's decisions",
    check: Check::Egress,
    believed: |until, _| until,
    grant: Standing::grant,
    forgotten: |now| now + MAX_LEASE.as_nanos() as u64,
    waits: true,
};

/// The mutant of DESIGN §5, and further ones of what this model alone can see.
pub const MUTANTS: [Rules; 5] = [
    Rules { name: "lease check at ingress", check: Check::Ingress, ..DAEMON },
    Rules { name: "open while the lease runs", waits: false, ..DAEMON },
    Rules { name: "no allowance for drift", believed: whole_lease, ..DAEMON },
    Rules { name: "grant an epoch older than the promise", grant: grant_any, ..DAEMON },
    Rules { name: "forget grants at a restart", forgotten: |_| 0, ..DAEMON },
];

fn whole_lease(until: BootTime, lease: Duration) -> BootTime {
    until + (lease.as_nanos() as u64).div_ceil(DRIFT_DIVISOR)
}

fn grant_any(standing: &mut Standing, _: Epoch, until: BootTime) -> bool {
    standing.granted_until = standing.granted_until.max(until);
    true
}
