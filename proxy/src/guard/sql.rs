//! Enough of SQL's lexical rules to tell words from literals and comments. Off the hot path: only texts that
//! mention something of interest are read here.

const TARGET: &[u8] = b"synchronous_commit";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    /// A bare or quoted identifier, or a keyword.
    Word(&'a [u8]),
    /// A string or dollar-quoted literal, without its quotes.
    Literal(&'a [u8]),
    /// A string literal with escapes in it: what it says is not read.
    Escaped,
    Semicolon,
    Other(u8),
}

/// Cuts a text into tokens; comments and spaces are skipped. Unterminated things reach to the end.
struct Tokens<'a>(&'a [u8]);

fn is_word_start(b: u8) -> bool {
    b.is_ascii_alphabetic() || b == b'_' || b >= 0x80
}

fn is_word(b: u8) -> bool {
    is_word_start(b) || b.is_ascii_digit() || b == b'$'
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

impl<'a> Tokens<'a> {
    fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = tail;
        head
    }

    fn skip_block_comment(&mut self) {
        let mut depth = 0usize;
        while !self.0.is_empty() {
            if self.0.starts_with(b"/*") {
                depth += 1;
                self.take(2);
            } else if self.0.starts_with(b"*/") {
                depth -= 1;
                self.take(2);
                if depth == 0 {
                    return;
                }
            } else {
                self.take(1);
            }
        }
    }

    /// What stands between quotes; a doubled quote does not end it, nor one after a backslash when `escapes`.
    fn quoted(&mut self, quote: u8, escapes: bool) -> &'a [u8] {
        let mut at = 1;
        while at < self.0.len() {
            match self.0[at] {
                b'\\' if escapes => at += 2,
                b if b == quote && self.0.get(at + 1) == Some(&quote) => at += 2,
                b if b == quote => break,
                _ => at += 1,
            }
        }
        let whole = self.take(at + 1);
        &whole[1..at.min(whole.len())]
    }

    fn dollar_quoted(&mut self) -> Option<&'a [u8]> {
        let end = self.0[1..].iter().position(|b| *b == b'$')? + 2;
        let tag = &self.0[..end];
        let inner = &tag[1..tag.len() - 1];
        if inner.iter().any(|b| !is_word(*b)) || inner.first().is_some_and(u8::is_ascii_digit) {
            return None;
        }
        self.take(end);
        let length = find(self.0, tag).unwrap_or(self.0.len());
        let body = self.take(length);
        self.take(end);
        Some(body)
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let first = *self.0.first()?;
            let second = self.0.get(1).copied().unwrap_or(0);
            match first {
                b if b.is_ascii_whitespace() => drop(self.take(1)),
                b'-' if second == b'-' => {
                    let length =
                        self.0.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(self.0.len());
                    self.take(length);
                }
                b'/' if second == b'*' => self.skip_block_comment(),
                b';' => {
                    self.take(1);
                    return Some(Token::Semicolon);
                }
                b'\'' => return Some(Token::Literal(self.quoted(b'\'', false))),
                b'e' | b'E' if second == b'\'' => {
                    self.take(1);
                    let text = self.quoted(b'\'', true);
                    return Some(if text.contains(&b'\\') { Token::Escaped } else { Token::Literal(text) });
                }
                b'"' => return Some(Token::Word(self.quoted(b'"', false))),
                b'$' => {
                    if let Some(body) = self.dollar_quoted() {
                        return Some(Token::Literal(body));
                    }
                    self.take(1);
                    return Some(Token::Other(b'$'));
                }
                b if is_word_start(b) => {
                    let length = self.0.iter().position(|b| !is_word(*b)).unwrap_or(self.0.len());
                    return Some(Token::Word(self.take(length)));
                }
                other => {
                    self.take(1);
                    return Some(Token::Other(other));
                }
            }
        }
    }
}

fn contains_ignoring_case(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w.eq_ignore_ascii_case(needle))
}

/// What one statement was seen to hold.
#[derive(Default)]
struct Statement<'a> {
    first: &'a [u8],
    mentions: bool,
    /// A word that makes settings: `SET`, `set_config`, or the keywords of something with a body of its own.
    set_word: bool,
    set_config: bool,
    has_body: bool,
    /// A literal that holds both the name and the word SET: text that may be executed.
    executable_literal: bool,
}

impl<'a> Statement<'a> {
    fn read(&mut self, token: Token<'a>) {
        match token {
            Token::Word(word) => {
                if self.first.is_empty() {
                    self.first = word;
                }
                let is = |w: &[u8]| word.eq_ignore_ascii_case(w);
                self.mentions |= is(TARGET);
                self.set_word |= is(b"set");
                self.set_config |= contains_ignoring_case(word, b"set_config");
                self.has_body |= is(b"function") || is(b"procedure") || is(b"routine");
            }
            Token::Literal(text) if contains_ignoring_case(text, TARGET) => {
                self.mentions = true;
                self.executable_literal |=
                    mentions_word(text, b"set") || contains_ignoring_case(text, b"set_config");
            }
            _ => {}
        }
    }

    fn may_set(&self) -> bool {
        if !self.mentions {
            return false;
        }
        if self.set_config || self.executable_literal {
            return true;
        }
        let first = |words: &[&[u8]]| words.iter().any(|w| self.first.eq_ignore_ascii_case(w));
        const HARMLESS: [&[u8]; 17] = [
            b"select", b"with", b"insert", b"update", b"delete", b"merge", b"values", b"table", b"show",
            b"reset", b"explain", b"comment", b"fetch", b"copy", b"declare", b"analyze", b"drop",
        ];
        if first(&HARMLESS) || self.first.is_empty() {
            return false;
        }
        if first(&[b"create"]) {
            return self.has_body || self.set_word;
        }
        true
    }
}

/// Whether any statement of the text could set it, by itself or by what it executes.
pub fn may_set_synchronous_commit(text: &[u8]) -> bool {
    let mut statement = Statement::default();
    for token in Tokens(text) {
        if token == Token::Semicolon {
            if statement.may_set() {
                return true;
            }
            statement = Statement::default();
        } else {
            statement.read(token);
        }
    }
    statement.may_set()
}

/// Whether that value of `client_min_messages` keeps warnings from the client; what is not known may.
pub fn hides_warnings(value: &[u8]) -> bool {
    let harmless: [&[u8]; 10] = [
        b"debug", b"debug1", b"debug2", b"debug3", b"debug4", b"debug5", b"log", b"info", b"notice",
        b"warning",
    ];
    !harmless.iter().any(|h| value.eq_ignore_ascii_case(h)) && !value.eq_ignore_ascii_case(b"default")
}

/// Whether a text that mentions `client_min_messages` may set it so that warnings are hidden.
pub fn may_hide_warnings(text: &[u8]) -> bool {
    const NAME: &[u8] = b"client_min_messages";
    let mut words: Vec<&[u8]> = Vec::new();
    let mut mentions = false;
    let hides = |words: &[&[u8]]| match words {
        [first, ..] if first.eq_ignore_ascii_case(b"show") || first.eq_ignore_ascii_case(b"reset") => false,
        [set, .., value] if set.eq_ignore_ascii_case(b"set") => hides_warnings(value),
        _ => true,
    };
    for token in Tokens(text) {
        match token {
            Token::Semicolon => {
                if mentions && hides(&words) {
                    return true;
                }
                (mentions, words) = (false, Vec::new());
            }
            Token::Word(word) | Token::Literal(word) => {
                mentions |= contains_ignoring_case(word, NAME);
                // Of a long statement it is not the last word that matters.
                if words.len() < MAX_SET_WORDS {
                    words.push(word);
                }
            }
            Token::Escaped => words.push(b""),
            Token::Other(_) => {}
        }
    }
    mentions && (words.len() >= MAX_SET_WORDS || hides(&words))
}

/// More words than `SET LOCAL name TO value` has.
const MAX_SET_WORDS: usize = 6;

/// Whether `set_config` is called with a name that is not written out: neither a plain literal nor, where a Bind message
/// brings it, a parameter.
pub fn composes_setting_name(text: &[u8], by_bind: bool) -> bool {
    let mut tokens = Tokens(text);
    while let Some(token) = tokens.next() {
        let calls = match token {
            Token::Word(word) => contains_ignoring_case(word, b"set_config"),
            // A body that is executed: what it calls is not looked at.
            Token::Literal(text) => contains_ignoring_case(text, b"set_config"),
            _ => false,
        };
        if calls && !(matches!(token, Token::Word(_)) && is_written_out(&mut tokens, by_bind)) {
            return true;
        }
    }
    false
}

/// Whether an opening parenthesis, one literal or parameter, and a comma follow.
fn is_written_out(tokens: &mut Tokens<'_>, by_bind: bool) -> bool {
    if tokens.next() != Some(Token::Other(b'(')) {
        return false;
    }
    match tokens.next() {
        Some(Token::Literal(_)) => tokens.next() == Some(Token::Other(b',')),
        Some(Token::Other(b'$')) if by_bind => {
            tokens.find(|t| !matches!(t, Token::Other(b'0'..=b'9'))) == Some(Token::Other(b','))
        }
        _ => false,
    }
}

/// Whether a word stands in the text, outside of longer words.
pub fn mentions_word(text: &[u8], wanted: &[u8]) -> bool {
    text.split(|b| !is_word(*b)).any(|w| w.eq_ignore_ascii_case(wanted))
}

/// Whether a statement of the text begins with that word.
pub fn may_begin_statement(text: &[u8], wanted: &[u8]) -> bool {
    let mut at_start = true;
    for token in Tokens(text) {
        match token {
            Token::Semicolon => at_start = true,
            Token::Word(word) if at_start && word.eq_ignore_ascii_case(wanted) => return true,
            _ => at_start = false,
        }
    }
    false
}

/// Whether something follows the first statement.
pub fn has_several_statements(text: &[u8]) -> bool {
    let mut ended = false;
    for token in Tokens(text) {
        match token {
            Token::Semicolon => ended = true,
            _ if ended => return true,
            _ => {}
        }
    }
    false
}

/// Whether a text makes a temporary table, view or sequence.
pub fn makes_temp(text: &[u8]) -> bool {
    let mut before: &[u8] = b"";
    for word in text.split(|b| !is_word(*b)).filter(|w| !w.is_empty()) {
        let is_temp = word.eq_ignore_ascii_case(b"temp") || word.eq_ignore_ascii_case(b"temporary");
        let makes: [&[u8]; 5] = [b"create", b"into", b"local", b"global", b"replace"];
        if is_temp && makes.iter().any(|w| before.eq_ignore_ascii_case(w))
            || word.eq_ignore_ascii_case(b"pg_temp")
        {
            return true;
        }
        before = word;
    }
    false
}

/// Settings with a dot in their names that the text makes for its session, and not only for its transaction: by `SET` at
/// the beginning of a statement, or by `set_config`. None: of one the name is not written out.
pub fn own_settings(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    let mut tokens = Tokens(text);
    let mut at_start = true;
    while let Some(token) = tokens.next() {
        match token {
            Token::Semicolon => {
                at_start = true;
                continue;
            }
            Token::Word(word) if at_start && word.eq_ignore_ascii_case(b"set") => {
                let name = set_name(&mut tokens);
                names.extend(name.filter(|name| name.contains(&b'.')));
            }
            Token::Word(word) if contains_ignoring_case(word, b"set_config") => {
                let (name, is_local) = set_config_arguments(&mut tokens);
                match name {
                    _ if is_local => {}
                    Some(name) => names.extend(Some(name).filter(|name| name.contains(&b'.'))),
                    None => return None,
                }
            }
            _ => {}
        }
        at_start = false;
    }
    Some(names)
}

/// The name after `SET`; none after `SET LOCAL`.
fn set_name(tokens: &mut Tokens<'_>) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut ends_part = false;
    loop {
        let before = tokens.0;
        // A quoted name keeps its case.
        let quoted = before.trim_ascii_start().first() == Some(&b'"');
        match tokens.next()? {
            Token::Word(word) if !ends_part => {
                if name.is_empty() && !quoted && word.eq_ignore_ascii_case(b"session") {
                    continue;
                }
                if name.is_empty() && !quoted && word.eq_ignore_ascii_case(b"local") {
                    return None;
                }
                name.extend(word.iter().map(|b| if quoted { *b } else { b.to_ascii_lowercase() }));
                ends_part = true;
            }
            Token::Other(b'.') if ends_part => {
                name.push(b'.');
                ends_part = false;
            }
            _ => {
                tokens.0 = before;
                return Some(name);
            }
        }
    }
}

/// The first argument of a call of `set_config`, if it is a literal, and whether the last is `true`.
fn set_config_arguments(tokens: &mut Tokens<'_>) -> (Option<Vec<u8>>, bool) {
    if tokens.next() != Some(Token::Other(b'(')) {
        return (None, false);
    }
    let mut depth = 1;
    let mut argument: Vec<Token<'_>> = Vec::new();
    let mut first = None;
    while depth > 0 {
        let Some(token) = tokens.next() else { return (None, false) };
        match token {
            Token::Semicolon => return (None, false),
            Token::Other(b'(') => depth += 1,
            Token::Other(b')') => depth -= 1,
            Token::Other(b',') if depth == 1 => {
                first = first.or(Some(std::mem::take(&mut argument)));
                argument.clear();
                continue;
            }
            _ => {}
        }
        if depth > 0 && argument.len() < MAX_SET_WORDS {
            argument.push(token);
        }
    }
    let is_local = matches!(argument[..], [Token::Word(word)] if word.eq_ignore_ascii_case(b"true"));
    let name = match first.as_deref() {
        Some([Token::Literal(name)]) => Some(name.to_vec()),
        _ => None,
    };
    (name, is_local)
}
