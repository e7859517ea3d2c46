//! An image as asked for, and what is known of it before anything is read: where its file is, what
//! it is to be called, which checksum it has to have.

use std::path::{Path, PathBuf};

use super::super::catalogue::Catalogue;
use super::super::source::{self, Source};
use crate::context::Context;
use crate::error::{IoContext, Result};
use crate::fetch::digest::Digest;
use crate::fetch::{Fetched, Url, http, partial};
use crate::model::{Format, ImageOrigin, Name, printable};

/// An image as asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Where it is from.
    pub source: Source,
    /// What it is to be called; without a name, as its file.
    pub name: Option<Name>,
    /// What the user says it is.
    pub format: Option<Format>,
    /// The checksum of the file.
    pub digest: Option<Digest>,
    /// A file, or an address, that has the checksum.
    pub sums: Option<String>,
}

/// What was asked for, with all that is known of it before anything is read.
pub(super) struct Resolved {
    pub(super) place: Place,
    /// What the image is to be called.
    pub(super) name: Name,
    /// What its file is called in the store.
    pub(super) file: String,
    /// What its file is called in a checksum file.
    pub(super) published: String,
    pub(super) format: Option<Format>,
    pub(super) checksum: Checksum,
    /// The source as a word of a command.
    pub(super) word: String,
    pub(super) origin: ImageOrigin,
}

/// Where the file is.
#[derive(Clone)]
pub(super) enum Place {
    File(PathBuf),
    Url(Url),
}

/// What the file has to be.
#[derive(Default)]
pub(super) struct Checksum {
    pub(super) digest: Option<Digest>,
    pub(super) sums: Option<String>,
    /// It is what the user says, or the catalogue itself, and not only what is published.
    pub(super) is_said: bool,
}

/// Reads the catalogue if the source is an entry of it, and nothing else.
pub(super) fn resolve(context: &Context, request: &Request) -> Result<Resolved> {
    let Request { source, name, format, digest, sums } = request.clone();
    let checksum = Checksum { is_said: digest.is_some() || sums.is_some(), digest, sums };
    match source {
        Source::File(path) => {
            let published = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let absolute = std::path::absolute(&path).on("find", &path)?;
            Ok(Resolved {
                name: name.map_or_else(|| source::name(&published), Ok)?,
                file: published.clone(),
                published,
                format,
                checksum,
                word: printable::shell(&path),
                origin: ImageOrigin {
                    source: absolute.display().to_string(),
                    ..ImageOrigin::default()
                },
                place: Place::File(path),
            })
        }
        Source::Url(url) => {
            let shown = http::shown(&url);
            // What is not shown is not known to whoever reads a hint.
            let word = if url.query().is_some() {
                "URL".to_owned()
            } else {
                printable::shell(Path::new(&shown))
            };
            let name = name.map_or_else(|| source::name(&source::file_name(&url)), Ok)?;
            Ok(download(url, name, format, checksum, word))
        }
        Source::Catalogue { name: of, version } => {
            let catalogue = Catalogue::load(&context.store)?;
            let entry = catalogue.find(&of, &version)?;
            let word = format!("{}:{}", entry.name, entry.version);
            let name =
                name.map_or_else(|| format!("{}-{}", entry.name, entry.version).parse(), Ok)?;
            // What the user says counts more than what the catalogue says.
            let checksum = match checksum.is_said {
                true => checksum,
                // A checksum that is published may be that of a newer build; one in the catalogue
                // itself is meant.
                false => {
                    let digest = entry.digest()?;
                    Checksum { is_said: digest.is_some(), digest, sums: entry.sums.clone() }
                }
            };
            let format = format.or(Some(entry.format));
            let mut resolved =
                download(source::url(&entry.url)?, name, format, checksum, word.clone());
            resolved.origin.catalogue = Some(word);
            Ok(resolved)
        }
    }
}

fn download(
    url: Url,
    name: Name,
    format: Option<Format>,
    checksum: Checksum,
    word: String,
) -> Resolved {
    let address = Some(partial::key(&url));
    Resolved {
        name,
        file: source::file_name(&url),
        published: source::published_name(&url),
        format,
        checksum,
        word,
        origin: ImageOrigin { source: http::shown(&url), address, ..ImageOrigin::default() },
        place: Place::Url(url),
    }
}

impl Resolved {
    /// Notes what was read.
    pub(super) fn note(&mut self, fetched: &Fetched) {
        self.origin.sha256 = Some(fetched.sums.sha256.to_string());
        self.origin.sha512 = fetched.sums.sha512.as_ref().map(Digest::to_string);
    }
}
