//! What a backend holds for a session beyond the transaction: with it, the session cannot move to another backend.

use crate::guard::Marks;

/// Names of prepared statements that are remembered; with more, the session counts as holding some until it
/// discards them all.
const MAX_NAMES: usize = 128;

const SET: u16 = 1;
const LISTEN: u16 = 1 << 1;
const SQL_PREPARED: u16 = 1 << 2;
const CURSOR: u16 = 1 << 3;
const TEMP: u16 = 1 << 4;
const LOCK: u16 = 1 << 5;
const SET_CONFIG: u16 = 1 << 6;
const LOAD: u16 = 1 << 7;
const MANY_PREPARED: u16 = 1 << 8;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    bits: u16,
    prepared: Vec<Box<[u8]>>,
    parameter: Option<Box<[u8]>>,
    /// A cursor WITH HOLD may have been asked for.
    hold: bool,
}

impl Kept {
    pub fn is_empty(&self) -> bool {
        self.bits == 0 && self.prepared.is_empty() && self.parameter.is_none()
    }

    /// The first thing that is kept, in words.
    pub fn describe(&self) -> Option<String> {
        if let Some(name) = self.prepared.first() {
            return Some(format!("named prepared statement \"{}\"", String::from_utf8_lossy(name)));
        }
        let words = [
            (TEMP, "temporary objects"),
            (LISTEN, "LISTEN"),
            (CURSOR, "a cursor WITH HOLD"),
            (LOCK, "session-level advisory locks"),
            (SQL_PREPARED, "statements made by PREPARE"),
            (MANY_PREPARED, "named prepared statements"),
            (SET, "settings made by SET"),
            (SET_CONFIG, "settings made by set_config"),
            (LOAD, "a library made available by LOAD"),
        ];
        if let Some((_, word)) = words.iter().find(|(bit, _)| self.bits & bit != 0) {
            return Some((*word).to_owned());
        }
        let name = self.parameter.as_ref()?;
        Some(format!("a changed setting \"{}\"", String::from_utf8_lossy(name)))
    }

    /// A statement with these marks was sent.
    pub fn text(&mut self, marks: Marks) {
        if !marks.any() {
            return;
        }
        for (mark, bit) in
            [(Marks::MAKES_TEMP, TEMP), (Marks::ADVISORY_LOCK, LOCK), (Marks::SET_CONFIG, SET_CONFIG)]
        {
            if marks.has(mark) {
                self.bits |= bit;
            }
        }
        self.hold |= marks.has(Marks::HOLD);
    }

    pub fn prepare(&mut self, name: &[u8]) {
        if name.is_empty() || self.prepared.iter().any(|n| **n == *name) {
            return;
        }
        if self.prepared.len() < MAX_NAMES {
            self.prepared.push(name.into());
        } else {
            self.bits |= MANY_PREPARED;
        }
    }

    pub fn close(&mut self, name: &[u8]) {
        self.prepared.retain(|n| **n != *name);
    }

    /// A setting that Postgres reports was changed after startup.
    pub fn parameter(&mut self, name: &[u8]) {
        self.parameter = Some(name.into());
    }

    /// A command was completed; `tag` is what CommandComplete says.
    #[inline]
    pub fn complete(&mut self, tag: &[u8]) {
        if let Some(b'S' | b'L' | b'P' | b'D' | b'C') = tag.first() {
            self.complete_command(tag);
        }
    }

    fn complete_command(&mut self, tag: &[u8]) {
        match tag {
            b"SET" => self.bits |= SET,
            b"LISTEN" => self.bits |= LISTEN,
            b"LOAD" => self.bits |= LOAD,
            b"PREPARE" => self.bits |= SQL_PREPARED,
            b"DECLARE CURSOR" if self.hold => self.bits |= CURSOR,
            b"DISCARD ALL" => *self = Kept::default(),
            b"DISCARD TEMP" => self.bits &= !TEMP,
            b"CLOSE CURSOR ALL" => self.bits &= !CURSOR,
            b"DEALLOCATE ALL" => {
                self.prepared.clear();
                self.bits &= !(SQL_PREPARED | MANY_PREPARED);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_kept_and_forgets_what_is_discarded() {
        let mut kept = Kept::default();
        kept.prepare(b"");
        kept.complete(b"SELECT 1");
        kept.complete(b"DECLARE CURSOR");
        assert!(kept.is_empty());
        kept.prepare(b"s1");
        assert_eq!(kept.describe().as_deref(), Some("named prepared statement \"s1\""));
        kept.close(b"s1");
        assert!(kept.is_empty());
        kept.text(crate::guard::read(b"declare c cursor with hold for select 1"));
        kept.complete(b"DECLARE CURSOR");
        assert_eq!(kept.describe().as_deref(), Some("a cursor WITH HOLD"));
        kept.complete(b"SET");
        kept.parameter(b"TimeZone");
        kept.complete(b"DISCARD ALL");
        assert!(kept.is_empty());
    }

    #[test]
    fn too_many_names_are_still_kept() {
        let mut kept = Kept::default();
        for i in 0..=MAX_NAMES {
            kept.prepare(format!("s{i}").as_bytes());
        }
        for i in 0..=MAX_NAMES {
            kept.close(format!("s{i}").as_bytes());
        }
        assert_eq!(kept.describe().as_deref(), Some("named prepared statements"));
        kept.complete(b"DEALLOCATE ALL");
        assert!(kept.is_empty());
    }
}
