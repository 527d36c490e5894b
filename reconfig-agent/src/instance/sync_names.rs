//! The value of `synchronous_standby_names`, checked: a quorum of named standbys, never nobody and never everybody
//! (R5).

use super::error::InstanceError;
use quorate_model::Lsn;
use std::collections::BTreeSet;

/// `ANY k (name, ...)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncNames {
    k: usize,
    names: BTreeSet<String>,
}

impl SyncNames {
    pub fn parse(text: &str) -> Result<SyncNames, InstanceError> {
        Self::read(text).ok_or_else(|| InstanceError::BadSyncNames(text.to_owned()))
    }

    fn read(text: &str) -> Option<SyncNames> {
        let (k, list) = text.trim().strip_prefix("ANY ")?.split_once('(')?;
        let k: usize = k.trim().parse().ok()?;
        let listed: Vec<&str> = list.strip_suffix(')')?.split(',').map(str::trim).collect();
        let plain = |name: &&str| {
            let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(word)
        };
        let names: BTreeSet<String> = listed.iter().map(|name| (*name).to_owned()).collect();
        let valid = listed.iter().all(plain) && names.len() == listed.len();
        (valid && k >= 1 && k <= names.len()).then_some(SyncNames { k, names })
    }

    /// Whether enough of the named standbys say that they flushed up to `lsn`. A name counts once, however many
    /// bear it.
    pub fn is_met(&self, flushed: &[(String, Lsn)], lsn: Lsn) -> bool {
        let met: BTreeSet<&str> = flushed
            .iter()
            .filter(|(name, flush)| *flush >= lsn && self.names.contains(name))
            .map(|(name, _)| name.as_str())
            .collect();
        met.len() >= self.k
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use quorate_model::configuration::SENTINEL_SYNC_NAMES;
    use quorate_model::{Configuration, ReplicaId};

    #[test]
    fn what_a_configuration_writes_is_read() {
        let configuration = Configuration::new(ReplicaId(1), [ReplicaId(2), ReplicaId(3)], 2);
        let names = SyncNames::parse(&configuration.sync_names()).unwrap();
        assert_eq!(names.k, 2);
        assert!(SyncNames::parse(SENTINEL_SYNC_NAMES).is_ok());
    }

    #[test]
    fn nobody_and_everybody_are_refused() {
        for bad in [
            "",
            "*",
            "ANY 1 (*)",
            "ANY 0 (r1)",
            "ANY 2 (r1)",
            "ANY 1 ()",
            "ANY 1 (r1, r1)",
            "r1",
            "ANY 1 (\"r1\")",
        ] {
            assert!(SyncNames::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_impostor_counts_once_and_a_stranger_never() {
        let names = SyncNames::parse("ANY 2 (r2, r3)").unwrap();
        let at = |name: &str, lsn| (name.to_owned(), Lsn(lsn));
        assert!(names.is_met(&[at("r2", 5), at("r3", 6)], Lsn(5)));
        assert!(!names.is_met(&[at("r2", 5), at("r2", 6)], Lsn(5)));
        assert!(!names.is_met(&[at("r2", 5), at("r9", 6)], Lsn(5)));
        assert!(!names.is_met(&[at("r2", 5), at("r3", 4)], Lsn(5)));
    }
}
