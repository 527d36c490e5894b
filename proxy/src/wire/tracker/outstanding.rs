//! The answers that are outstanding, in the order in which the server gives them.

use std::collections::VecDeque;

/// A request that a ReadyForQuery will answer, or the end of a COPY that may have to be matched to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Query or FunctionCall.
    Simple,
    /// And how many Parse messages had been sent before it.
    Sync(u32),
    CopyEnd,
    /// A question of ours between requests.
    Call,
    /// A question of ours within a batch, and how many Parse messages of the client had been sent before it.
    Statement(u32),
    /// Of ours: it opens a transaction block, in front of a message of the client or alone.
    Open {
        alone: bool,
    },
}

impl Wait {
    /// The client waits for its answer.
    fn is_clients(self) -> bool {
        matches!(self, Wait::Simple | Wait::Sync(_))
    }

    fn is_question(self) -> bool {
        matches!(self, Wait::Call | Wait::Statement(_) | Wait::Open { .. })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    waits: VecDeque<Wait>,
    /// How many of `waits` are the client's, and how many are ours: there may be thousands, and both are asked for
    /// with every answer.
    answers: usize,
    questions: usize,
}

impl Outstanding {
    pub fn len(&self) -> usize {
        self.waits.len()
    }

    /// Those that the client waits for.
    #[inline]
    pub fn answers(&self) -> usize {
        self.answers
    }

    /// Those of what we asked or sent ourselves.
    #[inline]
    pub fn questions(&self) -> usize {
        self.questions
    }

    pub fn front(&self) -> Option<Wait> {
        self.waits.front().copied()
    }

    /// Whose answer comes next.
    pub fn next(&self) -> Option<Wait> {
        self.waits.iter().copied().find(|wait| *wait != Wait::CopyEnd)
    }

    pub fn has_statement(&self) -> bool {
        self.questions > 0 && self.waits.iter().any(|wait| matches!(wait, Wait::Statement(_)))
    }

    /// None of ours, and no end of a COPY.
    pub fn are_all_clients(&self) -> bool {
        self.answers == self.waits.len()
    }

    pub fn push(&mut self, wait: Wait) {
        self.answers += usize::from(wait.is_clients());
        self.questions += usize::from(wait.is_question());
        self.waits.push_back(wait);
    }

    fn pop(&mut self) -> Option<Wait> {
        let wait = self.waits.pop_front()?;
        self.answers -= usize::from(wait.is_clients());
        self.questions -= usize::from(wait.is_question());
        Some(wait)
    }

    /// The answer that comes next has come.
    pub fn heard(&mut self) {
        while self.pop() == Some(Wait::CopyEnd) {}
    }

    /// The client's next answer has come, and with it all before it.
    #[inline]
    pub fn answered(&mut self) -> Option<Wait> {
        loop {
            let wait = self.pop()?;
            if wait.is_clients() {
                return Some(wait);
            }
        }
    }

    pub fn clear(&mut self) {
        self.waits.clear();
        (self.answers, self.questions) = (0, 0);
    }

    /// The server takes what the client sends for the data of a COPY, and ignores a Sync among it.
    pub fn copies_in(&mut self) -> CopyIn {
        if self.front() == Some(Wait::Simple) {
            if self.waits.get(1) == Some(&Wait::CopyEnd) {
                self.waits.remove(1);
                return CopyIn::Ended;
            }
            return CopyIn::Goes;
        }
        while let Some(wait) = self.front() {
            match wait {
                Wait::Sync(_) => drop(self.pop()),
                Wait::CopyEnd => {
                    self.pop();
                    return CopyIn::Ended;
                }
                Wait::Simple | Wait::Call | Wait::Statement(_) | Wait::Open { .. } => return CopyIn::Goes,
            }
        }
        CopyIn::GoesInBatch
    }
}

/// What is known of a COPY that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyIn {
    /// Its end was sent already.
    Ended,
    Goes,
    /// The batch in which it stands has no Sync yet.
    GoesInBatch,
}
