//! Splits an order into words. Only what the admin language needs: names, numbers, quoted texts, a few symbols,
//! and both kinds of SQL comment. Positions are characters from 1, as PostgreSQL reports them.

use crate::admin::error::AdminError;

/// Longest query text the admin port reads, in bytes.
pub const MAX_QUERY_BYTES: usize = 64 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// An unquoted word, folded to lower case as PostgreSQL does.
    Word(String),
    /// `"a name"`: never a keyword.
    Quoted(String),
    /// `'a text'`
    Text(String),
    Number(u64),
    Symbol(char),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lexeme {
    pub token: Token,
    /// Characters from the start of the query, the first being 1.
    pub at: usize,
    /// As it was written, for messages. Empty for texts, which may be passwords.
    pub raw: String,
}

/// Reads a whole query text; `;` comes out as a symbol.
pub fn lex(query: &str) -> Result<Vec<Lexeme>, AdminError> {
    if query.len() > MAX_QUERY_BYTES {
        return Err(AdminError::new("54000", format!("an order is at most {MAX_QUERY_BYTES} bytes long")));
    }
    let chars: Vec<char> = query.chars().collect();
    let mut lexer = Lexer { chars: &chars, next: 0 };
    let mut lexemes = Vec::new();
    while lexer.skip_blanks()? {
        lexemes.push(lexer.lexeme()?);
    }
    Ok(lexemes)
}

struct Lexer<'a> {
    chars: &'a [char],
    next: usize,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.next + ahead).copied()
    }

    /// Skips white space and comments; false at the end.
    fn skip_blanks(&mut self) -> Result<bool, AdminError> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (None, _) => return Ok(false),
                (Some(c), _) if c.is_whitespace() => self.next += 1,
                (Some('-'), Some('-')) => {
                    while self.peek(0).is_some_and(|c| c != '\n') {
                        self.next += 1;
                    }
                }
                (Some('/'), Some('*')) => self.skip_block_comment()?,
                _ => return Ok(true),
            }
        }
    }

    /// Block comments nest, as in PostgreSQL.
    fn skip_block_comment(&mut self) -> Result<(), AdminError> {
        let start = self.next + 1;
        let mut depth = 0usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some('/'), Some('*')) => {
                    depth += 1;
                    self.next += 2;
                }
                (Some('*'), Some('/')) => {
                    depth -= 1;
                    self.next += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                (Some(_), _) => self.next += 1,
                (None, _) => return Err(AdminError::syntax("unterminated comment", start)),
            }
        }
    }

    fn lexeme(&mut self) -> Result<Lexeme, AdminError> {
        let start = self.next;
        let token = match self.chars[start] {
            '\'' => Token::Text(self.quoted('\'', "unterminated quoted text")?),
            '"' => Token::Quoted(self.quoted('"', "unterminated quoted name")?),
            c if c.is_ascii_digit() => self.number()?,
            c if c.is_alphabetic() || c == '_' => self.word(),
            c => {
                self.next += 1;
                Token::Symbol(c)
            }
        };
        let raw = match token {
            Token::Text(_) => String::new(),
            _ => self.chars[start..self.next].iter().collect(),
        };
        Ok(Lexeme { token, at: start + 1, raw })
    }

    fn quoted(&mut self, quote: char, unterminated: &str) -> Result<String, AdminError> {
        let start = self.next + 1;
        let mut text = String::new();
        self.next += 1;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(c), Some(d)) if c == quote && d == quote => {
                    text.push(quote);
                    self.next += 2;
                }
                (Some(c), _) if c == quote => {
                    self.next += 1;
                    return Ok(text);
                }
                (Some(c), _) => {
                    text.push(c);
                    self.next += 1;
                }
                (None, _) => return Err(AdminError::syntax(unterminated, start)),
            }
        }
    }

    fn number(&mut self) -> Result<Token, AdminError> {
        let start = self.next;
        while self.peek(0).is_some_and(|c| c.is_ascii_digit()) {
            self.next += 1;
        }
        let digits: String = self.chars[start..self.next].iter().collect();
        digits
            .parse()
            .map(Token::Number)
            .map_err(|_| AdminError::syntax(format!("number \"{digits}\" is too large"), start + 1))
    }

    /// Names of servers and databases may hold `-`, which means nothing else here; two of them begin a comment.
    fn word(&mut self) -> Token {
        let start = self.next;
        while let Some(c) = self.peek(0) {
            let joins = c == '-' && self.peek(1).is_some_and(|d| d.is_alphanumeric() || d == '_');
            if !(c.is_alphanumeric() || c == '_' || c == '$' || joins) {
                break;
            }
            self.next += 1;
        }
        let word: String = self.chars[start..self.next].iter().collect();
        Token::Word(word.to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn tokens(query: &str) -> Vec<Token> {
        lex(query).unwrap().into_iter().map(|l| l.token).collect()
    }

    #[test]
    fn reads_names_texts_and_comments() {
        let word = |w: &str| Token::Word(w.to_owned());
        assert_eq!(
            tokens("Create /* a /* nested */ one */ DATABASE my-shop.\"App\"; -- done"),
            [
                word("create"),
                word("database"),
                word("my-shop"),
                Token::Symbol('.'),
                Token::Quoted("App".to_owned()),
                Token::Symbol(';'),
            ]
        );
        assert_eq!(tokens("'it''s' 42"), [Token::Text("it's".to_owned()), Token::Number(42)]);
        assert_eq!(tokens("a--b"), [word("a")]);
    }

    #[test]
    fn says_where_it_broke() {
        for (query, at) in [("SHOW 'x", "6"), ("é /* x", "3"), ("99999999999999999999999", "1")] {
            let error = lex(query).unwrap_err();
            assert_eq!(error.code, "42601", "{query}");
            assert_eq!(error.position.map(|p| p.to_string()).as_deref(), Some(at), "{query}");
        }
    }
}
