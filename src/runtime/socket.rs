//! [`Socket`]: the way to the runtime, listened to for what comes, and for room to write only while there is none.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A Unix socket. tokio's own is always listened to for room, of which there is more whenever the other side has read something: each
/// message woke us once more, for nothing.
#[derive(Debug)]
pub(super) struct Socket {
    stream: AsyncFd<UnixStream>,
    /// The same socket, while it is full.
    full: Option<AsyncFd<UnixStream>>,
}

impl Socket {
    pub(super) async fn connect(path: &Path) -> io::Result<Self> {
        Self::of(tokio::net::UnixStream::connect(path).await?.into_std()?)
    }

    /// Of a stream that does not block.
    fn of(stream: UnixStream) -> io::Result<Self> {
        Ok(Self { stream: listen(stream, Interest::READABLE)?, full: None })
    }

    /// Writes, as soon as there is room.
    fn poll_write_by(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&mut &UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match write(&mut self.stream.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.full = None;
                    return Poll::Ready(written);
                }
            }
            let full = match &mut self.full {
                Some(full) => full,
                None => {
                    let stream = self.stream.get_ref().try_clone()?;
                    self.full.insert(listen(stream, Interest::WRITABLE)?)
                }
            };
            ready!(full.poll_write_ready(cx))?.clear_ready();
        }
    }
}

fn listen(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    #[expect(deprecated, reason = "its successor is unsafe, and a stream keeps the one descriptor that it has")]
    AsyncFd::with_interest(stream, interest)
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.stream.poll_read_ready(cx))?;
            let room = buffer.initialize_unfilled();
            match self.stream.get_ref().read(room) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                read => {
                    let read = read?;
                    // That was all, and of what comes next the kernel tells.
                    if 0 < read && read < room.len() {
                        ready.clear_ready();
                    }
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_by(cx, |stream| stream.write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_by(cx, |stream| stream.write_vectored(pieces))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.get_ref().shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::runtime::Handle;

    use super::*;

    fn pair() -> (Socket, UnixStream) {
        let (near, far) = UnixStream::pair().expect("a pair of sockets");
        near.set_nonblocking(true).expect("it can be told");
        (Socket::of(near).expect("it is listened to"), far)
    }

    #[tokio::test]
    async fn who_waits_for_an_answer_is_not_woken_before() {
        let (mut near, mut far) = pair();
        let server = std::thread::spawn(move || {
            let mut byte = [0];
            far.read_exact(&mut byte).expect("it was sent");
            // Time enough to be woken by that there is more room now.
            std::thread::sleep(Duration::from_millis(50));
            far.write_all(&byte).expect("they listen");
            far
        });
        near.write_all(b"?").await.expect("there is room");
        let parks = || Handle::current().metrics().worker_park_count(0);
        let before = parks();
        let mut byte = [0];
        near.read_exact(&mut byte).await.expect("they answer");
        assert_eq!((parks() - before, byte), (1, *b"?"));
        drop(server.join());
        assert_eq!(near.read(&mut byte).await.expect("an end"), 0, "they are gone");
    }

    #[tokio::test]
    async fn more_than_fits_is_written_as_it_is_read() {
        const BYTES: usize = 4 << 20;
        let (mut near, mut far) = pair();
        let server = std::thread::spawn(move || {
            let mut bytes = vec![0; BYTES];
            far.read_exact(&mut bytes).expect("it was sent");
            far.write_all(&bytes).expect("they listen");
        });
        let sent: Vec<u8> = (0..BYTES).map(|place| (place % 251) as u8).collect();
        near.write_all(&sent).await.expect("they read");
        assert!(near.full.is_none(), "there is room again");
        let mut back = vec![0; BYTES];
        near.read_exact(&mut back).await.expect("they answer");
        assert!(back == sent, "the same came back");
        server.join().expect("all was read");
    }

    #[tokio::test]
    async fn nobody_to_read_is_an_error() {
        let (mut near, far) = pair();
        drop(far);
        let error = near.write_all(b"?").await.expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
