//! What happened, in order: a hash of all of it, by which two runs of a seed are compared, and the last lines for
//! whoever has to understand a failure.

use quorate_model::NodeId;
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// Lines kept for the report of a failure.
const KEPT_LINES: usize = 4_000;

static TRACE: Trace = Trace {
    now_ms: AtomicU64::new(0),
    node: AtomicU64::new(0),
    loud: AtomicBool::new(false),
    inner: Mutex::new(Inner { hash: 0xcbf2_9ce4_8422_2325, lines: VecDeque::new(), panics: Vec::new() }),
};

struct Trace {
    now_ms: AtomicU64,
    /// Whose code runs; 0 is the world's own.
    node: AtomicU64,
    /// Every line goes to standard error at once.
    loud: AtomicBool,
    inner: Mutex<Inner>,
}

struct Inner {
    hash: u64,
    lines: VecDeque<String>,
    panics: Vec<String>,
}

fn inner() -> MutexGuard<'static, Inner> {
    TRACE.inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hears what the daemon logs, and every panic, from now on.
pub fn begin(loud: bool) {
    TRACE.loud.store(loud, Ordering::Relaxed);
    // Fails only when there is a subscriber already, which then hears it.
    let _ = tracing::subscriber::set_global_default(Listener);
    std::panic::set_hook(Box::new(|info| {
        note(&format!("PANIC {info}"));
        inner().panics.push(info.to_string());
    }));
}

/// The panics since then: no code of the daemon may panic, whatever happens.
pub fn panics() -> Vec<String> {
    inner().panics.clone()
}

pub fn at(now_ms: u64) {
    TRACE.now_ms.store(now_ms, Ordering::Relaxed);
}

pub fn now_ms() -> u64 {
    TRACE.now_ms.load(Ordering::Relaxed)
}

pub fn running(node: NodeId) {
    TRACE.node.store(node.0, Ordering::Relaxed);
}

/// Adds numbers that say what happened, without a line.
pub fn fold(numbers: &[u64]) {
    let mut inner = inner();
    for number in numbers {
        inner.hash = (inner.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17);
    }
}

/// Adds a line.
pub fn note(text: &str) {
    let (now, node) = (now_ms(), TRACE.node.load(Ordering::Relaxed));
    let line = match node {
        0 => format!("{now:>7} ms  world  {text}"),
        node => format!("{now:>7} ms  n{node:<4}  {text}"),
    };
    if TRACE.loud.load(Ordering::Relaxed) {
        eprintln!("{line}");
    }
    let mut inner = inner();
    for byte in line.bytes() {
        inner.hash = (inner.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    inner.lines.push_back(line);
    if inner.lines.len() > KEPT_LINES {
        inner.lines.pop_front();
    }
}

/// Of everything up to now.
pub fn hash() -> u64 {
    inner().hash
}

pub fn last_lines(count: usize) -> Vec<String> {
    let inner = inner();
    let skip = inner.lines.len().saturating_sub(count);
    inner.lines.iter().skip(skip).cloned().collect()
}

/// Takes what the daemon logs at INFO and above into the trace.
struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with("quorate") && *metadata.level() <= Level::INFO;
        ours || *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(format!("{:<5} ", event.metadata().level().as_str()));
        event.record(&mut text);
        note(&text.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?} "),
            name => write!(self.0, "{name}={value:?} "),
        };
    }
}
