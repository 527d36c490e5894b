//! Epochs: who may speak for a database.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The number of a reconfiguration, ordered lexicographically. A replica that promised an epoch obeys no order
/// and passes no byte of an older one (invariant I5: epochs and promises never go back).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Bumped only when an operator accepts the loss of acknowledged data.
    pub data_loss: u64,
    /// Bumped by every election of a primary, the re-election of the incumbent included.
    pub primary: u64,
    /// Bumped by every change of the voters under one primary; zero after an election.
    pub config: u64,
}

impl Epoch {
    pub const fn new(data_loss: u64, primary: u64, config: u64) -> Self {
        Epoch { data_loss, primary, config }
    }

    /// The epoch in which the next election is held.
    pub const fn next_primary(self) -> Self {
        Epoch { data_loss: self.data_loss, primary: self.primary + 1, config: 0 }
    }

    /// The epoch in which a forced recovery goes on without what was lost.
    pub const fn next_data_loss(self) -> Self {
        Epoch { data_loss: self.data_loss + 1, primary: self.primary + 1, config: 0 }
    }

    /// The epoch of the next change of voters under the same primary.
    pub const fn next_config(self) -> Self {
        Epoch { config: self.config + 1, ..self }
    }

    /// Whether both belong to the reign of one primary: tunnels and gates stay up between such epochs.
    pub const fn same_reign(self, other: Epoch) -> bool {
        self.data_loss == other.data_loss && self.primary == other.primary
    }

    /// The epoch without its configuration number: what tunnels, gates, leases and promises are held under.
    pub const fn reign(self) -> Self {
        Epoch { config: 0, ..self }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.data_loss, self.primary, self.config)
    }
}

/// A text that is not an epoch.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an epoch: {0:?} (expected data_loss.primary.config)")]
pub struct BadEpoch(pub String);

impl FromStr for Epoch {
    type Err = BadEpoch;

    fn from_str(s: &str) -> Result<Self, BadEpoch> {
        let mut parts = s.split('.').map(str::parse::<u64>);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Ok(data_loss)), Some(Ok(primary)), Some(Ok(config)), None) => {
                Ok(Epoch { data_loss, primary, config })
            }
            _ => Err(BadEpoch(s.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_lexicographically() {
        let e = Epoch::new(0, 3, 7);
        assert!(e < e.next_config());
        assert!(e.next_config() < e.next_primary());
        assert!(e.next_primary() < Epoch::new(1, 0, 0));
        assert!(e.same_reign(e.next_config()));
        assert!(!e.same_reign(e.next_primary()));
        assert_eq!(e.to_string().parse(), Ok(e));
    }
}
