//! Which of the threads of this machine go first.
//!
//! Whoever passes a request on wakes a backend, and where processors are short the kernel lets that run at once, in the
//! relay's place. So a relay is stopped after nearly every message, and serves one by one what it could serve in one go:
//! with 16 clients on two processors that is a twelfth of the throughput (docs/PROXY.md). A relay works in moments and
//! waits again, so its going first costs the others little.
//!
//! That is not so of a relay that stays awake for a session that works alone (`relay/busy_poll.rs`). Whom it wakes is
//! mostly put on its own processor, because the kernel expects who wakes another to sleep next (`WF_SYNC`), and one that
//! goes first comes before it again when it yields: 20 to 120 us later than need be on Linux 6.18. So it goes first only
//! where it does not stay awake.

use std::cell::Cell;

/// How much smaller the nice value of who goes first is.
const AHEAD: i32 = 10;

thread_local! {
    /// Of a thread that may go first.
    static HERE: Cell<Option<Priority>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Priority {
    usual: i32,
    first: bool,
}

/// Lets this thread go before those that it serves, where that is allowed (root, CAP_SYS_NICE, or systemd's `LimitNICE`).
pub fn begin_worker() {
    match rustix::process::getpriority_process(None) {
        Ok(usual) => set(Priority { usual, first: true }),
        Err(error) => tracing::debug!(%error, "a worker of the proxy does not know its priority"),
    }
}

/// Whether this thread, if it may, goes first from now on.
#[inline]
pub fn go_first(first: bool) {
    if let Some(here) = HERE.get()
        && here.first != first
    {
        set(Priority { first, ..here });
    }
}

#[cold]
fn set(priority: Priority) {
    let nice = if priority.first { priority.usual - AHEAD } else { priority.usual };
    // Of the calling thread (setpriority(2), "C library/kernel differences").
    let outcome = rustix::process::setpriority_process(None, nice);
    if let Err(error) = &outcome {
        tracing::debug!(%error, "a worker of the proxy keeps its priority");
    }
    HERE.set(outcome.ok().map(|()| priority));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_worker_goes_first_and_back_where_it_may() {
        std::thread::spawn(|| {
            let nice = || rustix::process::getpriority_process(None).unwrap();
            let usual = nice();
            go_first(true);
            assert_eq!(nice(), usual, "it is no worker");
            begin_worker();
            // An ordinary user may not.
            let may = HERE.get().is_some();
            assert_eq!(nice(), if may { usual - AHEAD } else { usual });
            go_first(false);
            assert_eq!(nice(), usual);
            go_first(true);
            assert_eq!(nice() < usual, may);
        })
        .join()
        .unwrap();
    }
}
