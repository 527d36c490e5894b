//! A node from its configuration to its end.

use super::{Plan, start};
use crate::admin::{AdminServer, Operator as AdminOperator};
use crate::config::Config;
use crate::health::{self, Standing};
use crate::http::{self, Health};
use crate::telemetry;
use anyhow::Context;
use quorate_model::{NodeId, NodeRecord};
use quorate_proxy::ClientTls;
use quorate_reconfig_agent::coordinator::failpoint;
use quorate_reconfig_agent::decide::Timers;
use quorate_reconfig_agent::instance::Limits;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Config) -> anyhow::Result<()> {
    failpoint::arm_from_environment().map_err(anyhow::Error::msg)?;
    let stop = CancellationToken::new();
    tokio::spawn(cancel_on_signal(stop.clone())?);
    let metrics = telemetry::init_metrics()?;
    let (standing, seen) = watch::channel(Standing::Starting);
    let health = Health { node: config.name.clone(), standing: seen, metrics };
    let listener = bind(config.listen.http, "http").await?;
    tokio::spawn(http::serve(listener, health, stop.clone()));
    let admin = bind(config.listen.admin, "admin").await?;
    let password = read_secret(&config.admin.password_file)?;
    let verifier = quorate_proxy::scram::verifier(&password).parse().map_err(anyhow::Error::msg)?;
    let operator = AdminOperator { user: config.admin.user.clone(), verifier };

    std::fs::create_dir_all(&config.data_dir)?;
    std::fs::write(config.data_dir.join("pid"), crate::demo::pid_line(std::process::id()))?;
    let app = start(plan(&config)?, stop.clone()).await?;
    let server = AdminServer::new(app.operator.clone(), operator, Some(client_tls(&config.tls_dir)?));
    tokio::spawn(server.serve(admin, stop.clone()));
    tokio::spawn(crate::metrics::follow(app.operator.clone(), stop.clone()));
    tokio::spawn(health::follow(app.operator.clone(), standing, stop.clone()));
    tracing::info!(node = config.name, client = %config.listen.client, admin = %config.listen.admin, "serving");
    stop.cancelled().await;
    tracing::info!(node = config.name, "stopping");
    app.finish().await;
    Ok(())
}

fn cancel_on_signal(stop: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    })
}

async fn bind(address: std::net::SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("the {what} port {address} cannot be opened"))
}

/// Reads a password file that nobody else may read.
fn read_secret(path: &Path) -> anyhow::Result<String> {
    let shown = path.display();
    let mode = std::fs::metadata(path).with_context(|| format!("{shown}"))?.permissions().mode();
    anyhow::ensure!(mode & 0o077 == 0, "{shown} can be read by others; hint: chmod 600 {shown}");
    let text = std::fs::read_to_string(path).with_context(|| format!("{shown}"))?;
    let password = text.trim_end_matches(['\r', '\n']);
    anyhow::ensure!(!password.is_empty(), "{shown} is empty");
    Ok(password.to_owned())
}

/// Clients are offered TLS with the node's certificate; it need not know who they are.
fn client_tls(directory: &Path) -> anyhow::Result<Arc<ClientTls>> {
    Ok(ClientTls::load(&directory.join("node.pem"), &directory.join("node.key"))?)
}

fn plan(config: &Config) -> anyhow::Result<Plan> {
    let id = NodeId(config.id);
    let listen = &config.listen;
    let timings = &config.timings;
    Ok(Plan {
        record: NodeRecord {
            id,
            name: config.name.clone(),
            fault_domain: config.fault_domain.clone(),
            update_domain: config.update_domain.clone(),
            region: config.region.clone(),
            peer: listen.peer.to_string(),
            client: listen.client.to_string(),
            admin: listen.admin.to_string(),
            http: listen.http.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        peer_listen: listen.peer,
        ring_listen: listen.peer,
        client_listen: listen.client,
        peers: config.peers.iter().map(|p| (NodeId(p.id), p.peer.to_string())).collect(),
        ring_peers: config.peers.iter().map(|p| (NodeId(p.id), p.peer)).collect(),
        tls_dir: config.tls_dir.clone(),
        cluster_key: config.cluster_key()?,
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
        pg_bin: config.pg_bin.clone(),
        timers: Timers {
            shrink_after: timings.shrink_after_ms,
            replace_after: timings.replace_after_s * 1_000,
            drain: timings.drain_ms,
            ..Timers::default()
        },
        suspect_after: Duration::from_millis(timings.suspect_after_ms),
        lease: Duration::from_millis(timings.lease_ms),
        hold: Duration::from_secs(timings.hold_s),
        busy_poll: Duration::from_micros(timings.busy_poll_us),
        limits: Limits {
            max_connections: config.limits.max_connections,
            shared_buffers_mib: config.limits.shared_buffers_mib,
            ..Limits::default()
        },
        max_sessions_node: config.limits.max_sessions,
        max_sessions_server: config.limits.max_sessions_per_server,
        logins_per_second: config.limits.max_logins_per_second_per_server,
        max_pooled: config.limits.max_pooled_connections as usize,
        workers: match config.limits.workers {
            0 => quorate_proxy::usual_workers(),
            workers => workers,
        },
        client_tls: Some(client_tls(&config.tls_dir)?),
    })
}
