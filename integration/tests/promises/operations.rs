//! Promise: an operation survives the loss of whoever carries it out, after every step: another resumes it, it ends,
//! takes effect once, and leaves nothing behind. Here: databases are created and dropped.

use anyhow::ensure;
use quorate_integration::cluster::HEAL_LIMIT;
use quorate_integration::executor::{self, OPERATION_LIMIT};
use quorate_integration::failpoints::Passed;
use quorate_integration::{DEMO_DATABASE, Options, leftovers, with_cluster};

const CREATE: &[&str] = &[
    "create::before_claim",
    "create::after_claim",
    "create::after_initialising",
    "create::after_copying",
    "creating::after_barrier",
    "creating::after_open",
    "create::after_opening",
    // The second time it records the database as stable.
    "create::after_opening*2",
    "create::before_end",
    "create::after_end",
];

const DROP: &[&str] = &[
    "drop::before_claim",
    "drop::after_claim",
    "drop::after_deleting",
    "drop::before_end",
    "drop::after_end",
];

#[test]
fn creating_and_dropping_survive_their_executor() {
    with_cluster(Options { failpoints: true, ..Options::default() }, async |cluster| {
        cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let mut passed = Passed::default();
        for (i, create) in CREATE.iter().enumerate() {
            let name = format!("demo.made{i}");
            executor::lose(cluster, &[], &format!("CREATE DATABASE {name}"), create).await?;
            let made = cluster.whole(&name, 3, HEAL_LIMIT).await?;
            ensure!(made.row.phase == "stable", "{made:?}");
            let order = format!("DROP DATABASE {name}");
            match DROP.get(i) {
                Some(drop) => {
                    executor::lose(cluster, &[], &order, drop).await?;
                }
                None => cluster.admin().await?.carry_out(&order, OPERATION_LIMIT).await?,
            }
            let left = cluster.admin().await?.databases().await?;
            ensure!(left.len() == 1, "{order}: {left:?}");
            passed.look(cluster.nodes()).await?;
        }
        leftovers::none(cluster).await?;
        passed.none_forgotten(&["create", "creating", "drop"], &[CREATE, DROP])
    });
}
