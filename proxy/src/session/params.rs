//! The server's parameters that a client was told of: when a session moves, only what is different is told again.

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Params(Vec<(Bytes, Bytes)>);

/// Never shared and never changed in place: no capacity to spare.
type Bytes = Box<[u8]>;

/// PostgreSQL 18 reports 16; extensions may add some. More are passed on and not remembered.
const MAX_PARAMS: usize = 64;

impl Params {
    /// True when that is not the value known before.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> bool {
        match self.0.iter_mut().find(|(known, _)| **known == *name) {
            Some((_, known)) if **known == *value => false,
            Some((_, known)) => {
                *known = value.into();
                true
            }
            None => {
                if self.0.len() < MAX_PARAMS {
                    self.0.push((name.into(), value.into()));
                }
                true
            }
        }
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
        assert!(params.set(b"TimeZone", b"CET"));
    }
}
