//! A load that writes records of the log which are nearly as long as a segment, so that a fault often finds one that goes
//! on in the next segment.

use crate::Endpoint;
use std::time::Duration;
use tokio::task::JoinHandle;

const RECORD: &str = "SELECT pg_logical_emit_message(false, 'test', repeat('x', 3500000))";
const PAUSE: Duration = Duration::from_millis(20);

/// Writes until it is dropped.
pub struct LongRecords(JoinHandle<()>);

impl LongRecords {
    pub fn begin(port: Endpoint) -> LongRecords {
        LongRecords(tokio::spawn(async move {
            loop {
                if let Ok(session) = port.session().await {
                    while session.run(RECORD).await.is_ok() {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        }))
    }
}

impl Drop for LongRecords {
    fn drop(&mut self) {
        self.0.abort();
    }
}
