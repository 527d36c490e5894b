//! Places at which a coordinator can be made to die, for the tests of its loss.
//!
//! Armed only when the environment variable `FAILPOINTS` is set when the node starts, even to nothing; otherwise a
//! point is one relaxed load. Its value arms points as the `fail` crate writes them (`name=return;name=1*off->return`);
//! the admin port arms more while the node runs. The action `return` kills the daemon as `kill -9` would: nothing is
//! flushed, no destructor runs.
//!
//! Names: `coordinator::<phase>::before_<order>`, `…::after_<order>` for orders, with `record_<change>` in place of the
//! order for proposals of a change, and `coordinator::<operation>::before_<step>`, `…::after_<step>` for the steps of
//! operations (`claim` and `end` among them). Which of them a coordinator comes by is not written down anywhere: an armed
//! daemon remembers those that it passed, so that a test can see that it forgot none.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

static ARMED: AtomicBool = AtomicBool::new(false);
static PASSED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Reads the environment. Called once, when a node starts.
pub fn arm_from_environment() -> Result<(), String> {
    let Ok(wanted) = std::env::var("FAILPOINTS") else { return Ok(()) };
    tracing::warn!(
        failpoints = wanted,
        "FAILPOINTS is set: this daemon may be told to die; never in production"
    );
    ARMED.store(true, Ordering::Release);
    for one in wanted.split(';').filter(|one| !one.is_empty()) {
        let (name, action) =
            one.split_once('=').ok_or_else(|| format!("FAILPOINTS: {one:?} has no action"))?;
        fail::cfg(name, action)?;
    }
    Ok(())
}

/// Arms one point in this process. Refused unless the node was started for it.
pub fn arm(name: &str, action: &str) -> Result<(), String> {
    if !is_armed() {
        return Err("this node was not started with FAILPOINTS in its environment".to_owned());
    }
    tracing::warn!(name, action, "a failpoint was armed");
    fail::cfg(name, action)
}

pub fn is_armed() -> bool {
    ARMED.load(Ordering::Relaxed)
}

/// The points that this process has passed. Empty unless the node was started for it.
pub fn passed() -> Vec<String> {
    PASSED.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// Dies here, if it was told to.
pub(super) fn hit(scope: &str, when: &str, step: &str) {
    if !is_armed() {
        return;
    }
    let name = format!("coordinator::{}::{when}_{}", scope.replace(' ', "_"), step.replace(' ', "_"));
    PASSED.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
    if fail::eval(&name, |_| ()).is_some() {
        tracing::warn!(name, "dying at a failpoint");
        // As kill -9: at once.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
