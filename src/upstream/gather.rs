//! A connection that is not read at each packet: after some small thing was read it rests, and what comes meanwhile is read together.
//!
//! Each event of a watch wakes a thread, TLS, HTTP/2 and whoever reads, with caches that others have used since; a burst of events costs
//! far more in that than in being read. While it rests, a socket is not registered with the poller, so that nothing wakes.

use std::io;
use std::net;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// How long a connection rests. A new Service has 20 ms to answer, and the first event after a quiet time waits for nothing.
const REST: Duration = Duration::from_millis(14);
/// Where so much came at once, more is under way, and its reader is awake anyway.
const MUCH: usize = 16 * 1024;

/// A TCP connection that rests between small things.
#[derive(Debug)]
pub(super) struct Gathering {
    state: State,
    /// Bytes read since it last had nothing to read.
    read: usize,
    /// Something was written since: its answer is not held up.
    asked: bool,
    /// Otherwise it is as any other.
    rests: bool,
}

#[derive(Debug)]
enum State {
    Awake(TcpStream),
    Resting(net::TcpStream, Pin<Box<Sleep>>),
    /// Registering failed, which was told then.
    Broken,
}

impl Gathering {
    pub(super) fn new(stream: TcpStream, rests: bool) -> Self {
        Self { state: State::Awake(stream), read: 0, asked: false, rests }
    }

    /// The registered connection, also when it should still rest.
    fn wake(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        if let State::Resting(..) = self.state
            && let State::Resting(stream, _) = std::mem::replace(&mut self.state, State::Broken)
        {
            self.state = State::Awake(TcpStream::from_std(stream)?);
        }
        match &mut self.state {
            State::Awake(stream) => Ok(Pin::new(stream)),
            State::Resting(..) | State::Broken => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn rest(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let State::Awake(stream) = std::mem::replace(&mut self.state, State::Broken) {
            let mut timer = Box::pin(sleep(REST));
            // It is not over yet; this is how it comes to wake the reader.
            let _ = timer.as_mut().poll(context);
            self.state = State::Resting(stream.into_std()?, timer);
        }
        Ok(())
    }
}

impl AsyncRead for Gathering {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let State::Resting(_, timer) = &mut this.state {
            ready!(timer.as_mut().poll(context));
        }
        let before = buffer.filled().len();
        let polled = this.wake()?.poll_read(context, buffer);
        if polled.is_ready() {
            this.read += buffer.filled().len() - before;
            return polled;
        }
        let (read, asked) = (std::mem::take(&mut this.read), std::mem::take(&mut this.asked));
        if this.rests && (1..MUCH).contains(&read) && !asked {
            this.rest(context)?;
        }
        Poll::Pending
    }
}

impl AsyncWrite for Gathering {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.asked = true;
        this.wake()?.poll_write(context, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.asked = true;
        this.wake()?.poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// A socket keeps nothing back.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().wake()?.poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};

    use stoker_model::service::ServiceChange;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::runtime::Handle;
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;
    use crate::upstream::{ApiServer, ServiceReaders, ServiceStore, watch_services};

    async fn pair() -> (Gathering, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let (server, _) = listener.accept().await.expect("a client");
        server.set_nodelay(true).expect("an option");
        (Gathering::new(client, true), server)
    }

    #[tokio::test]
    async fn a_burst_is_read_together_and_nothing_is_lost() {
        const EVENTS: usize = 100;
        let (mut client, mut server) = pair().await;
        let begun = Instant::now();
        let sending = async move {
            for _ in 0..EVENTS {
                tokio::time::sleep(Duration::from_millis(1)).await;
                server.write_all(&[7; 50]).await.expect("somebody reads");
            }
        };
        let reading = async move {
            let (mut reads, mut bytes, mut buffer) = (0, 0, vec![0; 64 * 1024]);
            loop {
                match client.read(&mut buffer).await.expect("a connection") {
                    0 => return (reads, bytes),
                    count => (reads, bytes) = (reads + 1, bytes + count),
                }
            }
        };
        let ((), (reads, bytes)) = tokio::join!(sending, reading);
        assert_eq!(bytes, EVENTS * 50);
        // Once when it wakes, and once for what came since.
        let most = 2 * begun.elapsed().as_millis() as usize / REST.as_millis() as usize + 3;
        assert!(reads <= most, "{reads} reads of {most}");
    }

    #[tokio::test]
    async fn neither_the_first_event_nor_an_answer_waits() {
        let (mut client, mut server) = pair().await;
        let mut least = [Duration::MAX; 2];
        // A busy machine makes anybody wait, but not always.
        for _ in 0..20 {
            tokio::time::sleep(REST * 2).await;
            let sent = Instant::now();
            server.write_all(b"event").await.expect("written");
            client.read_exact(&mut [0; 5]).await.expect("read");
            least[0] = least[0].min(sent.elapsed());
            // It would rest now; a question wakes it.
            let asking = async {
                client.write_all(b"?").await.expect("written");
                let asked = Instant::now();
                client.read_exact(&mut [0; 6]).await.expect("read");
                asked.elapsed()
            };
            let answering = async {
                server.read_exact(&mut [0]).await.expect("read");
                server.write_all(b"answer").await.expect("written");
            };
            let (took, ()) = tokio::join!(asking, answering);
            least[1] = least[1].min(took);
        }
        assert!(least.iter().all(|least| *least < REST / 2), "{least:?}");
    }

    #[tokio::test]
    async fn much_is_read_as_it_comes() {
        for (bytes, rests) in [(2 * MUCH, false), (MUCH / 2, true)] {
            let (mut client, mut server) = pair().await;
            server.write_all(&vec![1; bytes]).await.expect("written");
            client.read_exact(&mut vec![0; bytes]).await.expect("read");
            let nothing = std::future::poll_fn(|context| {
                Poll::Ready(Pin::new(&mut client).poll_read(context, &mut ReadBuf::new(&mut [0])).is_pending())
            });
            assert!(nothing.await);
            assert_eq!(matches!(client.state, State::Resting(..)), rests, "{bytes}");
        }
    }

    /// Answers one watch: nothing is there at first, and then comes one Service a millisecond.
    fn serve(mut stream: net::TcpStream, services: usize) -> net::TcpStream {
        stream.set_nodelay(true).expect("an option");
        let mut lines = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
        let asked = lines.next().expect("a request").expect("a line");
        lines.find(|line| line.as_ref().is_ok_and(String::is_empty));
        let head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        let end = r#"{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}"#;
        stream.write_all(head).expect("somebody reads");
        let mut event = |kind: &str, object: &str| {
            let text = format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
            stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).expect("somebody reads");
        };
        event("BOOKMARK", end);
        for number in (0..services).filter(|_| asked.starts_with("GET /api/v1/services?")) {
            std::thread::sleep(Duration::from_millis(1));
            event("ADDED", &format!(r#"{{"metadata":{{"name":"s-{number}","namespace":"a"}},"spec":{{}}}}"#));
        }
        stream
    }

    /// How often a thread wakes for events is counted where it parks, so that it does not matter who else keeps the processors.
    #[tokio::test]
    async fn services_are_watched_by_such_a_connection() {
        const SERVICES: usize = 500;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound")).parse().expect("a URL");
        std::thread::spawn(move || {
            let watches = [(); 2].map(|()| listener.accept().expect("a connection").0);
            let served = watches.map(|watch| std::thread::spawn(move || serve(watch, SERVICES)));
            let _open = served.map(|server| server.join().expect("it is served"));
        });
        let api = ApiServer::new(&kube::Config::new(url)).expect("a connection");
        let (changes, mut changed) = mpsc::channel(SERVICES);
        let watch = watch_services(&api, ServiceStore::default(), changes, ServiceReaders::DataPath);
        tokio::spawn(watch.expect("a connection"));
        let parks = || Handle::current().metrics().worker_park_count(0);
        let (mut services, mut first) = (0, None);
        while services < SERVICES {
            let change = changed.recv().await.expect("the watch goes on");
            services += usize::from(matches!(change, ServiceChange::Service(_)));
            first.get_or_insert_with(|| (Instant::now(), parks()));
        }
        let (begun, before) = first.expect("a first one");
        let woken = parks() - before;
        // To read, for what came since, and to rest again.
        let most = 3 * (begun.elapsed().as_millis() / REST.as_millis()) as u64 + 10;
        assert!(woken <= most, "woken {woken} times for {SERVICES} events, of {most}");
    }
}
