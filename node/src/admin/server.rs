//! The admin port's listener: how many connections there may be, and how long one may stay unknown.

use super::auth::Operator;
use super::context::AdminContext;
use super::session::Handlers;
use pgwire::api::ConnectionManager;
use pgwire::tokio::process_socket;
use quorate_proxy::ClientTls;
use socket2::{SockRef, TcpKeepalive};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// The one database of the admin port.
pub const DATABASE: &str = "quorate";
/// The PostgreSQL whose manners the admin port has. Old enough that no client of today warns about a newer server.
pub const SERVER_VERSION: &str = concat!("15.0 (Quorate ", env!("CARGO_PKG_VERSION"), ")");
pub const SERVER_VERSION_NUM: &str = "150000";
/// Connections served at a time.
pub const MAX_CONNECTIONS: usize = 64;
/// Connections beyond those that are told so at a time; more are dropped unheard.
pub const MAX_REFUSALS: usize = 16;
/// How long a client has to prove who it is.
pub const LOGIN_LIMIT: Duration = Duration::from_secs(10);
/// Silence after which the network is asked whether the client is still there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// Between a failed accept and the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub struct AdminServer {
    context: Arc<dyn AdminContext>,
    operator: Arc<Operator>,
    tls: Option<Arc<ClientTls>>,
    connections: Arc<ConnectionManager>,
    places: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

impl AdminServer {
    /// With `tls`, clients that ask for it get it; nobody has to.
    pub fn new(context: Arc<dyn AdminContext>, operator: Operator, tls: Option<Arc<ClientTls>>) -> Arc<Self> {
        Arc::new(AdminServer {
            context,
            operator: Arc::new(operator),
            tls,
            connections: Arc::new(ConnectionManager::new()),
            places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
        })
    }

    /// Serves until `stop`; connections end with it.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    tokio::spawn(self.clone().connection(stream, stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin port could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, stop: CancellationToken) {
        let (_permit, full) = match self.places.clone().try_acquire_owned() {
            Ok(permit) => (permit, false),
            Err(_) => match self.refusals.clone().try_acquire_owned() {
                Ok(permit) => (permit, true),
                Err(_) => return,
            },
        };
        let _ = SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER));
        let (authenticated, proved) = watch::channel(false);
        let handlers = Handlers::new(
            self.context.clone(),
            self.operator.clone(),
            self.connections.clone(),
            full,
            authenticated,
        );
        tokio::select! {
            () = stop.cancelled() => {}
            () = unknown_for_too_long(proved) => {}
            // Errors here are the network's; the client has gone.
            _ = process_socket(stream, self.tls.as_ref().map(acceptor), handlers) => {}
        }
    }
}

/// With the certificate of now: it may have been renewed.
fn acceptor(tls: &Arc<ClientTls>) -> TlsAcceptor {
    TlsAcceptor::from(tls.config())
}

/// Ends when the login limit has passed without a login; never after one.
async fn unknown_for_too_long(mut proved: watch::Receiver<bool>) {
    let in_time = matches!(tokio::time::timeout(LOGIN_LIMIT, proved.wait_for(|p| *p)).await, Ok(Ok(_)));
    if in_time {
        std::future::pending::<()>().await;
    }
}
