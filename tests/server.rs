//! A web server on this machine that answers each request as a test says: rightly, late, in drops,
//! too little, too much, or not at all.
#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The first byte of `Range: bytes=N-`.
    pub fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// How a client knows where the body ends.
#[derive(Debug, Clone, Copy)]
enum Framing {
    /// `Content-Length`, true or not; `None`: true.
    Length(Option<u64>),
    Chunked,
    /// The connection is closed.
    Closing,
}

/// What is done after the bytes that are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    Close,
    /// Nothing, until the client hangs up.
    Stall,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    framing: Framing,
    /// So much of the body is sent.
    sent: usize,
    /// A byte each time, and this between them.
    drip: Option<Duration>,
    then: Then,
    is_silent: bool,
}

impl Reply {
    /// With `Content-Length`, at once.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            framing: Framing::Length(None),
            sent: usize::MAX,
            drip: None,
            then: Then::Close,
            is_silent: false,
        }
    }

    /// Not even a status line, until the client hangs up.
    pub fn silence() -> Self {
        Self { is_silent: true, then: Then::Stall, ..Self::new(200, "") }
    }

    /// The connection is closed without a word.
    pub fn hang_up() -> Self {
        Self { is_silent: true, ..Self::new(200, "") }
    }

    pub fn redirect(to: &str) -> Self {
        Self::new(302, "").header("Location", to)
    }

    /// A file as a good server has it: with an `ETag`, and a part of it if that was asked for and
    /// is of this version.
    pub fn file(content: &[u8], etag: &str, request: &Request) -> Self {
        let total = content.len();
        let is_same = request.header("if-range").is_none_or(|version| version == etag);
        let reply = match request.from().filter(|_| is_same) {
            None => Self::new(200, content),
            Some(from) if from < total => Self::new(206, &content[from..])
                .header("Content-Range", &format!("bytes {from}-{}/{total}", total - 1)),
            // Some servers say this with a page.
            Some(_) => Self::new(416, "<html></html>")
                .header("Content-Type", "text/html")
                .header("Content-Range", &format!("bytes */{total}")),
        };
        reply.header("ETag", etag).header("Accept-Ranges", "bytes")
    }

    /// The same of a server that knows no ranges.
    pub fn whole(content: &[u8], etag: &str) -> Self {
        Self::new(200, content).header("ETag", etag)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// In chunks, without a length.
    pub fn chunked(self) -> Self {
        Self { framing: Framing::Chunked, ..self }
    }

    /// Without any word of where it ends.
    pub fn unframed(self) -> Self {
        Self { framing: Framing::Closing, ..self }
    }

    /// With this `Content-Length`, whatever is sent.
    pub fn promise(self, length: u64) -> Self {
        Self { framing: Framing::Length(Some(length)), ..self }
    }

    /// Only so much of the body is sent, then the connection is closed.
    pub fn cut(self, sent: usize) -> Self {
        Self { sent, ..self }
    }

    /// Only so much of the body is sent, then nothing until the client hangs up.
    pub fn stall(self, sent: usize) -> Self {
        Self { sent, then: Then::Stall, ..self }
    }

    /// A byte each time, and so long between them.
    pub fn drip(self, pause: Duration) -> Self {
        Self { drip: Some(pause), ..self }
    }

    fn write(&self, stream: &mut dyn Stream) -> std::io::Result<()> {
        if !self.is_silent {
            stream.write_all(self.head().as_bytes())?;
            stream.flush()?;
            let body = &self.body[..self.sent.min(self.body.len())];
            match self.drip {
                None => body.chunks(16 << 10).try_for_each(|part| self.part(stream, part))?,
                Some(pause) => {
                    for byte in body.chunks(1) {
                        self.part(stream, byte)?;
                        std::thread::sleep(pause);
                    }
                }
            }
            if body.len() == self.body.len() && matches!(self.framing, Framing::Chunked) {
                stream.write_all(b"0\r\n\r\n")?;
            }
            stream.flush()?;
        }
        if self.then == Then::Stall {
            while stream.read(&mut [0; 512])? > 0 {}
        }
        Ok(())
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} As told\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match self.framing {
            Framing::Length(length) => {
                head.push_str(&format!(
                    "Content-Length: {}\r\n",
                    length.unwrap_or(self.body.len() as u64)
                ));
            }
            Framing::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
            Framing::Closing => {}
        }
        head + "\r\n"
    }

    fn part(&self, stream: &mut dyn Stream, bytes: &[u8]) -> std::io::Result<()> {
        match self.framing {
            Framing::Chunked => {
                write!(stream, "{:x}\r\n", bytes.len())?;
                stream.write_all(bytes)?;
                stream.write_all(b"\r\n")?;
            }
            _ => stream.write_all(bytes)?,
        }
        stream.flush()
    }
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// A certificate authority that nobody knows, and a server certificate of it for 127.0.0.1.
pub struct Authority {
    /// Its own certificate, as `SSL_CERT_FILE` takes it.
    pub pem: String,
    config: Arc<ServerConfig>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority of a test");
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    vec![certificate.der().clone()],
                    PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
                )
                .unwrap();
        Self { pem, config: Arc::new(config) }
    }
}

/// A server; it answers until the process ends.
pub struct Server {
    address: SocketAddr,
    scheme: &'static str,
    requests: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    /// `answer` gets each request with its number, from 0 on.
    pub fn new(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(None, answer)
    }

    /// The same over TLS.
    pub fn with_tls(
        authority: &Authority,
        answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start(Some(Arc::clone(&authority.config)), answer)
    }

    fn start(
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            scheme: if tls.is_some() { "https" } else { "http" },
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (requests, connections) =
            (Arc::clone(&server.requests), Arc::clone(&server.connections));
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                connections.fetch_add(1, Ordering::SeqCst);
                let (tls, answer, requests) =
                    (tls.clone(), Arc::clone(&answer), Arc::clone(&requests));
                std::thread::spawn(move || {
                    // A client that hangs up is none of our business.
                    let _ = match tls {
                        None => serve(socket, &*answer, &requests),
                        Some(config) => serve_tls(socket, config, &*answer, &requests),
                    };
                });
            }
        });
        server
    }

    /// The address of `path` on it.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// How many connections were made, even if nothing was asked.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

type Answer = dyn Fn(&Request, usize) -> Reply + Send + Sync;

fn serve(
    mut socket: TcpStream,
    answer: &Answer,
    requests: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    converse(&mut socket, answer, requests)?;
    socket.shutdown(Shutdown::Both)
}

fn serve_tls(
    socket: TcpStream,
    config: Arc<ServerConfig>,
    answer: &Answer,
    requests: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(connection, socket);
    converse(&mut stream, answer, requests)?;
    stream.conn.send_close_notify();
    stream.flush()?;
    stream.sock.shutdown(Shutdown::Both)
}

/// One request, one answer.
fn converse(
    stream: &mut dyn Stream,
    answer: &Answer,
    requests: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let Some(request) = read(stream)? else { return Ok(()) };
    let number = {
        let mut requests = requests.lock().unwrap();
        requests.push(request.clone());
        requests.len() - 1
    };
    answer(&request, number).write(stream)
}

fn read(stream: &mut dyn Stream) -> std::io::Result<Option<Request>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let mut words = first.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
    let mut headers = Vec::new();
    for line in lines {
        let line = line?;
        match line.split_once(':') {
            Some((name, value)) => headers.push((name.trim().to_owned(), value.trim().to_owned())),
            None => return Ok(Some(Request { method, path, headers })),
        }
    }
    Ok(None)
}
