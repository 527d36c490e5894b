//! Which faults, in which order, for how long: all of it from one seed, so that a run can be had again.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What is done. None of them takes more than a minority of the nodes, or of a database's copies for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    KillPrimaryPostmaster,
    KillSecondaryPostmaster,
    KillPrimaryNode,
    KillSecondaryNode,
    KillLeaderNode,
    RestartNode,
    PausePrimaryNode,
    PauseSecondaryNode,
    PausePostmaster,
    PauseWalreceiver,
    CutPrimaryNode,
    CutSecondaryNode,
    CutPair,
    CutOneWay,
    Switchover,
    Move,
    FailoverWithoutCoordinator,
    SwitchoverWithoutCoordinator,
    TwoAtOnce,
}

impl Kind {
    pub const ALL: [Kind; 19] = [
        Kind::KillPrimaryPostmaster,
        Kind::KillSecondaryPostmaster,
        Kind::KillPrimaryNode,
        Kind::KillSecondaryNode,
        Kind::KillLeaderNode,
        Kind::RestartNode,
        Kind::PausePrimaryNode,
        Kind::PauseSecondaryNode,
        Kind::PausePostmaster,
        Kind::PauseWalreceiver,
        Kind::CutPrimaryNode,
        Kind::CutSecondaryNode,
        Kind::CutPair,
        Kind::CutOneWay,
        Kind::Switchover,
        Kind::Move,
        Kind::FailoverWithoutCoordinator,
        Kind::SwitchoverWithoutCoordinator,
        Kind::TwoAtOnce,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::KillPrimaryPostmaster => "kill-primary-postmaster",
            Kind::KillSecondaryPostmaster => "kill-secondary-postmaster",
            Kind::KillPrimaryNode => "kill-primary-node",
            Kind::KillSecondaryNode => "kill-secondary-node",
            Kind::KillLeaderNode => "kill-leader-node",
            Kind::RestartNode => "restart-node",
            Kind::PausePrimaryNode => "pause-primary-node",
            Kind::PauseSecondaryNode => "pause-secondary-node",
            Kind::PausePostmaster => "pause-postmaster",
            Kind::PauseWalreceiver => "pause-walreceiver",
            Kind::CutPrimaryNode => "cut-primary-node",
            Kind::CutSecondaryNode => "cut-secondary-node",
            Kind::CutPair => "cut-pair",
            Kind::CutOneWay => "cut-one-way",
            Kind::Switchover => "switchover",
            Kind::Move => "move",
            Kind::FailoverWithoutCoordinator => "failover-without-coordinator",
            Kind::SwitchoverWithoutCoordinator => "switchover-without-coordinator",
            Kind::TwoAtOnce => "two-at-once",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Kind, String> {
        Kind::ALL.into_iter().find(|k| k.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Kind::ALL.iter().map(|k| k.name()).collect();
            format!("no such kind of fault; there are {}", names.join(", "))
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: Kind,
    /// How long what was stopped, killed or cut stays so.
    pub hold: Duration,
    /// From the first to the second, where there are two.
    pub delay: Duration,
    /// Which of several possible victims, taken modulo their number.
    pub pick: usize,
}

const SHORTEST_HOLD: f64 = 0.2;
const LONGEST_HOLD: f64 = 10.0;
/// In a single pass, which is part of every test run.
const LONGEST_BRIEF_HOLD: f64 = 1.5;
/// Some nodes stay away for longer than the demo's `replace_after`, so that their copies are built anew.
const REPLACED_HOLD: Duration = Duration::from_secs(18);
const REPLACED_SHARE: f64 = 0.2;
const LONGEST_DELAY_MS: u64 = 300;

/// `count` faults of these kinds.
pub fn random(seed: u64, count: usize, kinds: &[Kind]) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut faults = Vec::new();
    while faults.len() < count && !kinds.is_empty() {
        let kind = kinds[random.random_range(0..kinds.len())];
        let mut fault = fault(&mut random, kind, LONGEST_HOLD);
        let is_loss = matches!(kind, Kind::KillPrimaryNode | Kind::KillSecondaryNode | Kind::KillLeaderNode);
        if random.random_bool(REPLACED_SHARE) && is_loss {
            fault.hold = REPLACED_HOLD;
        }
        faults.push(fault);
    }
    faults
}

/// Each kind once, in an order of its own, held briefly.
pub fn each_once(seed: u64) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut kinds = Kind::ALL.to_vec();
    kinds.shuffle(&mut random);
    kinds.into_iter().map(|kind| fault(&mut random, kind, LONGEST_BRIEF_HOLD)).collect()
}

fn fault(random: &mut StdRng, kind: Kind, longest: f64) -> Fault {
    // As many below a second as above it: most of what can go wrong is over within one.
    let hold = SHORTEST_HOLD * (longest / SHORTEST_HOLD).powf(random.random_range(0.0..1.0));
    Fault {
        kind,
        hold: Duration::from_millis((hold * 1000.0) as u64),
        delay: Duration::from_millis(random.random_range(0..LONGEST_DELAY_MS)),
        pick: random.random_range(0..12),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        assert_eq!(random(7, 50, &Kind::ALL), random(7, 50, &Kind::ALL));
        assert_ne!(random(7, 50, &Kind::ALL), random(8, 50, &Kind::ALL));
        assert_eq!(random(7, 50, &Kind::ALL)[..20], random(7, 20, &Kind::ALL)[..]);
        assert!(random(7, 9, &[Kind::Move]).iter().all(|f| f.kind == Kind::Move));
        assert_eq!(each_once(3), each_once(3));
    }

    #[test]
    fn one_pass_has_every_kind_and_holds_within_bounds() {
        let mut kinds: Vec<Kind> = each_once(1).iter().map(|f| f.kind).collect();
        kinds.sort();
        assert_eq!(kinds, Kind::ALL);
        for fault in random(2, 500, &Kind::ALL) {
            assert!(fault.hold >= Duration::from_millis(199) && fault.hold <= REPLACED_HOLD, "{fault:?}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("nothing".parse::<Kind>().is_err());
    }
}
