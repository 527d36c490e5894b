//! `make model`: checks the models, then that every mutant is caught; ends with 1 if anything is not as it must be.

use clap::Parser;
use quorate_checker::report;
use quorate_checker::suite::{self, Size};
use std::process::ExitCode;

/// Model checking of the daemon's decisions.
#[derive(Parser)]
struct Args {
    /// How far to go.
    #[arg(long, value_enum, default_value_t = Size::Small)]
    bound: Size,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Checks this model only, and no mutant.
    #[arg(long)]
    only: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let wanted = |name: &str| args.only.as_deref().is_none_or(|only| only == name);
    let checks = suite::checks(args.bound, args.threads, wanted, |check| println!("{}", report::line(check)));
    println!("{}\n{}", report::checks(&checks), report::properties(&checks));
    let trials = if args.only.is_none() { suite::trials() } else { Vec::new() };
    println!("{}", report::trials(&trials));
    let broken: Vec<_> = checks.iter().filter(|c| c.outcome.broken.is_some()).collect();
    for check in &broken {
        println!("{}: {}", check.name, report::way(&check.outcome));
    }
    let survived: Vec<_> = trials.iter().filter(|t| t.outcome.broken.is_none()).map(|t| t.mutant).collect();
    if !survived.is_empty() {
        println!("mutants that nothing caught: {}", survived.join(", "));
    }
    let cut_short = checks.iter().filter(|c| c.outcome.broken.is_none() && !c.outcome.complete).count();
    let failed = broken.len() + cut_short + survived.len();
    let passed = checks.len() + trials.len() - failed;
    let word = if failed == 0 { "ok" } else { "FAILED" };
    // The line that `scripts/test` counts by.
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
