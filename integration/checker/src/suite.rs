//! What is checked: each model at each bound, and each mutant in the smallest surroundings in which it does harm.

use crate::decisions::{self, Decisions};
use crate::leases::{self, Leases, rules};
use crate::prologue;
use crate::run::{Limits, Outcome, run};
use crate::writes::{ALL_FAULTS, Action, Bounds, Fault, Writes, invariants};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// I14 is tried from one state in so many.
const HEAL_ONE_IN: u64 = 509;

const LEASES: &str = "leases";

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Size {
    /// What every run of the tests takes: a minute and a half on two idle cores.
    Small,
    /// A quarter of an hour.
    Medium,
    /// As long as one likes to wait.
    Large,
}

impl Size {
    /// After which a run of one model ends incomplete.
    fn time(self) -> Duration {
        Duration::from_secs(match self {
            Size::Small => 400,
            Size::Medium => 1_200,
            Size::Large => 36_000,
        })
    }
}

/// One model at one bound, with the daemon's decisions.
pub struct Check {
    pub name: &'static str,
    /// The bound in words.
    pub bound: String,
    pub properties: Vec<&'static str>,
    pub outcome: Outcome,
    /// States from which the way to rest was walked (I14).
    pub healed: u64,
}

/// One mutant.
pub struct Trial {
    pub mutant: &'static str,
    pub model: &'static str,
    /// Steps of the prologue, which the way to harm begins with.
    pub before: usize,
    pub outcome: Outcome,
}

/// Three copies, nothing going on.
fn quiet() -> Bounds {
    Bounds {
        voters: 2,
        learners: 0,
        copies: 3,
        writes: 1,
        elections: 1,
        joins: 0,
        built: 0,
        switchovers: 0,
        moves: 0,
        words: 0,
        cancels: 0,
        faults: 0,
        kinds: ALL_FAULTS.into(),
        rewinds: false,
        quorum_lost: false,
    }
}

/// The bounds of model 1, by name, and what has happened before.
fn of_writes(size: Size) -> Vec<(&'static str, Bounds, Vec<Action>)> {
    let more = u8::from(size >= Size::Medium) + u8::from(size == Size::Large);
    let (some, most) = (more.min(1), more);
    // Of the two, the end of a postmaster is what brings a log about that nobody follows.
    let after_failover = match size {
        Size::Small => BTreeSet::from([Fault::Crash]),
        Size::Medium | Size::Large => [Fault::Suspect, Fault::Crash].into(),
    };
    let rewound = Bounds {
        writes: 2,
        elections: 2,
        joins: 1,
        faults: 2 + some,
        kinds: after_failover.clone(),
        rewinds: true,
        ..quiet()
    };
    let divergent = prologue::former_primary_is_divergent(&rewound);
    vec![
        ("failover", Bounds { faults: 1 + most, elections: 1 + some, ..quiet() }, Vec::new()),
        (
            "two copies",
            Bounds { voters: 1, copies: 2, writes: some, elections: 1 + some, faults: 2 + most, ..quiet() },
            Vec::new(),
        ),
        (
            "voters change",
            Bounds { voters: 1, learners: 1, joins: 2, elections: 0, faults: 1 + most, ..quiet() },
            Vec::new(),
        ),
        (
            "late orders",
            Bounds {
                voters: 1,
                learners: 1,
                joins: 2,
                writes: some,
                elections: 0,
                faults: 2 + most,
                kinds: [Fault::Suspect, Fault::GiveUp, Fault::Freeze].into(),
                ..quiet()
            },
            Vec::new(),
        ),
        (
            "switchover",
            Bounds {
                switchovers: 1,
                cancels: 1,
                faults: some,
                elections: 1 + some,
                writes: 1 + some,
                ..quiet()
            },
            Vec::new(),
        ),
        ("a move", moved(some), Vec::new()),
        ("a recovery", recovered(some), prologue::quorum_is_lost()),
        (
            "a second failover",
            Bounds { writes: 2, elections: 2, faults: 2 + some, kinds: after_failover.clone(), ..quiet() },
            prologue::reign_of_the_second(),
        ),
        (
            "a return",
            Bounds { writes: 2, elections: 2, faults: 2 + some, kinds: after_failover.clone(), ..quiet() },
            prologue::candidate_alone_has_it(),
        ),
        ("a rewind", rewound, divergent),
    ]
}

/// A copy goes to a fourth node, and the coordinator that carries it out may be replaced and not know it.
fn moved(some: u8) -> Bounds {
    let kinds = [Fault::Split, Fault::Depose].into();
    Bounds { moves: 1, cancels: 1, joins: 1, elections: 1, faults: 1 + some, kinds, ..quiet() }
}

/// An operator gives up what two lost nodes hold. They may return.
fn recovered(some: u8) -> Bounds {
    let kinds = [Fault::Split].into();
    Bounds {
        words: 1,
        cancels: some,
        elections: 1 + some,
        writes: 2,
        faults: 3 + some,
        kinds,
        quorum_lost: true,
        ..quiet()
    }
}

fn of_leases(size: Size) -> leases::Bounds {
    let more = u8::from(size >= Size::Medium) + u8::from(size == Size::Large);
    leases::Bounds {
        until_ms: 450 + 150 * u64::from(more),
        step_ms: 450 / (1 + 2 * u64::from(more.min(1))),
        rounds: 1 + more.min(1),
        gaps: more.min(1),
        restarts: 1,
    }
}

fn words(b: &Bounds) -> String {
    let mut words = vec![
        format!("{} copies", 1 + b.voters + b.learners),
        format!("{} writes", b.writes),
        format!("{} elections", b.elections),
        format!("{} faults of {} kinds", b.faults, b.kinds.len()),
    ];
    for (count, what) in [
        (b.joins, "changes of voters a reign"),
        (b.switchovers, "switchovers"),
        (b.moves, "moves"),
        (b.words, "forced recoveries"),
        (b.cancels, "operations taken back"),
    ] {
        if count > 0 {
            words.push(format!("{count} {what}"));
        }
    }
    words.join(", ")
}

fn lease_words(b: &leases::Bounds) -> String {
    format!(
        "{} ms, {} rounds, {} gaps, {} restarts, 8 assignments of drift",
        b.until_ms, b.rounds, b.gaps, b.restarts
    )
}

/// The wanted models with the daemon's decisions; `ended` hears of each when it has ended.
pub fn checks(
    size: Size,
    threads: usize,
    wanted: impl Fn(&str) -> bool,
    mut ended: impl FnMut(&Check),
) -> Vec<Check> {
    let limits = Limits { threads, time: size.time() };
    let mut checks = Vec::new();
    for (name, bounds, prologue) in of_writes(size).into_iter().filter(|(name, ..)| wanted(name)) {
        let bound = words(&bounds);
        let model = Writes { heal_one_in: HEAL_ONE_IN, prologue, ..Writes::new(bounds, decisions::DAEMON) };
        let healed = model.healed.clone();
        let outcome = run(model, limits);
        let properties = invariants::properties().iter().map(|p| p.name).collect();
        let healed = healed.load(Ordering::Relaxed);
        let check = Check { name, bound, properties, outcome, healed };
        ended(&check);
        checks.push(check);
    }
    if wanted(LEASES) {
        let bounds = of_leases(size);
        let bound = lease_words(&bounds);
        let outcome = run(Leases { bounds, rules: rules::DAEMON }, limits);
        let (properties, healed) = (vec![leases::I7, leases::I8], 0);
        let check = Check { name: LEASES, bound, properties, outcome, healed };
        ended(&check);
        checks.push(check);
    }
    checks
}

/// In what surroundings each mutant of model 1 does harm soonest.
fn harm(mutant: Decisions) -> Writes {
    let suspect = Bounds { faults: 1, kinds: [Fault::Suspect].into(), ..quiet() };
    let learner = Bounds { voters: 1, learners: 1, joins: 2, ..suspect.clone() };
    let late = [Fault::Suspect, Fault::GiveUp];
    let twice = Bounds { writes: 2, elections: 2, faults: 2, ..suspect.clone() };
    let (bounds, prologue, heal_one_in) = match mutant.name {
        "sync names before Joint" => (learner, Vec::new(), 0),
        "Stable before the barrier" => (Bounds { joins: 1, ..suspect }, Vec::new(), 0),
        "elect by LSN alone" => (twice, prologue::reign_of_the_second(), 0),
        "count a rewound replica" => (twice, prologue::candidate_alone_has_it(), 0),
        "take a rewound copy for whole" => {
            let rewound = Bounds { joins: 1, rewinds: true, ..twice };
            let prologue = prologue::former_primary_is_divergent(&rewound);
            (rewound, prologue, 0)
        }
        "reopen a tunnel from a local file" => {
            (Bounds { faults: 2, kinds: [Fault::Suspect, Fault::PowerOff].into(), ..suspect }, Vec::new(), 0)
        }
        "obey a late order of the same reign" => {
            (Bounds { elections: 0, writes: 0, faults: 2, kinds: late.into(), ..learner }, Vec::new(), 0)
        }
        "a late fence cuts its own reign" | "attach only who answered the fence" => (
            Bounds { voters: 1, copies: 2, writes: 0, faults: 2, kinds: late.into(), ..suspect },
            Vec::new(),
            1,
        ),
        "recover by force without a word" => {
            (Bounds { words: 0, cancels: 0, ..recovered(0) }, prologue::quorum_is_lost(), 0)
        }
        "obey a replaced executor" => (Bounds { cancels: 0, ..moved(0) }, Vec::new(), 0),
        _ => (suspect, Vec::new(), 0),
    };
    Writes { heal_one_in, prologue, ..Writes::new(bounds, mutant) }
}

/// Every mutant, each until an invariant catches it; by one thread, which finds a shortest way.
pub fn trials() -> Vec<Trial> {
    let limits = Limits { threads: 1, time: TRIAL };
    let of_writes = decisions::MUTANTS.iter().map(|mutant| {
        let model = harm(*mutant);
        let before = model.prologue.len();
        Trial { mutant: mutant.name, model: "writes", before, outcome: run(model, limits) }
    });
    let of_leases = rules::MUTANTS.iter().map(|rules| Trial {
        mutant: rules.name,
        model: "leases",
        before: 0,
        outcome: run(Leases { bounds: of_leases(Size::Small), rules: *rules }, limits),
    });
    of_writes.chain(of_leases).collect()
}

/// A mutant that nothing caught by then counts as one that survives.
const TRIAL: Duration = Duration::from_secs(120);
