#![allow(clippy::unwrap_used)]

use super::super::evidence::Reads;
use super::*;

const FIRST: Epoch = Epoch::new(0, 1, 0);
const SECOND: Epoch = Epoch::new(0, 2, 0);

fn open_gate() -> Arc<Gate> {
    let gate = Gate::new(DatabaseId(1), Arc::default());
    gate.open(FIRST, "/a".into());
    gate
}

async fn entered(gate: &Arc<Gate>) -> (Pass, Arc<Slot>) {
    let slot = Arc::new(Slot::default());
    (gate.enter(&slot, FIRST, Instant::now()).await.unwrap().0, slot)
}

fn may_leave(pass: &mut Pass) -> bool {
    let until = pass.leaves_until(1);
    assert!(until == 0 || pass.may_begin(), "what may leave may begin");
    until > 0
}

#[tokio::test]
async fn nothing_leaves_without_a_lease() {
    let gate = open_gate();
    let (mut pass, _) = entered(&gate).await;
    assert!(pass.may_enter() && !may_leave(&mut pass));
    gate.set_lease(boot_time() + 60_000_000_000);
    assert!(may_leave(&mut pass));
    gate.drop_lease();
    assert!(!may_leave(&mut pass));
    gate.set_lease(1);
    assert!(!may_leave(&mut pass), "a lease that ended is none");
}

#[tokio::test]
async fn a_held_gate_keeps_its_sessions_and_a_closed_one_ends_them() {
    let gate = open_gate();
    gate.set_lease(u64::MAX);
    let (mut pass, slot) = entered(&gate).await;
    let before = slot.signals();
    gate.hold();
    assert_eq!((pass.door(), pass.may_enter(), may_leave(&mut pass)), (Door::Held, false, false));
    assert_ne!(slot.signals(), before);
    gate.open(SECOND, "/a".into());
    assert_eq!((pass.door(), may_leave(&mut pass)), (Door::Open, true), "re-elected without a restart");
    gate.close("why");
    assert_eq!(pass.door(), Door::Ended { end: End::Lost, why: "why".into() });
    gate.open(SECOND, "/a".into());
    gate.set_lease(u64::MAX);
    assert!(!may_leave(&mut pass), "a session never passes in a later generation");
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

/// Voters that confirm when they are told to.
#[derive(Default)]
struct Voters {
    obey: AtomicBool,
    asked: AtomicU64,
}

#[async_trait::async_trait]
impl Evidence for Voters {
    async fn confirm(&self, _: DatabaseId, epoch: Epoch) -> bool {
        assert_eq!(epoch, FIRST);
        self.asked.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        self.obey.load(Ordering::SeqCst)
    }

    async fn on_quorum(&self, _: DatabaseId, _: Epoch, _: quorate_model::Lsn, _: Duration) -> bool {
        false
    }
}

#[tokio::test]
async fn a_confirmation_vouches_for_what_was_there_when_it_began_and_needs_no_lease() {
    let (source, voters) = (Arc::<OnceLock<Arc<dyn Evidence>>>::default(), Arc::new(Voters::default()));
    let gate = Gate::new(DatabaseId(1), Arc::clone(&source));
    gate.open(FIRST, "/a".into());
    gate.set_reads(Reads::Confirm);
    let (mut pass, _) = entered(&gate).await;
    gate.set_lease(u64::MAX);
    assert_eq!(pass.leaves_until(10), 0, "a lease is not what counts");
    gate.drop_lease();
    assert!(source.set(voters.clone()).is_ok());
    let pause = || tokio::time::sleep(Duration::from_millis(5));
    // However long a busy machine takes for a round.
    while voters.asked.load(Ordering::SeqCst) < 2 {
        pause().await;
    }
    assert_eq!(pass.leaves_until(10), 0);
    assert!(!pass.may_begin(), "no result could leave");
    voters.obey.store(true, Ordering::SeqCst);
    let mut vouched = 0;
    while vouched == 0 {
        pause().await;
        vouched = pass.leaves_until(25);
    }
    assert_eq!(vouched, 10, "what came later waits for the next round");
    while pass.leaves_until(25) == 10 {
        pause().await;
    }
    assert_eq!(pass.leaves_until(25), 25);
    assert!(pass.may_begin());
    let asked = voters.asked.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(voters.asked.load(Ordering::SeqCst), asked, "nobody waits, so nobody is asked");
    gate.hold();
    assert_eq!(pass.leaves_until(25), 0, "confirmed or not, a held gate lets nothing out");
}
