//! The one function that makes text safe to look at: guests, images, file names and QEMU's messages
//! can contain control characters, with which a terminal is told to do things (move the cursor,
//! rename the window, send an answer as if it had been typed).
//!
//! What is not printable becomes visible: `\x1b`, `\u{202e}`, `\n` where a line is meant. Bytes
//! that are not UTF-8 become U+FFFD. Text without such characters stays as it is.

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Text that has to stay on one line.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escape(text, |c| c == ' ')
}

/// Text of several lines; tabulators stay, too.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| matches!(c, ' ' | '\n' | '\t'))
}

/// A path as one word of a command that a person may paste into a shell: a file's name must not
/// become a second command.
pub(crate) fn shell(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    // It is no option.
    let here = if bytes.starts_with(b"-") { "./" } else { "" };
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./,:@%+=".contains(byte);
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && bytes.iter().all(is_plain) => format!("{here}{text}"),
        Ok(text) if !text.chars().any(is_control) => {
            format!("{here}'{}'", text.replace('\'', "'\\''"))
        }
        _ => format!("$'{here}{}'", bytes.utf8_chunks().map(in_dollar_quotes).collect::<String>()),
    }
}

/// A part of a word in `$'…'` (ANSI-C quoting, as bash and POSIX.1-2024 have it).
fn in_dollar_quotes(chunk: std::str::Utf8Chunk<'_>) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let valid = chunk.valid().chars().map(|c| match c {
        '\'' | '\\' => format!("\\{c}"),
        c if is_control(c) => hex(c.encode_utf8(&mut [0; 4]).as_bytes()),
        c => c.to_string(),
    });
    valid.collect::<String>() + &hex(chunk.invalid())
}

/// Makes a log printable that comes in pieces.
#[derive(Debug, Default)]
pub(crate) struct LogEscape {
    /// The end of a piece that the next one may complete: a part of a character, or half a line
    /// break.
    held: Vec<u8>,
}

impl LogEscape {
    /// What can be printed after this piece.
    pub(crate) fn push(&mut self, piece: &[u8]) -> String {
        self.held.extend_from_slice(piece);
        let incomplete = if self.held.ends_with(b"\r") { 1 } else { incomplete(&self.held) };
        let rest = self.held.split_off(self.held.len() - incomplete);
        let text = String::from_utf8_lossy(&self.held).replace("\r\n", "\n");
        self.held = rest;
        lines(&text).into_owned()
    }
}

/// Text of several lines with the styles that this program puts into it: colours and nothing else
/// (`ESC [ numbers m`, ECMA-48 "select graphic rendition").
pub(crate) fn styled(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, from)) = rest.split_once('\x1b') {
        out.push_str(&lines(before));
        let style = from.strip_prefix('[').and_then(|numbers| {
            let end = numbers.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
            numbers[end..].starts_with('m').then_some(end + 2)
        });
        let length = style.unwrap_or(0);
        out.push_str(if style.is_some() { "\x1b" } else { "\\x1b" });
        out.push_str(&from[..length]);
        rest = &from[length..];
    }
    out.push_str(&lines(rest));
    out
}

/// JSON text, whose strings may hold what serde_json leaves as it is.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    replace(
        text,
        |c| !is_control(c) || matches!(c, ' ' | '\n'),
        |c, out| {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        },
    )
}

/// How many bytes at the end begin a character that is not whole.
fn incomplete(bytes: &[u8]) -> usize {
    let behind = bytes.iter().rev().take(3).position(|byte| byte & 0xc0 != 0x80).map(|at| at + 1);
    let Some(length) = behind else { return 0 };
    let needed = match bytes[bytes.len() - length] {
        0xf0..=0xf7 => 4,
        0xe0..=0xef => 3,
        0xc0..=0xdf => 2,
        _ => 1,
    };
    if needed > length { length } else { 0 }
}

fn escape(text: &str, fine: impl Fn(char) -> bool) -> Cow<'_, str> {
    replace(
        text,
        |c| fine(c) || !is_control(c),
        |c, out| match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x100 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
        },
    )
}

fn replace(
    text: &str,
    fine: impl Fn(char) -> bool,
    put: impl Fn(char, &mut String),
) -> Cow<'_, str> {
    if text.chars().all(&fine) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if fine(c) { out.push(c) } else { put(c, &mut out) }
    }
    Cow::Owned(out)
}

/// C0 and C1 controls, DEL, the separators of lines and paragraphs, and what changes the direction
/// of text or is invisible.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}')
        || matches!(c, '\u{e0000}'..='\u{e007f}' | '\u{061c}' | '\u{00ad}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_that_commands_a_terminal_gets_through(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let text = String::from_utf8_lossy(&bytes);
            prop_assert!(!line(&text).chars().any(is_control));
            prop_assert!(!lines(&text).chars().any(|c| is_control(c) && c != '\n' && c != '\t'));
            let mut log = LogEscape::default();
            let shown: String = bytes.chunks(7).map(|piece| log.push(piece)).collect();
            prop_assert!(!shown.chars().any(|c| is_control(c) && c != '\n' && c != '\t'));
            prop_assert!(!json(&text).chars().any(|c| is_control(c) && c != '\n'));
            let styled = styled(&text);
            for rest in styled.split('\x1b').skip(1) {
                let numbers = rest.strip_prefix('[').expect("a style");
                let end = numbers.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
                prop_assert!(end.starts_with('m'));
            }
        }

        #[test]
        fn what_is_printable_stays_as_it_is(text in "[a-zA-Z0-9 äöü€日本/._-]{0,60}") {
            prop_assert_eq!(line(&text), text.as_str());
            prop_assert_eq!(styled(&text), text.clone());
            let once = line(&text).into_owned();
            prop_assert_eq!(line(&once), once.as_str());
        }

        #[test]
        fn json_stays_the_same_value(text in any::<String>()) {
            let value = serde_json::Value::String(text);
            let written = value.to_string();
            let read: serde_json::Value = serde_json::from_str(&json(&written)).expect("JSON");
            prop_assert_eq!(read, value);
        }
    }

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        for (path, word) in [
            ("/a/b-1.img", "/a/b-1.img"),
            ("-rf", "./-rf"),
            ("", "''"),
            ("a b; rm c", "'a b; rm c'"),
            ("it's", r"'it'\''s'"),
            ("x\n rm -r y\u{202e}'\\ü", r"$'x\x0a rm -r y\xe2\x80\xae\'\\ü'"),
        ] {
            assert_eq!(shell(Path::new(path)), word);
        }
        assert_eq!(shell(Path::new(std::ffi::OsStr::from_bytes(b"-\xff"))), r"$'./-\xff'");
    }

    #[test]
    fn the_tricks_of_terminals_are_shown() {
        assert_eq!(line("a\x1b]0;title\x07b"), "a\\x1b]0;title\\x07b");
        assert_eq!(line("x\n hint: rm"), "x\\n hint: rm");
        assert_eq!(line("txt.\u{202e}exe"), "txt.\\u{202e}exe");
        assert_eq!(lines("a\u{9b}31m\nb\u{7f}"), "a\\x9b31m\nb\\x7f");
        assert_eq!(
            styled("\x1b[1;31merror\x1b[0m: \x1b[2J\x1b[8"),
            "\x1b[1;31merror\x1b[0m: \\x1b[2J\\x1b[8"
        );
        let mut log = LogEscape::default();
        let pieces = ["a\r".as_bytes(), b"\nb\xff\x1bc\xe2", b"\x82", b"\xac!"];
        assert_eq!(pieces.map(|piece| log.push(piece)).concat(), "a\nb\u{fffd}\\x1bc\u{20ac}!");
    }
}
