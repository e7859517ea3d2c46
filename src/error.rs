//! What went wrong, on which object, why, and what to type next.
//!
//! Every public function of the library returns [`Error`]. Its [`Kind`] decides the exit code and
//! is the `kind` of the JSON form; the message names the operation and the object; the source chain
//! carries the words of QEMU or of the kernel and is never repeated in the message.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::Path;

/// What a caller can do about an error. One kind, one exit code (see `docs/cli.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something else failed (exit 1).
    Failed,
    /// The request itself makes no sense (exit 2).
    Usage,
    /// No such VM, snapshot, template, disk or file (exit 3).
    NotFound,
    /// The name is taken (exit 4).
    Exists,
    /// Understood and refused, with the reason (exit 5).
    Refused,
    /// Another operation holds the lock (exit 6).
    Locked,
    /// QEMU or the guest agent failed or did not answer in time (exit 7).
    Qemu,
    /// The store needs recovery or is damaged (exit 8).
    Damaged,
    /// Interrupted by the user (exit 130, as shells report it).
    Interrupted,
}

impl Kind {
    /// The process exit code that stands for this kind.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Exists => 4,
            Kind::Refused => 5,
            Kind::Locked => 6,
            Kind::Qemu => 7,
            Kind::Damaged => 8,
            Kind::Interrupted => 130,
        }
    }

    /// The kind that goes by this word.
    pub fn from_word(word: &str) -> Option<Self> {
        use Kind::*;
        [Failed, Usage, NotFound, Exists, Refused, Locked, Qemu, Damaged, Interrupted]
            .into_iter()
            .find(|kind| kind.word() == word)
    }

    /// The word used in the JSON form of an error.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Failed => "failed",
            Kind::Usage => "usage",
            Kind::NotFound => "not-found",
            Kind::Exists => "exists",
            Kind::Refused => "refused",
            Kind::Locked => "locked",
            Kind::Qemu => "qemu",
            Kind::Damaged => "damaged",
            Kind::Interrupted => "interrupted",
        }
    }
}

/// The error of the library.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hints: Vec<String>,
    dependents: Vec<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    is_newer: bool,
    file: Option<Box<Path>>,
}

/// The result of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! constructors {
    ($($name:ident => $kind:ident),* $(,)?) => {
        $(
            #[doc = concat!("An error of [`Kind::", stringify!($kind), "`].")]
            pub fn $name(message: impl Into<String>) -> Self {
                Self::new(Kind::$kind, message)
            }
        )*
    };
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hints: Vec::new(),
            dependents: Vec::new(),
            source: None,
            is_newer: false,
            file: None,
        }
    }

    constructors! {
        failed => Failed, usage => Usage, not_found => NotFound, exists => Exists,
        refused => Refused, locked => Locked, qemu => Qemu, damaged => Damaged,
    }

    /// Damage that is none: a newer version has written what this one cannot read.
    pub fn newer(message: impl Into<String>) -> Self {
        Self { is_newer: true, ..Self::damaged(message) }
    }

    /// Adds a line that says what to type next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Names the objects that stand in the way.
    #[must_use]
    pub fn dependents(mut self, names: Vec<String>) -> Self {
        self.dependents = names;
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds another error as the cause, in words. What a newer version has written stays that.
    #[must_use]
    pub fn because_of(self, cause: &Error) -> Self {
        let is_newer = self.is_newer || cause.is_newer;
        Self { is_newer, ..self }.because(cause.full_message())
    }

    /// Says which file could not be read or written. The message names it already.
    #[must_use]
    pub fn of_file(mut self, file: &Path) -> Self {
        self.file = Some(file.into());
        self
    }

    /// Has a newer version written what cannot be read? Then it is not damaged, and not ours to
    /// mend.
    pub fn is_newer(&self) -> bool {
        self.is_newer
    }

    /// The file that could not be read or written, as far as that is known.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message alone, without the cause.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The message and every cause, joined with `: `.
    pub fn full_message(&self) -> String {
        match self.cause() {
            Some(cause) => format!("{}: {cause}", self.message),
            None => self.message.clone(),
        }
    }

    /// Every cause, joined with `: `.
    pub fn cause(&self) -> Option<String> {
        let mut words: Vec<String> = Vec::new();
        let mut cause = StdError::source(self);
        while let Some(error) = cause {
            words.push(error.to_string().trim_end().to_owned());
            cause = error.source();
        }
        (!words.is_empty()).then(|| words.join(": "))
    }

    /// May what failed work a moment later? There was no descriptor or memory left, or another
    /// program held the file.
    pub fn is_passing(&self) -> bool {
        use nix::errno::Errno;
        let passing = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EAGAIN, Errno::EINTR]
            .map(|errno| errno as i32);
        let mut cause = StdError::source(self);
        while let Some(error) = cause {
            let code = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            if code.is_some_and(|code| passing.contains(&code)) {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// What to type next, a line each.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }

    /// The objects that stand in the way.
    pub fn dependent_names(&self) -> &[String] {
        &self.dependents
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// What helps on a full file system.
pub const MAKE_ROOM: &str = "make room on that file system, then run the command again: \
                             cowhand snapshot rm, cowhand rm, then cowhand gc --older-than 0";

/// Gives an I/O error the operation and the path it happened on.
pub trait IoContext<T> {
    /// `cannot <action> <path>`, with the kernel's reason as the cause.
    fn on(self, action: &str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn on(self, action: &str, path: &Path) -> Result<T> {
        self.map_err(|source| {
            let kind = if source.kind() == io::ErrorKind::NotFound {
                Kind::NotFound
            } else {
                Kind::Failed
            };
            let error =
                Error::new(kind, format!("cannot {action} {}", path.display())).of_file(path);
            let error = match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => error.hint(MAKE_ROOM),
                io::ErrorKind::ReadOnlyFilesystem => {
                    error.hint("that file system is mounted read-only")
                }
                _ => error,
            };
            error.because(source)
        })
    }
}

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn on(self, action: &str, path: &Path) -> Result<T> {
        self.map_err(io::Error::from).on(action, path)
    }
}

impl<T> IoContext<T> for nix::Result<T> {
    fn on(self, action: &str, path: &Path) -> Result<T> {
        self.map_err(io::Error::from).on(action, path)
    }
}
