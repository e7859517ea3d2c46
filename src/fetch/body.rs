//! The content of a file on a server, from some byte on, as one stream: where the connection is
//! lost, the server too slow or busy, it goes on by another request for the rest (RFC 9110, 14:
//! range requests).
//!
//! ```text
//! request ─200─▶ from the beginning: what came before is passed over, if it is the same version
//!         ─206─▶ the rest of the same version
//!         ─416─▶ there is no rest
//!         ─another version─▶ `Changed`: the caller begins anew
//! ```

use std::time::{Duration, Instant};

use reqwest::header::{self, HeaderMap};
use reqwest::{Response, StatusCode, Url};

use super::http::{self, Client, Fault};
use crate::error::{Error, Result};
use crate::ui::Ui;

/// So much in a row is progress: a server that fails after less is tried only so often, in bytes.
const PROGRESS: u64 = 64 << 10;
/// Less than this within [`http::Limits::silence`] is next to nothing, in bytes.
const DRIP: u64 = 4 << 10;

/// What comes next.
#[derive(Debug)]
pub(crate) enum Piece {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Nothing: that was all.
    End,
    /// The file is another one by now, so what was read before is of no use.
    Changed,
}

/// A version of a file, as far as the server tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Version {
    /// A strong `ETag`, else `Last-Modified`.
    pub validator: Option<String>,
    /// The length of the whole file, in bytes.
    pub total: Option<u64>,
}

/// The content of a file, from some byte on.
pub(crate) struct Body<'a> {
    client: &'a Client,
    ui: &'a dyn Ui,
    url: &'a Url,
    response: Option<Response>,
    /// The version that is read.
    pub version: Version,
    /// How many bytes of it have been read, with those before the first request.
    at: u64,
    /// How many bytes of this answer are to be passed over.
    skip: u64,
    /// There is nothing left to ask for.
    is_whole: bool,
    /// Is it known where the content ends?
    is_framed: bool,
    failures: u32,
    /// Where it was at the last failure.
    failed_at: u64,
    /// Since when so many bytes have come.
    watched: (Instant, u64),
}

impl<'a> Body<'a> {
    /// Makes the first request. With `before`, the first so many bytes of that version are there
    /// already. `None`: the server has another version by now.
    pub(crate) async fn open(
        client: &'a Client,
        ui: &'a dyn Ui,
        url: &'a Url,
        before: Option<(u64, Version)>,
    ) -> Result<Option<Self>> {
        let begins = before.is_none();
        let (at, version) = before.unwrap_or_default();
        let watched = (Instant::now(), 0);
        let mut body = Self {
            client,
            ui,
            url,
            response: None,
            version,
            at,
            skip: 0,
            is_whole: false,
            is_framed: true,
            failures: 0,
            failed_at: at,
            watched,
        };
        Ok(body.request(begins).await?.then_some(body))
    }

    /// Is it told where the content ends? If not, a connection that is lost looks like the end.
    pub(crate) fn is_framed(&self) -> bool {
        self.is_framed
    }

    /// The next bytes.
    pub(crate) async fn next(&mut self) -> Result<Piece> {
        loop {
            if self.is_whole {
                return Ok(Piece::End);
            }
            let Some(response) = &mut self.response else {
                if !self.request(false).await? {
                    return Ok(Piece::Changed);
                }
                continue;
            };
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => match self.version.total.filter(|total| self.at < *total) {
                    None => return Ok(Piece::End),
                    // Some servers send shorter parts than they are asked for.
                    Some(total) => {
                        let why = format!("the server stopped at {} of {total} bytes", self.at);
                        self.pause(why, None).await?;
                        continue;
                    }
                },
                Err(error) => {
                    self.pause(http::causes(&error), None).await?;
                    continue;
                }
            };
            let passed_over = usize::try_from(self.skip).unwrap_or(usize::MAX).min(chunk.len());
            self.skip -= passed_over as u64;
            self.at += (chunk.len() - passed_over) as u64;
            if let Some(total) = self.version.total.filter(|total| self.at > *total) {
                return Err(self.wrong(&format!(
                    "the server sends more than the {total} bytes that it promised"
                )));
            }
            if let Some(why) = self.is_too_slow(chunk.len()) {
                self.pause(why, None).await?;
            }
            if passed_over < chunk.len() {
                return Ok(Piece::Bytes(chunk[passed_over..].to_vec()));
            }
        }
    }

    fn wrong(&self, why: &str) -> Error {
        Error::failed(format!("cannot download {}: {why}", http::shown(self.url)))
    }

    /// Has next to nothing come for a long time?
    fn is_too_slow(&mut self, came: usize) -> Option<String> {
        let silence = self.client.limits.silence;
        self.watched.1 += came as u64;
        if self.watched.0.elapsed() < silence {
            return None;
        }
        let (_, bytes) = std::mem::replace(&mut self.watched, (Instant::now(), 0));
        (bytes < DRIP)
            .then(|| format!("the server sent {bytes} bytes in {} s", silence.as_secs_f64().ceil()))
    }

    /// Asks for what is missing, as often as that is worth it. `false`: there is another version.
    async fn request(&mut self, begins: bool) -> Result<bool> {
        loop {
            match self.client.get(self.url, self.at, self.version.validator.as_deref()).await {
                Ok(response) => {
                    self.watched = (Instant::now(), 0);
                    return self.accept(response, begins);
                }
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Passing(why, after)) => self.pause(why, after).await?,
            }
        }
    }

    /// Looks at the head of an answer. `false`: it is of another version.
    fn accept(&mut self, response: Response, begins: bool) -> Result<bool> {
        let status = response.status();
        let validator = validator(response.headers());
        let length = response.content_length();
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            let total = content_range(response.headers())
                .and_then(|(_, total)| total)
                .or(self.version.total);
            let is_same = self.version.total.is_none_or(|known| Some(known) == total);
            self.is_whole = total == Some(self.at) && is_same;
            return Ok(self.is_whole);
        }
        self.refuse_strange(&response)?;
        let (from, total) = match status {
            StatusCode::PARTIAL_CONTENT => {
                let Some((Some(from), total)) = content_range(response.headers()) else {
                    return Err(
                        self.wrong("the server sends a part of the file and does not say which")
                    );
                };
                (from, total.or_else(|| length.map(|length| from.saturating_add(length))))
            }
            _ => (0, length),
        };
        // A part from further on, or a file that ends before what is there.
        if from > self.at || total.is_some_and(|total| total < self.at) {
            return Ok(false);
        }
        if begins {
            self.version = Version { validator, total };
        } else if self.is_other(status, validator.as_deref(), total) {
            return Ok(false);
        } else if self.version.total.is_none() {
            self.version.total = total;
        }
        // A connection that was closed early would look like the end.
        self.is_framed = self.version.total.is_some() || is_chunked(response.headers());
        self.skip = self.at - from;
        self.response = Some(response);
        Ok(true)
    }

    /// Is that another version than the one that was begun? Without a word of the server's, so is
    /// every one.
    fn is_other(&self, status: StatusCode, validator: Option<&str>, total: Option<u64>) -> bool {
        let version = &self.version;
        let differs = |known: Option<u64>, now: Option<u64>| {
            known.zip(now).is_some_and(|(known, now)| known != now)
        };
        match (version.validator.as_deref(), validator) {
            (Some(known), Some(now)) => known != now || differs(version.total, total),
            // A part is sent only of the version that was asked for, and need not say it again.
            (Some(_), None) if status == StatusCode::PARTIAL_CONTENT => {
                differs(version.total, total)
            }
            _ => self.at > 0,
        }
    }

    /// Refuses what is not the file itself.
    fn refuse_strange(&self, response: &Response) -> Result<()> {
        let says = |name: header::HeaderName| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_ascii_lowercase)
        };
        if let Some(coding) = says(header::CONTENT_ENCODING).filter(|coding| coding != "identity") {
            return Err(self.wrong(&format!(
                "the server sends it encoded ({coding:.20}), which was not asked for"
            )));
        }
        let is_page = |kind: &String| {
            ["text/html", "application/xhtml"].iter().any(|page| kind.starts_with(page))
        };
        match says(header::CONTENT_TYPE).filter(is_page) {
            Some(_) => Err(Error::refused(format!(
                "{} is a web page (text/html), not the file itself",
                http::shown(self.url)
            ))
            .hint("name the address of the file, not of the page that links to it")),
            None => Ok(()),
        }
    }

    /// Waits before the next request; an error when there were enough.
    async fn pause(&mut self, why: String, after: Option<Duration>) -> Result<()> {
        self.response = None;
        let limits = self.client.limits;
        if self.at - self.failed_at >= PROGRESS {
            self.failures = 0;
        }
        self.failures += 1;
        self.failed_at = self.at;
        let shown = http::shown(self.url);
        let failed = |why: String| Error::failed(format!("cannot download {shown}")).because(why);
        if self.failures >= limits.tries {
            return Err(failed(why));
        }
        let wait = after.unwrap_or_else(|| limits.pause * 2_u32.saturating_pow(self.failures - 1));
        if wait > limits.longest_pause {
            return Err(failed(format!("{why}, and asks to wait for {} s", wait.as_secs()))
                .hint("run the command again later"));
        }
        self.ui.note(&format!("{shown}: {why}; trying again in {} s", wait.as_secs_f64().ceil()));
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Do the chunks say where the content ends? Any other coding is over when the connection is.
fn is_chunked(headers: &HeaderMap) -> bool {
    let last = headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .next_back()
        .and_then(|codings| codings.to_str().ok());
    last.and_then(|codings| codings.rsplit(',').next())
        .is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"))
}

/// What tells one version of a file from another. A weak `ETag` does not.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
    let strong = text(header::ETAG).filter(|tag| tag.starts_with('"'));
    strong.or_else(|| text(header::LAST_MODIFIED)).map(str::to_owned)
}

/// `bytes 5-9/10`, `bytes 5-9/*`, `bytes */10`: where the part begins, and how long the whole is.
fn content_range(headers: &HeaderMap) -> Option<(Option<u64>, Option<u64>)> {
    let (range, total) = headers
        .get(header::CONTENT_RANGE)?
        .to_str()
        .ok()?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let from = range.split_once('-').and_then(|(from, _)| from.parse().ok());
    Some((from, total.parse().ok()))
}
