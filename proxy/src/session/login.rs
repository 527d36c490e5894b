//! From a startup packet to a session: where it belongs, whether there is room, who it is, and a server for it.

use super::Session;
use super::attach::Attached;
use super::follow::{Denied, Follow};
use super::hello::{self, Greeting, end, greet};
use super::pooling::Member;
use super::shared::Shared;
use crate::certificate::needs_password;
use crate::config::{LOGIN_DEADLINE, MAX_SASL_BYTES};
use crate::gate::boot_time;
use crate::gate::control::RoleRecord;
use crate::gate::slot::Slot;
use crate::pool::Line;
use crate::relay::{Relay, Role, down};
use crate::route::{Target, place, route, server_of_host};
use crate::rpc::{Question, Reply};
use crate::scram::{Channel, Exchange, MECHANISM, MECHANISM_PLUS, ScramError, Verifier};
use crate::stream::Stream;
use crate::wire::header::{HEADER_BYTES, c_string};
use crate::wire::naming::Naming;
use crate::wire::reply::{
    AUTHENTICATION_OK, ErrorReply, authentication, backend_key, negotiate_version, parameter_status,
    ready_for_query,
};
use crate::wire::startup::{NEWEST_MINOR, Startup};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::UnixTime;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

/// Bytes of the server's nonce, before base64; as PostgreSQL.
const NONCE_BYTES: usize = 18;

const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// A login that does not become a session.
enum Refusal {
    /// The client left.
    Gone,
    /// It is told this.
    Told(Vec<u8>),
}

impl From<ErrorReply> for Refusal {
    fn from(reply: ErrorReply) -> Self {
        Refusal::Told(reply.bytes())
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Refusal::Told(denied.fatal())
    }
}

impl From<std::io::Error> for Refusal {
    fn from(_: std::io::Error) -> Self {
        Refusal::Gone
    }
}

/// Serves one connection from its first byte to its last. `login` is its place among those that log in.
pub async fn serve(shared: Arc<Shared>, tcp: TcpStream, login: OwnedSemaphorePermit) {
    // What a task may ever wait for is room that it always takes: logging in, which is over soon, has room of its own.
    if let Some(session) = Box::pin(begin(shared, tcp, login)).await {
        session.run().await;
    }
}

/// The session of a client that has logged in. `None`: it has not, and knows why.
async fn begin(shared: Arc<Shared>, tcp: TcpStream, login: OwnedSemaphorePermit) -> Option<Box<Session>> {
    let address = tcp.peer_addr().ok().map(|address| address.ip());
    let Greeting { stream, startup, channel } = greet(&shared, tcp).await?;
    // The relay reads ahead, so the client's stream is in it from here on.
    let slot = Arc::new(Slot::default());
    let mut relay = Relay::new(Role::Entry, stream, slot);
    let outcome = tokio::select! {
        outcome = log_in(&shared, &mut relay, address, startup, &channel) => outcome,
        () = shared.stop.cancelled() => Err(super::stopping().into()),
    };
    drop((login, channel));
    match outcome {
        Ok(made) => Some(Box::new(Session::new(shared, relay, made))),
        Err(Refusal::Gone) => None,
        Err(Refusal::Told(error)) => {
            end(relay.client, &error).await;
            None
        }
    }
}

async fn log_in(
    shared: &Arc<Shared>,
    relay: &mut Relay,
    address: Option<IpAddr>,
    startup: Startup,
    channel: &hello::Channel,
) -> Result<super::Made, Refusal> {
    if startup.needs_negotiation() {
        let mut out = Vec::new();
        negotiate_version(&mut out, startup.minor.min(NEWEST_MINOR), &startup.unknown_options);
        relay.client.write_all(&out).await?;
    }
    let target = admissible(shared, address, &startup, channel)?;
    shared.logins.admit(target.server, Duration::from_nanos(boot_time())).map_err(|too_fast| {
        let wait = too_fast.wait.as_millis() + 1;
        ErrorReply::fatal(too_fast.sqlstate(), too_fast.to_string()).hint(format!(
            "Retry after {wait} milliseconds, and keep connections open instead of making new ones."
        ))
    })?;
    let permit = shared.admission.admit(target.server).map_err(|full| {
        ErrorReply::fatal(full.sqlstate(), format!("too many connections for {}", full.scope))
            .detail(format!("The limit is {} sessions.", full.limit))
            .hint("Close idle connections or retry later.")
    })?;
    let needs_password = shows_who_it_is(shared, &target, channel)?;
    let until = Instant::now() + shared.config.hold;
    let record = tokio::select! {
        record = role(shared, &target, until) => record?,
        () = relay.client_gone() => return Err(Refusal::Gone),
    };
    let refused = record.as_ref().and_then(|record| refused_by_role(record, &target));
    if needs_password {
        authenticate(relay, &target, record, channel.end_point.as_deref()).await?;
    } else if record.is_none() {
        let message = format!("role \"{}\" does not exist", target.user);
        return Err(ErrorReply::fatal("28000", message).into());
    }
    if let Some(refused) = refused {
        return Err(refused.into());
    }

    let until = Instant::now() + shared.config.hold;
    let entry =
        shared.routes.register(target.database, &relay.slot, place(&shared.map.borrow(), target.database));
    let slot = Arc::clone(&relay.slot);
    let mut member =
        shared.pools(&target).then(|| Member::new(shared.pools.key(&target, &startup.parameters)));
    let mut out = AUTHENTICATION_OK.to_vec();
    let welcome = member.as_ref().and_then(|member| member.key.welcome.get()).cloned();
    let (pid, primary, attached) = if let Some(params) = welcome {
        // It gets a server when it needs one; which process that will be nobody knows.
        relay.params = params;
        let primary = Follow::new(shared, &target, until).primary().await?;
        ((rand::random::<u32>() >> 1) as i32, primary, None)
    } else {
        let attaching = first_server(shared, member.as_mut(), &slot, &target, &startup.parameters, until);
        let attached = tokio::select! {
            attached = attaching => attached?,
            () = relay.client_gone() => return Err(Refusal::Gone),
        };
        for (name, value) in &attached.answer.params {
            relay.params.set(name, value);
        }
        if let Some(member) = &member {
            // Somebody else's may be the first.
            relay.params = member.key.welcome.get_or_init(|| relay.params.clone()).clone();
        }
        out.extend_from_slice(&attached.answer.notices);
        (attached.answer.pid, attached.primary, Some(attached))
    };
    for (name, value) in relay.params.iter() {
        parameter_status(&mut out, name, value);
    }
    let key = shared.cancels.register(pid, startup.takes_long_secrets(), &slot);
    backend_key(&mut out, key.pid, &key.secret);
    out.extend_from_slice(&ready_for_query(b'I'));
    relay.down.insert(&out);
    if member.is_some() {
        relay.naming = Some(Box::new(Naming::new(Arc::clone(&shared.pools.statements))));
        relay.tracker.share_servers();
    }
    if let Some(attached) = attached {
        relay.down.put_back(&attached.answer.rest);
        relay.attach(attached.server);
    }
    relay.outcomes = shared.tracks_outcomes(target.database);
    relay.unguarded = crate::guard::hides_warnings(&startup.parameters);
    relay.unguarded_from_start = relay.unguarded;
    Ok(super::Made { target, parameters: startup.parameters, primary, key, entry, permit, member })
}

/// The server that a session begins with. One that shares its servers takes a place for it.
async fn first_server(
    shared: &Shared,
    member: Option<&mut Member>,
    slot: &Arc<Slot>,
    target: &Target,
    parameters: &[(String, String)],
    until: Instant,
) -> Result<Attached, Denied> {
    let Some(member) = member else { return shared.attach(slot, target, parameters, until).await };
    let full = || {
        ErrorReply::fatal("53300", "the pool of this database on this node is in use")
            .hint("Retry later; see SHOW POOLS on the admin port of this node.")
    };
    let mut place = match shared.ask_for_place(target, &member.key) {
        Line::Place(place) => place,
        Line::Wait(mut waiting) => {
            let granted = timeout_at(until, waiting.granted()).await;
            granted.ok().flatten().ok_or_else(full)?
        }
        Line::Full => return Err(full().into()),
    };
    // What is known of an idle one says nothing of what a server says at its start.
    drop(place.take_server());
    let attached = shared.attach(slot, target, parameters, until).await?;
    member.has(place, attached.answer.pid, attached.answer.secret);
    Ok(attached)
}

/// What Postgres would say to the role when it begins a session.
fn refused_by_role(record: &RoleRecord, target: &Target) -> Option<ErrorReply> {
    if !record.may_log_in {
        let message = format!("role \"{}\" is not permitted to log in", target.user);
        return Some(ErrorReply::fatal("28000", message).hint("ALTER ROLE … LOGIN permits it."));
    }
    if !record.may_connect {
        let message = format!("permission denied for database \"{}\"", target.name);
        return Some(ErrorReply::fatal("42501", message).detail("User does not have CONNECT privilege."));
    }
    None
}

/// What can be said without asking the database.
fn admissible(
    shared: &Shared,
    address: Option<IpAddr>,
    startup: &Startup,
    channel: &hello::Channel,
) -> Result<Target, ErrorReply> {
    if startup.replication {
        return Err(ErrorReply::fatal("0A000", "replication connections are not available to clients")
            .detail("Copies of a database are made and fed by the cluster itself.")
            .hint("Connect without the replication parameter."));
    }
    if startup.parameters.iter().any(|(n, v)| crate::guard::refuses_parameter(n, v)) {
        return Err(down::refusal("FATAL"));
    }
    let map = shared.map.borrow();
    let server = channel.host.as_deref().and_then(|host| server_of_host(&map, host));
    let target = route(&map, &startup.user, &startup.database, server).map_err(|e| e.reply())?;
    if map.servers.get(&target.server).is_some_and(|server| !server.allow.admits(address)) {
        let from = address.map_or_else(|| "an unknown address".to_owned(), |address| address.to_string());
        return Err(ErrorReply::fatal("28000", format!("no access from {from}"))
            .detail("The logical server admits clients from the addresses of its list only.")
            .hint("Connect from another address, or change the list: ALTER SERVER s SET allow = '…' on the admin port."));
    }
    Ok(target)
}

/// Whether the client has to know the password too, by the certificate that it has shown.
fn shows_who_it_is(shared: &Shared, target: &Target, channel: &hello::Channel) -> Result<bool, ErrorReply> {
    let map = shared.map.borrow();
    let Some(server) = map.servers.get(&target.server) else { return Ok(true) };
    let (auth, ca) = (server.client_auth, &server.client_ca);
    needs_password(auth, ca, &channel.certificates, &target.user, UnixTime::now()).map_err(|bad| {
        tracing::debug!(database = %target.database, %bad, "a login was refused");
        bad.reply(&target.user)
    })
}

/// What the database holds of the role.
async fn role(shared: &Shared, target: &Target, until: Instant) -> Result<Option<RoleRecord>, Denied> {
    let mut follow = Follow::new(shared, target, until);
    loop {
        let primary = follow.primary().await?;
        let (role, name) = (target.user.clone(), target.name.clone());
        let question = Question::Role { database: target.database, role, name };
        let reply = tokio::select! {
            reply = shared.ask(primary.node, question) => reply,
            () = follow.moved(primary) => Err("the primary moved".to_owned()),
        };
        match reply {
            Ok(Reply::Role(record)) => return Ok(record),
            Ok(Reply::NotOpen(why)) | Err(why) => follow.again(why).await?,
            Ok(Reply::Done | Reply::Fate(_)) => {
                follow.again("the primary's node gave no answer".to_owned()).await?
            }
        }
    }
}

/// SCRAM, bound to the channel where there is one to bind to and the client wants it. A role that does not exist, or has
/// no such password, goes through the same exchange and fails as a wrong password.
async fn authenticate(
    relay: &mut Relay,
    target: &Target,
    record: Option<RoleRecord>,
    end_point: Option<&[u8]>,
) -> Result<(), Refusal> {
    let usable = record.filter(|r| !r.expired).and_then(|r| Verifier::parse(r.password.as_deref()?));
    let verifier = usable.unwrap_or_else(|| Verifier::mock(&target.mock_secret, &target.user));
    let wrong = || {
        ErrorReply::fatal("28P01", format!("password authentication failed for user \"{}\"", target.user))
            .hint("Check the user name and the password; a role has its own password in each database.")
    };
    let fail = |error: ScramError| match error {
        ScramError::WrongPassword => wrong(),
        ScramError::Downgraded | ScramError::OtherChannel => ErrorReply::fatal("28000", error.to_string())
            .detail("What the client has seen of this server's certificate is not what the server has shown.")
            .hint("Something between them may read along; check the way."),
        other => ErrorReply::fatal("08P01", other.to_string()),
    };
    let mut mechanisms = Vec::with_capacity(64);
    if end_point.is_some() {
        mechanisms.extend_from_slice(MECHANISM_PLUS);
        mechanisms.push(0);
    }
    mechanisms.extend_from_slice(MECHANISM);
    mechanisms.extend_from_slice(&[0, 0]);
    ask(&mut relay.client, SASL, &mechanisms).await?;
    let first = password_message(&mut relay.client).await?;
    let malformed = || ErrorReply::fatal("08P01", "malformed SCRAM message");
    let (mechanism, rest) = c_string(&first).ok_or_else(malformed)?;
    let channel = match end_point {
        None if mechanism == MECHANISM => Channel::Unbound,
        Some(_) if mechanism == MECHANISM => Channel::Declined,
        Some(end_point) if mechanism == MECHANISM_PLUS => Channel::Bound(end_point),
        _ => {
            let error =
                ErrorReply::fatal("08P01", "client selected an invalid SASL authentication mechanism");
            return Err(error.into());
        }
    };
    let (length, message) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
    if u32::from_be_bytes(*length) as usize != message.len() {
        return Err(malformed().into());
    }
    let nonce = STANDARD.encode(rand::random::<[u8; NONCE_BYTES]>());
    let (exchange, answer) = Exchange::begin(verifier, message, &nonce, channel).map_err(fail)?;
    ask(&mut relay.client, SASL_CONTINUE, answer.as_bytes()).await?;
    let last = password_message(&mut relay.client).await?;
    let proof = exchange.finish(&last).map_err(|error| {
        tracing::debug!(database = %target.database, "a login was refused");
        fail(error)
    })?;
    ask(&mut relay.client, SASL_FINAL, proof.as_bytes()).await?;
    Ok(())
}

async fn ask(client: &mut Stream, kind: u32, body: &[u8]) -> std::io::Result<()> {
    let mut out = Vec::with_capacity(128);
    authentication(&mut out, kind, body);
    client.write_all(&out).await?;
    client.flush().await
}

/// Reads one message `p`, and nothing beyond it.
async fn password_message(client: &mut Stream) -> Result<Vec<u8>, Refusal> {
    let reading = async {
        let mut header = [0; HEADER_BYTES];
        client.read_exact(&mut header).await?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if header[0] != b'p' || !(4..=MAX_SASL_BYTES).contains(&length) {
            return Err(ErrorReply::fatal("08P01", "expected SASL response").into());
        }
        let mut body = vec![0; length - 4];
        client.read_exact(&mut body).await?;
        Ok(body)
    };
    timeout(LOGIN_DEADLINE, reading)
        .await
        .unwrap_or_else(|_| Err(ErrorReply::fatal("08P01", "authentication took too long").into()))
}
