//! Lines out of a stream of bytes, with a limit: whoever is at the other end may never end one.
//! Cancelling loses nothing that was received.

use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest line that is kept where nothing smaller is asked for, in bytes: more than QEMU's
/// longest answer.
pub const LONGEST: usize = 16 << 20;

/// Why there is no line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoLine {
    /// The stream has ended.
    Ended,
    /// The line is longer than it may be.
    TooLong,
}

/// What was received and not yet asked for.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// So many bytes at the beginning of `buffer` do not hold the end.
    searched: usize,
}

impl Lines {
    /// Everything up to (and with) the byte `end`; `None` when the stream ends before it, or it
    /// does not come within [`LONGEST`].
    pub async fn next(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        end: u8,
    ) -> Option<Vec<u8>> {
        self.searched = 0;
        self.within(stream, end, LONGEST).await.ok()
    }

    /// Everything up to (and with) the byte `end`, which has to come within `limit` bytes. Always
    /// with the same `end`.
    pub async fn within(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        end: u8,
        limit: usize,
    ) -> Result<Vec<u8>, NoLine> {
        loop {
            if let Some(at) = self.find(end) {
                return match at < limit {
                    true => Ok(self.cut(at + 1)),
                    false => Err(NoLine::TooLong),
                };
            }
            if self.buffer.len() > limit {
                return Err(NoLine::TooLong);
            }
            self.receive(stream).await?;
        }
    }

    /// The last `keep` bytes, or a few more, of everything up to (and with) the byte `end`, however
    /// much that is. Always with the same `end`.
    pub async fn tail(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        end: u8,
        keep: usize,
    ) -> Result<Vec<u8>, NoLine> {
        loop {
            if let Some(at) = self.find(end) {
                let mut line = self.cut(at + 1);
                line.drain(..line.len().saturating_sub(keep));
                return Ok(line);
            }
            let waste = self.buffer.len().saturating_sub(keep);
            self.buffer.drain(..waste);
            self.searched = self.buffer.len();
            self.receive(stream).await?;
        }
    }

    /// Where the next `end` is.
    fn find(&mut self, end: u8) -> Option<usize> {
        let found = self.buffer[self.searched..].iter().position(|byte| *byte == end);
        match found {
            Some(at) => Some(self.searched + at),
            None => {
                self.searched = self.buffer.len();
                None
            }
        }
    }

    /// Takes so many bytes. Memory that a long line needed is not kept.
    fn cut(&mut self, length: usize) -> Vec<u8> {
        self.searched = 0;
        let rest = self.buffer.split_off(length);
        std::mem::replace(&mut self.buffer, rest)
    }

    async fn receive(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<(), NoLine> {
        match stream.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => Err(NoLine::Ended),
            Ok(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
    }

    #[test]
    fn a_line_is_bounded_and_one_that_is_skipped_takes_no_memory() {
        run(async {
            let text = [&b"short\n"[..], &[b'x'; 100], b"\nlast\n"].concat();
            let (mut lines, mut stream) = (Lines::default(), &text[..]);
            assert_eq!(lines.within(&mut stream, b'\n', 6).await.as_deref(), Ok(&b"short\n"[..]));
            assert_eq!(lines.within(&mut stream, b'\n', 100).await, Err(NoLine::TooLong));
            let (mut lines, mut stream) = (Lines::default(), &text[..]);
            assert_eq!(lines.tail(&mut stream, b'\n', 3).await.as_deref(), Ok(&b"rt\n"[..]));
            assert_eq!(lines.tail(&mut stream, b'\n', 3).await.as_deref(), Ok(&b"xx\n"[..]));
            assert_eq!(lines.within(&mut stream, b'\n', 5).await.as_deref(), Ok(&b"last\n"[..]));
            assert_eq!(lines.within(&mut stream, b'\n', 5).await, Err(NoLine::Ended));
            // Gigabytes without an end.
            let (mut lines, mut stream) = (Lines::default(), tokio::io::repeat(b'x').take(1 << 30));
            assert_eq!(lines.tail(&mut stream, b'\n', 4096).await, Err(NoLine::Ended));
            assert!(lines.buffer.capacity() < 1 << 20, "{}", lines.buffer.capacity());
            let (mut lines, mut stream) = (Lines::default(), tokio::io::repeat(b'x'));
            assert_eq!(lines.within(&mut stream, b'\n', 1 << 20).await, Err(NoLine::TooLong));
            assert!(lines.buffer.capacity() < 4 << 20, "{}", lines.buffer.capacity());
        });
    }
}
