//! Whether this node serves its clients: what `/healthz` says, so that a balancer in front of the nodes sends nobody to one
//! that could only hold them.
//!
//! Asked is the majority that keeps the partition map. Where that is lost to all, no failover can be decided, but every
//! primary goes on with its secondaries: a node that is not alone then keeps saying that it is well, or a balancer would
//! end with the map what works without it.

use crate::admin::AdminContext;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// How often the map is confirmed.
const EVERY: Duration = Duration::from_secs(1);
/// How long one confirmation may take.
const ONE: Duration = Duration::from_secs(2);
/// Without a confirmation for so long: longer than the map's leader takes to be replaced.
const TOO_LONG: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The map has not been read yet.
    Starting,
    Serving,
    /// Too few of the others answer: they do not hear this node, or it does not hear them. For so long.
    CutOff(Duration),
}

impl Standing {
    /// Why it does not serve.
    pub fn reason(self) -> Option<String> {
        match self {
            Standing::Serving => None,
            Standing::Starting => Some("starting: the partition map has not been read yet".to_owned()),
            Standing::CutOff(since) => Some(format!(
                "cut off: the majority of nodes has not confirmed the partition map for {} s; hint: look at SHOW RING here and on another node",
                since.as_secs()
            )),
        }
    }
}

/// Of a node whose map has not been confirmed for so long, and which so many of all `nodes` answer, itself among them.
fn judge(unconfirmed: Duration, answering: usize, nodes: usize) -> Standing {
    if unconfirmed >= TOO_LONG && 2 * answering <= nodes {
        return Standing::CutOff(unconfirmed);
    }
    Standing::Serving
}

/// Keeps `standing` true until `stop`, beginning with a node that has just read the map.
pub async fn follow(
    context: Arc<dyn AdminContext>,
    standing: watch::Sender<Standing>,
    stop: CancellationToken,
) {
    let mut confirmed = Instant::now();
    standing.send_replace(Standing::Serving);
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let asked = Instant::now();
        if matches!(timeout(ONE, context.read_barrier()).await, Ok(Ok(()))) {
            confirmed = asked;
        }
        let unconfirmed = confirmed.elapsed();
        let nodes = context.map().nodes.len();
        let answering = if unconfirmed < TOO_LONG { nodes } else { context.answering().await };
        let now = judge(unconfirmed, answering, nodes);
        let former = standing.send_replace(now);
        match (former, now) {
            (Standing::Serving, Standing::CutOff(_)) => {
                tracing::warn!("this node is cut off: it says that it does not serve");
            }
            (Standing::CutOff(_), Standing::Serving) => tracing::info!("this node is not cut off any more"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(unconfirmed: u64, answering: usize) -> Standing {
        judge(Duration::from_secs(unconfirmed), answering, 4)
    }

    #[test]
    fn a_node_that_the_map_confirms_serves_whoever_answers() {
        assert_eq!(of(4, 1), Standing::Serving);
    }

    #[test]
    fn one_that_no_majority_answers_is_cut_off() {
        assert_eq!(of(5, 2), Standing::CutOff(Duration::from_secs(5)));
    }

    #[test]
    fn a_map_that_is_lost_to_all_ends_nobodys_service() {
        assert_eq!(of(60, 3), Standing::Serving);
    }
}
