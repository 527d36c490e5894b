//! The names under which the tunnel is measured. No label names a database: a node has thousands.

use metrics::{Counter, Gauge, counter, gauge};

/// Bytes forwarded, by `side` (which end of the tunnel counted) and `direction` (`wal`: away from the primary).
const BYTES: &str = "quorate_tunnel_bytes_total";
/// Streams that bytes may pass now, by `side`.
const STREAMS: &str = "quorate_tunnel_streams";
/// Streams that were cut, by `side`.
const CUTS: &str = "quorate_tunnel_cuts_total";
/// Streams that were refused, by `reason`.
const REFUSALS: &str = "quorate_tunnel_refusals_total";
/// Connections of standbys that wait for a primary.
const HELD: &str = "quorate_tunnel_held";

/// An end of the tunnel.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    Downstream,
    Upstream,
}

impl Side {
    fn label(self) -> &'static str {
        match self {
            Side::Downstream => "downstream",
            Side::Upstream => "upstream",
        }
    }
}

/// Counts one stream and its bytes, as long as it lives.
pub struct Traffic {
    wal: Counter,
    status: Counter,
    streams: Gauge,
}

impl Traffic {
    pub fn new(side: Side) -> Traffic {
        let side = side.label();
        let traffic = Traffic {
            wal: counter!(BYTES, "side" => side, "direction" => "wal"),
            status: counter!(BYTES, "side" => side, "direction" => "status"),
            streams: gauge!(STREAMS, "side" => side),
        };
        traffic.streams.increment(1.0);
        traffic
    }

    pub fn count(&self, wal: usize, status: usize) {
        if wal > 0 {
            self.wal.increment(wal as u64);
        }
        if status > 0 {
            self.status.increment(status as u64);
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.streams.decrement(1.0);
    }
}

pub fn cut(side: Side, streams: usize) {
    counter!(CUTS, "side" => side.label()).increment(streams as u64);
}

pub fn refused(reason: &'static str) {
    counter!(REFUSALS, "reason" => reason).increment(1);
}

pub fn held() -> Gauge {
    gauge!(HELD)
}
