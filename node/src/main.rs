//! `quorate`: one program, two commands. What they do stands in `app` and `demo`.

use clap::{Parser, Subcommand};
use quorate_node::{app, config, demo, telemetry};
use rustix::process::{Resource, Rlimit};
use std::path::PathBuf;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Replicated PostgreSQL databases on a handful of machines.
#[derive(Parser)]
#[command(name = "quorate", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run this machine's node until SIGTERM.
    Node {
        /// The node's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// A whole cluster on this machine, with a database to try.
    Demo(demo::Options),
}

/// sysexits' EX_CONFIG: starting it again will not help.
const BAD_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::init();
    allow_descriptors();
    let outcome = match cli.command {
        Command::Node { config } => match config::Config::load(&config) {
            Ok(config) => on(tokio::runtime::Builder::new_multi_thread(), app::run(config)),
            Err(error) => return fail(&error.into(), BAD_CONFIG),
        },
        // One thread: the nodes' death signal belongs to the thread that started them, and this one lives longest.
        Command::Demo(options) => on(tokio::runtime::Builder::new_current_thread(), demo::run(options)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// As many descriptors as this process may have: each client is one.
fn allow_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, wanted) {
        tracing::warn!(%error, "the limit of open descriptors could not be raised");
    }
}

fn on(
    mut runtime: tokio::runtime::Builder,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    runtime.enable_all().build()?.block_on(work)
}

/// `error: …`, and on a line of its own the hint that a message may end with.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    let told = format!("{error:#}");
    match told.split_once("; hint: ") {
        Some((message, hint)) => eprintln!("error: {message}\nhint: {hint}"),
        None => eprintln!("error: {told}"),
    }
    ExitCode::from(code)
}
