//! Transaction words. Drivers send them around every statement; orders are carried out one by one all the same,
//! so there is nothing to begin, and nothing can be taken back.

use super::Spec;
use crate::admin::answer::{Answer, Column};
use crate::admin::error::AdminError;
use crate::admin::language::phrase::Phrase;
use crate::admin::order::{Order, Session};
use std::sync::Arc;

const fn spec(words: &'static [&'static str], parse: Parse) -> Spec {
    Spec { words, syntax: words[0], help: "", parse }
}

type Parse = fn(&mut Phrase<'_>) -> Result<Arc<dyn Order>, AdminError>;

pub const BEGIN: Spec = spec(&["BEGIN"], |phrase| word(phrase, Answer::Begin));
pub const START: Spec = spec(&["START", "TRANSACTION"], |phrase| word(phrase, Answer::Begin));
pub const COMMIT: Spec = spec(&["COMMIT"], |phrase| word(phrase, Answer::End("COMMIT")));
pub const END: Spec = spec(&["END"], |phrase| word(phrase, Answer::End("COMMIT")));
pub const ROLLBACK: Spec = spec(&["ROLLBACK"], |phrase| word(phrase, Answer::End("ROLLBACK")));
pub const ABORT: Spec = spec(&["ABORT"], |phrase| word(phrase, Answer::End("ROLLBACK")));

/// Takes modes (`ISOLATION LEVEL …`) without looking at them.
fn word(phrase: &mut Phrase<'_>, answer: Answer) -> Result<Arc<dyn Order>, AdminError> {
    while phrase.peek().is_some() {
        phrase.skip();
    }
    Ok(Arc::new(TransactionWord(answer)))
}

#[derive(Debug)]
struct TransactionWord(Answer);

#[async_trait::async_trait]
impl Order for TransactionWord {
    fn columns(&self) -> &'static [Column] {
        &[]
    }

    async fn run(&self, _session: &Session) -> Result<Answer, AdminError> {
        Ok(self.0.clone())
    }
}
