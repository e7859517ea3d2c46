//! The words between the host and the helper: frames of bytes on a virtio-serial port. Both ends
//! are this same program.
//!
//! ```text
//! host:   START token                      request ─ data … ─▶
//! guest:              WELCOME token version          ◀─ data … ─ reply
//! ```
//! A port keeps bytes that nobody has read when a client dies, and may have cut a frame in two. So
//! each client begins with 16 bytes that are no frame and a token of its own, the guest throws away
//! everything before them, and the client everything before the answer with its token.

use serde::{Deserialize, Serialize};

/// The version of these words. Both ends have to speak the same.
pub const VERSION: u32 = 1;
/// What a client says first. Its first byte is no [`Kind`].
pub const START: [u8; 16] = *b"\xc0\xffcowhand start\n";
/// What it is answered.
pub const WELCOME: [u8; 16] = *b"\xc0\xfecowhand hello\n";
/// The most bytes a frame carries. The kernel's driver takes no more at once.
pub const LARGEST: usize = 32 << 10;
/// Bytes of input that may be under way to a command that does not read them. More would keep a
/// signal behind them waiting.
pub const WINDOW: usize = 64 << 10;

const HEADER: usize = 5;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A [`Request`], host to guest.
    Request = 1,
    /// A [`Reply`], guest to host; the request is done.
    Reply = 2,
    /// Standard input; empty at its end.
    Input = 3,
    /// Standard output.
    Output = 4,
    /// Standard error.
    Errors = 5,
    /// So many bytes of input have been taken (`u32`, little endian).
    Taken = 6,
    /// A signal for the command (one byte, its number).
    Signal = 7,
    /// The terminal's size: rows and columns (`u16` each, little endian).
    Resize = 8,
    /// Is anybody there?
    Ping = 9,
    /// Yes.
    Pong = 10,
    /// An [`Entry`](super::tree::Entry) of a tree.
    Entry = 11,
    /// Bytes of the file just named: where (`u64`, little endian), then what.
    Data = 12,
    /// The tree is whole.
    End = 13,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::Request,
        Self::Reply,
        Self::Input,
        Self::Output,
        Self::Errors,
        Self::Taken,
        Self::Signal,
        Self::Resize,
        Self::Ping,
        Self::Pong,
        Self::Entry,
        Self::Data,
        Self::End,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// What the host wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Run a command.
    Exec(Exec),
    /// Get ready to be saved: take down what no two guests may share.
    Prepare,
    /// Take another identity.
    Become(Identity),
    /// Take a tree that follows, and put it at this path.
    Put {
        /// Absolute.
        path: String,
        /// What it is called where it comes from; its name, where the path is a directory.
        name: String,
    },
    /// Send the tree at this path.
    Get {
        /// Absolute.
        path: String,
        /// If the path is a symbolic link, send what it points to. A helper that does not know this
        /// word always does.
        #[serde(default)]
        follow: bool,
    },
}

/// A command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// `KEY=VALUE`, added to the environment.
    pub environment: Vec<String>,
    /// Where it runs; the user's home without it.
    pub directory: Option<String>,
    /// Who runs it, by name or number; root without it.
    pub user: Option<String>,
    /// Rows and columns of the terminal it is to have.
    pub terminal: Option<(u16, u16)>,
    /// Input follows. Without it there is none.
    pub input: bool,
}

/// Who a guest is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its name.
    pub hostname: String,
    /// 32 hexadecimal digits.
    pub machine_id: String,
    /// Fresh random bytes, in hexadecimal.
    pub entropy: String,
    /// Nanoseconds since 1970.
    pub now_ns: u64,
    /// The addresses of its network cards: what they are, and what they are to be.
    pub cards: Vec<(String, String)>,
}

/// What came of becoming somebody else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Became {
    /// The kernel's random generator was reseeded.
    pub reseeded: bool,
    /// What could not be done, in words.
    pub problems: Vec<String>,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// It is done.
    Done {
        /// Bytes of files that were written.
        #[serde(default)]
        bytes: u64,
    },
    /// The guest has another identity.
    Became(Became),
    /// The command has ended with this exit code.
    Exited {
        /// 0 to 255.
        code: u8,
    },
    /// A signal ended it.
    Killed {
        /// Its number.
        signal: u8,
    },
    /// It could not be done.
    Failed {
        /// Why.
        why: Why,
        /// In words.
        message: String,
    },
}

/// Why something could not be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The guest has no such program, file or user.
    NotFound,
    /// The program is there and cannot be run.
    NotExecutable,
    /// Anything else.
    Other,
}

/// Puts a frame behind `out`.
pub fn put(out: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    debug_assert!(payload.len() <= LARGEST);
    out.push(kind as u8);
    out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(payload);
}

/// What comes out of a stream of bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A frame.
    Frame(Kind, Vec<u8>),
    /// More bytes are needed.
    More,
    /// What comes is no frame.
    Lost,
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    at: usize,
}

impl Decoder {
    /// Takes what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.at > LARGEST {
            self.buffer.drain(..self.at);
            self.at = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame.
    pub fn cut(&mut self) -> Next {
        let rest = &self.buffer[self.at..];
        let Some((kind, length)) = rest.first().zip(rest.get(1..HEADER)) else {
            return match rest.first() {
                Some(byte) if Kind::from_byte(*byte).is_none() => Next::Lost,
                _ => Next::More,
            };
        };
        let length =
            length.try_into().map_or(usize::MAX, |bytes| u32::from_le_bytes(bytes) as usize);
        let Some(kind) = Kind::from_byte(*kind).filter(|_| length <= LARGEST) else {
            return Next::Lost;
        };
        match rest.get(HEADER..HEADER + length) {
            None => Next::More,
            Some(payload) => {
                let payload = payload.to_vec();
                self.at += HEADER + length;
                Next::Frame(kind, payload)
            }
        }
    }

    /// Looks for `mark` and the bytes behind it; everything before them, and they, are gone from
    /// the stream.
    pub fn find<const N: usize>(&mut self, mark: &[u8; 16]) -> Option<[u8; N]> {
        let rest = &self.buffer[self.at..];
        match rest.windows(mark.len()).position(|window| window == mark) {
            Some(position) => {
                let from = position + mark.len();
                let Some(behind) = rest.get(from..from + N) else {
                    self.at += position;
                    return None;
                };
                let behind = behind.try_into().ok();
                self.at += from + N;
                behind
            }
            None => {
                // The mark itself may be cut in two.
                self.at += rest.len().saturating_sub(mark.len() - 1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stream_that_was_cut_anywhere_is_found_again() {
        let mut frame = Vec::new();
        put(&mut frame, Kind::Input, &[7; 100]);
        for cut in 0..frame.len() {
            let mut decoder = Decoder::default();
            decoder.push(&frame[..cut]);
            // What a second client sends after it was not answered: it completes whatever was
            // begun.
            decoder.push(&vec![0; LARGEST + HEADER]);
            while let Next::Frame(..) = decoder.cut() {}
            assert_ne!(decoder.cut(), Next::More, "cut at {cut}");
            decoder.push(&START);
            decoder.push(&[9; 16]);
            assert_eq!(decoder.find::<16>(&START), Some([9; 16]), "cut at {cut}");
            decoder.push(&frame);
            assert_eq!(decoder.cut(), Next::Frame(Kind::Input, vec![7; 100]));
        }
    }

    #[test]
    fn a_start_between_frames_is_no_frame() {
        let mut decoder = Decoder::default();
        decoder.push(&START[..1]);
        assert_eq!(decoder.cut(), Next::Lost);
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20),
            step in 1usize..70,
        ) {
            let mut stream = Vec::new();
            payloads.iter().for_each(|payload| put(&mut stream, Kind::Output, payload));
            let (mut decoder, mut out) = (Decoder::default(), Vec::new());
            for chunk in stream.chunks(step) {
                decoder.push(chunk);
                while let Next::Frame(kind, payload) = decoder.cut() {
                    prop_assert_eq!(kind, Kind::Output);
                    out.push(payload);
                }
            }
            prop_assert_eq!(out, payloads);
        }

        #[test]
        fn rubbish_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            for _ in 0..bytes.len() + 1 {
                if decoder.cut() == Next::Lost {
                    decoder.find::<16>(&START);
                }
            }
        }
    }
}
