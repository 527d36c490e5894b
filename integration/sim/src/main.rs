//! `sim`: a whole cluster in one process, from one seed.
//!
//! The control plane of every node is the daemon's own code (`quorate_node::app::control`): the map on Raft, the ring,
//! the coordinator with its decisions, the replica agents, the gates' state machines. Simulated are what stands below
//! it: the network, the disks, the clocks, PostgreSQL and the tunnels' bytes. All of them take their chance from the
//! seed, so a seed that fails fails again.
//!
//! A world is a process of its own: nothing that happened before it (a static counter, a hasher's keys) is in it, and one
//! that hangs or panics takes no other with it. `sim --seeds N` starts them, a few at a time, and adds up.
//!
//! ```text
//! world ── step of 1 ms ──▶ net: deliver ──▶ node 1 … node n: run what can run ──▶ clients ──▶ oracle
//! ```

mod client;
mod clock;
mod dice;
mod faults;
mod many;
mod net;
mod node;
mod operator;
mod oracle;
mod pg;
mod run;
mod runtime;
mod scene;
mod trace;
mod world;

use clap::Parser;
use scene::Plant;
use std::process::ExitCode;

/// Simulates a cluster under faults and checks that nothing acknowledged is lost.
#[derive(Parser, Clone, Debug)]
#[command(name = "sim")]
pub struct Options {
    /// Plays this one seed, and shows its trace when it fails.
    #[arg(long, conflicts_with_all = ["seeds", "from", "fresh_for"])]
    seed: Option<u64>,
    /// Plays so many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Plays seeds that nobody has seen, for so many seconds.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    fresh_for: Option<u64>,
    /// Worlds at a time.
    #[arg(long)]
    jobs: Option<usize>,
    /// Simulated seconds of faults a seed.
    #[arg(long, default_value_t = 30)]
    fault_seconds: u64,
    /// Puts an error into the world, which the oracle has to find.
    #[arg(long)]
    plant: Option<Plant>,
    /// Prints every line of the trace as it happens.
    #[arg(long)]
    trace: bool,
    /// Lines of the trace that are shown when a seed fails.
    #[arg(long, default_value_t = 120)]
    lines: usize,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match options.seed {
        Some(seed) => one(seed, &options),
        None => many::run(&options),
    }
}

/// Plays one seed in this process. The line that begins with `RESULT` is for whoever started it.
fn one(seed: u64, options: &Options) -> ExitCode {
    trace::begin(options.trace);
    let began = clock::real_ms();
    clock::take_over(seed);
    let (fault_ms, plant) = (options.fault_seconds * 1_000, options.plant);
    // On a thread of its own: hashers keep the keys that a thread drew first, and this one's drew before.
    let world = std::thread::spawn(move || run::play(seed, fault_ms, plant));
    let verdict = match world.join() {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(error)) => {
            eprintln!("sim: {error}");
            return ExitCode::from(2);
        }
        Err(_) => {
            eprintln!("sim: the world itself panicked: {:?}", trace::panics());
            return ExitCode::from(2);
        }
    };
    println!("{}", many::line(seed, &verdict, clock::real_ms() - began));
    if verdict.violations.is_empty() {
        return ExitCode::SUCCESS;
    }
    for line in trace::last_lines(options.lines) {
        println!("  {line}");
    }
    for violation in &verdict.violations {
        println!("seed {seed}: {violation}");
    }
    ExitCode::FAILURE
}
