#![allow(clippy::unwrap_used)]

use super::*;

const FIRST: Epoch = Epoch::new(0, 1, 0);
const SECOND: Epoch = Epoch::new(0, 2, 0);

fn open_gate() -> Arc<Gate> {
    let gate = Gate::new(DatabaseId(1));
    gate.open(FIRST, "/a".into());
    gate
}

async fn entered(gate: &Arc<Gate>) -> (Pass, Arc<Slot>) {
    let slot = Arc::new(Slot::default());
    (gate.enter(&slot, FIRST, Instant::now()).await.unwrap().0, slot)
}

#[tokio::test]
async fn nothing_leaves_without_a_lease() {
    let gate = open_gate();
    let (mut pass, _) = entered(&gate).await;
    assert!(pass.may_enter() && !pass.may_leave());
    gate.set_lease(boot_time() + 60_000_000_000);
    assert!(pass.may_leave());
    gate.drop_lease();
    assert!(!pass.may_leave());
    gate.set_lease(1);
    assert!(!pass.may_leave(), "a lease that ended is none");
}

#[tokio::test]
async fn a_held_gate_keeps_its_sessions_and_a_closed_one_ends_them() {
    let gate = open_gate();
    gate.set_lease(u64::MAX);
    let (mut pass, slot) = entered(&gate).await;
    let before = slot.signals();
    gate.hold();
    assert_eq!((pass.door(), pass.may_enter(), pass.may_leave()), (Door::Held, false, false));
    assert_ne!(slot.signals(), before);
    gate.open(SECOND, "/a".into());
    assert_eq!((pass.door(), pass.may_leave()), (Door::Open, true), "re-elected without a restart");
    gate.close("why");
    assert_eq!(pass.door(), Door::Ended { end: End::Lost, why: "why".into() });
    gate.open(SECOND, "/a".into());
    gate.set_lease(u64::MAX);
    assert!(!pass.may_leave(), "a session never passes in a later generation");
    assert_eq!(gate.sessions(), 1);
    drop(pass);
    assert_eq!(gate.sessions(), 0);
}

#[tokio::test]
async fn reigns_do_not_go_back() {
    let gate = open_gate();
    gate.open(SECOND, "/a".into());
    gate.close("x");
    gate.open(FIRST, "/a".into());
    assert_eq!(gate.report(), GateReport::Closed);
    let slot = Arc::new(Slot::default());
    gate.open(SECOND, "/a".into());
    let third = Epoch::new(0, 3, 0);
    assert!(gate.enter(&slot, third, Instant::now()).await.is_err(), "the one looked for is newer");
}

#[tokio::test]
async fn parking_counts_who_left_and_who_was_cut() {
    let gate = open_gate();
    let (idle, _) = entered(&gate).await;
    let (busy, _) = entered(&gate).await;
    let parking = tokio::spawn({
        let gate = Arc::clone(&gate);
        async move { gate.park(Duration::from_millis(50)).await }
    });
    while idle.door() != Door::Parking {
        tokio::task::yield_now().await;
    }
    idle.release();
    while busy.door() == Door::Parking {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(busy.door(), Door::Ended { end: End::Cut, .. }));
    drop(busy);
    assert_eq!(parking.await.unwrap(), Parked { kept: 1, cut: 1 });
    assert_eq!(gate.report(), GateReport::Held);
}
