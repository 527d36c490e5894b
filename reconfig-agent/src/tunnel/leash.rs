//! A stream that can be cut from outside, at once and for good.
//!
//! A fence must be able to say "no byte passes any more" and be right the moment it says so. Telling a task to stop
//! leaves a gap, until the task listens. So the relay lives behind a lock that is held during each of its polls, and
//! [`Leash::cut`] takes the lock and drops the relay: both sockets are closed before it returns, and whichever thread
//! polls next finds nothing to poll. A poll never blocks and does a bounded amount of work, so taking the lock takes
//! a fraction of a millisecond at worst; on the path of a commit the lock is never contended.
//!
//! **Invariant (I2).** After `cut` returned, nothing is read from or written to either side, and nothing is observed.
//! What had been handed to a socket of Postgres before stays readable there; an acknowledgement among it names a
//! position that the standby had flushed before the cut.

use super::relay::End;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long [`Leash::let_go`] waits for the owner of a stream that was cut to notice. Nothing passes meanwhile.
const LET_GO_LIMIT: Duration = Duration::from_millis(500);

/// Takes a lock. A panic of another holder does not make what it guards less valid here: every change under these
/// locks is a single assignment.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Stage<R> {
    /// The stream is being opened.
    Opening,
    Running(R, Option<Waker>),
    /// Cut or ended; never leaves this stage.
    Over,
}

/// Held by the task that runs a stream and by whoever may cut it.
pub struct Leash<R> {
    stage: Mutex<Stage<R>>,
    cut: CancellationToken,
    let_go: CancellationToken,
}

impl<R> Default for Leash<R> {
    fn default() -> Self {
        Leash {
            stage: Mutex::new(Stage::Opening),
            cut: CancellationToken::new(),
            let_go: CancellationToken::new(),
        }
    }
}

impl<R> Leash<R> {
    /// Closes the stream. Nothing passes after it returns, and nothing can be run on this leash any more.
    pub fn cut(&self) {
        let mut stage = locked(&self.stage);
        // The relay is dropped, and its sockets closed, before the lock is free.
        let waker = match std::mem::replace(&mut *stage, Stage::Over) {
            Stage::Running(relay, waker) => {
                drop(relay);
                waker
            }
            _ => None,
        };
        drop(stage);
        self.cut.cancel();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Resolves once it is cut: what opens the stream stops then.
    pub async fn was_cut(&self) {
        self.cut.cancelled().await;
    }

    /// Its task is done with it.
    pub fn mark_let_go(&self) {
        self.let_go.cancel();
    }

    /// After a cut: waits until the stream's task is done with it, a bounded time.
    pub async fn let_go(&self) {
        // A task that is late holds nothing that could pass a byte.
        let _ = tokio::time::timeout(LET_GO_LIMIT, self.let_go.cancelled()).await;
    }
}

impl<R: Future<Output = End> + Unpin> Leash<R> {
    /// Runs the relay until it ends or is cut. At most once.
    pub async fn run(&self, relay: R) -> End {
        {
            let mut stage = locked(&self.stage);
            match *stage {
                Stage::Opening => *stage = Stage::Running(relay, None),
                _ => return End::Cut,
            }
        }
        std::future::poll_fn(|cx| {
            let mut stage = locked(&self.stage);
            let Stage::Running(relay, waker) = &mut *stage else { return Poll::Ready(End::Cut) };
            match Pin::new(relay).poll(cx) {
                Poll::Ready(end) => {
                    *stage = Stage::Over;
                    Poll::Ready(end)
                }
                Poll::Pending => {
                    if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                        *waker = Some(cx.waker().clone());
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// Counts its polls and always wants another.
    struct Busy(Arc<AtomicU64>, Arc<AtomicBool>);

    impl Future for Busy {
        type Output = End;
        fn poll(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<End> {
            self.0.fetch_add(1, Ordering::SeqCst);
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }

    impl Drop for Busy {
        fn drop(&mut self) {
            self.1.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_moves_after_a_cut() {
        for _ in 0..200 {
            let leash = Arc::new(Leash::default());
            let (polls, dropped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
            let busy = Busy(polls.clone(), dropped.clone());
            let task = tokio::spawn({
                let leash = leash.clone();
                async move { leash.run(busy).await }
            });
            while polls.load(Ordering::SeqCst) < 10 {
                tokio::task::yield_now().await;
            }
            leash.cut();
            let after = polls.load(Ordering::SeqCst);
            assert!(dropped.load(Ordering::SeqCst), "its sockets are closed when cut returns");
            assert!(matches!(task.await.unwrap(), End::Cut));
            assert_eq!(polls.load(Ordering::SeqCst), after);
        }
    }

    #[tokio::test]
    async fn a_stream_cut_while_it_opens_never_runs() {
        let leash = Leash::default();
        leash.cut();
        leash.was_cut().await;
        let polls = Arc::new(AtomicU64::new(0));
        let end = leash.run(Busy(polls.clone(), Arc::default())).await;
        assert!(matches!(end, End::Cut));
        assert_eq!(polls.load(Ordering::SeqCst), 0);
    }
}
