//! Promise: whatever single fault strikes, and pairs of them that leave a quorum, no acknowledged commit is lost, no
//! read is stale, and the database is whole again by itself. One pass over every kind of fault; `make faults` goes on
//! at random.

use quorate_integration::{Options, faults, with_cluster};

#[test]
fn every_kind_of_fault_heals_and_loses_nothing() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random);
    eprintln!("SEED={seed}");
    with_cluster(Options { links: true, ..Options::default() }, async |cluster| {
        let report = faults::run(cluster, &faults::each_once(seed)).await?;
        eprintln!("{report}");
        Ok(())
    });
}
