//! The server's parameters that a client was told of: when a session moves, only what is different is told again.

use std::sync::Arc;

/// Shared by all who know the same: sessions and servers of one kind mostly do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(Arc<Vec<(Bytes, Bytes)>>);

/// Never changed in place: no capacity to spare.
type Bytes = Box<[u8]>;

/// PostgreSQL 18 reports 16; extensions may add some. More are passed on and not remembered.
const MAX_PARAMS: usize = 64;

impl Params {
    /// True when that is not the value known before.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> bool {
        match self.0.iter().position(|(known, _)| **known == *name) {
            Some(at) if *self.0[at].1 == *value => false,
            Some(at) => {
                Arc::make_mut(&mut self.0)[at].1 = value.into();
                true
            }
            None => {
                if self.0.len() < MAX_PARAMS {
                    Arc::make_mut(&mut self.0).push((name.into(), value.into()));
                }
                true
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Whether both are the same memory.
    pub fn is(&self, other: &Params) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_told() {
        let mut params = Params::default();
        assert!(params.set(b"TimeZone", b"UTC"));
        assert!(!params.set(b"TimeZone", b"UTC"));
        let other = params.clone();
        assert!(params.is(&other));
        assert!(params.set(b"TimeZone", b"CET"));
        assert!(!params.is(&other) && params != other);
        assert_eq!(other.iter().collect::<Vec<_>>(), [(&b"TimeZone"[..], &b"UTC"[..])]);
    }
}
