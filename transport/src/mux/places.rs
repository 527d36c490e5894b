//! The connections for streams that this node has made: one for each of its threads and each other node.

use super::connection::{Connection, drive};
use super::stream::MuxStream;
use crate::CallError;
use crate::dial::dial;
use crate::identity::Identity;
use crate::link::locked;
use crate::message::Preface;
use quorate_model::NodeId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;
use tokio::time::timeout;

/// How long one attempt to connect may take: others wait for it, and the next one may find that the node is back.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// One of them for each thread: its streams and the task that drives it stay on one core.
#[derive(Default)]
pub(crate) struct Places {
    places: Mutex<HashMap<(NodeId, ThreadId), Arc<Place>>>,
}

#[derive(Default)]
struct Place {
    connection: Mutex<Option<Arc<Connection>>>,
    /// Held by whoever connects; the others wait for the outcome.
    connecting: tokio::sync::Mutex<()>,
}

impl Place {
    fn usable(&self) -> Option<Arc<Connection>> {
        locked(&self.connection).clone().filter(|c| c.takes_streams())
    }
}

impl Places {
    /// A stream to the node, on a connection of this thread, which is made if there is none. The caller bounds the time.
    pub(crate) async fn open(
        &self,
        identity: &Identity,
        node: NodeId,
        address: &str,
        kind: u8,
        hello: &[u8],
    ) -> Result<MuxStream, CallError> {
        let place = self.place(node);
        if let Some(stream) = place.usable().and_then(|c| c.open(kind, hello)) {
            return Ok(stream);
        }
        let _turn = place.connecting.lock().await;
        if let Some(stream) = place.usable().and_then(|c| c.open(kind, hello)) {
            return Ok(stream);
        }
        let dialing = timeout(CONNECT_TIMEOUT, dial(identity, node, address, &Preface::Streams)).await;
        let connection = Connection::new(dialing.unwrap_or(Err(CallError::Timeout(CONNECT_TIMEOUT)))?);
        let stream = connection.open(kind, hello);
        let former = locked(&place.connection).replace(Arc::clone(&connection));
        if let Some(former) = former {
            former.retire();
        }
        let me = identity.node();
        tokio::spawn(async move {
            let error = drive(&connection, None).await;
            tracing::debug!(node = %me, peer = %node, %error, "a connection for streams ended");
        });
        stream.ok_or_else(|| CallError::Unreachable("it takes no streams".to_owned()))
    }

    /// No more streams on the connections that there are to that node: the next one makes another.
    pub(crate) fn give_up(&self, node: NodeId) {
        let places: Vec<_> = {
            let places = locked(&self.places);
            places.iter().filter(|((to, _), _)| *to == node).map(|(_, place)| Arc::clone(place)).collect()
        };
        for place in places {
            if let Some(connection) = locked(&place.connection).take() {
                connection.retire();
            }
        }
    }

    fn place(&self, node: NodeId) -> Arc<Place> {
        let key = (node, std::thread::current().id());
        Arc::clone(locked(&self.places).entry(key).or_default())
    }
}
