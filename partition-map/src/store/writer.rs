//! The thread that writes. Jobs are made durable in the order in which they were given; those that queued up
//! while the disk was busy share one transaction. After the first failure nothing is written any more: what a
//! disk holds after a failed flush is not known, so this node's copy of the map stops.

use super::disk::{Change, Disk, DiskError};
use super::memory::MemoryDisk;
use crate::types::{LogId, Types};
use openraft::storage::LogFlushed;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait; Raft itself waits for each append, so there are only ever a few.
const QUEUE_JOBS: usize = 256;
/// Jobs of one transaction.
const BATCH_JOBS: usize = 64;

struct Job {
    change: Option<Change>,
    done: Done,
}

/// Who is told that a job is durable.
enum Done {
    Nobody,
    Flushed(LogFlushed<Types>),
    Reply(oneshot::Sender<io::Result<()>>),
    /// The file is closed first, and the thread ends.
    Closed(oneshot::Sender<()>),
}

#[derive(Clone)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
    committed: Arc<Mutex<Option<LogId>>>,
}

impl Writer {
    pub(crate) fn start(disk: Disk) -> Result<Writer, DiskError> {
        let (writer, queue) = Writer::new();
        let writing = run(Place::File(disk), queue, writer.committed.clone());
        // On a thread of its own: a flush that takes its time holds nobody else up.
        let thread = std::thread::Builder::new().name("map-log".to_owned());
        thread.spawn(move || futures::executor::block_on(writing))?;
        Ok(writer)
    }

    /// Must be called on a runtime.
    pub(crate) fn start_in_memory(disk: MemoryDisk) -> Writer {
        let (writer, queue) = Writer::new();
        tokio::spawn(run(Place::Memory(disk), queue, writer.committed.clone()));
        writer
    }

    fn new() -> (Writer, mpsc::Receiver<Job>) {
        let (jobs, queue) = mpsc::channel(QUEUE_JOBS);
        (Writer { jobs, committed: Arc::default() }, queue)
    }

    /// Writes, and tells Raft when it is durable.
    pub(crate) async fn append(&self, entries: Vec<(u64, Vec<u8>)>, flushed: LogFlushed<Types>) {
        let job = Job { change: Some(Change::Append(entries)), done: Done::Flushed(flushed) };
        if let Err(mpsc::error::SendError(job)) = self.jobs.send(job).await {
            job.done.tell(Err(closed()));
        }
    }

    /// Writes, and returns when it is durable.
    pub(crate) async fn write(&self, change: Change) -> io::Result<()> {
        let (reply, done) = oneshot::channel();
        let job = Job { change: Some(change), done: Done::Reply(reply) };
        self.jobs.send(job).await.map_err(|_| closed())?;
        done.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Writes after everything given before, and before everything given later; nobody needs it to be
    /// durable.
    pub(crate) async fn write_later(&self, change: Change) -> io::Result<()> {
        let job = Job { change: Some(change), done: Done::Nobody };
        self.jobs.send(job).await.map_err(|_| closed())
    }

    /// Goes with the next transaction. It only spares a restarted node some waiting.
    pub(crate) fn note_committed(&self, committed: Option<LogId>) {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner) = committed;
    }

    /// Returns when everything is written and the file is closed.
    pub(crate) async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.jobs.send(Job { change: None, done: Done::Closed(reply) }).await.is_ok() {
            let _ = done.await;
        }
    }
}

impl Done {
    fn tell(self, result: io::Result<()>) {
        match self {
            Done::Nobody | Done::Closed(_) => {}
            Done::Flushed(flushed) => flushed.log_io_completed(result),
            // Whoever asked may have gone.
            Done::Reply(reply) => drop(reply.send(result)),
        }
    }
}

/// Where the jobs are made durable.
enum Place {
    File(Disk),
    Memory(MemoryDisk),
}

impl Place {
    async fn commit(&self, changes: impl IntoIterator<Item = &Change>) -> Result<(), DiskError> {
        match self {
            Place::File(disk) => disk.commit(changes),
            Place::Memory(disk) => disk.commit(changes).await,
        }
    }
}

fn closed() -> io::Error {
    io::Error::other("the map's log is closed")
}

async fn run(disk: Place, mut queue: mpsc::Receiver<Job>, committed: Arc<Mutex<Option<LogId>>>) {
    let mut failed: Option<String> = None;
    while let Some(first) = queue.recv().await {
        let mut jobs = vec![first];
        while jobs.len() < BATCH_JOBS {
            let Ok(job) = queue.try_recv() else { break };
            jobs.push(job);
        }
        let latest = committed.lock().unwrap_or_else(PoisonError::into_inner).take().map(Change::Committed);
        let changes = jobs.iter().filter_map(|job| job.change.as_ref()).chain(latest.as_ref());
        if failed.is_none()
            && let Err(error) = disk.commit(changes).await
        {
            tracing::error!(%error, "cannot write the map's log; this node's copy of the map stops");
            failed = Some(error.to_string());
        }
        let mut closing = None;
        for job in jobs {
            match job.done {
                Done::Closed(reply) => closing = Some(reply),
                done => done.tell(failed.clone().map_or(Ok(()), |reason| Err(io::Error::other(reason)))),
            }
        }
        if let Some(reply) = closing {
            drop(disk);
            let _ = reply.send(());
            return;
        }
    }
}
