//! The link to one other node: made when it is first needed, made again after it broke, at a bounded rate.

use crate::CallError;
use crate::dial::dial;
use crate::identity::Identity;
use crate::link::{End, Link, locked};
use crate::message::Preface;
use quorate_model::NodeId;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, timeout};

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after the first failed attempt; doubled after each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(200);

type Attempt = watch::Receiver<Option<Result<Arc<Link>, CallError>>>;

enum State {
    /// No connection; none is attempted before `retry_at`, and calls fail with `error` until then.
    Down {
        retry_at: Instant,
        error: CallError,
    },
    Idle,
    Connecting(Attempt),
    Up(Arc<Link>),
}

/// What all slots of a node share.
pub(crate) struct Surroundings {
    pub(crate) identity: Arc<Identity>,
    pub(crate) runtime: Handle,
    pub(crate) lost: broadcast::Sender<NodeId>,
}

pub(crate) struct Slot {
    node: NodeId,
    inner: Mutex<Inner>,
}

struct Inner {
    address: String,
    /// Failed attempts since the last success.
    failures: u32,
    state: State,
}

impl Slot {
    pub(crate) fn new(node: NodeId, address: String) -> Arc<Slot> {
        Arc::new(Slot { node, inner: Mutex::new(Inner { address, failures: 0, state: State::Idle }) })
    }

    pub(crate) fn address(&self) -> String {
        locked(&self.inner).address.clone()
    }

    /// A new address takes effect at once: the link to the old one is given up.
    pub(crate) fn set_address(&self, address: String) {
        let mut inner = locked(&self.inner);
        if inner.address != address {
            *inner = Inner { address, failures: 0, state: State::Idle };
        }
    }

    /// The node has just connected to us, so it is worth trying at once.
    pub(crate) fn forget_failures(&self) {
        let mut inner = locked(&self.inner);
        inner.failures = 0;
        if matches!(inner.state, State::Down { .. }) {
            inner.state = State::Idle;
        }
    }

    /// The link, connecting first if there is none. Concurrent callers share one attempt.
    pub(crate) async fn link(self: &Arc<Self>, around: &Arc<Surroundings>) -> Result<Arc<Link>, CallError> {
        let mut attempt = match self.link_or_attempt(around)? {
            Found::Link(link) => return Ok(link),
            Found::Attempt(attempt) => attempt,
        };
        let outcome = attempt.wait_for(Option::is_some).await.ok().and_then(|r| r.clone());
        outcome.unwrap_or_else(|| Err(CallError::Unreachable("connecting was given up".to_owned())))
    }

    fn link_or_attempt(self: &Arc<Self>, around: &Arc<Surroundings>) -> Result<Found, CallError> {
        let mut inner = locked(&self.inner);
        match &inner.state {
            State::Up(link) if !link.is_broken() => return Ok(Found::Link(link.clone())),
            // An attempt whose task is gone (its runtime ended) is no attempt.
            State::Connecting(attempt) if attempt.has_changed().is_ok() => {
                return Ok(Found::Attempt(attempt.clone()));
            }
            State::Down { retry_at, error } if Instant::now() < *retry_at => return Err(error.clone()),
            _ => {}
        }
        let (done, attempt) = watch::channel(None);
        inner.state = State::Connecting(attempt.clone());
        let address = inner.address.clone();
        let (slot, around) = (self.clone(), around.clone());
        let runtime = around.runtime.clone();
        runtime.spawn(async move {
            let outcome = connect(slot.node, &address, &around).await;
            slot.settle(&address, &outcome);
            done.send_replace(Some(outcome));
        });
        Ok(Found::Attempt(attempt))
    }

    fn settle(&self, address: &str, outcome: &Result<Arc<Link>, CallError>) {
        let mut inner = locked(&self.inner);
        if inner.address != address {
            return;
        }
        match outcome {
            Ok(link) => {
                inner.failures = 0;
                inner.state = State::Up(link.clone());
            }
            Err(error) => {
                let pause = backoff(inner.failures);
                inner.failures = inner.failures.saturating_add(1);
                let retry_at = Instant::now() + pause;
                inner.state = State::Down { retry_at, error: error.clone() };
            }
        }
    }
}

enum Found {
    Link(Arc<Link>),
    Attempt(Attempt),
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX)
}

async fn connect(node: NodeId, address: &str, around: &Arc<Surroundings>) -> Result<Arc<Link>, CallError> {
    let dialing = dial(&around.identity, node, address, &Preface::Rpc);
    let stream = timeout(CONNECT_TIMEOUT, dialing).await.unwrap_or_else(|_| {
        Err(CallError::Unreachable(format!("no connection within {CONNECT_TIMEOUT:?}")))
    })?;
    let (link, driver) = Link::new(stream);
    let (me, lost) = (around.identity.node(), around.lost.clone());
    tokio::spawn(async move {
        if let End::Broken(error) = driver.await {
            tracing::info!(node = %me, peer = %node, %error, "lost the connection for calls");
            // Nobody listening is fine.
            let _ = lost.send(node);
        }
    });
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_grows_to_its_bound() {
        assert_eq!(backoff(0), BACKOFF_MIN);
        assert_eq!(backoff(1), BACKOFF_MIN * 2);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }
}
