//! What one client was told about one row it tried to write.

use crate::gaps::Micros;
use std::collections::BTreeMap;
use tokio_postgres::Error;

/// One attempt to commit the row (client, seq). A seq is tried once and never again, so that each row has one fate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub seq: u64,
    pub asked: Micros,
    pub told: Micros,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Told that it is committed.
    Acknowledged,
    /// Told that it is not, with an SQLSTATE that leaves no doubt.
    Failed(String),
    /// Not told, or told that it is not known.
    Unknown(String),
}

impl Outcome {
    /// What an error says about the row that was being committed.
    pub fn of(error: &Error) -> Outcome {
        match crate::sql::sqlstate(error) {
            Some(code) if leaves_doubt(code) => Outcome::Unknown(code.to_owned()),
            Some(code) => Outcome::Failed(code.to_owned()),
            None if error.is_closed() => Outcome::Unknown("closed".to_owned()),
            None => Outcome::Unknown("broken".to_owned()),
        }
    }
}

/// SQLSTATEs after which the transaction may be committed all the same: PostgreSQL itself says 57P01 to a session
/// that waits for a standby after its commit record is written.
pub fn leaves_doubt(code: &str) -> bool {
    matches!(code, "40003" | "57P01" | "57P02" | "57P05")
        || ["08", "58", "XX", "F0"].iter().any(|class| code.starts_with(class))
}

/// Everything one client saw.
#[derive(Clone, Debug, Default)]
pub struct ClientRecord {
    pub client: u32,
    pub attempts: Vec<Attempt>,
    /// How often its session ended, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// How often it could not get a session, by reason.
    pub refused: BTreeMap<String, u64>,
    /// The longest that one request for a session took.
    pub longest_connect: Micros,
}

/// What one reader saw that it should not have, and how much it looked at.
#[derive(Clone, Debug, Default)]
pub struct ReaderRecord {
    pub reads: u64,
    pub errors: BTreeMap<String, u64>,
    /// Reads that missed a row acknowledged before they were sent (I7), or that an earlier read had shown (I8).
    pub stale: Vec<String>,
    /// The highest seq of each client that a read showed.
    pub seen: BTreeMap<u32, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_word_is_a_failure() {
        for code in ["40001", "23505", "25006", "53300", "57014", "57P03", "42P01"] {
            assert!(!leaves_doubt(code), "{code}");
        }
        for code in ["40003", "08006", "08007", "57P01", "57P02", "XX000"] {
            assert!(leaves_doubt(code), "{code}");
        }
    }
}
