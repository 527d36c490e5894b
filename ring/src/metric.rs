//! The names of the ring's metrics. They are a contract: dashboards read them.

use crate::event::RingEvent;
use metrics::{counter, gauge};

/// Heartbeats sent, replies included.
const HEARTBEATS: &str = "quorate_ring_heartbeats_sent_total";
/// Datagrams that came in and counted for nothing, by `reason`: size, tag, version, body, stranger, stale, address.
const DROPPED: &str = "quorate_ring_datagrams_dropped_total";
/// Datagrams that could not be sent.
const UNSENT: &str = "quorate_ring_datagrams_unsent_total";
/// Suspicions heard of, our own included, one for every reporter.
const SUSPICIONS: &str = "quorate_ring_suspicions_total";
/// Nodes that are no longer suspected by anybody.
const RETURNS: &str = "quorate_ring_returns_total";
/// Nodes that are suspects now.
const SUSPECTS: &str = "quorate_ring_suspects";
/// Events that the daemon did not take in time.
const EVENTS_LOST: &str = "quorate_ring_events_lost_total";
/// Leases that this node granted and refused to others, and that others granted and refused to it; by `side`
/// (granter, requester) and `result` (granted, refused).
const LEASES: &str = "quorate_ring_leases_total";
/// Times at which this process did not run for 100 ms and more.
const GAPS: &str = "quorate_ring_scheduling_gaps_total";

pub fn heartbeat_sent() {
    counter!(HEARTBEATS).increment(1);
}

pub fn dropped(reason: &'static str) {
    counter!(DROPPED, "reason" => reason).increment(1);
}

pub fn unsent() {
    counter!(UNSENT).increment(1);
}

pub fn event(event: &RingEvent) {
    match event {
        RingEvent::Suspect { .. } => counter!(SUSPICIONS).increment(1),
        RingEvent::Alive { .. } => counter!(RETURNS).increment(1),
    }
}

pub fn event_lost() {
    counter!(EVENTS_LOST).increment(1);
}

pub fn suspects(count: usize) {
    gauge!(SUSPECTS).set(count as f64);
}

pub fn granter(granted: usize, refused: usize) {
    leases("granter", granted, refused);
}

pub fn requester(granted: usize, refused: usize) {
    leases("requester", granted, refused);
}

pub fn gap() {
    counter!(GAPS).increment(1);
}

fn leases(side: &'static str, granted: usize, refused: usize) {
    counter!(LEASES, "side" => side, "result" => "granted").increment(granted as u64);
    counter!(LEASES, "side" => side, "result" => "refused").increment(refused as u64);
}
