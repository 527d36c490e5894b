//! The reader of the log against the log of a real server.

use super::fixture::*;
use crate::instance::position::segments;
use crate::instance::wal::{self, Tail};
use quorate_model::{Lsn, Timeline};
use std::path::Path;

/// Walks from the redo point record by record; the steps are the server's own positions.
#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_real_log_are_walked_to_its_end() {
    let world = World::new();
    let primary = world.primary(1).await;
    let app = connect(&primary, "app").await;
    app.batch_execute("CHECKPOINT").await.unwrap();
    app.batch_execute("CREATE TABLE t (n int, filler text)").await.unwrap();
    let redo: Lsn = value(&app, "SELECT redo_lsn FROM pg_control_checkpoint()").await.parse().unwrap();
    // Large records that go over pages, small ones, and enough for a second segment.
    for round in 0..4 {
        app.batch_execute(&format!(
            "INSERT INTO t SELECT n, repeat('x', n % 1900) FROM generate_series(1, 6000) n;
             DELETE FROM t WHERE n % 3 = {round}"
        ))
        .await
        .unwrap();
        app.batch_execute("VACUUM t").await.unwrap();
    }
    let marker: Lsn =
        value(&app, "SELECT pg_logical_emit_message(false, 'x', repeat('y', 30000))").await.parse().unwrap();
    app.batch_execute("INSERT INTO t VALUES (0, '')").await.unwrap();
    let pg_wal = primary.paths().data.join("pg_wal");

    let (mut at, mut records, mut last) = (redo, 0u32, redo);
    while at < marker {
        last = at;
        at = match whole(&pg_wal, at, marker) {
            Tail::Whole { end } => end,
            other => panic!("{other:?} at {at} after {records} records"),
        };
        records += 1;
    }
    assert_eq!(at, marker, "the walk steps on the server's position");
    let segments = segments(&pg_wal).unwrap();
    assert_eq!(Some(segments), wal::Segments::of(wal::SEGMENT_MIB << 20));
    assert!(records > 1000 && segments.name(Timeline(1), marker) > segments.name(Timeline(1), redo));

    // The last record goes over four pages: cut anywhere, it is partial.
    assert!(marker.since(last) > 3 * wal::PAGE_BYTES);
    let start = segments.skip_header(last);
    let length = u32::from_le_bytes(read(&pg_wal, start).unwrap());
    let end = segments.record_end(start, length);
    for cut in last.0..end.0 {
        assert_eq!(whole(&pg_wal, last, Lsn(cut)), Tail::Partial, "cut at {}", Lsn(cut));
    }
    assert_eq!(whole(&pg_wal, last, end), Tail::Whole { end: marker });
}

fn whole(pg_wal: &Path, at: Lsn, end: Lsn) -> Tail {
    segments(pg_wal).unwrap().tail(at, end, |lsn| read(pg_wal, lsn).map(u32::from_le_bytes))
}

fn read(pg_wal: &Path, at: Lsn) -> Option<[u8; 4]> {
    use std::os::unix::fs::FileExt;
    let segments = segments(pg_wal).unwrap();
    let file = std::fs::File::open(pg_wal.join(segments.name(Timeline(1), at))).ok()?;
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, segments.offset(at)).ok()?;
    Some(bytes)
}
