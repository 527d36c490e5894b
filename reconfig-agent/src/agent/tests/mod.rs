//! Decisions that come too late. A decision that waits (for the lock of changes, for an answer of its instance) is looked at
//! again when it may go on: meanwhile its replica may have been elected.
#![allow(clippy::unwrap_used)]

mod ground;

use super::host::StandbyTunnel;
use super::standing::route;
use crate::decide::{Failure, What};
use crate::instance::Process;
use ground::{OTHER, World, epoch};
use quorate_model::{InstanceRole, OperationState, Position, RunState, Timeline};
use std::time::{Duration, Instant};

/// The attachment to another primary, of reign 2.
fn attach() -> What {
    What::Attach { primary: OTHER, node: ground::node_of(OTHER), history: ground::history() }
}

/// In reign 1 this replica was primary. Its demotion, of reign 2, waits for another change of the instance; before it may
/// go on, this replica is elected in reign 3.
#[tokio::test]
async fn a_late_demotion_leaves_a_primary_that_was_elected_since_alone() {
    let world = World::new();
    world.is_primary();
    let busy = world.replica.changing.lock().await;
    let late = world.order(2, attach());
    world.promised(2).await;
    let elected = world.order(3, ground::promotion());
    world.promised(3).await;
    drop(busy);
    assert!(late.await.unwrap().is_err());
    elected.await.unwrap().unwrap();
    assert_eq!(world.instance.stops(), 0);
    assert_eq!(world.replica.state().leading, Some(epoch(3)));
}

/// The keeper's own demotion, by the map of reign 2.
#[tokio::test]
async fn a_keeper_that_waited_demotes_nobody_who_was_elected_since() {
    let world = World::new();
    world.is_primary();
    let busy = world.replica.changing.lock().await;
    let keeper = world.look(None);
    ground::pass_on().await;
    world.order_waits(3, ground::promotion()).await;
    drop(busy);
    let _ = keeper.await.unwrap();
    world.settled(3).await;
    assert_eq!(world.instance.stops(), 0);
}

/// It was demoted while a second demotion waited, and follows by now.
#[tokio::test]
async fn who_was_demoted_already_is_not_stopped_again() {
    let world = World::new();
    world.is_primary();
    let busy = world.replica.changing.lock().await;
    let late = world.order(2, attach());
    world.promised(2).await;
    {
        let mut state = world.replica.state();
        state.stopped("demoted");
        state.started();
    }
    drop(busy);
    assert!(late.await.unwrap().is_err());
    assert_eq!(world.instance.stops(), 0);
}

/// A secondary was hung for long. When its stop may go on, it answers again and is elected.
#[tokio::test]
async fn a_secondary_that_was_hung_is_not_stopped_as_a_primary() {
    let world = World::new();
    world.is_standby();
    world.instance.set(Process::Hung { pid: 1 });
    let busy = world.replica.changing.lock().await;
    let keeper = world.look(Instant::now().checked_sub(Duration::from_secs(60)));
    ground::pass_on().await;
    world.order_waits(3, ground::promotion()).await;
    world.instance.set(Process::Running { pid: 1 });
    drop(busy);
    keeper.await.unwrap().unwrap();
    world.settled(3).await;
    assert_eq!(world.instance.stops(), 0);
}

/// The check of a log against the history of reign 2 takes long, and finds the log that reign 3 goes on with.
#[tokio::test]
async fn a_late_check_of_the_log_makes_no_primary_divergent() {
    let world = World::new();
    world.is_standby();
    let end = Position { epoch: epoch(1), lsn: quorate_model::Lsn(900), timeline: Timeline(1) };
    let position = world.instance.hold_position(end);
    let late = world.order(2, attach());
    world.promised(2).await;
    position.reached().await;
    world.order(3, ground::promotion()).await.unwrap().unwrap();
    position.release();
    assert!(late.await.unwrap().is_err());
    assert_eq!(world.replica.state().run, RunState::Running);
    assert_eq!(world.replica.state().role, InstanceRole::Primary);
}

/// The history goes on before the record in which its log ends.
#[tokio::test]
async fn a_torn_log_follows_after_what_is_torn_was_taken_off() {
    let world = World::new();
    world.is_standby();
    world.instance.tear(true);
    assert!(world.order(2, attach()).await.unwrap().is_err());
    assert_eq!((world.instance.taken_off(), world.tunnel.attached()), (1, 0));
    world.order(2, attach()).await.unwrap().unwrap();
    assert_eq!((world.instance.taken_off(), world.tunnel.attached()), (1, 1));
}

/// The primary was elected again, and its log goes on with the rest of the record.
#[tokio::test]
async fn a_record_that_goes_on_is_not_taken_off() {
    let world = World::new();
    world.is_standby();
    world.instance.tear(true);
    let history = ground::history()[..1].to_vec();
    let again = What::Attach { primary: OTHER, node: ground::node_of(OTHER), history };
    world.order(2, again).await.unwrap().unwrap();
    assert_eq!((world.instance.taken_off(), world.tunnel.attached()), (0, 1));
}

/// Its log was found torn, and while that was to be mended it was mended and follows: there is more behind the end that was
/// found, and it may be acknowledged.
#[tokio::test]
async fn nothing_is_taken_off_who_follows_by_now() {
    let world = World::new();
    world.is_standby();
    world.instance.tear(true);
    let busy = world.replica.changing.lock().await;
    let late = world.order(2, attach());
    ground::pass_on().await;
    world.instance.tear(false);
    world.order(2, attach()).await.unwrap().unwrap();
    // As it looks while a long record is streamed.
    world.instance.tear(true);
    drop(busy);
    assert!(late.await.unwrap().is_err());
    assert_eq!((world.instance.taken_off(), world.tunnel.attached()), (0, 1));
}

/// A standby asked its primary in vain for log. While that was found out, it was elected.
#[tokio::test]
async fn a_late_look_at_a_standbys_complaints_fails_no_primary() {
    let world = World::new();
    world.is_standby();
    let complaints = world.instance.hold_complaints();
    let keeper = world.look(None);
    complaints.reached().await;
    world.order(3, ground::promotion()).await.unwrap().unwrap();
    complaints.release();
    keeper.await.unwrap().unwrap();
    assert_eq!(world.replica.state().run, RunState::Running);
}

/// A copy is to be made from the primary of reign 2 by a replica that reign 3 has fenced.
#[tokio::test]
async fn nobody_who_was_fenced_is_attached_to_an_older_primary() {
    let world = World::new();
    world.order(3, What::Fence).await.unwrap().unwrap();
    let route = route(&world.record()).unwrap();
    assert!(world.replica.attach(route.clone()).is_err());
    assert!(world.replica.attach_rewind(route).is_err());
    assert_eq!(world.tunnel.attached(), 0);
}

/// A copy is being made from the primary of reign 2 when that reign's orders come, late or again. Whoever cut its tunnel
/// would leave it without one: only the keeper opens it, and it waits for the copy.
#[tokio::test]
async fn orders_of_its_reign_leave_a_copy_its_tunnel() {
    let world = World::learner();
    let seed = world.instance.hold_seed();
    let keeper = world.look(None);
    seed.reached().await;
    let route = route(&world.record()).unwrap();
    world.order(2, What::Fence).await.unwrap().unwrap();
    assert!(world.order(2, attach()).await.unwrap().is_err(), "it has no log yet");
    assert_eq!(world.tunnel.status().route, Some(route));
    seed.release();
    keeper.await.unwrap().unwrap();
    assert_eq!(world.replica.state().run, RunState::Running);
}

/// The next reign's fence ends it.
#[tokio::test]
async fn a_fence_cuts_a_copy_from_an_older_primary() {
    let world = World::learner();
    let seed = world.instance.hold_seed();
    let keeper = world.look(None);
    seed.reached().await;
    world.order(3, What::Fence).await.unwrap().unwrap();
    assert_eq!(world.tunnel.status().route, None);
    keeper.abort();
}

/// A copy that was rewound needs log that its primary has removed meanwhile: it is not waited for until its start is given
/// up.
#[tokio::test]
async fn a_rewound_copy_whose_log_is_gone_has_failed() {
    let world = World::divergent();
    let complaints = world.instance.hold_complaints();
    let keeper = world.look(None);
    complaints.reached().await;
    assert_eq!(world.replica.state().run, RunState::Rewinding);
    complaints.release();
    assert!(keeper.await.unwrap().is_err());
    assert!(world.replica.state().is_failed());
    assert_eq!(world.tunnel.status().route, None);
}

/// I13: whoever was replaced as an operation's executor is refused and changes nothing, whether this node knows it from
/// another's order or from the map.
#[tokio::test]
async fn the_orders_of_a_replaced_executor_change_nothing() {
    let world = World::new();
    world.is_standby();
    world.fence_for(3, 8, 2).await.unwrap();
    for (operation, attempt) in [(8, 1), (7, 5)] {
        let late = world.fence_for(4, operation, attempt).await;
        assert!(matches!(late, Err(Failure::Superseded { attempt: 2, .. })), "{late:?}");
    }
    world.fence_for(3, 8, 2).await.unwrap();
    world.hears_of(8, 3, OperationState::Running);
    let late = world.fence_for(4, 8, 2).await;
    assert!(matches!(late, Err(Failure::Superseded { attempt: 3, .. })), "{late:?}");
    world.hears_of(9, 1, OperationState::Done);
    assert!(matches!(world.fence_for(4, 9, 1).await, Err(Failure::Superseded { .. })), "it has ended");
    assert_eq!(world.replica.state().promise(), epoch(3), "none of them was promised");
    world.fence_for(4, 8, 3).await.unwrap();
    assert_eq!(world.replica.state().promise(), epoch(4));
}
