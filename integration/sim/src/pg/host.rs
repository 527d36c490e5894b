//! The ground of a simulated node: assembles replicas for the real agent.

use super::disk::Disk;
use super::instance::{Around, SimInstance};
use super::server::Server;
use super::tunnel::{Door, SimDownstream, SimUpstreams};
use crate::net::Net;
use crate::oracle::Oracle;
use quorate_model::{DatabaseId, Epoch, ReplicaId};
use quorate_reconfig_agent::agent::Host;
use quorate_reconfig_agent::agent::host::{Failed, Parts, PrimaryTunnels, PromiseStore, ReplicaInstance};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The instances of a node, by their sockets.
#[derive(Default)]
pub struct Registry(Mutex<BTreeMap<PathBuf, Arc<SimInstance>>>);

impl Registry {
    fn all(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Arc<SimInstance>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn server(&self, sockets: &Path) -> Option<Arc<Server>> {
        self.all().get(sockets)?.server()
    }

    pub fn instances(&self) -> Vec<Arc<SimInstance>> {
        self.all().values().cloned().collect()
    }
}

pub struct SimHost {
    around: Around,
    net: Arc<Net>,
    registry: Arc<Registry>,
    upstreams: Arc<SimUpstreams>,
}

impl SimHost {
    /// Takes the tunnels' pipes at the node's port; none is admitted yet.
    pub fn new(around: Around, net: Arc<Net>) -> Arc<SimHost> {
        let registry = Arc::new(Registry::default());
        let upstreams = SimUpstreams::new(registry.clone());
        net.set_acceptor(around.node, Arc::new(Door(upstreams.clone())));
        Arc::new(SimHost { around, net, registry, upstreams })
    }

    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }
}

impl Host for SimHost {
    fn assemble(&self, database: DatabaseId, id: ReplicaId) -> Result<Parts, Failed> {
        let node = self.around.node;
        let disk = self.around.disks.open(node, id);
        let promised = disk.content().promise;
        self.around.oracle.remembered(id, promised);
        let downstream = SimDownstream::new(node, database, id, self.net.clone());
        let instance = SimInstance::new(self.around.clone(), database, id, disk.clone(), downstream.clone());
        self.registry.all().insert(instance.sockets().to_owned(), instance.clone());
        let promise = SimPromise { replica: id, disk, oracle: self.around.oracle.clone() };
        Ok(Parts { instance, downstream, promise: Box::new(promise), promised })
    }

    fn found(&self) -> Vec<ReplicaId> {
        self.around.disks.on(self.around.node)
    }

    fn upstreams(&self) -> Arc<dyn PrimaryTunnels> {
        self.upstreams.clone()
    }
}

struct SimPromise {
    replica: ReplicaId,
    disk: Disk,
    oracle: Arc<Oracle>,
}

impl PromiseStore for SimPromise {
    fn write(&self, epoch: Epoch) -> io::Result<()> {
        self.disk.content().promise = epoch;
        self.oracle.promised(self.replica, epoch);
        Ok(())
    }
}
