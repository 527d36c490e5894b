//! The delays of the reconfiguration agent. Detection is not among them: it belongs to the ring and to the
//! replica agents.

/// All in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timers {
    /// A voter that is unwell for so long is taken out of the configuration, so that the other voter alone can
    /// take over. Short: it costs one barrier.
    pub shrink_after: u64,
    /// A replica that is unwell for so long is built anew elsewhere. Long: a reboot is cheaper than a copy.
    pub replace_after: u64,
    /// Once the fence set covers, how long the answers of the other reachable replicas are waited for.
    pub grace: u64,
    /// The same for an incumbent that may be healthy: its re-election costs no promotion and no session.
    pub incumbent_grace: u64,
    /// The same for an incumbent whose instance is starting after its whole node was started.
    pub restart_patience: u64,
    /// An election that cannot cover for so long is recorded as QuorumLost.
    pub quorum_lost_after: u64,
    /// Reports older than this say nothing.
    pub report_stale: u64,
    /// A record must have stood for so long before a report that contradicts it counts: reports taken before the
    /// record changed are still on their way.
    pub settle: u64,
    /// A failed order is given again after this.
    pub retry: u64,
    /// How long a switchover waits for open transactions.
    pub drain: u64,
    /// A learner at most so many bytes behind may become a voter.
    pub learner_lag_bytes: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Timers {
            shrink_after: 2_000,
            replace_after: 300_000,
            grace: 40,
            incumbent_grace: 250,
            restart_patience: 5_000,
            quorum_lost_after: 10_000,
            report_stale: 2_000,
            settle: 700,
            retry: 150,
            drain: 1_000,
            learner_lag_bytes: 16 << 20,
        }
    }
}
