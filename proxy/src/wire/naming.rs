//! The prepared statements of a client that shares its servers with others: under its own names here, under names of ours
//! on whatever server it has. Pure.
//!
//! A message that names a statement is rewritten on its way to the server. If the server at hand does not have the
//! statement, a Parse of ours goes before it, in the same batch, and its ParseComplete stays here; if it fails, the client
//! gets the error in answer to its own message.

use super::header::{HEADER_BYTES, c_string};
use super::reply::{begin, end, put_c_string};
use super::statements::{NOBODYS_NAME, Named, OnServer, Serial, Statement, Statements};
use crate::guard::after_word;
use std::collections::VecDeque;
use std::sync::Arc;

/// The longest unnamed statement that is remembered behind the batch in which it was prepared.
const MAX_UNNAMED_BYTES: usize = 64 * 1024;

/// Statements that one client may have; beyond what is remembered of them, their names alone.
const MAX_NAMED: usize = 16 * 1024;

/// A Parse that was sent and not answered, by its number among all of the session.
#[derive(Debug)]
struct Sent {
    number: u32,
    what: Parse,
}

#[derive(Debug)]
enum Parse {
    /// Of the client, under a name.
    Named(Box<[u8]>, Arc<Statement>, Serial),
    /// Of the client, without a name.
    Unnamed,
    /// Of ours; none: of the unnamed statement.
    Ours(Option<(Arc<Statement>, Serial)>),
}

/// What is sent in place of a message's first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// So many bytes are replaced.
    pub head: usize,
    /// A Parse of ours goes before the message.
    pub parses: bool,
}

#[derive(Debug)]
pub struct Naming {
    all: Arc<Statements>,
    named: Named,
    /// The unnamed statement: what its Parse has behind the name.
    unnamed: Option<Vec<u8>>,
    /// The server at hand has it.
    unnamed_here: bool,
    server: OnServer,
    sent: VecDeque<Sent>,
}

impl Naming {
    pub fn new(all: Arc<Statements>) -> Naming {
        let (named, server, sent) = (Named::new(), OnServer::default(), VecDeque::new());
        Naming { all, named, unnamed: None, unnamed_here: false, server, sent }
    }

    /// The session has another server, which has these statements.
    pub fn attach(&mut self, server: OnServer) {
        self.server = server;
        self.unnamed_here = false;
    }

    /// It has none any more: what it had goes on with it.
    pub fn detach(&mut self) -> OnServer {
        self.sent.clear();
        self.unnamed_here = false;
        std::mem::take(&mut self.server)
    }

    /// The client has as many statements as it may.
    pub fn is_full(&self) -> bool {
        self.named.len() + self.sent.len() >= MAX_NAMED
    }

    /// A message of the client of which `seen` is there, behind `parses` Parse messages. `whole`: that is all of it, and if
    /// it is a Parse with a name, it is remembered; otherwise the session stays at this server. None: it is sent as it is.
    /// Otherwise `out`, which is empty, is what replaces its beginning.
    pub fn rewrite(&mut self, seen: &[u8], whole: bool, parses: u32, out: &mut Vec<u8>) -> Option<Rewritten> {
        let (header, body) = seen.split_first_chunk::<HEADER_BYTES>()?;
        match header[0] {
            b'Q' => {
                // It ends the unnamed statement.
                self.unnamed = None;
                self.unnamed_here = false;
                let name = if whole { deallocated(body)? } else { return None };
                self.deallocate_by_query(seen.len(), &name, out)
            }
            b'P' => self.parse(header, body, whole, parses, out),
            b'B' => {
                let (portal, rest) = c_string(body)?;
                let (name, _) = c_string(rest)?;
                self.refer(Reference { header, before: &body[..=portal.len()], name }, parses, out)
            }
            b'D' => {
                let (name, _) = c_string(body.strip_prefix(b"S")?)?;
                self.refer(Reference { header, before: b"S", name }, parses, out)
            }
            b'C' => {
                let (name, _) = c_string(body.strip_prefix(b"S")?)?;
                if name.is_empty() {
                    self.unnamed = None;
                    return None;
                }
                self.named.remove(name);
                // Others may use it. To close what is not there is no error.
                Some(Reference { header, before: b"S", name }.to(NOBODYS_NAME, out))
            }
            _ => None,
        }
    }

    fn parse(
        &mut self,
        header: &[u8; HEADER_BYTES],
        body: &[u8],
        whole: bool,
        parses: u32,
        out: &mut Vec<u8>,
    ) -> Option<Rewritten> {
        let (name, rest) = c_string(body)?;
        if name.is_empty() {
            if whole && let Some(name) = deallocated(rest) {
                return self.deallocate_by_parse(HEADER_BYTES + body.len(), &name, parses, out);
            }
            self.unnamed_here = true;
            self.sent.push_back(Sent { number: parses, what: Parse::Unnamed });
            if whole && rest.len() <= MAX_UNNAMED_BYTES {
                let kept = self.unnamed.get_or_insert_default();
                kept.clear();
                kept.extend_from_slice(rest);
            } else {
                self.unnamed = None;
            }
            return None;
        }
        let serial = self.all.serial();
        // One that is not all here can be used on this server only; the session stays there for it.
        let statement = if whole { self.all.statement(rest) } else { self.all.partial() };
        self.sent.push_back(Sent { number: parses, what: Parse::Named(name.into(), statement, serial) });
        Some(Reference { header, before: b"", name }.to(&serial.name(), out))
    }

    /// A message that uses a statement.
    fn refer(&mut self, message: Reference<'_>, parses: u32, out: &mut Vec<u8>) -> Option<Rewritten> {
        if message.name.is_empty() {
            if self.unnamed_here {
                return None;
            }
            let Some(unnamed) = &self.unnamed else {
                // Not that of another client.
                return Some(message.to(NOBODYS_NAME, out));
            };
            put_parse(out, b"", unnamed);
            self.unnamed_here = true;
            self.sent.push_back(Sent { number: parses, what: Parse::Ours(None) });
            return Some(Rewritten { parses: true, ..message.to(b"", out) });
        }
        // One that is on its way counts as if it were there: if it fails, so does this.
        let on_its_way = self.sent.iter().rev().find_map(|sent| match &sent.what {
            Parse::Named(name, _, serial) if **name == *message.name => Some(*serial),
            _ => None,
        });
        if let Some(serial) = on_its_way {
            return Some(message.to(&serial.name(), out));
        }
        let Some((statement, since)) = self.named.get(message.name).cloned() else {
            return Some(message.to(NOBODYS_NAME, out));
        };
        if let Some(serial) = self.at_hand(&statement, since) {
            return Some(message.to(&serial.name(), out));
        }
        let serial = self.prepare(statement, parses, out);
        Some(Rewritten { parses: true, ..message.to(&serial.name(), out) })
    }

    /// As what the server has the statement, or will have it.
    fn at_hand(&mut self, statement: &Arc<Statement>, since: Serial) -> Option<Serial> {
        let ours = self.sent.iter().rev().find_map(|sent| match &sent.what {
            Parse::Ours(Some((sent, serial))) if Arc::ptr_eq(sent, statement) => Some(*serial),
            _ => None,
        });
        ours.filter(|serial| *serial >= since).or_else(|| self.server.find(statement, since))
    }

    /// Puts a Parse of ours.
    fn prepare(&mut self, statement: Arc<Statement>, parses: u32, out: &mut Vec<u8>) -> Serial {
        let serial = self.all.serial();
        put_parse(out, &serial.name(), statement.body());
        self.sent.push_back(Sent { number: parses, what: Parse::Ours(Some((statement, serial))) });
        serial
    }

    /// DEALLOCATE by a query, of a statement that was prepared by the protocol.
    fn deallocate_by_query(&mut self, total: usize, name: &[u8], out: &mut Vec<u8>) -> Option<Rewritten> {
        let (statement, _) = self.named.remove(name)?;
        let start = begin(out, b'Q');
        if let Some(serial) = self.server.find(&statement, Serial::default()) {
            put_c_string(out, &[b"DEALLOCATE \"", &serial.name()[..], b"\""].concat());
        } else {
            // It is not on this server, and something must answer.
            let nobodys = NOBODYS_NAME;
            put_c_string(
                out,
                &[b"PREPARE \"", nobodys, b"\" AS SELECT; DEALLOCATE \"", nobodys, b"\""].concat(),
            );
        }
        end(out, start);
        self.server.remove(&statement);
        Some(Rewritten { head: total, parses: false })
    }

    /// The same by an unnamed statement.
    fn deallocate_by_parse(
        &mut self,
        total: usize,
        name: &[u8],
        parses: u32,
        out: &mut Vec<u8>,
    ) -> Option<Rewritten> {
        let Some((statement, _)) = self.named.remove(name) else {
            self.unnamed = None;
            self.unnamed_here = true;
            self.sent.push_back(Sent { number: parses, what: Parse::Unnamed });
            return None;
        };
        let at_hand = self.at_hand(&statement, Serial::default());
        let ours = at_hand.is_none();
        let serial = at_hand.unwrap_or_else(|| self.prepare(Arc::clone(&statement), parses, out));
        put_parse(out, b"", &[b"DEALLOCATE \"", &serial.name()[..], b"\"\0\0\0"].concat());
        self.unnamed = None;
        self.unnamed_here = true;
        self.sent.push_back(Sent { number: parses.wrapping_add(u32::from(ours)), what: Parse::Unnamed });
        self.server.remove(&statement);
        Some(Rewritten { head: total, parses: ours })
    }

    /// `ParseComplete` of the Parse with that number. False: it was ours.
    pub fn parse_complete(&mut self, number: u32) -> bool {
        if self.sent.front().is_none_or(|first| first.number != number) {
            return true;
        }
        match self.sent.pop_front().map(|sent| sent.what) {
            Some(Parse::Named(name, statement, serial)) => {
                self.server.add(Arc::clone(&statement), serial);
                self.named.insert(name, (statement, serial));
                true
            }
            Some(Parse::Ours(ours)) => {
                if let Some((statement, serial)) = ours {
                    self.server.add(statement, serial);
                }
                false
            }
            Some(Parse::Unnamed) | None => true,
        }
    }

    /// The answer to a Sync has come, before which so many Parse messages had been sent: those without an answer failed.
    pub fn synced(&mut self, parses: u32) {
        while self.sent.front().is_some_and(|first| (parses.wrapping_sub(first.number) as i32) > 0) {
            self.sent.pop_front();
            // If it was that of the unnamed one, the server may have another client's.
            self.unnamed_here = false;
        }
    }

    /// A command was completed.
    pub fn complete(&mut self, tag: &[u8]) {
        if matches!(tag, b"DISCARD ALL" | b"DEALLOCATE ALL") {
            self.server.clear();
            self.named.clear();
        }
    }

    /// Statements that the server at hand is to close.
    pub fn to_close(&mut self) -> Vec<Serial> {
        self.server.to_close()
    }

    /// How many statements the client has.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }
}

/// A message with a statement's name in it.
#[derive(Clone, Copy)]
struct Reference<'a> {
    header: &'a [u8; HEADER_BYTES],
    /// What stands before the name.
    before: &'a [u8],
    name: &'a [u8],
}

impl Reference<'_> {
    /// Puts its beginning, with another name.
    fn to(self, name: &[u8], out: &mut Vec<u8>) -> Rewritten {
        let [tag, length @ ..] = self.header;
        // The whole message may be longer than what is seen of it; a length that is nonsense was refused before.
        let length = u32::from_be_bytes(*length) as usize + name.len() - self.name.len();
        out.push(*tag);
        out.extend_from_slice(&(length as u32).to_be_bytes());
        out.extend_from_slice(self.before);
        put_c_string(out, name);
        Rewritten { head: HEADER_BYTES + self.before.len() + self.name.len() + 1, parses: false }
    }
}

fn put_parse(out: &mut Vec<u8>, name: &[u8], body: &[u8]) {
    let start = begin(out, b'P');
    put_c_string(out, name);
    out.extend_from_slice(body);
    end(out, start);
}

/// The name in a DEALLOCATE of one statement, as some drivers send it. `text` may have something behind its end.
fn deallocated(text: &[u8]) -> Option<Vec<u8>> {
    let text = c_string(text).map_or(text, |(text, _)| text).trim_ascii();
    let text = text.strip_suffix(b";").unwrap_or(text).trim_ascii_end();
    let text = after_word(text, b"deallocate")?;
    let text = after_word(text, b"prepare").unwrap_or(text);
    let quoted = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""));
    let name = quoted.map_or_else(|| text.to_ascii_lowercase(), <[u8]>::to_vec);
    let is_plain = !name.iter().any(|b| matches!(b, b'"' | b';'));
    (is_plain && (quoted.is_some() || name != b"all")).then_some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        let start = begin(&mut out, tag);
        parts.iter().for_each(|part| out.extend_from_slice(part));
        end(&mut out, start);
        out
    }

    /// A session and the server's side of it: every message as it is sent, and the number of Parse messages.
    struct Session {
        naming: Naming,
        parses: u32,
    }

    impl Session {
        fn new(all: &Arc<Statements>) -> Session {
            Session { naming: Naming::new(Arc::clone(all)), parses: 0 }
        }

        fn send(&mut self, message: &[u8]) -> Vec<Vec<u8>> {
            let mut out = Vec::new();
            if let Some(rewritten) = self.naming.rewrite(message, true, self.parses, &mut out) {
                self.parses += u32::from(rewritten.parses);
                out.extend_from_slice(&message[rewritten.head..]);
            } else {
                out.extend_from_slice(message);
            }
            self.parses += u32::from(message[0] == b'P');
            let mut sent = Vec::new();
            while !out.is_empty() {
                let length = u32::from_be_bytes(out[1..5].try_into().unwrap()) as usize + 1;
                sent.push(out.drain(..length).collect());
            }
            sent
        }

        fn tags(&mut self, message: &[u8]) -> String {
            self.send(message).iter().map(|m| m[0] as char).collect()
        }
    }

    const SELECT: &[u8] = b"select 1\0\0\0";

    fn name(serial: u64) -> Vec<u8> {
        format!("\u{1}q{serial:016x}\0").into_bytes()
    }

    #[test]
    fn a_statement_goes_with_its_client_from_server_to_server() {
        let all = Arc::new(Statements::default());
        let mut a = Session::new(&all);
        assert_eq!(a.send(&message(b'P', &[b"s\0", SELECT])), [message(b'P', &[&name(0), SELECT])]);
        // Before its answer, in the same batch.
        let bind = message(b'B', &[b"\0s\0", b"rest"]);
        assert_eq!(a.send(&bind), [message(b'B', &[b"\0", &name(0), b"rest"])]);
        assert!(a.naming.parse_complete(0), "the client waits for it");
        a.naming.synced(1);
        let first = a.naming.detach();
        a.naming.attach(OnServer::default());
        let describe = message(b'D', &[b"Ss\0"]);
        let sent = [message(b'P', &[&name(1), SELECT]), message(b'D', &[b"S", &name(1)])];
        assert_eq!(a.send(&describe), sent);
        assert_eq!(a.send(&bind), [message(b'B', &[b"\0", &name(1), b"rest"])], "it is on its way");
        assert!(!a.naming.parse_complete(1), "the client has not asked for it");
        // Another client finds it there, under a name of its own, unless it has prepared it since.
        let mut b = Session::new(&all);
        b.send(&message(b'P', &[b"other\0", SELECT]));
        b.naming.parse_complete(0);
        b.naming.attach(first);
        assert_eq!(b.tags(&message(b'B', &[b"\0other\0"])), "PB");
        assert!(!b.naming.parse_complete(1));
        a.naming.attach(b.naming.detach());
        assert_eq!(a.tags(&bind), "B", "that of the other is newer");
        assert_eq!(a.send(&message(b'B', &[b"\0none\0"])), [message(b'B', &[b"\0\x01q\0"])]);
        assert_eq!(a.send(&message(b'C', &[b"Ss\0"])), [message(b'C', &[b"S\x01q\0"])], "others use it");
        assert_eq!(a.send(&bind), [message(b'B', &[b"\0\x01q\0", b"rest"])]);
        assert_eq!(a.tags(&message(b'E', &[b"\0", &[0; 4]])), "E");
    }

    #[test]
    fn nobody_gets_the_unnamed_statement_of_another() {
        let all = Arc::new(Statements::default());
        let mut a = Session::new(&all);
        let (parse, bind) = (message(b'P', &[b"\0", SELECT]), message(b'B', &[b"\0\0", b"rest"]));
        assert_eq!(a.send(&bind), [message(b'B', &[b"\0\x01q\0", b"rest"])], "it has none");
        assert_eq!((a.send(&parse), a.send(&bind)), (vec![parse.clone()], vec![bind.clone()]));
        assert!(a.naming.parse_complete(0));
        a.naming.attach(OnServer::default());
        assert_eq!(a.send(&bind), [parse.clone(), bind.clone()], "prepared again at another server");
        assert!(!a.naming.parse_complete(1));
        assert_eq!(a.tags(&bind), "B");
        // A Parse that was not carried out leaves whatever was there.
        a.send(&parse);
        a.naming.synced(3);
        assert_eq!(a.tags(&bind), "PB");
        a.naming.parse_complete(3);
        // A query ends it.
        assert_eq!(a.tags(&message(b'Q', &[b"select 2\0"])), "Q");
        assert_eq!(a.send(&bind), [message(b'B', &[b"\0\x01q\0", b"rest"])]);
    }

    #[test]
    fn what_failed_is_not_there() {
        let all = Arc::new(Statements::default());
        let mut a = Session::new(&all);
        a.send(&message(b'P', &[b"s\0", b"select nonsense\0\0\0"]));
        a.send(&message(b'P', &[b"t\0", SELECT]));
        a.naming.synced(2);
        for statement in [b"s", b"t"] {
            let bind = message(b'B', &[b"\0", statement, b"\0"]);
            assert_eq!(a.send(&bind), [message(b'B', &[b"\0\x01q\0"])]);
        }
        // One that was there before and was prepared again in vain.
        a.send(&message(b'P', &[b"t\0", SELECT]));
        assert!(a.naming.parse_complete(2));
        a.naming.attach(OnServer::default());
        assert_eq!(a.tags(&message(b'B', &[b"\0t\0"])), "PB");
        a.naming.synced(4);
        assert_eq!(a.tags(&message(b'B', &[b"\0t\0"])), "PB", "the next use finds out again");
    }

    #[test]
    fn deallocate_takes_only_the_client_s() {
        for (text, name) in [
            (&b"DEALLOCATE _pg3_0\0"[..], Some(&b"_pg3_0"[..])),
            (b" deallocate prepare S_1 ; \0", Some(b"s_1")),
            (b"DEALLOCATE \"S_1\"\0\0\0", Some(b"S_1")),
            (b"DEALLOCATE ALL\0", None),
            (b"DEALLOCATE a; DEALLOCATE b\0", None),
            (b"DEALLOCATE\0", None),
            (b"select deallocate\0", None),
        ] {
            assert_eq!(deallocated(text).as_deref(), name, "{}", String::from_utf8_lossy(text));
        }
        let all = Arc::new(Statements::default());
        let mut a = Session::new(&all);
        for (number, statement) in [b"s", b"t", b"u"].into_iter().enumerate() {
            a.send(&message(b'P', &[statement, b"\0select ", statement, b"\0\0\0"]));
            a.naming.parse_complete(number as u32);
        }
        let query = |text: &[u8]| message(b'Q', &[text, b"\0"]);
        let gone = [message(b'Q', &[b"DEALLOCATE \"", name(0).strip_suffix(b"\0").unwrap(), b"\"\0"])];
        assert_eq!(a.send(&query(b"DEALLOCATE s")), gone);
        assert_eq!(a.send(&query(b"DEALLOCATE s")), [query(b"DEALLOCATE s")], "it does not exist");
        a.naming.attach(OnServer::default());
        let sent = a.send(&query(b"DEALLOCATE t"));
        assert!(sent[0].windows(7).any(|w| w == b"PREPARE") && sent.len() == 1, "it is not there");
        assert_eq!(a.tags(&message(b'P', &[b"\0DEALLOCATE u\0\0\0"])), "PP");
        assert!(!a.naming.parse_complete(3) && a.naming.parse_complete(4) && a.naming.is_empty());
    }
}
