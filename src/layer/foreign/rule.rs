//! The one rule for the format of a file that a person names. Pure.
//!
//! - What the user says always wins. Said to be raw, a file is raw, whatever its bytes look like.
//!   Said to be something else, its header must agree.
//! - Otherwise the header counts, as long as the name does not contradict it. A guest writes what
//!   it likes into its raw disk, a header included; so a file that looks like an image and is not
//!   called one is a question to the user.

use std::path::Path;

use crate::error::{Error, Result};
use crate::layer::inspect::{Content, Other};
use crate::model::{Format, printable};

/// A file, what the user says it is, and how the user says so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    /// The file.
    pub path: &'a Path,
    /// Its format, as the user says.
    pub said: Option<Format>,
    /// How a format is said where the file was named.
    pub spelling: Spelling,
}

/// How a format is said on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// `--disk FILE,format=F`.
    Disk,
    /// `-f F`.
    Option,
}

impl Ask<'_> {
    fn saying(&self, format: Format) -> String {
        match self.spelling {
            Spelling::Disk => format!("--disk {},format={format}", printable::shell(self.path)),
            Spelling::Option => format!("-f {format}"),
        }
    }
}

/// What a file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    Format(Format),
    Nothing,
}

fn by_name(path: &Path) -> Named {
    let extension =
        path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
    match extension.as_deref() {
        Some("raw" | "img" | "bin" | "dd" | "iso" | "dsk") => Named::Format(Format::Raw),
        Some("qcow2" | "qcow") => Named::Format(Format::Qcow2),
        Some("vhd" | "vpc") => Named::Format(Format::Vpc),
        Some(other) => other.parse().map_or(Named::Nothing, Named::Format),
        None => Named::Nothing,
    }
}

/// The format of a file that looks like `content`; or the question which one it has.
pub(crate) fn decide(ask: &Ask<'_>, content: Content) -> Result<Format> {
    let shown = ask.path.display();
    let raw_after_all =
        || format!("to use it as a raw disk all the same: {}", ask.saying(Format::Raw));
    match (ask.said, content) {
        (Some(Format::Raw), _) => Ok(Format::Raw),
        (Some(said), Content::Image(seen)) if said == seen => Ok(said),
        (Some(said), seen) => {
            let error =
                Error::refused(format!("{shown} is not {said}: by its header it is {seen}"));
            Err(match seen {
                Content::Image(seen) => error
                    .hint(format!("if that is right: {}", ask.saying(seen)))
                    .hint(raw_after_all()),
                _ => error.hint(raw_after_all()),
            })
        }
        (None, Content::Raw) => match by_name(ask.path) {
            Named::Format(named) if named != Format::Raw => Err(Error::refused(format!(
                "{shown} is {named} by its name, but has no {named} header"
            ))
            .hint(format!("if it is a raw disk: {}", ask.saying(Format::Raw)))),
            _ => Ok(Format::Raw),
        },
        (None, Content::Image(seen)) => match by_name(ask.path) {
            Named::Format(named) if named == seen => Ok(seen),
            named => {
                let name = match named {
                    Named::Format(named) => format!("{named} by its name"),
                    Named::Nothing => "without a format in its name".to_owned(),
                };
                Err(Error::refused(format!(
                    "{shown} is {name}, but {seen} by its header; a guest can write such a header \
                     into its raw disk"
                ))
                .hint(format!("if it is a raw disk: {}", ask.saying(Format::Raw)))
                .hint(format!("if it was made as {seen}: {}", ask.saying(seen))))
            }
        },
        (None, Content::Other(other)) => {
            let error = Error::refused(format!(
                "{shown} is no disk image: by its first bytes it is {content}"
            ));
            Err(match other {
                Other::Compressed(_, command) => {
                    error.hint(format!("decompress it first: {command} {shown}"))
                }
                Other::Archive(_, command) => {
                    error.hint(format!("unpack it first: {command} {shown}"))
                }
                Other::Html => error.hint("name the image itself, not the page that links to it"),
                Other::Xml => error.hint("name the disk file, not the description of the machine"),
                Other::Format(_) => error,
            }
            .hint(raw_after_all()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(name: &str, said: Option<Format>, content: Content) -> Result<Format> {
        decide(&Ask { path: Path::new(name), said, spelling: Spelling::Disk }, content)
    }

    const CONTENTS: [Content; 10] = [
        Content::Raw,
        Content::Image(Format::Qcow2),
        Content::Image(Format::Vmdk),
        Content::Image(Format::Vhdx),
        Content::Image(Format::Vdi),
        Content::Image(Format::Vpc),
        Content::Other(Other::Xml),
        Content::Other(Other::Html),
        Content::Other(Other::Format("qed")),
        Content::Other(Other::Compressed("gzip", "gunzip")),
    ];

    #[test]
    fn what_is_said_to_be_raw_is_raw_whatever_it_looks_like() {
        for content in CONTENTS {
            for name in ["x.raw", "x", "x.qcow2", "x.vmdk"] {
                assert_eq!(decided(name, Some(Format::Raw), content).expect("raw"), Format::Raw);
            }
        }
    }

    #[test]
    fn a_raw_or_nameless_file_that_looks_like_something_else_is_never_decided_silently() {
        for content in CONTENTS.into_iter().skip(1) {
            for name in ["x.raw", "x.img", "x", "x.IMG", "x.bak", ".qcow2"] {
                let error = decided(name, None, content).expect_err(name);
                assert!(error.hints().iter().any(|hint| hint.contains("format=raw")), "{error:?}");
            }
        }
    }

    #[test]
    fn a_name_that_agrees_with_the_header_is_enough() {
        for (name, format) in
            [("x.qcow2", Format::Qcow2), ("x.vhd", Format::Vpc), ("X.VMDK", Format::Vmdk)]
        {
            assert_eq!(decided(name, None, Content::Image(format)).expect("a format"), format);
        }
        for name in ["x.raw", "x.img", "x", "x.disk"] {
            assert_eq!(decided(name, None, Content::Raw).expect("raw"), Format::Raw);
        }
        assert!(decided("x.qcow2", None, Content::Raw).is_err());
        assert!(decided("x.qcow2", None, Content::Image(Format::Vmdk)).is_err());
        assert!(decided("x", Some(Format::Qcow2), Content::Raw).is_err());
        assert_eq!(
            decided("x.raw", Some(Format::Qcow2), Content::Image(Format::Qcow2)).expect("said"),
            Format::Qcow2
        );
    }
}
