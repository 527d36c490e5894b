//! The http port: is this node well, and its metrics. Read-only and without secrets, as it asks nobody who is
//! asking.

use crate::health::Standing;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What the port tells of. It answers from the first moment of the daemon's start.
#[derive(Clone)]
pub struct Health {
    pub node: String,
    pub standing: watch::Receiver<Standing>,
    pub metrics: PrometheusHandle,
}

pub async fn serve(listener: TcpListener, health: Health, stop: CancellationToken) {
    let router = Router::new()
        .route("/", get(index))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(health);
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::warn!(%error, "the http port ended");
    }
}

async fn index(State(health): State<Health>) -> String {
    format!(
        "Quorate {} on node {}\n\n/healthz  200 while this node serves, else (it starts, or is cut off) 503 and why\n/metrics  for Prometheus\n",
        crate::VERSION,
        health.node
    )
}

async fn healthz(State(health): State<Health>) -> Response {
    let reason = health.standing.borrow().reason();
    let status = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({
        "node": health.node,
        "version": crate::VERSION,
        "status": if reason.is_none() { "ok" } else { "unavailable" },
        "reason": reason,
    });
    (status, axum::Json(body)).into_response()
}

async fn metrics(State(health): State<Health>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, health.metrics.render()).into_response()
}
