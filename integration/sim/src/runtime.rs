//! A node's runtime, moved by the world one step at a time.
//!
//! It is tokio's current-thread runtime on the node's own clock. A step runs every task that can run, and the timers
//! that are due, and returns when nothing is left to do: it never waits. Dropping it is a crash: every task is gone.

use futures::task::AtomicWaker;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use tokio::runtime::{Builder, Handle, Runtime};

/// Timers are looked at each time the runtime has nothing else to do: once for those that are due at the beginning
/// of the step, and once for what those set off.
const LOOKS: u32 = 2;

pub struct NodeRuntime {
    runtime: Runtime,
    idle: Arc<Idle>,
}

#[derive(Default)]
struct Idle {
    looks: AtomicU32,
    stepper: AtomicWaker,
}

impl NodeRuntime {
    /// The clock already shows the node's time.
    pub fn new() -> std::io::Result<NodeRuntime> {
        let idle = Arc::new(Idle::default());
        let hook = idle.clone();
        let runtime = Builder::new_current_thread()
            .enable_time()
            // Called when no task can run, before the timers are looked at. Woken there, the runtime does not wait.
            .on_thread_park(move || {
                hook.looks.fetch_add(1, Ordering::Relaxed);
                hook.stepper.wake();
            })
            .build()?;
        Ok(NodeRuntime { runtime, idle })
    }

    pub fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// Runs what can run now.
    pub fn step(&self) {
        self.idle.looks.store(0, Ordering::Relaxed);
        self.runtime.block_on(poll_fn(|cx| {
            self.idle.stepper.register(cx.waker());
            if self.idle.looks.load(Ordering::Relaxed) >= LOOKS { Poll::Ready(()) } else { Poll::Pending }
        }));
    }
}
