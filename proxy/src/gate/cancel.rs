//! Cancel requests at the gate: only for a request in flight, and not while it waits for the quorum.
//!
//! In that wait a cancel would not undo anything: the transaction is committed here, and only the knowledge would be lost
//! (DESIGN §3 *A commit*). So it is held, and dropped when the request has ended by itself.
//!
//! A cancel that is late cannot hit what the session does next: from the last look at what it does until Postgres has
//! passed the signal on, the session begins nothing.

use super::door::{Gate, Passing};
use crate::wire::startup::cancel_request;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

/// How long a cancel is held at most.
const HOLD: Duration = Duration::from_secs(60);
/// How often the wait is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longest time for Postgres to take the request.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

impl Gate {
    /// Cancels what the backend `pid` is doing for its session here, if it does something.
    pub(crate) async fn cancel(&self, pid: i32, secret: u32) {
        let slot = self.slots().into_iter().find(|slot| {
            slot.backend()
                .is_some_and(|b| b.database == self.database() && b.pid == pid && b.secret == secret)
        });
        let Some(slot) = slot else { return };
        let asked_for = slot.activity();
        let until = Instant::now() + HOLD;
        while asked_for.is_busy() && slot.activity() == asked_for && Instant::now() < until {
            let Ok(Passing { generation, socket, .. }) = self.passing() else {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            };
            match self.control.waits_for_quorum(generation, &socket, pid).await {
                Ok(false) if slot.activity() != asked_for => return,
                Ok(false) => {
                    let _begins_nothing = slot.cancelling();
                    if slot.activity() != asked_for {
                        return;
                    }
                    let sent =
                        tokio::time::timeout(SEND_DEADLINE, send(&socket.join(".s.PGSQL.5432"), pid, secret))
                            .await;
                    if !matches!(sent, Ok(Ok(()))) {
                        tracing::warn!(database = %self.database(), "a cancel request could not be delivered");
                    }
                    return;
                }
                Ok(true) => {}
                Err(error) => tracing::warn!(database = %self.database(), %error, "a cancel request is held"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn send(socket: &std::path::Path, pid: i32, secret: u32) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(&cancel_request(pid, &secret.to_be_bytes())).await?;
    // Postgres closes when it has passed the signal on.
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(())
}
