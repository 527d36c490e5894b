//! Logging: one compact line an event to stderr. `QUORATE_LOG` takes tracing's filter syntax. Metrics: the
//! recorder behind /metrics.

use crate::metrics;
use metrics_exporter_prometheus::PrometheusHandle;
use std::io::IsTerminal;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// The environment variable that filters the log.
const FILTER_VARIABLE: &str = "QUORATE_LOG";

/// Changes of state at INFO; libraries speak only when something is odd.
const DEFAULT_FILTER: &str =
    "info,openraft=error,foca=warn,rustls=warn,pgwire=warn,hyper=warn,tokio_postgres=warn";

/// How often the recorder drains its histograms, which grow until somebody does.
const UPKEEP: Duration = Duration::from_secs(5);

pub fn init() {
    let filter = EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    // Fails only when somebody has done it before, which is as good.
    let _ = tracing_subscriber::fmt()
        .compact()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
}

/// Installs the metrics recorder, once a process, on the runtime that will keep it small.
pub fn init_metrics() -> anyhow::Result<PrometheusHandle> {
    let handle = metrics::install()?;
    let kept = handle.clone();
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(UPKEEP);
        loop {
            tick.tick().await;
            kept.run_upkeep();
        }
    });
    Ok(handle)
}
