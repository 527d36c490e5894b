//! Positions in PostgreSQL's write-ahead log.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log, written `X/Y` in hexadecimal as PostgreSQL does (`pg_lsn`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bytes from `earlier` to here; zero when `earlier` is ahead.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// A text that is not an LSN.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a log position: {0:?} (expected X/Y in hexadecimal)")]
pub struct BadLsn(pub String);

impl FromStr for Lsn {
    type Err = BadLsn;

    fn from_str(s: &str) -> Result<Self, BadLsn> {
        let bad = || BadLsn(s.to_owned());
        let (high, low) = s.split_once('/').ok_or_else(bad)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| bad())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| bad())?;
        Ok(Lsn((u64::from(high) << 32) | u64::from(low)))
    }
}

/// A PostgreSQL timeline: bumped by each promotion, and not unique across replicas (two promotions can choose
/// the same number), so it is never compared without the lineage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for lsn in [Lsn(0), Lsn(0x1_0000_0028), Lsn(u64::MAX)] {
            assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
        }
        assert_eq!("0/3000060".parse::<Lsn>(), Ok(Lsn(0x300_0060)));
        for bad in ["", "/", "0", "0/G", "1/2/3", "100000000/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }
}
