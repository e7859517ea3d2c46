//! What people and scripts see: tables, trees, JSON, progress bars, errors. The only room, with
//! `cli`, that prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod json;
mod progress;
pub mod table;
pub(crate) mod time;
pub(crate) mod tree;

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

pub use progress::Terminal;

use crate::error::Error;
use crate::model::printable;

const RED: Style = AnsiColor::Red.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const CYAN: Style = AnsiColor::Cyan.on_default();

/// The form of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people; still parseable in a pipe.
    #[default]
    Table,
    /// For scripts, with stable keys.
    Json,
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Makes this the choice of the whole process.
    pub fn apply(self) {
        match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }
}

/// Why a result could not be written.
static UNWRITTEN: OnceLock<String> = OnceLock::new();

/// Prints results.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    /// The form of results.
    pub format: Format,
    /// Say nothing that was not asked for.
    pub quiet: bool,
}

impl Printer {
    /// A result: `text` for people, `value` for scripts.
    pub fn result(&self, text: &str, value: &(impl Serialize + ?Sized)) {
        match self.format {
            Format::Table => self.text(text),
            Format::Json => match serde_json::to_string_pretty(value) {
                Ok(text) => put(&printable::json(&text)),
                Err(error) => note_failure(Err(error.into())),
            },
        }
    }

    /// A value for scripts, written as it is serialized: for what is too large to be copied.
    pub fn json(&self, value: &impl Serialize) {
        let mut out = std::io::BufWriter::new(std::io::stdout());
        let written = serde_json::to_writer_pretty(&mut out, value).map_err(std::io::Error::from);
        note_failure(written.and_then(|()| writeln!(out)).and_then(|()| out.flush()));
    }

    /// That something was done: `text` for people unless they want quiet, `value` for scripts.
    pub fn done(&self, text: &str, value: &(impl Serialize + ?Sized)) {
        if self.format == Format::Json || !self.quiet {
            self.result(text, value);
        }
    }

    /// Text with a final newline; what is not printable in it becomes visible.
    pub fn text(&self, text: &str) {
        put(&printable::styled(text));
    }

    /// Why a result could not be written, if one could not.
    pub fn unwritten(&self) -> Option<Error> {
        UNWRITTEN.get().map(|why| {
            Error::failed("it is done, but standard output cannot be written to")
                .because(why.as_str())
        })
    }

    /// Bytes as they are: a guest's, escape sequences and all.
    pub fn raw(&self, bytes: &[u8]) {
        note_failure(self.pass(bytes));
    }

    /// The same, to standard error.
    pub fn raw_error(&self, bytes: &[u8]) {
        let _ = self.pass_error(bytes);
    }

    /// Bytes as they are, for those who want to know whether anybody reads them.
    pub fn pass(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = std::io::stdout();
        out.write_all(bytes).and_then(|()| out.flush())
    }

    /// The same, to standard error.
    pub fn pass_error(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = std::io::stderr();
        out.write_all(bytes).and_then(|()| out.flush())
    }

    /// An error, with its cause and what to type next.
    pub fn error(&self, error: &Error) {
        match self.format {
            Format::Json => to_stderr(&printable::json(&(error_json(error) + "\n"))),
            Format::Table => to_stderr(&error_text(error)),
        }
    }
}

/// What cannot be said does not keep anything from being done.
fn to_stderr(text: &str) {
    let _ = anstream::stderr().write_all(text.as_bytes());
}

fn put(text: &str) {
    let text = text.trim_end_matches('\n');
    if !text.is_empty() {
        note_failure(writeln!(anstream::stdout(), "{text}"));
    }
}

/// A message that may quote a guest, an image or QEMU: printable, and with its further lines set
/// in, so that none of them looks like another message of cowhand's.
fn message(text: &str, indent: usize) -> String {
    printable::lines(text).replace('\n', &format!("\n{:indent$}", ""))
}

/// Standard error for the lines of `-v`, which show what others have sent.
#[derive(Debug)]
pub struct Trace;

impl Write for Trace {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        std::io::stderr()
            .write_all(printable::lines(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// A reader that has gone away is no error of ours.
fn note_failure(written: std::io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = UNWRITTEN.set(error.to_string());
    }
}

/// An error for scripts: one line of JSON.
fn error_json(error: &Error) -> String {
    serde_json::to_string(&json::Failure::from(error)).unwrap_or_default()
}

/// An error for people.
pub fn error_text(error: &Error) -> String {
    let mut text = format!("{RED}error{RED:#}: {}\n", message(&error.full_message(), 7));
    for hint in error.hints() {
        text.push_str(&format!(" {CYAN}hint{CYAN:#}: {}\n", message(hint, 7)));
    }
    text
}

fn warning(text: &str) -> String {
    format!("{YELLOW}warning{YELLOW:#}: {}", message(text, 9))
}

/// Is somebody looking at standard error?
fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}
