//! The decisions that a model uses: those of the daemon, or a mutant's with one of them replaced.
//!
//! A mutant wraps the daemon's own code: it gives it a falsified view, or changes what it said. The code under test has
//! no switch for it.

use quorate_model::{
    Change, Database, Epoch, InstanceRole, Phase, Position, ReplicaId, ReplicaState, RunState,
};
use quorate_reconfig_agent::decide::{self, Act, Fenced, Note, Order, Progress, View, What};

#[derive(Clone, Copy)]
pub struct Decisions {
    pub name: &'static str,
    pub next: fn(&View<'_>, &Database, &Progress) -> Vec<Act>,
    pub quirk: Quirk,
}

/// What a mutant's replicas, or its map, do otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quirk {
    None,
    /// A node that is started again takes up the route that a local file names.
    Reopens,
    /// A replica whose log left the history goes back to its last checkpoint and on from there, as if it had never
    /// held more.
    Rewinds,
    /// A primary lets an order or a map of an older record of its reign settle who counts.
    Rearranges,
    /// A fence that arrives late closes the tunnels that its own reign has opened since.
    FencesAgain,
    /// A coordinator that finds a quorum lost gives up what is missing, without being told to.
    SpeaksForOperators,
    /// The map takes a step of an operation from a coordinator whose attempt another one has taken over.
    ObeysReplaced,
}

/// What the daemon does.
pub const DAEMON: Decisions =
    Decisions { name: "the daemon's decisions", next: decide::next, quirk: Quirk::None };

/// The mutants of writes and reconfiguration (DESIGN §5), three faults that this model found, and two of operations.
pub const MUTANTS: [Decisions; 13] = [
    Decisions { name: "accept F={S1}", next: accept_one_secondary, ..DAEMON },
    Decisions { name: "sync names before Joint", next: names_before_joint, ..DAEMON },
    Decisions { name: "Stable before the barrier", next: stable_before_barrier, ..DAEMON },
    Decisions { name: "open before the barrier", next: open_before_barrier, ..DAEMON },
    Decisions { name: "elect by LSN alone", next: elect_by_lsn, ..DAEMON },
    Decisions { name: "count a rewound replica", quirk: Quirk::Rewinds, ..DAEMON },
    Decisions { name: "take a rewound copy for whole", next: whole_at_once, ..DAEMON },
    Decisions { name: "reopen a tunnel from a local file", quirk: Quirk::Reopens, ..DAEMON },
    Decisions { name: "obey a late order of the same reign", quirk: Quirk::Rearranges, ..DAEMON },
    Decisions { name: "attach only who answered the fence", next: attach_answered, ..DAEMON },
    Decisions { name: "a late fence cuts its own reign", quirk: Quirk::FencesAgain, ..DAEMON },
    Decisions { name: "recover by force without a word", quirk: Quirk::SpeaksForOperators, ..DAEMON },
    Decisions { name: "obey a replaced executor", quirk: Quirk::ObeysReplaced, ..DAEMON },
];

/// Believes that the old primary answered too, with an empty log, as soon as one secondary did.
fn accept_one_secondary(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    let mut progress = progress.clone();
    if progress.fences.values().any(|f| f.position.is_some()) {
        for configuration in database.configurations() {
            progress.fences.entry(configuration.primary).or_insert(Fenced {
                position: Some(Position::default()),
                role: InstanceRole::Unknown,
                lease_left_ms: 0,
                note: String::new(),
            });
        }
    }
    decide::next(view, database, &progress)
}

/// Gives the barrier of the new voters, and with it their names, before the change is recorded.
fn names_before_joint(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    let mut acts = decide::next(view, database, progress);
    let joins = acts.iter().find_map(|act| match act {
        Act::Propose { change: Change::Join { current }, .. } => Some(current.clone()),
        _ => None,
    });
    let Some(current) = joins else { return acts };
    let primary = database.current.primary;
    if progress.passed_barrier_of(database.epoch) {
        return acts;
    }
    let What::Barrier { allowed, uuid, .. } = decide::reconfigure::barrier(database) else { return acts };
    let what = What::Barrier { sync_names: current.sync_names(), allowed, uuid };
    acts.clear();
    if progress.may_send(what.kind(), primary, view.now_ms) {
        let (database, epoch) = (database.id, database.epoch);
        acts.push(Act::Order(Order { database, replica: primary, epoch, behalf: None, what }));
    }
    acts
}

/// Records a change of voters as done at once; the barrier is ordered no more.
fn stable_before_barrier(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    if database.phase != Phase::Joint {
        return decide::next(view, database, progress);
    }
    decide::next(view, database, &passed(database, progress))
}

/// Opens the gate after the promotion, without a barrier.
fn open_before_barrier(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    if !matches!(database.phase, Phase::Promoting { .. }) {
        return decide::next(view, database, progress);
    }
    decide::next(view, database, &passed(database, progress))
}

fn passed(database: &Database, progress: &Progress) -> Progress {
    Progress { barrier: Some((database.epoch, quorate_model::Lsn(0))), ..progress.clone() }
}

/// Compares the ends of logs without asking in which epoch they were written.
fn elect_by_lsn(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    let mut progress = progress.clone();
    for fenced in progress.fences.values_mut() {
        if let Some(position) = &mut fenced.position {
            position.epoch = Epoch::default();
        }
    }
    decide::next(view, database, &progress)
}

/// Says of an incomplete copy that it may count as soon as its instance runs, wherever its log ends.
fn whole_at_once(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    let incomplete = |(id, r): (&ReplicaId, &quorate_model::Replica)| {
        let runs = view.report(*id).is_some_and(|report| report.run == RunState::Running);
        (runs && matches!(r.state, ReplicaState::Incomplete { .. })).then_some(*id)
    };
    let Some(replica) = database.replicas.iter().find_map(incomplete) else {
        return decide::next(view, database, progress);
    };
    vec![Act::Propose {
        change: Change::MarkReplica { replica, state: ReplicaState::Up },
        note: Note::Nothing,
    }]
}

/// Leaves those alone whose fences failed.
fn attach_answered(view: &View<'_>, database: &Database, progress: &Progress) -> Vec<Act> {
    let mut acts = decide::next(view, database, progress);
    acts.retain(|act| match act {
        Act::Order(Order { replica, what: What::Attach { .. }, .. }) => progress.fences.contains_key(replica),
        _ => true,
    });
    acts
}
