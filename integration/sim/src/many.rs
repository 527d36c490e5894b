//! Many seeds: a process each, a few at a time, one table at the end and one line for each that failed.

use crate::Options;
use crate::run::Verdict;
use comfy_table::Table;
use std::collections::BTreeMap;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A world that takes longer than this hangs.
const WORLD_LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(10);
/// Failing seeds after which no further is started.
const ENOUGH_FAILURES: usize = 10;

/// `RESULT key=value …`; the faults by kind are `fault:KIND=count`, with underscores for blanks.
pub fn line(seed: u64, verdict: &Verdict, real_ms: u64) -> String {
    let v = verdict;
    let mut text = format!(
        "RESULT seed={seed} faults={} acknowledged={} reads={} confirmed={} unknown={} lost={} recoveries={} accepted={} heal_ms={} elections={} simulated_ms={} messages={} lost_messages={} doubled_messages={} real_ms={real_ms} hash={:016x}",
        v.faults,
        v.acknowledged,
        v.reads,
        v.confirmed,
        v.unknown,
        v.lost,
        v.recoveries,
        v.accepted,
        v.heal_ms,
        v.elections,
        v.simulated_ms,
        v.messages,
        v.lost_messages,
        v.doubled_messages,
        v.hash
    );
    for (kind, count) in &v.tally {
        text.push_str(&format!(" fault:{}={count}", kind.replace(' ', "_")));
    }
    text
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    failed: Vec<(u64, String)>,
    values: BTreeMap<String, u64>,
    heals: Vec<u64>,
}

impl Sum {
    fn take(&mut self, seed: u64, output: &Output, options: &Options) {
        self.seeds += 1;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(result) = text.lines().find_map(|l| l.strip_prefix("RESULT ")) else {
            let errors = String::from_utf8_lossy(&output.stderr);
            let last = errors.lines().last().unwrap_or("it hung, or was killed").to_owned();
            return self.fail(seed, last, options);
        };
        for (key, value) in result.split(' ').filter_map(|pair| pair.split_once('=')) {
            let Ok(number) = value.parse::<u64>() else { continue };
            if key == "heal_ms" {
                self.heals.push(number);
            }
            *self.values.entry(key.to_owned()).or_default() += number;
        }
        if !output.status.success() {
            let told = text.lines().rfind(|l| l.starts_with("seed ")).unwrap_or("seed ?: no reason told");
            self.fail(seed, told.to_owned(), options);
        }
    }

    fn fail(&mut self, seed: u64, why: String, options: &Options) {
        println!("FAILED {why}\n       replay: {}", replay(seed, options));
        self.failed.push((seed, why));
    }

    fn value(&self, key: &str) -> u64 {
        self.values.get(key).copied().unwrap_or(0)
    }
}

fn replay(seed: u64, options: &Options) -> String {
    let program = std::env::args().next().unwrap_or_else(|| "sim".to_owned());
    let plant = options.plant.and_then(|p| clap::ValueEnum::to_possible_value(&p));
    let plant = plant.map(|p| format!(" --plant {}", p.get_name())).unwrap_or_default();
    format!("{program} --seed {seed} --fault-seconds {}{plant}", options.fault_seconds)
}

fn start(seed: u64, options: &Options) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--seed", &seed.to_string(), "--fault-seconds", &options.fault_seconds.to_string()]);
    if let Some(plant) = options.plant.and_then(|p| clap::ValueEnum::to_possible_value(&p)) {
        command.args(["--plant", plant.get_name()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

pub fn run(options: &Options) -> ExitCode {
    let jobs = options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let began = Instant::now();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_millis() as u64);
    let first = if options.fresh_for.is_some() { now } else { options.from };
    let more = |seed: u64| match options.fresh_for {
        Some(seconds) => began.elapsed() < Duration::from_secs(seconds),
        None => seed < first + options.seeds,
    };
    println!("seeds from {first}, {jobs} at a time");
    let (next, sum) = (std::sync::atomic::AtomicU64::new(first), std::sync::Mutex::new(Sum::default()));
    let locked = || sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while locked().failed.len() < ENOUGH_FAILURES {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    if !more(seed) {
                        return;
                    }
                    match play(seed, options) {
                        Ok(output) => locked().take(seed, &output, options),
                        Err(error) => locked().fail(seed, error.to_string(), options),
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    report(&sum, first, began.elapsed());
    if sum.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A world in a process of its own, ended when it takes too long.
fn play(seed: u64, options: &Options) -> std::io::Result<Output> {
    let mut child = start(seed, options)?;
    // Read beside the wait: a long trace would fill the pipe and stop the world.
    let pipes = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let stdout = scope.spawn(|| read(pipes.0));
        let stderr = scope.spawn(|| read(pipes.1));
        let until = Instant::now() + WORLD_LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > until {
                child.kill()?;
            }
            std::thread::sleep(POLL);
        };
        let text = |handle: std::thread::ScopedJoinHandle<'_, Vec<u8>>| handle.join().unwrap_or_default();
        Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
    })
}

fn read(pipe: Option<impl std::io::Read>) -> Vec<u8> {
    let mut text = Vec::new();
    // What cannot be read is missing in the report of a failure, which says so.
    let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut text));
    text
}

fn report(sum: &Sum, first: u64, took: Duration) {
    let hours = took.as_secs_f64() / 3600.0;
    let mut heals = sum.heals.clone();
    heals.sort_unstable();
    let at = |share: usize| {
        heals.get((heals.len() * share / 100).min(heals.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::UTF8_BORDERS_ONLY);
    let mut row = |name: &str, value: String| {
        table.add_row(vec![name.to_owned(), value]);
    };
    row("seeds", format!("{} ({first}..{})", sum.seeds, first + sum.seeds));
    row("failed", sum.failed.len().to_string());
    row("faults", format!("{} ({:.0} an hour)", sum.value("faults"), sum.value("faults") as f64 / hours));
    for (key, count) in &sum.values {
        if let Some(kind) = key.strip_prefix("fault:") {
            row(&format!("  {}", kind.replace('_', " ")), count.to_string());
        }
    }
    row(
        "messages",
        format!(
            "{} ({} lost, {} doubled)",
            sum.value("messages"),
            sum.value("lost_messages"),
            sum.value("doubled_messages")
        ),
    );
    row("elections", sum.value("elections").to_string());
    row("commits acknowledged", sum.value("acknowledged").to_string());
    row("  lost", sum.value("lost").to_string());
    row("  outcome unknown", sum.value("unknown").to_string());
    row("reads", sum.value("reads").to_string());
    row("results by confirmation", sum.value("confirmed").to_string());
    row("forced recoveries", sum.value("recoveries").to_string());
    row("  results given up by them", sum.value("accepted").to_string());
    row("time to heal", format!("p50 {} ms, p99 {} ms, longest {} ms", at(50), at(99), at(100)));
    let simulated = sum.value("simulated_ms") / 1000;
    row("time", format!("{simulated} s simulated in {:.0} s", took.as_secs_f64()));
    println!("{table}");
    for (seed, why) in &sum.failed {
        println!("failed seed {seed}: {why}");
    }
    // As cargo's tests tell theirs: scripts/test adds them up.
    let failed = sum.failed.len() as u64;
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {} passed; {failed} failed; 0 ignored", sum.seeds - failed);
}
