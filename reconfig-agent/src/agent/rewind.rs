//! A keeper rewinds its divergent replica, once the record has its floor (see [`crate::decide::returning`]).
//!
//! Nothing is streamed to a divergent log: until pg_rewind has ended, only pg_rewind passes the tunnel. Whatever happens
//! after the first change of the data is final: the replica is reported as failed and is rebuilt under another id.

use super::Agent;
use super::host::{Failed, ReplicaInstance};
use super::keeper::Next;
use super::replica::Replica;
use super::standing::Duty;
use crate::decide::Failure;
use crate::instance::InstanceError;
use crate::tunnel::Route;
use quorate_model::{Database, RunState};
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether a rewound copy asks for log that is gone. The first look is so late that what its server
/// said before it was rewound is not taken for an answer.
const LOOK: Duration = Duration::from_secs(2);

/// Returns when the primary does not have the log any more that the copy needs to become consistent: it would ask for it
/// until its start is given up, minutes later.
async fn asks_in_vain(instance: &dyn ReplicaInstance) {
    loop {
        tokio::time::sleep(LOOK).await;
        if instance.is_log_gone().await {
            return;
        }
    }
}

impl Agent {
    pub(super) async fn rewind(
        &self,
        replica: &Arc<Replica>,
        database: &Database,
        route: Route,
    ) -> Result<Next, Failed> {
        let _changing = replica.changing.lock().await;
        {
            let mut state = replica.state();
            // Decided again under the lock: a fence may have come between.
            if state.duty(replica.id, database) != Duty::Rewind(route.clone()) {
                return Ok(Next::Look);
            }
            state.run = RunState::Rewinding;
        }
        self.0.changed.notify_one();
        let outcome = tokio::select! {
            outcome = self.rewind_to(replica, &route) => outcome,
            () = self.superseded(replica.id, &route) => {
                Err(InstanceError::SourceNotReady("another primary was elected meanwhile".to_owned()))
            }
        };
        let Err(error) = outcome else {
            let mut state = replica.state();
            state.started();
            drop(state);
            replica.wake.notify_one();
            return Ok(Next::Look);
        };
        replica.downstream.cut().await;
        let is_final = replica.instance.distrust().is_some() || matches!(error, InstanceError::NotRewound(_));
        if is_final {
            replica.set_run(RunState::Failed(format!("the rewind failed: {error}")));
        } else {
            // Nothing was touched: tried again, for as long as the coordinator leaves it so.
            replica.set_run(RunState::Divergent);
        }
        self.0.changed.notify_one();
        Err(error.into())
    }

    async fn rewind_to(&self, replica: &Arc<Replica>, route: &Route) -> Result<(), InstanceError> {
        let instance = &replica.instance;
        replica.downstream.cut().await;
        // Refused by whoever was fenced meanwhile: a rewind of an older reign is no use.
        let overtaken = |failure: Failure| InstanceError::SourceNotReady(failure.to_string());
        replica.attach_rewind(route.clone()).map_err(overtaken)?;
        instance.rewind().await?;
        replica.downstream.cut().await;
        replica.attach(route.clone()).map_err(overtaken)?;
        tokio::select! {
            finished = instance.finish_rewind() => finished?,
            () = asks_in_vain(instance.as_ref()) => {
                let gone = "the primary no longer has the log that it needs".to_owned();
                return Err(InstanceError::NotRewound(gone));
            }
        }
        // Whether its log is a prefix now is checked like that of any replica, before it follows.
        replica.downstream.cut().await;
        Ok(())
    }
}
