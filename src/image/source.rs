//! What a user names as the source of an image, and what the image is called without a name. Pure.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::fetch::unpack::Packing;
use crate::fetch::{Url, http};
use crate::model::{Name, printable};

/// Where an image is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of the host.
    File(PathBuf),
    /// A file on a server.
    Url(Url),
    /// An entry of the catalogue.
    Catalogue {
        /// Of what: `debian`.
        name: String,
        /// Which one: `12`.
        version: String,
    },
}

impl FromStr for Source {
    type Err = Error;

    /// What has `://` is an address; `NAME:VERSION` is of the catalogue, also where there is a file
    /// of that name (`./NAME:VERSION`): whoever writes to the working directory does not choose the
    /// image. Everything else is a file.
    fn from_str(text: &str) -> Result<Self> {
        if text.contains("://") {
            return url(text).map(Self::Url);
        }
        match text.split_once(':') {
            Some((name, version)) if is_word(name) && is_word(version) => {
                Ok(Self::Catalogue { name: name.to_owned(), version: version.to_owned() })
            }
            _ => Ok(Self::File(text.into())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(&http::shown(url)),
            Self::Catalogue { name, version } => write!(f, "{name}:{version}"),
        }
    }
}

/// What `create --image` names: an image of the store, or the source of one that is added first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// An image or template of the store.
    Name(Name),
    /// A file on a server, or an entry of the catalogue.
    Source(Source),
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse()? {
            Source::File(path) => text.parse().map(Self::Name).map_err(|error: Error| {
                let file = printable::shell(&path);
                error.hint(format!("to make a VM of an image file: --disk {file}")).hint(format!(
                    "to share the file among VMs: cowhand image add {file} NAME, then --image NAME"
                ))
            }),
            source => Ok(Self::Source(source)),
        }
    }
}

fn is_word(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !text.is_empty() && text.len() <= Name::MAX && text.chars().all(is_plain)
}

/// An address that can be downloaded from.
pub(crate) fn url(text: &str) -> Result<Url> {
    let url: Url = text.parse().map_err(|why| {
        // It may hold a password.
        Error::usage("this is not an address of the form https://HOST/PATH")
            .because(format!("{why}"))
    })?;
    if !matches!(url.scheme(), "http" | "https") {
        let error =
            Error::usage(format!("{}:// is not supported: https:// and http:// are", url.scheme()));
        return Err(match url.scheme() {
            "file" => error
                .hint(format!("name the file itself: {}", printable::shell(Path::new(url.path())))),
            _ => error.hint("download the file by other means, then: cowhand image add FILE"),
        });
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::usage("an address with a user and password in it is not supported")
            .hint(
                "other users see the arguments of a command; download the file by other means, \
                 then: cowhand image add FILE",
            ));
    }
    Ok(url)
}

/// The name of the file of an address: what is behind the last slash.
pub(crate) fn published_name(url: &Url) -> String {
    let segment =
        url.path_segments().and_then(|mut segments| segments.next_back()).unwrap_or_default();
    percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

/// The same as a name that is plain, and of a length that each file system takes.
pub(crate) fn file_name(url: &Url) -> String {
    let plain: String =
        published_name(url)
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+') {
                    c
                } else {
                    '-'
                }
            })
            .collect();
    // From the end, where it says what it is.
    let plain = plain[plain.len().saturating_sub(128)..].trim_start_matches(['.', '-']);
    if plain.is_empty() { "image".to_owned() } else { plain.to_owned() }
}

/// What an image from a file of this name is called: the name without what it says of the format.
pub(crate) fn name(file: &str) -> Result<Name> {
    const FORMATS: [&str; 11] =
        ["qcow2", "qcow", "img", "raw", "bin", "vmdk", "vdi", "vhd", "vpc", "vhdx", "iso"];
    let stem = Packing::by_name(file).map_or(file, |(_, stem)| stem);
    let stem = match stem.rsplit_once('.') {
        Some((stem, format))
            if !stem.is_empty()
                && FORMATS.iter().any(|known| known.eq_ignore_ascii_case(format)) =>
        {
            stem
        }
        _ => stem,
    };
    let plain: String = stem
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .collect();
    let plain: String = plain.trim_start_matches(['.', '_', '-']).chars().take(Name::MAX).collect();
    plain.parse().map_err(|_| {
        Error::usage(format!("the name {} gives none for the image", printable::line(file)))
            .hint("say what it is to be called: cowhand image add SOURCE NAME")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_source_is_an_address_an_entry_of_the_catalogue_or_a_file() {
        let parse = |text: &str| text.parse::<Source>().expect(text);
        assert!(matches!(parse("https://host/x.qcow2"), Source::Url(_)));
        let Source::Catalogue { name: entry, version } = parse("debian:12") else {
            panic!("it is an entry of the catalogue");
        };
        assert_eq!((&*entry, &*version), ("debian", "12"));
        for file in ["x.qcow2", "/a:b/c", "./debian:12", "debian", "a b:c", ":", "x:"] {
            assert!(matches!(parse(file), Source::File(_)), "{file}");
        }
        for bad in [
            "ftp://host/x", "file:///x.img", "https://", "https://user:secret@host/x",
            "http://user@host/x",
        ] {
            let error = bad.parse::<Source>().expect_err(bad);
            assert!(!error.full_message().contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn an_image_is_called_as_its_file() {
        for (file, called) in [
            ("debian-12-generic-amd64.qcow2", "debian-12-generic-amd64"),
            ("x.raw.xz", "x"),
            ("My Disk (1).IMG", "My-Disk--1-"),
            ("v1.2.3", "v1.2.3"),
            (".hidden.img", "hidden"),
        ] {
            assert_eq!(name(file).expect(file).as_str(), called);
        }
        for file in ["", "...", "-.img", "é"] {
            assert!(name(file).is_err(), "{file}");
        }
        let of = |text: &str| file_name(&url(text).expect(text));
        assert_eq!(of("https://host/a/b.img?token=1"), "b.img");
        for odd in ["https://host", "https://host/a/", "https://host/..%2f", "https://host/%00"] {
            assert!(!of(odd).is_empty() && !of(odd).contains('/'), "{odd}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_server_calls_a_file_it_is_a_plain_name(path in "[ -~é]{0,300}") {
            if let Ok(url) = url(&format!("https://host/{path}")) {
                let name = file_name(&url);
                prop_assert!(!name.contains('/') && !name.starts_with('.'));
                prop_assert!(name.len() <= 128 && !name.is_empty());
            }
        }
    }
}
