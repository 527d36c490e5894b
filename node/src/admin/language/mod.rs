//! The admin language: from text to orders. Hand-written, because it is small and its mistakes must be answered
//! well: with a position, and with what was probably meant. The whole text is read before anything is done.

pub mod lexer;
pub mod phrase;
pub mod suggest;

use crate::admin::error::AdminError;
use crate::admin::order::Order;
use crate::admin::orders::{ORDERS, Spec, settings};
use lexer::{Lexeme, Token};
use phrase::Phrase;
use std::sync::Arc;

/// Orders one query text may hold.
pub const MAX_ORDERS: usize = 64;

/// Reads every order of a query text. Empty when there is nothing but blanks and comments.
pub fn parse(query: &str) -> Result<Vec<Arc<dyn Order>>, AdminError> {
    let lexemes = lexer::lex(query)?;
    let orders: Vec<&[Lexeme]> =
        lexemes.split(|l| l.token == Token::Symbol(';')).filter(|l| !l.is_empty()).collect();
    if orders.len() > MAX_ORDERS {
        return Err(AdminError::new("54000", format!("a query holds at most {MAX_ORDERS} orders")));
    }
    orders.into_iter().map(|lexemes| parse_one(Phrase::new(lexemes))).collect()
}

fn parse_one(mut phrase: Phrase<'_>) -> Result<Arc<dyn Order>, AdminError> {
    let mut candidates: Vec<&Spec> = ORDERS.iter().collect();
    let mut depth = 0;
    loop {
        if let Some(spec) = candidates.iter().find(|s| s.words.len() == depth) {
            let order = (spec.parse)(&mut phrase)?;
            phrase.end()?;
            return Ok(order);
        }
        let word = phrase.peek_word().unwrap_or_default();
        let matching: Vec<&Spec> =
            candidates.iter().copied().filter(|s| s.words[depth].eq_ignore_ascii_case(word)).collect();
        if matching.is_empty() {
            // Drivers ask for settings with the same word that begins our reports.
            if depth == 1 && candidates.iter().all(|s| s.words[0] == "SHOW") && settings::is_known(word) {
                return settings::parse(&mut phrase);
            }
            return Err(no_such_order(&phrase, &candidates, depth));
        }
        phrase.skip();
        candidates = matching;
        depth += 1;
    }
}

fn no_such_order(phrase: &Phrase<'_>, candidates: &[&Spec], depth: usize) -> AdminError {
    let mut expected: Vec<&str> =
        candidates.iter().filter(|s| !s.help.is_empty()).map(|s| s.words[depth]).collect();
    expected.dedup();
    let error = phrase.unexpected(&expected);
    let is_sql = depth == 0 && phrase.peek_word().is_some_and(|w| SQL_WORDS.contains(&w));
    if is_sql {
        return AdminError::new("0A000", "this is the admin port: it speaks orders, not SQL")
            .with_position(phrase.at())
            .with_hint("SHOW HELP lists the orders. SQL goes to the client port of any node.");
    }
    error
}

/// First words of SQL that people will try here.
const SQL_WORDS: [&str; 14] = [
    "insert", "update", "delete", "copy", "alter", "grant", "revoke", "with", "table", "truncate", "vacuum",
    "explain", "values", "analyze",
];

#[cfg(test)]
mod tests;
