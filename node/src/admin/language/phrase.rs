//! One order being read, word by word. Every complaint says where, and what would have been right.

use super::lexer::{Lexeme, Token};
use super::suggest::closest;
use crate::admin::error::AdminError;
use quorate_model::operation::MAX_KEY;
use quorate_model::{OperationId, ReplicaId};

/// `server.database`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseName {
    pub server: String,
    pub database: String,
}

impl std::fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.server, self.database)
    }
}

pub struct Phrase<'a> {
    lexemes: &'a [Lexeme],
    next: usize,
    /// Position just behind the order, where something missing is reported.
    end: usize,
}

impl<'a> Phrase<'a> {
    pub fn new(lexemes: &'a [Lexeme]) -> Self {
        let end = lexemes.last().map_or(1, |l| l.at + l.raw.chars().count().max(1));
        Phrase { lexemes, next: 0, end }
    }

    pub fn peek(&self) -> Option<&'a Lexeme> {
        self.lexemes.get(self.next)
    }

    /// The next word, if it is an unquoted one.
    pub fn peek_word(&self) -> Option<&'a str> {
        match self.peek()?.token {
            Token::Word(ref word) => Some(word),
            _ => None,
        }
    }

    pub fn skip(&mut self) {
        self.next += 1;
    }

    /// Consumes the keyword if it comes next.
    pub fn has(&mut self, keyword: &str) -> bool {
        let found = self.peek_word().is_some_and(|w| w.eq_ignore_ascii_case(keyword));
        self.next += usize::from(found);
        found
    }

    pub fn keyword(&mut self, keyword: &str) -> Result<(), AdminError> {
        if self.has(keyword) { Ok(()) } else { Err(self.unexpected(&[keyword])) }
    }

    /// A name: an unquoted word or a quoted one.
    pub fn name(&mut self, what: &str) -> Result<String, AdminError> {
        let name = match self.peek().map(|l| &l.token) {
            Some(Token::Word(name) | Token::Quoted(name)) => name.clone(),
            _ => return Err(self.wanted(what)),
        };
        self.skip();
        Ok(name)
    }

    pub fn database(&mut self) -> Result<DatabaseName, AdminError> {
        let server = self.name("a database as server.database")?;
        if self.peek().map(|l| &l.token) != Some(&Token::Symbol('.')) {
            let hint = format!("A database is named with its server, as in {server}.app");
            return Err(self.wanted("\".\" and the database's name").with_hint(hint));
        }
        self.skip();
        let database = self.name("the database's name")?;
        Ok(DatabaseName { server, database })
    }

    pub fn text(&mut self, what: &str) -> Result<String, AdminError> {
        let Some(Token::Text(text)) = self.peek().map(|l| &l.token) else {
            return Err(self.wanted(what));
        };
        self.skip();
        Ok(text.clone())
    }

    /// `'7'` or `7`, or any other text in quotes.
    pub fn text_or_number(&mut self, what: &str) -> Result<String, AdminError> {
        if let Some(Token::Number(number)) = self.peek().map(|l| &l.token) {
            let number = number.to_string();
            self.skip();
            return Ok(number);
        }
        self.text(what)
    }

    /// `7`, `op7` or either in quotes.
    pub fn operation(&mut self) -> Result<OperationId, AdminError> {
        let id = match self.peek().map(|l| &l.token) {
            Some(Token::Number(id)) => Some(*id),
            Some(Token::Word(text) | Token::Text(text) | Token::Quoted(text)) => {
                text.strip_prefix("op").unwrap_or(text).parse().ok()
            }
            _ => None,
        };
        let id = id.ok_or_else(|| self.wanted("the id of an operation, as in op7"))?;
        self.skip();
        Ok(OperationId(id))
    }

    /// `KEY 'k'`, if it comes next: the client's idempotency key.
    pub fn key(&mut self) -> Result<Option<String>, AdminError> {
        if !self.has("KEY") {
            return Ok(None);
        }
        let key = self.text("the key, in quotes")?;
        // Told before anything is looked up: a place that is missing would hide it.
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(AdminError::new("42602", format!("a key has 1 to {MAX_KEY} bytes")));
        }
        Ok(Some(key))
    }

    pub fn symbol(&mut self, symbol: char) -> Result<(), AdminError> {
        if self.peek().map(|l| &l.token) != Some(&Token::Symbol(symbol)) {
            return Err(self.wanted(&format!("\"{symbol}\"")));
        }
        self.skip();
        Ok(())
    }

    /// `r5`, bare or in quotes.
    pub fn replica(&mut self) -> Result<ReplicaId, AdminError> {
        let id = match self.peek().map(|l| &l.token) {
            Some(Token::Word(text) | Token::Text(text) | Token::Quoted(text)) => {
                ReplicaId::from_standby_name(text)
            }
            _ => None,
        };
        let id = id.ok_or_else(|| self.wanted("a replica, as in r5"))?;
        self.skip();
        Ok(id)
    }

    pub fn end(&self) -> Result<(), AdminError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.complaint(String::new())),
        }
    }

    /// Where the next word is, or would be.
    pub fn at(&self) -> usize {
        self.peek().map_or(self.end, |l| l.at)
    }

    /// A syntax error at the next word, for which only `expected` would have been right.
    pub fn unexpected(&self, expected: &[&str]) -> AdminError {
        let found = self.peek().map_or("", |l| l.raw.as_str());
        let hint = match closest(found, expected.iter().copied()) {
            Some(word) => format!("Did you mean {word}?"),
            None => format!("Expected {}.", one_of(expected)),
        };
        self.complaint(String::new()).with_hint(hint)
    }

    fn wanted(&self, what: &str) -> AdminError {
        self.complaint(format!(": expected {what}"))
    }

    fn complaint(&self, rest: String) -> AdminError {
        let place = match self.peek() {
            Some(Lexeme { token: Token::Text(_), .. }) => "at or near a quoted text".to_owned(),
            Some(lexeme) => format!("at or near \"{}\"", lexeme.raw),
            None => "at end of input".to_owned(),
        };
        AdminError::syntax(format!("syntax error {place}{rest}"), self.at())
    }
}

fn one_of(words: &[&str]) -> String {
    match words {
        [] => "the end".to_owned(),
        [word] => (*word).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}
