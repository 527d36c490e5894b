//! One connection to the admin port: startup, then orders by the simple or the extended protocol. This is the
//! only place of the daemon's wiring that knows pgwire's handler traits.

use super::answer::{Answer, fields};
use super::auth::Operator;
use super::context::AdminContext;
use super::error::AdminError;
use super::language;
use super::order::{NOTICE_QUEUE, Notice, Order, Session};
use super::server::{DATABASE, SERVER_VERSION};
use async_trait::async_trait;
use futures::{Sink, SinkExt};
use pgwire::api::auth::sasl::SASLAuthStartupHandler;
use pgwire::api::auth::sasl::scram::ScramAuth;
use pgwire::api::auth::{DefaultServerParameterProvider, StartupHandler};
use pgwire::api::cancel::DefaultCancelHandler;
use pgwire::api::portal::{Format, Portal};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::results::{FieldInfo, Response};
use pgwire::api::stmt::QueryParser;
use pgwire::api::store::PortalStore;
use pgwire::api::{
    ClientInfo, ClientPortalStore, ConnectionManager, ErrorHandler, METADATA_DATABASE, METADATA_USER,
    PgWireConnectionState, PgWireServerHandlers, Type,
};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::startup::Startup;
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Longest that one order may take: waits for operations that rebuild large databases are given again after it.
pub const ORDER_LIMIT: Duration = Duration::from_secs(6 * 3600);

/// Handlers of one connection.
#[derive(Clone)]
pub struct Handlers {
    startup: Arc<Gatekeeper>,
    orders: Arc<Orders>,
    cancel: Arc<DefaultCancelHandler>,
    errors: Arc<Errors>,
}

impl Handlers {
    /// `authenticated` becomes true when the client has proved who it is. A connection that is `full` is told so
    /// and ends.
    pub fn new(
        context: Arc<dyn AdminContext>,
        operator: Arc<Operator>,
        connections: Arc<ConnectionManager>,
        full: bool,
        authenticated: watch::Sender<bool>,
    ) -> Self {
        let mut parameters = DefaultServerParameterProvider::default();
        parameters.server_version = SERVER_VERSION.to_owned();
        parameters.is_superuser = false;
        let sasl = SASLAuthStartupHandler::new(Arc::new(parameters))
            .with_scram(ScramAuth::new(operator))
            .with_connection_manager(connections.clone());
        Handlers {
            startup: Arc::new(Gatekeeper { sasl, full, authenticated }),
            orders: Arc::new(Orders { context }),
            cancel: Arc::new(DefaultCancelHandler::new(connections)),
            errors: Arc::new(Errors),
        }
    }
}

impl PgWireServerHandlers for Handlers {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        self.orders.clone()
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        self.orders.clone()
    }

    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        self.startup.clone()
    }

    fn cancel_handler(&self) -> Arc<impl pgwire::api::cancel::CancelHandler> {
        self.cancel.clone()
    }

    fn error_handler(&self) -> Arc<impl ErrorHandler> {
        self.errors.clone()
    }
}

struct Gatekeeper {
    sasl: SASLAuthStartupHandler<DefaultServerParameterProvider>,
    full: bool,
    authenticated: watch::Sender<bool>,
}

impl Gatekeeper {
    fn admit(&self, startup: &Startup) -> Result<(), AdminError> {
        if self.full {
            return Err(AdminError::new("53300", "the admin port has as many connections as it takes")
                .with_hint("Close some, or ask another node."));
        }
        let user = startup.parameters.get(METADATA_USER).map_or("", String::as_str);
        let database = startup.parameters.get(METADATA_DATABASE).map_or(user, String::as_str);
        if database != DATABASE {
            return Err(AdminError::new("3D000", format!("database \"{database}\" does not exist"))
                .with_hint(format!("The admin port has one database, \"{DATABASE}\". Tenants' databases are reached at the client port.")));
        }
        Ok(())
    }
}

#[async_trait]
impl StartupHandler for Gatekeeper {
    async fn on_startup<C>(&self, client: &mut C, message: PgWireFrontendMessage) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if let PgWireFrontendMessage::Startup(startup) = &message {
            self.admit(startup).map_err(|e| PgWireError::UserError(Box::new(e.into_info("FATAL"))))?;
        }
        self.sasl.on_startup(client, message).await?;
        if matches!(client.state(), PgWireConnectionState::ReadyForQuery) {
            self.authenticated.send_replace(true);
            let user = client.metadata().get(METADATA_USER).map_or("", String::as_str);
            tracing::debug!(user, from = %client.socket_addr(), "admin connection");
        }
        Ok(())
    }
}

/// Puts failures of authentication into PostgreSQL's words, and logs them.
struct Errors;

impl ErrorHandler for Errors {
    fn on_error<C>(&self, client: &C, error: &mut PgWireError)
    where
        C: ClientInfo,
    {
        if let PgWireError::InvalidPassword(_) = error {
            let user = client.metadata().get(METADATA_USER).map_or("", String::as_str);
            tracing::warn!(user, from = %client.socket_addr(), "admin login failed");
            let told =
                AdminError::new("28P01", format!("password authentication failed for user \"{user}\""));
            *error = PgWireError::UserError(Box::new(told.into_info("FATAL")));
        }
    }
}

/// Reads orders and carries them out.
struct Orders {
    context: Arc<dyn AdminContext>,
}

impl Orders {
    /// Runs one order; its notices are sent as they come.
    async fn run<C>(&self, client: &mut C, order: &dyn Order) -> PgWireResult<Answer>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let user = client.metadata().get(METADATA_USER).cloned().unwrap_or_default();
        let (notices, mut waiting) = mpsc::channel(NOTICE_QUEUE);
        let session = Session { context: self.context.clone(), user, notices };
        let running = tokio::time::timeout(ORDER_LIMIT, order.run(&session));
        tokio::pin!(running);
        let result = loop {
            tokio::select! {
                biased;
                Some(notice) = waiting.recv() => client.send(notice.into_message()).await?,
                result = &mut running => break result,
            }
        };
        while let Ok(notice) = waiting.try_recv() {
            client.feed(notice.into_message()).await?;
        }
        match result {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(AdminError::new("57014", "the order took longer than the admin port allows")
                .with_hint("SHOW OPERATIONS tells what is still under way.")
                .into()),
        }
    }
}

impl Notice {
    fn into_message(self) -> PgWireBackendMessage {
        let mut info = ErrorInfo::new(self.severity.to_owned(), self.code.to_owned(), self.message);
        info.severity_nonlocalized = Some(self.severity.to_owned());
        info.hint = self.hint;
        PgWireBackendMessage::NoticeResponse(info.into())
    }
}

#[async_trait]
impl SimpleQueryHandler for Orders {
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let orders = language::parse(query)?;
        if orders.is_empty() {
            return Ok(vec![Response::EmptyQuery]);
        }
        let mut responses = Vec::with_capacity(orders.len());
        for order in orders {
            match self.run(client, order.as_ref()).await {
                Ok(answer) => responses.push(answer.into_response(&Format::UnifiedText)?),
                // What was answered before it is still sent, as PostgreSQL does.
                Err(PgWireError::UserError(info)) => {
                    responses.push(Response::Error(info));
                    break;
                }
                Err(other) => return Err(other),
            }
        }
        Ok(responses)
    }
}

#[async_trait]
impl ExtendedQueryHandler for Orders {
    type Statement = Arc<dyn Order>;
    type QueryParser = Reader;

    fn query_parser(&self) -> Arc<Reader> {
        Arc::new(Reader)
    }

    async fn do_query<C>(
        &self,
        client: &mut C,
        portal: &Portal<Arc<dyn Order>>,
        _max_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Arc<dyn Order>>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let order = portal.statement.statement.clone();
        self.run(client, order.as_ref()).await?.into_response(&portal.result_column_format)
    }
}

/// The admin language, for the extended protocol.
struct Reader;

#[async_trait]
impl QueryParser for Reader {
    type Statement = Arc<dyn Order>;

    async fn parse_sql<C>(
        &self,
        _client: &C,
        sql: &str,
        types: &[Option<Type>],
    ) -> PgWireResult<Option<Arc<dyn Order>>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        if !types.is_empty() {
            return Err(AdminError::new("0A000", "orders of the admin port take no parameters").into());
        }
        let mut orders = language::parse(sql)?;
        if orders.len() > 1 {
            let message = "a prepared statement holds one order";
            return Err(AdminError::new("42601", message).into());
        }
        Ok(orders.pop())
    }

    fn get_parameter_types(&self, _order: &Arc<dyn Order>) -> PgWireResult<Vec<Type>> {
        Ok(Vec::new())
    }

    fn get_result_schema(
        &self,
        order: &Arc<dyn Order>,
        format: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        Ok(fields(order.columns(), format.unwrap_or(&Format::UnifiedText)))
    }
}
