//! A stream to a process of this machine, woken only by what it waits for.
//!
//! Why not tokio's own `UnixStream`: it asks the kernel for readable and writable at once. A Unix socket becomes
//! writable anew whenever the other side has read something (Linux, `net/unix/af_unix.c`, `unix_write_space`), so every
//! message that Postgres takes would wake its relay once for nothing, in the middle of the query or commit that is being
//! waited for. TCP tells of it only after a write had to wait. Here too: writable is asked for only then.

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// After so many writes in a row that did not have to wait, the kernel is not asked any more: bulk data would make it
/// come and go with every message.
const CALM_WRITES: u32 = 64;

/// A connected Unix socket; of the runtime in which it was made.
#[derive(Debug)]
pub struct LocalStream {
    stream: AsyncFd<UnixStream>,
    /// The same socket by another descriptor, while writes have to wait: epoll knows an interest by its descriptor.
    writable: Option<AsyncFd<UnixStream>>,
    calm_writes: u32,
}

impl TryFrom<tokio::net::UnixStream> for LocalStream {
    type Error = io::Error;

    fn try_from(stream: tokio::net::UnixStream) -> io::Result<LocalStream> {
        let stream = watch(stream.into_std()?, Interest::READABLE)?;
        Ok(LocalStream { stream, writable: None, calm_writes: 0 })
    }
}

impl AsFd for LocalStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

impl LocalStream {
    /// The same, of the runtime that this is called in.
    pub fn moved(self) -> io::Result<LocalStream> {
        let stream = watch(self.stream.into_inner(), Interest::READABLE)?;
        Ok(LocalStream { stream, writable: None, calm_writes: 0 })
    }

    /// Whether there is nothing to be read, not even an end. Asked of the kernel.
    pub fn is_silent(&self) -> bool {
        is_silent(self.stream.get_ref())
    }
}

/// Whether there is nothing to be read from a socket, not even an end. Asked of the kernel.
pub fn is_silent(socket: impl AsFd) -> bool {
    let peeked = recv(socket, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    matches!(peeked, Err(Errno::WOULDBLOCK))
}

fn watch(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: a UnixStream owns its descriptor, which is open and the same until it is dropped, and here it is never taken
    // out of the AsyncFd nor replaced.
    unsafe { AsyncFd::register_with_interest(stream, interest) }.map_err(io::Error::from)
}

impl AsyncRead for LocalStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.stream.poll_read_ready(cx))?;
            let free = buf.initialize_unfilled();
            match (&mut ready.get_inner()).read(free) {
                Ok(read) => {
                    // Less than there was room for: the socket is empty, and the kernel tells of what comes (epoll(7), on
                    // edges). Saves the read that would only find that out.
                    if 0 < read && read < free.len() {
                        ready.clear_ready();
                    }
                    buf.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.stream.get_ref().write(buf) {
                Ok(written) => {
                    self.calm_writes = self.calm_writes.saturating_add(1);
                    if self.calm_writes >= CALM_WRITES {
                        self.writable = None;
                    }
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            self.calm_writes = 0;
            if self.writable.is_none() {
                // Asked for after the write failed: an edge between the two is not missed, because registering tells of
                // the state that is.
                let again = self.stream.get_ref().try_clone()?;
                self.writable = Some(watch(again, Interest::WRITABLE)?);
            }
            let Some(writable) = &self.writable else { continue };
            let mut ready = ready!(writable.poll_write_ready(cx))?;
            // It may say so of a moment before the write that failed; then the next one fails again and waits.
            ready.clear_ready();
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (LocalStream, tokio::net::UnixStream) {
        let (near, far) = tokio::net::UnixStream::pair().unwrap();
        (near.try_into().unwrap(), far)
    }

    #[tokio::test]
    async fn bulk_data_passes_in_both_directions_and_ends() {
        let (mut near, far) = pair();
        let (mut far_in, mut far_out) = far.into_split();
        let sent: Vec<u8> = (0..4_000_000_u32).map(|i| (i % 251) as u8).collect();
        let echo = tokio::spawn(async move {
            let copied = tokio::io::copy(&mut far_in, &mut far_out).await.unwrap();
            far_out.shutdown().await.unwrap();
            copied
        });
        let (mut reader, mut writer) = tokio::io::split(&mut near);
        let mut got = Vec::new();
        let (wrote, read) = tokio::join!(
            async {
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await
            },
            reader.read_to_end(&mut got)
        );
        wrote.unwrap();
        assert_eq!((read.unwrap(), echo.await.unwrap()), (sent.len(), sent.len() as u64));
        assert!(got == sent);
        assert!(near.writable.is_some(), "it had to wait");
    }

    /// What this process asks of the kernel by any epoll for `socket`, by whatever descriptor (proc(5), fdinfo).
    fn asked_of(socket: &UnixStream) -> Vec<u32> {
        // An epoll has several descriptors.
        let inode = std::fs::metadata(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap().ino();
        let mut all = Vec::new();
        for info in std::fs::read_dir("/proc/self/fdinfo").unwrap() {
            // Descriptors of other tests come and go.
            let Ok(text) = std::fs::read_to_string(info.unwrap().path()) else { continue };
            for line in text.lines().filter(|line| line.starts_with("tfd:")) {
                let words: Vec<&str> = line.split_whitespace().collect();
                let watched = words.iter().find_map(|word| word.strip_prefix("ino:")).unwrap();
                if u64::from_str_radix(watched, 16).unwrap() == inode {
                    all.push(u32::from_str_radix(words[3], 16).unwrap() & (READABLE | WRITABLE));
                }
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    const READABLE: u32 = 1;
    const WRITABLE: u32 = 4;

    #[tokio::test]
    async fn the_kernel_is_asked_for_writable_only_while_writes_have_to_wait() {
        let (mut near, far) = pair();
        near.write_all(b"question").await.unwrap();
        assert_eq!(asked_of(near.stream.get_ref()), [READABLE]);
        let full = async { while near.write_all(&[0; 4096]).await.is_ok() {} };
        assert!(tokio::time::timeout(Duration::from_millis(100), full).await.is_err(), "nobody reads");
        assert_eq!(asked_of(near.stream.get_ref()), [READABLE, WRITABLE]);
        let mut taken = vec![0; 64 * 1024];
        for _ in 0..=CALM_WRITES {
            while far.try_read(&mut taken).is_ok() {}
            near.write_all(b"question").await.unwrap();
        }
        assert_eq!(asked_of(near.stream.get_ref()), [READABLE]);
        // What it replaces, and the reason for it.
        assert_eq!(asked_of(&far.into_std().unwrap()), [0; 0], "this sees what is watched now");
        let (plain, _far) = tokio::net::UnixStream::pair().unwrap();
        let same = plain.as_fd().try_clone_to_owned().unwrap().into();
        assert_eq!(asked_of(&same), [READABLE | WRITABLE]);
    }

    #[tokio::test]
    async fn the_end_is_seen_behind_the_last_bytes() {
        let (mut near, mut far) = pair();
        far.write_all(b"bye").await.unwrap();
        drop(far);
        let mut said = Vec::new();
        near.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"bye");
        assert!(near.write_all(b"?").await.is_err());
    }
}
