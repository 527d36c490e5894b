//! The pure parts of the proxy that read what clients send, compiled from the proxy's own files. Without the rest of it
//! they build in seconds, and only they are instrumented.

#![allow(dead_code)]

#[path = "../../src"]
mod proxy {
    pub mod guard;

    pub mod wire {
        pub mod header;
        pub mod lane;
        pub mod reply;
        pub mod startup;
    }
}

pub use proxy::{guard, wire};

/// Takes what a target decides by from the end of its input, so that the start stays what it is about.
pub struct Dice<'a>(pub &'a [u8]);

impl Dice<'_> {
    pub fn byte(&mut self) -> u8 {
        let Some((last, rest)) = self.0.split_last() else { return 0 };
        self.0 = rest;
        *last
    }

    /// From 1 to `most`, mostly little; all of it when there is nothing more to decide by.
    pub fn piece(&mut self, most: usize) -> usize {
        if self.0.is_empty() {
            return most.max(1);
        }
        let byte = usize::from(self.byte());
        // Some of the pieces are as large as what a read brings.
        let wanted = if byte >= 200 { (byte - 199) * 1024 } else { byte % 24 + 1 };
        wanted.clamp(1, most.max(1))
    }
}
