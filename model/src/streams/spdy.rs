//! The little of SPDY/3.1 that a client of a runtime's streaming server needs: it opens streams, writes to them and reads what comes.
//!
//! Headers go out uncompressed (as stored blocks of zlib, which every reader takes) and what comes in of them is skipped: the runtime
//! has nothing to say there. Neither side uses windows: TCP holds back who is too fast.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bit of a frame's first byte: it is about the connection or a stream, and is no data.
const CONTROL: u8 = 0x80;
const VERSION: u8 = 3;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
/// Flag: the sender has nothing more for this stream.
const FIN: u8 = 1;
/// What a frame's length may be: 24 bits.
const LONGEST: usize = (1 << 24) - 1;
/// The longest control frame that is read: ours have some hundred bytes.
const LONGEST_CONTROL: usize = 64 << 10;

/// Writes frames. It does not keep what it wrote: every method gives the bytes to send.
#[derive(Debug, Default)]
pub struct Writer {
    /// The zlib stream of headers has begun.
    began: bool,
}

impl Writer {
    /// Opens a stream with these headers; their names must be in lower case.
    ///
    /// # Panics
    /// When headers are longer than 64 KiB.
    pub fn open(&mut self, stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        put_length(&mut block, headers.len());
        for (name, value) in headers {
            for text in [name, value] {
                put_length(&mut block, text.len());
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut body = Vec::new();
        body.extend_from_slice(&stream.to_be_bytes());
        // No stream it belongs to, highest priority, no credentials.
        body.extend_from_slice(&[0; 6]);
        if !self.began {
            // zlib: deflate, 32 KiB window, no dictionary, fastest.
            body.extend_from_slice(&[0x78, 0x01]);
            self.began = true;
        }
        // A stored block that is not the last.
        let length = u16::try_from(block.len()).expect("headers of ours are some ten bytes long");
        body.push(0);
        body.extend_from_slice(&length.to_le_bytes());
        body.extend_from_slice(&(!length).to_le_bytes());
        body.extend_from_slice(&block);
        // An empty one: Go's reader gives out what it has only then.
        body.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        control(SYN_STREAM, 0, &body)
    }

    /// Answers a ping.
    pub fn pong(id: u32) -> Vec<u8> {
        control(PING, 0, &id.to_be_bytes())
    }
}

fn put_length(block: &mut Vec<u8>, length: usize) {
    block.extend_from_slice(&u32::try_from(length).expect("headers of ours are short").to_be_bytes());
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![CONTROL, VERSION];
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&head_end(flags, body.len()));
    frame.extend_from_slice(body);
    frame
}

fn head_end(flags: u8, length: usize) -> [u8; 4] {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [flags, length[1], length[2], length[3]]
}

/// Sends data on a stream.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), stream: u32, data: &[u8]) -> io::Result<()> {
    for part in data.chunks(LONGEST) {
        to.write_all(&stream.to_be_bytes()).await?;
        to.write_all(&head_end(0, part.len())).await?;
        to.write_all(part).await?;
    }
    to.flush().await
}

/// Says that nothing more comes on a stream.
pub async fn finish(to: &mut (impl AsyncWrite + Unpin), stream: u32) -> io::Result<()> {
    to.write_all(&stream.to_be_bytes()).await?;
    to.write_all(&head_end(FIN, 0)).await?;
    to.flush().await
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Some bytes of a stream stand in the buffer.
    Data {
        /// Whose.
        stream: u32,
    },
    /// A stream has ended.
    End {
        /// Which.
        stream: u32,
    },
    /// Must be answered.
    Ping {
        /// The same number goes back.
        id: u32,
    },
    /// The connection is at its end.
    Closed,
}

/// Reads frames, data in parts that are never larger than the caller's buffer.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    /// The data frame that is being read: stream, bytes that are left, and whether it is the last one.
    open: Option<(u32, usize, bool)>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads from here.
    pub fn new(from: R) -> Self {
        Self { from, open: None }
    }

    /// The next event. Data is appended to `into`, at most `most` bytes. Not cancel safe.
    pub async fn next(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<Event> {
        loop {
            match self.open.take() {
                Some((stream, 0, true)) => return Ok(Event::End { stream }),
                Some((_, 0, false)) | None => {}
                Some((stream, left, last)) => {
                    let before = into.len();
                    let most = u64::try_from(left.min(most)).unwrap_or(u64::MAX);
                    (&mut self.from).take(most).read_buf(into).await?;
                    let came = into.len() - before;
                    if came == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.open = Some((stream, left - came, last));
                    return Ok(Event::Data { stream });
                }
            }
            let mut head = [0; 8];
            match self.from.read_exact(&mut head).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Event::Closed),
                Err(error) => return Err(error),
            }
            let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
            if head[0] & CONTROL == 0 {
                let stream = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
                self.open = Some((stream, length, head[4] & FIN != 0));
                continue;
            }
            if length > LONGEST_CONTROL {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the runtime sent an overlong SPDY frame"));
            }
            let mut body = vec![0; length];
            self.from.read_exact(&mut body).await?;
            let number = || body.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
            match u16::from_be_bytes([head[2], head[3]]) {
                RST_STREAM => return Ok(Event::End { stream: number() }),
                PING => return Ok(Event::Ping { id: number() }),
                GOAWAY => return Ok(Event::Closed),
                // A reply to our opening of a stream, or a setting; a reply may say that nothing comes.
                _ if head[4] & FIN != 0 => return Ok(Event::End { stream: number() }),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    async fn events(mut bytes: &[u8]) -> Vec<(Event, Vec<u8>)> {
        let mut reader = Reader::new(&mut bytes);
        let mut all = Vec::new();
        loop {
            let mut data = Vec::new();
            let event = reader.next(&mut data, 4).await.unwrap();
            let is_last = event == Event::Closed;
            all.push((event, data));
            if is_last {
                return all;
            }
        }
    }

    #[tokio::test]
    async fn streams_are_written_and_read() {
        let mut bytes = Vec::new();
        send(&mut bytes, 3, b"hello").await.unwrap();
        bytes.extend(Writer::pong(2));
        finish(&mut bytes, 3).await.unwrap();
        bytes.extend(control(RST_STREAM, 0, &[0, 0, 0, 5, 0, 0, 0, 1]));
        let expected = [
            (Event::Data { stream: 3 }, b"hell".to_vec()),
            (Event::Data { stream: 3 }, b"o".to_vec()),
            (Event::Ping { id: 2 }, vec![]),
            (Event::End { stream: 3 }, vec![]),
            (Event::End { stream: 5 }, vec![]),
            (Event::Closed, vec![]),
        ];
        assert_eq!(events(&bytes).await, expected);
    }

    #[test]
    fn headers_are_one_zlib_stream() {
        let mut writer = Writer::default();
        let mut packed = Vec::new();
        for (stream, kind) in [(1, "error"), (3, "stdin")] {
            let frame = writer.open(stream, &[("streamtype", kind)]);
            assert_eq!(frame[..4], [0x80, 3, 0, 1]);
            packed.extend_from_slice(&frame[18..]);
        }
        let mut plain = vec![0; 4 + 2 * 4 + 15];
        let mut unpacker = flate2::read::ZlibDecoder::new(&packed[..]);
        unpacker.read_exact(&mut plain).unwrap();
        assert_eq!(plain, b"\0\0\0\x01\0\0\0\x0astreamtype\0\0\0\x05error");
        unpacker.read_exact(&mut plain).unwrap();
        assert_eq!(plain, b"\0\0\0\x01\0\0\0\x0astreamtype\0\0\0\x05stdin");
    }

    proptest! {
        #[test]
        fn whatever_comes_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                let mut rest = &bytes[..];
                let mut reader = Reader::new(&mut rest);
                let mut data = Vec::new();
                // Each event takes at least one byte, or is the end of a stream that a byte began.
                for _ in 0..=2 * bytes.len() {
                    match reader.next(&mut data, 7).await {
                        Ok(Event::Closed) | Err(_) => return Ok(()),
                        Ok(_) => {}
                    }
                }
                prop_assert!(false, "it goes on after its end");
                Ok(())
            })?;
        }
    }
}
