//! One HTTP request, and what came of it in words. Redirects lead from https to https alone; a
//! proxy is taken from the environment (`https_proxy`, `no_proxy`), and whom to trust from the host
//! (`SSL_CERT_FILE`, else its CA certificates).

use std::error::Error as StdError;
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Response, StatusCode, Url};

use crate::error::{Error, Kind, Result};
use crate::model::printable;

/// How many redirects are followed.
const REDIRECTS: usize = 10;
/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(30);

/// How patient a download is.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long a server may send nothing, or next to nothing.
    pub silence: Duration,
    /// How often in a row a request may fail, or the transfer stop, without progress.
    pub tries: u32,
    /// How long to wait before the second try; each further wait is twice as long.
    pub pause: Duration,
    /// The longest time a server may ask to wait.
    pub longest_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(60),
            tries: 5,
            pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(120),
        }
    }
}

/// Why a request came to nothing.
#[derive(Debug)]
pub enum Fault {
    /// It may succeed later, not before the time the server has asked for.
    Passing(String, Option<Duration>),
    /// It will not.
    Final(Error),
}

/// What requests are made with.
#[derive(Debug)]
pub struct Client {
    inner: reqwest::Client,
    /// How patient it is.
    pub limits: Limits,
}

impl Client {
    /// A client that reads the proxy from the environment and the CA certificates from the host.
    pub fn new(limits: Limits) -> Result<Self> {
        // An error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = reqwest::Client::builder()
            .user_agent(concat!("cowhand/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::custom(redirect))
            .connect_timeout(CONNECT)
            .read_timeout(limits.silence)
            // The query of an address may be a secret.
            .referer(false)
            .http1_only()
            .hickory_dns(true);
        let inner = builder.build().map_err(|error| {
            Error::failed("cannot prepare a download")
                .hint(
                    "https needs the CA certificates of the host: apt install ca-certificates, \
                     or SSL_CERT_FILE=FILE",
                )
                .because(causes(&error))
        })?;
        Ok(Self { inner, limits })
    }

    /// Asks for `url` from the byte `from` on; with `if_range`, only if the file is still that
    /// version. An answer is 200, 206 or 416.
    pub async fn get(
        &self,
        url: &Url,
        from: u64,
        if_range: Option<&str>,
    ) -> Result<Response, Fault> {
        let mut request = self.inner.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
            if let Some(version) = if_range.and_then(|version| HeaderValue::from_str(version).ok())
            {
                request = request.header(header::IF_RANGE, version);
            }
        }
        let response = request.send().await.map_err(|error| fault(url, &error))?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => Ok(response),
            status => Err(refusal(url, status, response.headers())),
        }
    }
}

/// Follows a redirect, or not.
fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let from_https = attempt.previous().last().is_some_and(|previous| previous.scheme() == "https");
    if attempt.previous().len() > REDIRECTS {
        return attempt.error(format!("more than {REDIRECTS} redirects"));
    }
    if from_https && attempt.url().scheme() != "https" {
        let to = shown(attempt.url());
        return attempt.error(format!(
            "the server redirects from https to {to}, which anybody on the way could change"
        ));
    }
    attempt.follow()
}

/// The address without what may be secret in it: a query and a password.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Of an address without a host there is nothing to hide.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

fn fault(url: &Url, error: &reqwest::Error) -> Fault {
    let why = causes(error);
    if error.is_redirect() {
        return Fault::Final(
            Error::refused(format!("cannot download {}", shown(url))).because(why),
        );
    }
    // A certificate does not become valid by asking again.
    if why.contains("certificate") {
        return Fault::Final(
            Error::failed(format!("cannot download {}", shown(url)))
                .hint(
                    "for a server with a certificate of your own authority: \
                     SSL_CERT_FILE=CA.pem cowhand …",
                )
                .because(why),
        );
    }
    if error.is_builder()
        || error.is_request()
            && !error.is_connect()
            && !error.is_timeout()
            && why.contains("scheme")
    {
        // The address itself, or one that the server redirects to.
        let kind =
            if matches!(url.scheme(), "http" | "https") { Kind::Refused } else { Kind::Usage };
        return Fault::Final(
            Error::new(kind, format!("cannot download {}", shown(url))).because(why),
        );
    }
    Fault::Passing(why, None)
}

/// What failed, with its causes, and without the address, which is told elsewhere.
pub fn causes(error: &reqwest::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut cause = StdError::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if words.last() != Some(&text) {
            words.push(text);
        }
        cause = error.source();
    }
    // Its own words have the address in them.
    let text = if words.is_empty() { "the request failed".to_owned() } else { words.join(": ") };
    printable::line(&text).into_owned()
}

/// A status that is no answer, in words.
fn refusal(url: &Url, status: StatusCode, headers: &HeaderMap) -> Fault {
    let after =
        headers.get(header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.trim().parse().ok());
    let is_passing = matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    );
    let answer = format!("the server answers {status}");
    if is_passing {
        return Fault::Passing(answer, after.map(Duration::from_secs));
    }
    let shown = shown(url);
    Fault::Final(match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            Error::not_found(format!("{shown} is not there: {answer}"))
                .hint("look for its present address in a browser")
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Error::refused(format!("{shown} may not be downloaded: {answer}"))
                .hint("download it by other means, then: cowhand image add FILE")
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => Error::refused(format!(
            "cannot download {shown}: {answer}"
        ))
        .hint(
            "name a user and a password for the proxy: https_proxy=http://USER:PASSWORD@HOST:PORT",
        ),
        _ => Error::failed(format!("cannot download {shown}: {answer}")),
    })
}
