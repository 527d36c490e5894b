//! Finds settings that could weaken commits and that no text shows: of roles, of databases, of functions.
//!
//! A role's or a database's `synchronous_commit` has no effect on sessions behind a gate, which bring their own value
//! (see [`super::serve::connect`]); it is found all the same, because somebody made it. A role's
//! `client_min_messages` above `warning` would hide the warning by which a cancelled wait for the quorum is known.
//! Whatever is found makes the gate strict until it is gone, and is told in the log.

use super::Gates;
use super::door::Gate;
use quorate_model::PartitionMap;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often an open gate's database is looked through.
const AUDIT_EVERY: u32 = 30;
/// How often it is looked for gates that have opened since.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Something in a database that could weaken commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Whose setting it is, in words.
    pub of: String,
    /// `name=value`, as PostgreSQL keeps it.
    pub setting: String,
}

/// Whether a setting, as `pg_db_role_setting` and `proconfig` hold it, could weaken commits or hide that one was.
pub fn weakens(setting: &str) -> bool {
    let Some((name, value)) = setting.split_once('=') else { return false };
    let is_one_of = |values: &[&str]| values.iter().any(|v| value.eq_ignore_ascii_case(v));
    if name.eq_ignore_ascii_case("synchronous_commit") {
        return !is_one_of(&["on", "true", "yes", "1", "remote_apply"]);
    }
    name.eq_ignore_ascii_case("client_min_messages") && is_one_of(&["error", "fatal", "panic"])
}

/// Looks through every open gate's database until `stop`, and through one that has just opened at once.
pub async fn run(gates: Arc<Gates>, map: watch::Receiver<Arc<PartitionMap>>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // By database: the generation that was audited last, and the ticks until the next time.
    let mut audited: BTreeMap<_, (u64, u32)> = BTreeMap::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        let all = gates.all();
        audited.retain(|database, _| all.iter().any(|g| g.database() == *database));
        for gate in all {
            let Ok(passing) = gate.passing() else { continue };
            let (generation, left) = audited.entry(gate.database()).or_default();
            if *generation == passing.generation && *left > 0 {
                *left -= 1;
                continue;
            }
            (*generation, *left) = (passing.generation, AUDIT_EVERY);
            let name = map.borrow().databases.get(&gate.database()).map(|d| d.name.clone());
            if let Some(name) = name {
                gate.audit(&name).await;
            }
        }
    }
}

impl Gate {
    /// Looks through the database of that name inside the instance. Where it cannot be, what was known stays.
    pub async fn audit(&self, name: &str) {
        let Ok(passing) = self.passing() else { return };
        let findings = match self.control.weakening_settings(&passing.socket, name).await {
            Ok(findings) => findings,
            Err(error) => {
                return tracing::info!(database = %self.database(), %error, "the settings could not be audited");
            }
        };
        if !self.set_weakened(!findings.is_empty()) {
            return;
        }
        match findings.first() {
            Some(Finding { of, setting }) => tracing::warn!(
                database = %self.database(), of, setting, found = findings.len(),
                "a setting could weaken commits; until it is gone, commits are acknowledged by what a quorum has"
            ),
            None => tracing::info!(database = %self.database(), "no setting weakens commits any more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::weakens;

    #[test]
    fn what_weakens_and_what_does_not() {
        for setting in [
            "synchronous_commit=off",
            "synchronous_commit=local",
            "Synchronous_Commit=remote_write",
            "client_min_messages=error",
            "client_min_messages=PANIC",
        ] {
            assert!(weakens(setting), "{setting}");
        }
        for setting in [
            "synchronous_commit=on",
            "synchronous_commit=remote_apply",
            "client_min_messages=warning",
            "search_path=synchronous_commit",
            "nonsense",
        ] {
            assert!(!weakens(setting), "{setting}");
        }
    }
}
