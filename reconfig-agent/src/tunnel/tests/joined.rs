//! The relay between two pipes: every byte arrives, in order, whatever the sizes of reads and writes.

use crate::tunnel::relay::{End, Observe, Relay};
use crate::tunnel::tap::Sighting;
use crate::tunnel::telemetry::{Side, Traffic};
use quorate_model::Lsn;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, timeout};

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<(Vec<Sighting>, u32)>>);

impl Observe for Seen {
    fn saw(&mut self, sighting: Sighting) {
        self.0.lock().unwrap().0.push(sighting);
    }
    fn delivered_to_primary(&mut self) {
        self.0.lock().unwrap().1 += 1;
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

fn wal(end: u64, length: usize, rng: &mut StdRng) -> Vec<u8> {
    let mut body = [b"w", &0u64.to_be_bytes()[..], &end.to_be_bytes(), &[0; 8]].concat();
    body.extend((0..length).map(|_| rng.random::<u8>()));
    message(b'd', &body)
}

fn status(flush: u64) -> Vec<u8> {
    message(b'd', &[b"r", &[0; 8][..], &flush.to_be_bytes(), &[0; 17]].concat())
}

type Writer = tokio::io::WriteHalf<DuplexStream>;

async fn write_in_pieces(mut pipe: Writer, bytes: Vec<u8>, seed: u64) -> Writer {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (piece, tail) = rest.split_at(rng.random_range(1..=rest.len().min(90_000)));
        pipe.write_all(piece).await.unwrap();
        rest = tail;
    }
    pipe
}

#[tokio::test]
async fn bytes_arrive_as_they_were_sent() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut down = message(b'W', &[0, 0, 0]);
        let mut up = Vec::new();
        let mut expected = vec![Sighting::CopyBothBegan];
        for i in 1..60 {
            let length = if i % 10 == 0 { rng.random_range(0..300_000) } else { rng.random_range(0..500) };
            down.extend(wal(i, length, &mut rng));
            expected.push(Sighting::Heard { end: Lsn(i), shipped: Some(Lsn(length as u64)) });
            up.extend(status(i));
        }
        let pipe = rng.random_range(1..100_000);
        let ((standby, standby_end), (primary, primary_end)) = (duplex(pipe), duplex(pipe));
        let seen = Seen::default();
        // The instance's first words were read before the relay began.
        let first = rng.random_range(1..20);
        let relay =
            Relay::new(standby_end, primary_end, seen.clone(), &down[..first], Traffic::new(Side::Upstream))
                .unwrap();
        let relay = tokio::spawn(relay);
        let (mut from_relay, to_relay) = tokio::io::split(standby);
        let (mut up_out, down_in) = tokio::io::split(primary);
        let writing = tokio::spawn(write_in_pieces(down_in, down[first..].to_vec(), seed));
        let mut received = vec![0; down.len()];
        from_relay.read_exact(&mut received).await.unwrap();
        assert!(received == down, "seed {seed}");
        let acknowledging = tokio::spawn(write_in_pieces(to_relay, up.clone(), seed));
        let mut received = vec![0; up.len()];
        up_out.read_exact(&mut received).await.unwrap();
        assert!(received == up, "seed {seed}");
        let _to_relay = acknowledging.await.unwrap();
        // What one side said last arrives although it has gone.
        let mut down_in = writing.await.unwrap();
        down_in.write_all(b"E\0\0\0\x04").await.unwrap();
        drop((down_in, up_out));
        let mut last = Vec::new();
        from_relay.read_to_end(&mut last).await.unwrap();
        assert_eq!(last, b"E\0\0\0\x04");
        assert!(matches!(relay.await.unwrap(), End::Primary));
        let (sightings, delivered) = std::mem::take(&mut *seen.0.lock().unwrap());
        let heard: Vec<_> =
            sightings.iter().filter(|s| !matches!(s, Sighting::Flushed { .. })).copied().collect();
        expected.push(Sighting::CopyBothEnded);
        assert_eq!(heard, expected);
        assert_eq!(sightings.iter().filter(|s| matches!(s, Sighting::Flushed { .. })).count(), 59);
        assert!(delivered > 0);
    }
}

/// Lets the primary wait until a moment.
struct Waits(Instant);

impl Observe for Waits {
    fn saw(&mut self, _sighting: Sighting) {}
    fn waits_until(&self) -> Option<Instant> {
        (self.0 > Instant::now()).then_some(self.0)
    }
}

#[tokio::test]
async fn what_may_wait_comes_in_one_piece_when_its_turn_has_come() {
    let ((mut standby, standby_end), (mut primary, primary_end)) = (duplex(100_000), duplex(100_000));
    let turn = Instant::now() + Duration::from_secs(1);
    let relay = Relay::new(standby_end, primary_end, Waits(turn), &[], Traffic::new(Side::Upstream)).unwrap();
    let relay = tokio::spawn(relay);
    let mut rng = StdRng::seed_from_u64(1);
    let pieces = [message(b'W', &[0, 0, 0]), wal(1, 100, &mut rng), wal(2, 100, &mut rng)];
    for piece in &pieces {
        primary.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    standby.write_all(&status(1)).await.unwrap();
    let mut told = vec![0; status(1).len()];
    primary.read_exact(&mut told).await.unwrap();
    assert!(Instant::now() < turn, "the other direction does not wait");
    let mut received = vec![0; 1000];
    let early = timeout(Duration::from_millis(50), standby.read(&mut received)).await;
    assert!(early.is_err() || Instant::now() >= turn, "before its turn: {early:?}");
    let length = standby.read(&mut received).await.unwrap();
    assert!(Instant::now() >= turn);
    assert!(received[..length] == pieces.concat(), "{length} bytes at once");
    drop((standby, primary));
    relay.await.unwrap();
}

/// Holds what the primary sent back until a position is reached.
struct Holds(Arc<AtomicU64>, Option<Lsn>);

impl Observe for Holds {
    fn saw(&mut self, sighting: Sighting) {
        if let Sighting::Heard { shipped: Some(shipped), .. } = sighting {
            self.1 = Some(shipped);
        }
    }
    fn holds_until(&mut self) -> Option<Instant> {
        let waits = self.1.is_some_and(|end| end.0 > self.0.load(Ordering::SeqCst));
        waits.then(|| Instant::now() + Duration::from_millis(2))
    }
}

#[tokio::test]
async fn what_is_held_back_passes_whole_when_it_may_and_the_other_direction_meanwhile() {
    let ((mut standby, standby_end), (mut primary, primary_end)) = (duplex(500_000), duplex(500_000));
    let reached = Arc::new(AtomicU64::new(0));
    let holds = Holds(reached.clone(), None);
    let relay = Relay::new(standby_end, primary_end, holds, &[], Traffic::new(Side::Upstream)).unwrap();
    let relay = tokio::spawn(relay);
    let mut rng = StdRng::seed_from_u64(2);
    // More than one buffer takes.
    let pieces = [message(b'W', &[0, 0, 0]), wal(1, 100, &mut rng), wal(2, 200_000, &mut rng)].concat();
    primary.write_all(&pieces).await.unwrap();
    standby.write_all(&status(1)).await.unwrap();
    let mut told = vec![0; status(1).len()];
    primary.read_exact(&mut told).await.unwrap();
    let mut received = vec![0; pieces.len()];
    let early = timeout(Duration::from_millis(100), standby.read(&mut received)).await;
    assert!(early.is_err(), "before it may: {early:?}");
    reached.store(200_000, Ordering::SeqCst);
    standby.read_exact(&mut received).await.unwrap();
    assert!(received == pieces);
    drop((standby, primary));
    relay.await.unwrap();
}

/// Reports pass as from a standby's node.
struct Thins;

impl Observe for Thins {
    fn saw(&mut self, _sighting: Sighting) {}
    fn thins_reports(&self) -> bool {
        true
    }
}

fn applied(flush: u64, apply: u64) -> Vec<u8> {
    let positions = [flush, flush, apply].map(u64::to_be_bytes).concat();
    message(b'd', &[b"r", &positions[..], &[0; 9]].concat())
}

#[tokio::test]
async fn a_report_of_what_was_applied_waits_for_the_next_one_a_moment() {
    let ((mut standby, standby_end), (mut primary, primary_end)) = (duplex(100_000), duplex(100_000));
    let relay = Relay::new(standby_end, primary_end, Thins, &[], Traffic::new(Side::Downstream)).unwrap();
    let relay = tokio::spawn(relay);
    primary.write_all(&message(b'W', &[0, 0, 0])).await.unwrap();
    standby.read_exact(&mut [0; 8]).await.unwrap();
    let mut told = vec![0; applied(0, 0).len()];
    standby.write_all(&applied(100, 50)).await.unwrap();
    primary.read_exact(&mut told).await.unwrap();
    assert!(told == applied(100, 50), "a flush goes at once");
    // By itself when nothing else comes.
    standby.write_all(&applied(100, 100)).await.unwrap();
    let limit = Duration::from_secs(10);
    timeout(limit, primary.read_exact(&mut told)).await.expect("it never comes").unwrap();
    assert!(told == applied(100, 100));
    let mut superseded = 0;
    for flush in 101..1000 {
        standby.write_all(&applied(flush, flush - 1)).await.unwrap();
        primary.read_exact(&mut told).await.unwrap();
        if told != applied(flush, flush - 1) {
            // That one was taken off the processor for longer than it may wait.
            assert!(told == applied(flush - 1, flush - 1));
            primary.read_exact(&mut told).await.unwrap();
            assert!(told == applied(flush, flush - 1));
        } else if flush > 101 {
            superseded += 1;
        }
        standby.write_all(&applied(flush, flush)).await.unwrap();
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }
    assert!(superseded > 0);
    timeout(limit, primary.read_exact(&mut told)).await.expect("it never comes").unwrap();
    assert!(told == applied(999, 999), "the last one comes");
    drop((standby, primary));
    relay.await.unwrap();
}
