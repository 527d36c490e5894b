//! What Quorate promises, a module a promise, each against clusters of its own.
//!
//! One binary, because each would link the whole harness again; one test after another (`--test-threads=1`), because
//! two clusters at once would make every deadline a matter of luck. `make test-integration TEST=lose_node` runs one.

#![allow(clippy::unwrap_used)]

mod admin;
mod commit;
mod confirm;
mod coordinator_loss;
mod cut_node;
mod drivers;
mod false_alarm;
mod faults;
mod force_recover;
mod idle_sessions;
mod ledger;
mod lose_disk;
mod lose_node;
mod lose_postmaster;
mod moves;
mod operations;
mod ordinary_user;
mod outcomes;
mod pause_node;
mod reach;
mod recover_resumed;
mod refusals;
mod resume;
mod rewind;
mod strict;
mod switchover;
mod switchover_loss;
mod torn_log;

/// A file that nobody declares would be a promise that nobody tests.
#[test]
fn every_file_here_is_a_module() {
    let here = quorate_integration::binaries::sources().join("tests/promises");
    let declared = include_str!("main.rs");
    for entry in std::fs::read_dir(here).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs");
        assert!(
            module == "main" || declared.contains(&format!("\nmod {module};\n")),
            "{name} is not declared"
        );
    }
}
