//! Lines out of a stream of bytes, with a limit: whoever is at the other end may never end one. Cancelling loses nothing that was received.

use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest line that is kept: more than QEMU's longest answer, and than the guest agent's, which is 16 MiB of output twice, in base64.
pub const LONGEST: usize = 64 << 20;

/// What was received and not yet asked for.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
}

impl Lines {
    /// Everything up to (and with) the byte `end`; `None` when the stream ends before it, or it does not come within [`LONGEST`].
    pub async fn next(&mut self, stream: &mut (impl AsyncRead + Unpin), end: u8) -> Option<Vec<u8>> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|byte| *byte == end) {
                return Some(self.buffer.drain(..=searched + at).collect());
            }
            searched = self.buffer.len();
            if searched > LONGEST {
                return None;
            }
            match stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}
