//! Runs a model to its end, or to a limit, and says what came of it.

use stateright::{Checker, HasDiscoveries, Model};
use std::fmt::Debug;
use std::hash::Hash;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub threads: usize,
    /// A run that takes longer ends incomplete.
    pub time: Duration,
}

/// A property that did not hold, with the shortest way there that was found.
#[derive(Clone, Debug)]
pub struct Counterexample {
    pub property: &'static str,
    pub steps: Vec<String>,
}

impl Counterexample {
    /// The name of the invariant in the design: `I1` and so on.
    pub fn invariant(&self) -> &'static str {
        self.property.split_whitespace().next().unwrap_or(self.property)
    }
}

#[derive(Clone, Debug)]
pub struct Outcome {
    /// Visited, those seen before included.
    pub states: usize,
    pub unique: usize,
    pub depth: usize,
    pub seconds: f64,
    /// Whether every state within the bounds was visited. Never so when a property was broken.
    pub complete: bool,
    pub broken: Option<Counterexample>,
}

/// Visits states breadth first until a property is broken, none is left, or the time is over.
pub fn run<M>(model: M, limits: Limits) -> Outcome
where
    M: Model + Send + Sync + 'static,
    M::State: Debug + Hash + Send + Sync + Clone + PartialEq,
    M::Action: Debug + Clone + PartialEq + Send + Sync,
{
    let began = Instant::now();
    let checker = model
        .checker()
        .threads(limits.threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .timeout(limits.time)
        .spawn_bfs()
        .join();
    let seconds = began.elapsed();
    let broken =
        checker.discoveries().into_iter().min_by_key(|(property, _)| *property).map(|(property, path)| {
            Counterexample {
                property,
                steps: path.into_actions().iter().map(|action| format!("{action:?}")).collect(),
            }
        });
    Outcome {
        states: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        seconds: seconds.as_secs_f64(),
        complete: broken.is_none() && seconds < limits.time,
        broken,
    }
}
