//! Files from the web: what a download does when a server, or the way to it, is not as it should
//! be.

use std::cell::RefCell;
use std::fs::File;
use std::future::Future;
use std::io::{Seek, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cowhand::error::{Error, Kind, Result};
use cowhand::fetch::digest::Digest;
use cowhand::fetch::http::{Client, Limits};
use cowhand::fetch::{Fetched, Job, Local, Url, download, local, text};
use cowhand::ui::{Silent, Task, Ui};
use sha2::{Digest as _, Sha256, Sha512};

use crate::server::{Authority, Reply, Request, Server};

const LIMITS: Limits = Limits {
    silence: Duration::from_secs(30),
    tries: 3,
    pause: Duration::from_millis(1),
    longest_pause: Duration::from_secs(120),
};
const IMPATIENT: Limits = Limits { silence: Duration::from_millis(300), ..LIMITS };
const A: &str = "\"a\"";
const B: &str = "\"b\"";
/// `a small image`, as `xz` writes it.
const XZ: &str = concat!(
    "fd377a585a000004e6d6b4460200210116000000742fe5a301000d6120736d616c6c20696d6167650a00",
    "00006b957831881883870001260e081be0041fb6f37d010000000004595a",
);

/// What was told.
#[derive(Default)]
struct Notes(RefCell<Vec<String>>);

impl Ui for Notes {
    fn note(&self, message: &str) {
        self.0.borrow_mut().push(message.to_owned());
    }

    fn warn(&self, message: &str) {
        self.0.borrow_mut().push(format!("warning: {message}"));
    }

    fn task(&self, label: &str, _: u64) -> Box<dyn Task> {
        self.0.borrow_mut().push(format!("task: {label}"));
        Box::new(Silent)
    }
}

/// A directory for a download.
struct Place {
    directory: tempfile::TempDir,
    ui: Notes,
    limits: Limits,
}

impl Place {
    fn new() -> Self {
        Self::with(LIMITS)
    }

    fn with(limits: Limits) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), ui: Notes::default(), limits }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn length(&self, name: &str) -> u64 {
        self.path(name).metadata().map_or(0, |about| about.len())
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// The files that are there.
    fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What was told, without the tasks.
    fn notes(&self) -> Vec<String> {
        self.ui.0.borrow().iter().filter(|note| !note.starts_with("task: ")).cloned().collect()
    }

    /// Downloads `url` under the last name in it.
    fn fetch(&self, url: &str, expected: Option<&Digest>) -> Result<Fetched> {
        self.fetch_unless(url, expected, std::future::pending()).unwrap()
    }

    /// The same, but given up once `enough` is over: `None`.
    fn fetch_unless(
        &self,
        url: &str,
        expected: Option<&Digest>,
        enough: impl Future<Output = ()>,
    ) -> Option<Result<Fetched>> {
        let url = Url::parse(url).unwrap();
        let name = url.path().rsplit('/').next().unwrap();
        let lock = std::fs::File::open(self.directory.path()).unwrap();
        let job = Job { url: &url, directory: self.directory.path(), lock: &lock, name, expected };
        // The end of a runtime waits for its threads, as the end of a process does.
        run(async {
            let client = Client::new(self.limits).unwrap();
            tokio::select! {
                result = download(&client, &self.ui, &job) => Some(result),
                () = enough => None,
            }
        })
    }

    /// Downloads until so many bytes are in the file `name`, and is killed there.
    fn fetch_until(&self, url: &str, name: &str, length: u64) {
        let is_enough = async {
            while self.length(name) < length {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let result = self.fetch_unless(url, None, is_enough);
        assert!(result.is_none(), "{result:?}");
    }

    fn text(&self, url: &str) -> Result<String> {
        let url = Url::parse(url).unwrap();
        run(async { text(&Client::new(self.limits).unwrap(), &self.ui, &url).await })
    }

    /// Gives `bytes` as a file of the host.
    fn local(&self, name: &str, bytes: &[u8], expected: Option<&Digest>) -> Result<Fetched> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        let job = Local { shown: "FILE", directory: self.directory.path(), name, expected };
        run(local(&self.ui, file, &job))
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Bytes that nothing makes shorter.
fn content(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::Sha256(Sha256::digest(bytes).into())
}

fn sha512(bytes: &[u8]) -> Digest {
    Digest::Sha512(Sha512::digest(bytes).into())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz() -> Vec<u8> {
    (0..XZ.len()).step_by(2).map(|at| u8::from_str_radix(&XZ[at..at + 2], 16).unwrap()).collect()
}

/// Where each request began.
fn ranges(requests: &[Request]) -> Vec<Option<usize>> {
    requests.iter().map(Request::from).collect()
}

#[track_caller]
fn assert_says(error: &Error, kind: Kind, words: &str) {
    let text = format!("{}\n{}", error.full_message(), error.hints().join("\n"));
    assert!(
        error.kind() == kind && text.contains(words),
        "{:?}, not {kind:?} with {words:?}: {text}",
        error.kind()
    );
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_file_is_downloaded_and_summed_up() {
    let bytes = content(300_000);
    for chunked in [false, true] {
        let file = bytes.clone();
        let server = Server::new(move |request, _| match chunked {
            false => Reply::file(&file, A, request),
            true => Reply::file(&file, A, request).chunked(),
        });
        let place = Place::new();
        let fetched = place.fetch(&server.url("/dir/x.raw"), None).unwrap();
        assert_eq!(fetched.path, place.path("x.raw"));
        assert_eq!((fetched.sums.sha256, fetched.sums.sha512), (sha256(&bytes), None));
        assert!(place.read("x.raw") == bytes);
        assert_eq!(place.left(), [".download.json", "x.raw"]);
        assert_eq!(*place.ui.0.borrow(), ["task: downloading x.raw"]);
        let requests = server.requests();
        let [request] = &requests[..] else { panic!("{requests:?}") };
        assert_eq!((&*request.method, &*request.path), ("GET", "/dir/x.raw"));
        assert_eq!(request.header("accept-encoding"), Some("identity"));
        assert_eq!((request.header("range"), request.header("if-range")), (None, None));
        assert!(request.header("user-agent").unwrap().starts_with("cowhand/"));
    }
}

#[test]
fn an_empty_file_is_a_file() {
    let server = Server::new(|request, _| Reply::file(b"", A, request));
    let place = Place::new();
    let fetched = place.fetch(&server.url("/x.raw"), Some(&sha256(b""))).unwrap();
    assert!(place.read("x.raw").is_empty());
    assert_eq!(fetched.sums.sha256, sha256(b""));
}

#[test]
fn the_checksum_that_is_expected_is_compared() {
    let bytes = content(100_000);
    let file = bytes.clone();
    let server = Server::new(move |request, _| Reply::file(&file, A, request));
    for right in [sha256(&bytes), sha512(&bytes)] {
        let place = Place::new();
        let fetched = place.fetch(&server.url("/x.raw"), Some(&right)).unwrap();
        assert_eq!(fetched.sums.sha256, sha256(&bytes));
        assert_eq!(fetched.sums.sha512.is_some(), right.algorithm() == "SHA-512");
    }
    for (wrong, algorithm) in [(sha256(b"other"), "SHA-256"), (sha512(b"other"), "SHA-512")] {
        let place = Place::new();
        let error = place.fetch(&server.url("/x.raw"), Some(&wrong)).unwrap_err();
        assert_says(
            &error,
            Kind::Refused,
            &format!("does not have the {algorithm} checksum {wrong}, but "),
        );
        assert_eq!(place.left(), NOTHING);
    }
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_packed_file_is_unpacked() {
    let bytes = content(300_000);
    let all = [
        ("x.raw.gz", gzip(&bytes)),
        ("x.raw.bz2", bzip2(&bytes)),
        ("x.raw.zst", zstd::encode_all(&bytes[..], 1).unwrap()),
    ];
    for (name, packed) in all {
        let file = packed.clone();
        // It is lost on its way once, too.
        let server = Server::new(move |request, number| match number {
            0 => Reply::file(&file, A, request).cut(100_000),
            _ => Reply::file(&file, A, request),
        });
        let place = Place::new();
        let fetched =
            place.fetch(&server.url(&format!("/{name}")), Some(&sha256(&packed))).unwrap();
        assert_eq!(fetched.path, place.path("x.raw"));
        assert_eq!(fetched.sums.sha256, sha256(&packed));
        assert!(place.read("x.raw") == bytes && place.read(name) == packed, "{name}");
        assert_eq!(place.left(), [".download.json", "x.raw", name]);
        assert_eq!(ranges(&server.requests()), [None, Some(100_000)]);
    }
    let server = Server::new(|request, _| Reply::file(&xz(), A, request));
    let place = Place::new();
    place.fetch(&server.url("/x.raw.xz"), None).unwrap();
    assert_eq!(place.read("x.raw"), b"a small image\n");
}

#[test]
fn a_packed_file_is_unpacked_while_it_comes_and_anew_after_a_kill() {
    let bytes = content(1_000_000);
    let packed = gzip(&bytes);
    let file = packed.clone();
    let server = Server::new(move |request, number| match number {
        0 => Reply::file(&file, A, request).stall(600_000),
        _ => Reply::file(&file, A, request),
    });
    let place = Place::new();
    place.fetch_until(&server.url("/x.raw.gz"), "x.raw", 400_000);
    place.fetch(&server.url("/x.raw.gz"), Some(&sha256(&packed))).unwrap();
    assert!(place.read("x.raw") == bytes);
    assert_eq!(server.requests().len(), 2);
    assert!(server.requests()[1].from().is_some_and(|from| (400_000..=600_000).contains(&from)));
}

#[test]
fn a_connection_that_is_lost_again_and_again_goes_on_where_it_was() {
    let bytes = content(1_000_000);
    let file = bytes.clone();
    let server = Server::new(move |request, _| Reply::file(&file, A, request).cut(70_000));
    let place = Place::new();
    place.fetch(&server.url("/x.raw"), Some(&sha256(&bytes))).unwrap();
    assert!(place.read("x.raw") == bytes);
    let requests = server.requests();
    let expected: Vec<Option<usize>> =
        std::iter::once(None).chain((1..15).map(|number| Some(number * 70_000))).collect();
    assert_eq!(ranges(&requests), expected);
    assert!(
        requests[1..].iter().all(|request| request.header("if-range") == Some(A)),
        "{requests:?}"
    );
    let notes = place.notes();
    assert!(
        notes.len() == 14 && notes.iter().all(|note| note.ends_with("; trying again in 1 s")),
        "{notes:?}"
    );
}

#[test]
fn chunks_that_break_off_go_on_where_they_were() {
    let bytes = content(300_000);
    let file = bytes.clone();
    let server = Server::new(move |request, number| match number {
        0 => Reply::file(&file, A, request).chunked().cut(100_000),
        1 => Reply::file(&file, A, request).chunked().cut(50_000),
        _ => Reply::file(&file, A, request).chunked(),
    });
    let place = Place::new();
    place.fetch(&server.url("/x.raw"), None).unwrap();
    assert!(place.read("x.raw") == bytes);
    assert_eq!(ranges(&server.requests()), [None, Some(100_000), Some(150_000)]);
}

#[test]
fn a_connection_without_progress_is_given_up_and_gone_on_with_by_the_next_command() {
    let bytes = content(300_000);
    let file = bytes.clone();
    let server = Server::new(move |request, number| match number {
        0..3 => Reply::file(&file, A, request).cut(10_000),
        _ => Reply::file(&file, A, request),
    });
    let place = Place::new();
    let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
    assert_says(&error, Kind::Failed, "cannot download http://127.0.0.1:");
    assert_says(
        &error,
        Kind::Failed,
        "29 KiB were downloaded; the same command resumes the download",
    );
    assert_eq!(place.left(), [".download.json", "x.raw"]);
    assert_eq!(server.requests().len(), 3);
    place.fetch(&server.url("/x.raw"), Some(&sha256(&bytes))).unwrap();
    assert!(place.read("x.raw") == bytes);
    assert_eq!(server.requests()[3].from(), Some(30_000));
}

#[test]
fn a_server_that_hangs_up_without_a_word_is_asked_again() {
    let bytes = content(1_000);
    let file = bytes.clone();
    let server = Server::new(move |request, number| match number {
        0 | 1 => Reply::hang_up(),
        _ => Reply::file(&file, A, request),
    });
    let place = Place::new();
    place.fetch(&server.url("/x.raw"), None).unwrap();
    assert!(place.read("x.raw") == bytes);
    assert_eq!((server.requests().len(), place.notes().len()), (3, 2));
}

#[test]
fn what_a_server_without_ranges_sends_again_is_passed_over() {
    let bytes = content(500_000);
    let file = bytes.clone();
    let server = Server::new(move |_, number| match number {
        0 => Reply::whole(&file, A).cut(200_000),
        // Not even as far as it was.
        1 => Reply::whole(&file, A).cut(150_000),
        _ => Reply::whole(&file, A),
    });
    let place = Place::new();
    place.fetch(&server.url("/x.raw"), Some(&sha256(&bytes))).unwrap();
    assert!(place.read("x.raw") == bytes);
    assert_eq!(ranges(&server.requests()), [None, Some(200_000), Some(200_000)]);
}

#[test]
fn last_modified_tells_versions_apart_where_a_strong_etag_does_not() {
    let bytes = content(200_000);
    let file = bytes.clone();
    const DATE: &str = "Sun, 01 Nov 2026 00:00:00 GMT";
    let server = Server::new(move |request, number| {
        let weak = Reply::file(&file, DATE, request).header("Last-Modified", DATE);
        if number == 0 { weak.cut(100_000) } else { weak }
    });
    let place = Place::new();
    place.fetch(&server.url("/x.raw"), None).unwrap();
    assert!(place.read("x.raw") == bytes);
    assert_eq!(server.requests()[1].header("if-range"), Some(DATE));
}

#[test]
fn without_any_version_a_lost_download_is_begun_anew() {
    let bytes = content(200_000);
    let file = bytes.clone();
    let server = Server::new(move |_, number| match number {
        0 => Reply::new(200, &file[..]).cut(100_000),
        _ => Reply::new(200, &file[..]),
    });
    let place = Place::new();
    place.fetch(&server.url("/x.raw"), None).unwrap();
    assert!(place.read("x.raw") == bytes);
    assert_eq!(server.requests().last().unwrap().header("range"), None);
    assert!(
        place.notes().iter().any(|note| note.ends_with("beginning anew")),
        "{:?}",
        place.notes()
    );
}

#[test]
fn a_file_that_is_replaced_meanwhile_is_begun_anew() {
    let (before, after) = (content(300_000), content(400_000)[100_000..].to_vec());
    let (old, new) = (before, after.clone());
    let server = Server::new(move |request, number| match number {
        0 => Reply::file(&old, A, request).cut(100_000),
        _ => Reply::file(&new, B, request),
    });
    let place = Place::new();
    place.fetch(&server.url("/x.raw"), Some(&sha256(&after))).unwrap();
    assert!(place.read("x.raw") == after);
    let requests = server.requests();
    assert_eq!(ranges(&requests), [None, Some(100_000), None]);
    assert_eq!(requests[1].header("if-range"), Some(A));
    assert!(place.notes().last().unwrap().ends_with("cannot go on where it was: beginning anew"));
}

#[test]
fn a_part_of_another_version_is_not_put_together_with_the_first() {
    let (before, after) = (content(300_000), content(600_000)[300_000..].to_vec());
    let (old, new) = (before, after.clone());
    let server = Server::new(move |request, number| match number {
        0 => Reply::file(&old, A, request).cut(100_000),
        // It does not heed If-Range.
        1 => Reply::new(206, &new[100_000..])
            .header("Content-Range", "bytes 100000-299999/300000")
            .header("ETag", B),
        _ => Reply::file(&new, B, request),
    });
    let place = Place::new();
    place.fetch(&server.url("/x.raw"), None).unwrap();
    assert!(place.read("x.raw") == after);
    assert_eq!(ranges(&server.requests()), [None, Some(100_000), None]);
}

#[test]
fn a_file_that_is_replaced_for_ever_is_given_up() {
    let server = Server::new(move |request, number| {
        Reply::file(&content(300_000), &format!("\"{number}\""), request).cut(100_000)
    });
    let place = Place::new();
    let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
    assert_says(
        &error,
        Kind::Failed,
        "the connection is lost again and again, or the file replaced",
    );
    assert_says(&error, Kind::Failed, "run the command again later");
    assert_eq!(place.left(), NOTHING);
    assert_eq!(
        ranges(&server.requests()),
        [None, Some(100_000), None, Some(100_000), None, Some(100_000)]
    );
}

#[test]
fn a_killed_download_goes_on_in_the_next() {
    let bytes = content(500_000);
    let file = bytes.clone();
    let server = Server::new(move |request, number| match number {
        0 => Reply::file(&file, A, request).stall(200_000),
        _ => Reply::file(&file, A, request),
    });
    let place = Place::new();
    place.fetch_until(&server.url("/x.raw"), "x.raw", 200_000);
    assert_eq!(place.left(), [".download.json", "x.raw"]);
    place.fetch(&server.url("/x.raw"), Some(&sha256(&bytes))).unwrap();
    assert!(place.read("x.raw") == bytes);
    assert_eq!(ranges(&server.requests()), [None, Some(200_000)]);
    assert_eq!(server.requests()[1].header("if-range"), Some(A));
    // All is there, so nothing comes.
    place.fetch(&server.url("/x.raw"), Some(&sha256(&bytes))).unwrap();
    assert!(place.read("x.raw") == bytes);
    assert!(ranges(&server.requests()[2..]).iter().all(|from| *from == Some(500_000)));
}

#[test]
fn a_download_of_which_all_is_there_needs_no_checksum_to_go_on() {
    let bytes = content(100_000);
    let file = bytes.clone();
    let server = Server::new(move |request, number| match number {
        0 => Reply::file(&file, A, request),
        // The connection's end is the end of an answer that has nothing in it.
        _ => Reply::file(&file, A, request).unframed(),
    });
    let place = Place::new();
    place.fetch(&server.url("/x.raw"), None).unwrap();
    place.fetch(&server.url("/x.raw"), None).unwrap();
    assert!(place.read("x.raw") == bytes);
}

#[test]
fn a_killed_download_whose_beginning_is_damaged_is_refused_and_then_made_anew() {
    let bytes = content(300_000);
    let file = bytes.clone();
    let server = Server::new(move |request, number| match number {
        0 => Reply::file(&file, A, request).stall(200_000),
        _ => Reply::file(&file, A, request),
    });
    let place = Place::new();
    place.fetch_until(&server.url("/x.raw"), "x.raw", 200_000);
    let mut begun = place.read("x.raw");
    begun[1_000] ^= 1;
    std::fs::write(place.path("x.raw"), begun).unwrap();
    let error = place.fetch(&server.url("/x.raw"), Some(&sha256(&bytes))).unwrap_err();
    assert_says(&error, Kind::Refused, "it was changed, or damaged on its way");
    assert_eq!(place.left(), NOTHING);
    place.fetch(&server.url("/x.raw"), Some(&sha256(&bytes))).unwrap();
    assert_eq!(ranges(&server.requests()), [None, Some(200_000), None]);
}

#[test]
fn what_was_begun_of_another_address_or_is_too_long_is_not_gone_on_with() {
    let bytes = content(300_000);
    for has_ranges in [true, false] {
        let file = bytes.clone();
        let server = Server::new(move |request, number| match (number, has_ranges) {
            (0, _) => Reply::file(&file, A, request).stall(200_000),
            (_, true) => Reply::file(&file, A, request),
            (_, false) => Reply::whole(&file, A),
        });
        let place = Place::new();
        place.fetch_until(&server.url("/x.raw"), "x.raw", 200_000);
        place.fetch(&server.url("/x.raw?version=2"), Some(&sha256(&bytes))).unwrap();
        assert_eq!(ranges(&server.requests()), [None, None]);
        std::fs::write(place.path("x.raw"), content(400_000)).unwrap();
        place.fetch(&server.url("/x.raw?version=2"), Some(&sha256(&bytes))).unwrap();
        assert_eq!(ranges(&server.requests()[2..]), [Some(400_000), None], "{has_ranges}");
        assert!(place.read("x.raw") == bytes);
    }
}

#[test]
fn a_refusal_is_told_at_once() {
    for (status, kind, words) in [
        (404, Kind::NotFound, "/x.raw is not there: the server answers 404"),
        (410, Kind::NotFound, "/x.raw is not there: the server answers 410"),
        (401, Kind::Refused, "/x.raw may not be downloaded: the server answers 401"),
        (403, Kind::Refused, "then: cowhand image add FILE"),
        (400, Kind::Failed, "the server answers 400"),
        (204, Kind::Failed, "the server answers 204"),
        (304, Kind::Failed, "the server answers 304"),
        (416, Kind::Failed, "the server answers 416"),
        (501, Kind::Failed, "the server answers 501"),
    ] {
        let server = Server::new(move |_, _| Reply::new(status, ""));
        let place = Place::new();
        let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
        assert_says(&error, kind, words);
        assert_eq!(place.left(), NOTHING, "{status}");
        assert_eq!((server.requests().len(), place.notes().len()), (1, 0), "{status}");
    }
}

#[test]
fn a_busy_server_is_asked_again_when_it_says() {
    let server = Server::new(move |request, number| match number {
        0 => Reply::new(429, "").header("Retry-After", "0"),
        1 => Reply::new(503, "").header("Retry-After", "1"),
        _ => Reply::file(b"image", A, request),
    });
    let place = Place::new();
    let begun = Instant::now();
    place.fetch(&server.url("/x.raw"), None).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(place.read("x.raw"), b"image");
    let notes = place.notes();
    assert!(
        notes[0].contains("the server answers 429") && notes[0].ends_with("trying again in 0 s"),
        "{notes:?}"
    );
    assert!(
        notes[1].contains("the server answers 503") && notes[1].ends_with("trying again in 1 s"),
        "{notes:?}"
    );
    assert_eq!((server.requests().len(), notes.len()), (3, 2));
}

#[test]
fn a_server_that_fails_for_ever_is_given_up() {
    for status in [408, 429, 500, 502, 503, 504] {
        let server = Server::new(move |_, _| Reply::new(status, "").header("Retry-After", "soon"));
        let place = Place::new();
        let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
        assert_says(&error, Kind::Failed, &format!("the server answers {status}"));
        assert_eq!(place.left(), NOTHING);
        assert_eq!((server.requests().len(), place.notes().len()), (3, 2));
    }
}

#[test]
fn a_server_that_asks_to_wait_too_long_is_given_up_at_once() {
    for seconds in ["100000", "18446744073709551615"] {
        let server = Server::new(move |_, _| Reply::new(503, "").header("Retry-After", seconds));
        let place = Place::new();
        let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
        assert_says(&error, Kind::Failed, &format!("asks to wait for {seconds} s"));
        assert_says(&error, Kind::Failed, "run the command again later");
        assert_eq!(place.left(), NOTHING);
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn nobody_at_the_address_is_an_error_after_some_tries() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let place = Place::new();
    let error = place.fetch(&format!("http://{address}/x.raw"), None).unwrap_err();
    assert_says(&error, Kind::Failed, "Connection refused");
    assert_eq!((place.notes().len(), place.left().len()), (2, 0));
}

#[test]
fn an_address_of_another_kind_is_a_misuse() {
    for url in ["ftp://127.0.0.1/x.raw?token=secret", "file:///x.raw?token=secret"] {
        let place = Place::new();
        let error = place.fetch(url, None).unwrap_err();
        assert_says(&error, Kind::Usage, "cannot download ");
        assert!(!error.full_message().contains("secret"), "{}", error.full_message());
        assert_eq!((place.notes().len(), place.left().len()), (0, 0));
    }
}

#[test]
fn a_drip_is_given_up() {
    let server = Server::new(|request, _| {
        Reply::file(&content(100_000), A, request).drip(Duration::from_millis(5))
    });
    let place = Place::with(IMPATIENT);
    let begun = Instant::now();
    let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
    assert_says(&error, Kind::Failed, "bytes in 1 s");
    assert_says(&error, Kind::Failed, "the same command resumes the download");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    assert!(
        requests[2].from() > requests[1].from() && requests[1].from().is_some(),
        "{requests:?}"
    );
    assert_eq!(place.left(), [".download.json", "x.raw"]);
}

#[test]
fn a_stall_is_given_up() {
    for before_the_head in [true, false] {
        let server = Server::new(move |request, _| match before_the_head {
            true => Reply::silence(),
            false => Reply::file(&content(100_000), A, request).stall(100),
        });
        let place = Place::with(IMPATIENT);
        let begun = Instant::now();
        let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
        assert_says(&error, Kind::Failed, "timed out");
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert_eq!((server.requests().len(), place.notes().len()), (3, 2));
        assert_eq!(place.left().len(), if before_the_head { 0 } else { 2 });
        assert_eq!(place.length("x.raw"), if before_the_head { 0 } else { 300 });
    }
}

#[test]
fn a_body_that_is_longer_than_promised_ends_where_it_should() {
    let bytes = content(100_000);
    let file = bytes.clone();
    let server = Server::new(move |request, _| Reply::file(&file, A, request).promise(60_000));
    let place = Place::new();
    place.fetch(&server.url("/x.raw"), Some(&sha256(&bytes[..60_000]))).unwrap();
    assert!(place.read("x.raw") == bytes[..60_000]);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_part_that_is_longer_than_the_rest_is_an_error() {
    let server = Server::new(|request, number| match number {
        0 => Reply::file(&content(1_000), A, request).cut(100),
        _ => Reply::new(206, content(2_000))
            .header("ETag", A)
            .header("Content-Range", "bytes 100-999/1000"),
    });
    let place = Place::new();
    let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
    assert_says(&error, Kind::Failed, "the server sends more than the 1000 bytes that it promised");
    assert!(place.length("x.raw") <= 1_000);
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn a_server_that_sends_less_than_it_was_asked_for_is_asked_for_the_rest() {
    let bytes = content(400_000);
    let sum = sha256(&bytes);
    let server = Server::new(move |request, _| {
        let from = request.from().unwrap_or(0);
        let to = (from + 100_000).min(bytes.len());
        Reply::new(206, &bytes[from..to])
            .header("ETag", A)
            .header("Content-Range", &format!("bytes {from}-{}/{}", to - 1, bytes.len()))
    });
    let place = Place::new();
    place.fetch(&server.url("/x.raw"), Some(&sum)).unwrap();
    assert_eq!(place.length("x.raw"), 400_000);
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_server_that_repeats_a_part_for_ever_is_given_up() {
    let server = Server::new(|request, number| match number {
        0 => Reply::file(&content(1_000), A, request).cut(100),
        _ => Reply::new(206, content(200))
            .header("ETag", A)
            .header("Content-Range", "bytes 100-999/1000"),
    });
    let place = Place::new();
    let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
    assert_says(&error, Kind::Failed, "the server stopped at 300 of 1000 bytes");
    assert_says(
        &error,
        Kind::Failed,
        "300 B were downloaded; the same command resumes the download",
    );
    assert!(server.requests().len() < 8);
}

#[test]
fn a_body_that_is_shorter_than_promised_is_asked_for_again() {
    let bytes = content(100_000);
    for closes in [true, false] {
        let file = bytes.clone();
        let server = Server::new(move |request, number| match (number, closes) {
            (0, true) => Reply::file(&file, A, request).cut(40_000),
            (0, false) => Reply::file(&file[..40_000], A, request).promise(100_000).stall(40_000),
            _ => Reply::file(&file, A, request),
        });
        let place = Place::with(if closes { LIMITS } else { IMPATIENT });
        place.fetch(&server.url("/x.raw"), Some(&sha256(&bytes))).unwrap();
        assert_eq!(ranges(&server.requests()), [None, Some(40_000)]);
    }
    // There is never more.
    let server = Server::new(|_, _| Reply::whole(&content(40_000), A).promise(100_000));
    let place = Place::new();
    let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
    assert_says(&error, Kind::Failed, "39 KiB were downloaded");
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_part_that_begins_elsewhere_is_not_put_where_it_does_not_belong() {
    let bytes = content(300_000);
    for begins in [99_000, 100_001] {
        let file = bytes.clone();
        let server = Server::new(move |request, number| match number {
            0 => Reply::file(&file, A, request).cut(100_000),
            1 => Reply::new(206, &file[begins..])
                .header("ETag", A)
                .header("Content-Range", &format!("bytes {begins}-299999/300000")),
            _ => Reply::file(&file, A, request),
        });
        let place = Place::new();
        place.fetch(&server.url("/x.raw"), Some(&sha256(&bytes))).unwrap();
        assert!(place.read("x.raw") == bytes);
        // What comes before the place is passed over.
        assert_eq!(server.requests().len(), if begins == 99_000 { 2 } else { 3 });
    }
}

#[test]
fn a_part_of_which_nobody_knows_where_it_belongs_is_an_error() {
    for range in [
        None,
        Some("bytes"),
        Some("bytes x-9/10"),
        Some("bytes */300000"),
        Some("lines 100000-2/3"),
    ] {
        let server = Server::new(move |request, number| {
            let part = Reply::new(206, content(1_000)).header("ETag", A);
            match (number, range) {
                (0, _) => Reply::file(&content(300_000), A, request).cut(100_000),
                (_, None) => part,
                (_, Some(range)) => part.header("Content-Range", range),
            }
        });
        let place = Place::new();
        let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
        assert_says(
            &error,
            Kind::Failed,
            "the server sends a part of the file and does not say which",
        );
        assert_eq!((server.requests().len(), place.length("x.raw")), (2, 100_000));
    }
}

#[test]
fn a_part_that_nobody_asked_for_is_not_taken_for_the_file() {
    let server = Server::new(|_, _| {
        Reply::new(206, content(100)).header("ETag", A).header("Content-Range", "bytes 50-149/150")
    });
    let place = Place::new();
    let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
    assert_says(&error, Kind::Failed, "cannot download http://127.0.0.1:");
    assert_eq!(place.left(), NOTHING);
    assert_says(
        &place.text(&server.url("/x.txt")).unwrap_err(),
        Kind::Failed,
        "cannot download http://127.0.0.1:",
    );
}

#[test]
fn an_encoded_answer_and_a_web_page_are_refused() {
    for (name, value, kind, words) in [
        (
            "Content-Encoding",
            "gzip",
            Kind::Failed,
            "the server sends it encoded (gzip), which was not asked for",
        ),
        (
            "Content-Type",
            "text/html",
            Kind::Refused,
            "/x.raw is a web page (text/html), not the file itself",
        ),
        ("Content-Type", "Text/HTML; charset=utf-8", Kind::Refused, "not of the page"),
        ("Content-Type", "application/xhtml+xml", Kind::Refused, "is a web page"),
    ] {
        let server = Server::new(move |request, _| {
            Reply::file(&gzip(b"<html>"), A, request).header(name, value)
        });
        let place = Place::new();
        let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
        assert_says(&error, kind, words);
        assert_eq!(place.left(), NOTHING);
        assert_eq!((server.requests().len(), place.notes().len()), (1, 0));
        assert_says(
            &place.text(&server.url("/x.raw")).unwrap_err(),
            kind,
            words.trim_start_matches("/x.raw "),
        );
    }
    let server = Server::new(|request, _| {
        Reply::file(b"image", A, request).header("Content-Encoding", "identity")
    });
    Place::new().fetch(&server.url("/x.raw"), None).unwrap();
}

#[test]
fn a_body_without_an_end_needs_a_checksum() {
    let bytes = content(100_000);
    for coding in [None, Some("identity")] {
        let file = bytes.clone();
        let server = Server::new(move |_, _| {
            let reply = Reply::whole(&file, A).unframed();
            coding.map_or(reply.clone(), |coding| reply.header("Transfer-Encoding", coding))
        });
        let place = Place::new();
        let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
        assert_says(&error, Kind::Refused, "the server does not say how long");
        assert_says(&error, Kind::Refused, "--sha256 HEX");
        assert_eq!(place.left(), NOTHING, "{coding:?}");
        place.fetch(&server.url("/x.raw"), Some(&sha256(&bytes))).unwrap();
        assert!(place.read("x.raw") == bytes);
        assert_eq!(server.requests().len(), 2);
    }
}

#[test]
fn a_rest_without_an_end_needs_a_checksum_too() {
    let server = Server::new(|request, number| match number {
        0 => Reply::file(&content(300_000), A, request).chunked().cut(100_000),
        _ => Reply::whole(&content(300_000), A).unframed().cut(200_000),
    });
    let place = Place::new();
    let result = place.fetch(&server.url("/x.raw"), None);
    assert!(result.is_err(), "{} bytes are taken for all", place.length("x.raw"));
}

#[test]
fn a_file_for_which_there_is_no_room_is_refused() {
    let server = Server::new(|request, _| Reply::file(b"much", A, request).promise(1 << 60));
    let place = Place::new();
    let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
    assert_says(&error, Kind::Refused, "free, and of http://127.0.0.1:");
    assert_eq!(place.left(), NOTHING);
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_redirect_is_followed_with_what_is_asked_for() {
    let bytes = content(300_000);
    let file = bytes.clone();
    let mirror = Server::new(move |request, number| match number {
        0 => Reply::file(&file, A, request).cut(100_000),
        _ => Reply::file(&file, A, request),
    });
    let to = mirror.url("/mirror/y.raw");
    let server = Server::new(move |request, _| match &*request.path {
        "/x.raw" => Reply::redirect("/elsewhere/x.raw"),
        _ => Reply::redirect(&to),
    });
    let place = Place::new();
    place.fetch(&server.url("/x.raw"), Some(&sha256(&bytes))).unwrap();
    assert!(place.read("x.raw") == bytes);
    assert_eq!(ranges(&mirror.requests()), [None, Some(100_000)]);
    assert_eq!(mirror.requests()[1].header("if-range"), Some(A));
    let paths: Vec<String> = server.requests().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/x.raw", "/elsewhere/x.raw", "/x.raw", "/elsewhere/x.raw"]);
}

#[test]
fn a_redirect_that_leads_nowhere_is_refused() {
    let server = Server::new(|_, _| Reply::redirect("/x.raw?token=secret"));
    let place = Place::new();
    let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
    assert_says(&error, Kind::Refused, "more than 10 redirects");
    assert!(!error.full_message().contains("secret"), "{}", error.full_message());
    assert_eq!((server.requests().len(), place.notes().len()), (11, 0));
    assert_eq!(place.left(), NOTHING);
}

#[test]
fn a_redirect_to_something_else_than_the_web_is_not_followed() {
    let server = Server::new(|_, _| Reply::redirect("ftp://127.0.0.1/x.raw?token=secret"));
    let place = Place::new();
    let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
    let text = format!("{}{:?}{:?}", error.full_message(), error.hints(), place.notes());
    assert!(!text.contains("secret"), "{text}");
    assert_eq!(server.requests().len(), 1, "{text}");
    assert_eq!(place.left(), NOTHING);
}

#[test]
fn an_authority_that_nobody_knows_is_refused_at_once() {
    let server =
        Server::with_tls(&Authority::new(), |request, _| Reply::file(b"image", A, request));
    let place = Place::new();
    let error = place.fetch(&server.url("/x.raw"), None).unwrap_err();
    assert_says(&error, Kind::Failed, "certificate");
    assert_says(&error, Kind::Failed, "SSL_CERT_FILE=CA.pem cowhand");
    assert_eq!(place.left(), NOTHING);
    assert_eq!((server.connections(), server.requests().len(), place.notes().len()), (1, 0, 0));
}

/// Whom to trust is read from the environment, so this test runs itself once more in a process with
/// another one.
#[test]
fn an_authority_that_is_named_is_trusted_and_https_does_not_become_http() {
    const URL: &str = "COWHAND_TEST_URL";
    let bytes = content(300_000);
    if let Ok(url) = std::env::var(URL) {
        let place = Place::new();
        place.fetch(&format!("{url}/x.raw"), Some(&sha256(&bytes))).unwrap();
        assert!(place.read("x.raw") == bytes);
        let place = Place::new();
        let error = place.fetch(&format!("{url}/down.raw"), None).unwrap_err();
        assert_says(&error, Kind::Refused, "the server redirects from https to http://127.0.0.1:");
        assert_says(&error, Kind::Refused, "/plain.raw, which anybody on the way could change");
        assert!(!error.full_message().contains("secret"), "{}", error.full_message());
        assert_eq!((place.left().len(), place.notes().len()), (0, 0));
        return;
    }
    let plain = Server::new(|request, _| Reply::file(b"image", A, request));
    let (authority, file, to) = (Authority::new(), bytes, plain.url("/plain.raw?token=secret"));
    let server = Server::with_tls(&authority, move |request, number| match &*request.path {
        "/x.raw" if number == 0 => Reply::file(&file, A, request).cut(100_000),
        "/x.raw" => Reply::file(&file, A, request),
        _ => Reply::redirect(&to),
    });
    let place = Place::new();
    std::fs::write(place.path("ca.pem"), &authority.pem).unwrap();
    let name = "fetch::an_authority_that_is_named_is_trusted_and_https_does_not_become_http";
    let ran = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("SSL_CERT_FILE", place.path("ca.pem"))
        .env_remove("SSL_CERT_DIR")
        .env(URL, server.url(""))
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
    assert_eq!(ranges(&server.requests()), [None, Some(100_000), None]);
    assert!(plain.requests().is_empty());
}

#[test]
fn a_packed_file_that_is_damaged_or_cut_short_on_the_server_is_an_error() {
    let bytes = content(300_000);
    let mut damaged_gzip = gzip(&bytes);
    let at = damaged_gzip.len() - 8;
    damaged_gzip[at] ^= 1;
    let mut damaged_bzip2 = bzip2(&bytes);
    damaged_bzip2[150_000] ^= 0x10;
    let mut damaged_xz = xz();
    damaged_xz[30] ^= 1;
    let packed_zstd = zstd::encode_all(&bytes[..], 1).unwrap();
    for (name, packed) in [
        ("x.raw.gz", damaged_gzip),
        ("x.raw.gz", gzip(&bytes)[..200_000].to_vec()),
        ("x.raw.gz", Vec::new()),
        ("x.raw.bz2", damaged_bzip2),
        ("x.raw.bz2", bzip2(&bytes)[..200_000].to_vec()),
        ("x.raw.xz", damaged_xz),
        ("x.raw.xz", xz()[..40].to_vec()),
        ("x.raw.zst", packed_zstd[..200_000].to_vec()),
        ("x.raw.zst", bytes.clone()),
        ("x.raw.xz", b"<!DOCTYPE html><html><body>Choose a mirror</body></html>".to_vec()),
    ] {
        let length = packed.len();
        // Even if that is what the checksum is of.
        let expected = sha256(&packed);
        let server = Server::new(move |request, _| Reply::file(&packed, A, request));
        let place = Place::new();
        let error = place.fetch(&server.url(&format!("/{name}")), Some(&expected)).unwrap_err();
        assert_says(&error, Kind::Failed, &format!("cannot decompress {}", server.url("/")));
        assert_says(&error, Kind::Failed, "it is damaged, or not compressed as its name says");
        assert_eq!(place.left(), NOTHING, "{name} of {length}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn a_text_is_read() {
    let words = "words\n".repeat(20_000);
    let sent = words.clone();
    let server = Server::new(move |request, number| match number {
        0 => Reply::new(503, ""),
        1 => Reply::file(sent.as_bytes(), A, request).cut(50_000),
        _ => Reply::file(sent.as_bytes(), A, request),
    });
    let place = Place::new();
    assert_eq!(place.text(&server.url("/SUMS?token=secret")).unwrap(), words);
    assert_eq!(ranges(&server.requests()), [None, None, Some(50_000)]);
    assert!(
        place.notes().len() == 2 && !place.notes().concat().contains("secret"),
        "{:?}",
        place.notes()
    );
    assert_eq!(place.left(), NOTHING);
}

#[test]
fn what_is_no_text_is_refused() {
    for (reply, kind, words) in [
        (
            Reply::new(200, vec![b'a'; (1 << 20) + 1]),
            Kind::Refused,
            "is too long for a text: more than 1 MiB",
        ),
        (
            Reply::new(200, vec![b'a'; 3 << 20]).chunked(),
            Kind::Refused,
            "is too long for a text: more than 1 MiB",
        ),
        (Reply::new(200, b"\xff\xfe"), Kind::Refused, "/SUMS is no text"),
        (Reply::new(404, ""), Kind::NotFound, "/SUMS is not there: the server answers 404"),
        (
            Reply::new(200, "<html>").header("Content-Type", "text/html"),
            Kind::Refused,
            "is a web page",
        ),
    ] {
        let server = Server::new(move |_, _| reply.clone());
        let place = Place::new();
        let error = place.text(&server.url("/SUMS?token=secret")).unwrap_err();
        assert_says(&error, kind, words);
        assert!(!error.full_message().contains("secret"), "{}", error.full_message());
        assert_eq!((server.requests().len(), place.notes().len()), (1, 0));
    }
    let longest = Server::new(|_, _| Reply::new(200, vec![b'a'; 1 << 20]));
    assert_eq!(Place::new().text(&longest.url("/SUMS")).unwrap().len(), 1 << 20);
}

#[test]
fn a_text_that_changes_while_it_is_read_is_an_error() {
    let server = Server::new(|request, number| match number {
        0 => Reply::file(b"words", A, request).cut(2),
        _ => Reply::file(b"other", B, request),
    });
    let error = Place::new().text(&server.url("/SUMS")).unwrap_err();
    assert_says(&error, Kind::Failed, "/SUMS changes while it is read");
}

#[test]
fn a_file_of_the_host_is_copied_or_unpacked_and_compared() {
    let bytes = content(300_000);
    let packed = gzip(&bytes);
    for expected in [None, Some(sha256(&bytes)), Some(sha512(&bytes))] {
        let place = Place::new();
        let fetched = place.local("x.raw", &bytes, expected.as_ref()).unwrap();
        assert_eq!((fetched.path, fetched.sums.sha256), (place.path("x.raw"), sha256(&bytes)));
        assert!(place.read("x.raw") == bytes);
        assert_eq!(place.left(), ["x.raw"]);
    }
    let place = Place::new();
    let fetched = place.local("x.raw.gz", &packed, Some(&sha256(&packed))).unwrap();
    assert_eq!((fetched.path, fetched.sums.sha256), (place.path("x.raw"), sha256(&packed)));
    assert!(place.read("x.raw") == bytes);
    assert_eq!(place.left(), ["x.raw"]);
}

#[test]
fn a_file_of_the_host_that_is_wrong_is_refused_and_leaves_nothing() {
    let bytes = content(100_000);
    let packed = gzip(&bytes);
    let place = Place::new();
    for (name, bytes) in [("x.raw", &bytes), ("x.raw.gz", &packed)] {
        for wrong in [sha256(b"other"), sha512(b"other")] {
            let error = place.local(name, bytes, Some(&wrong)).unwrap_err();
            assert_says(
                &error,
                Kind::Refused,
                &format!("FILE does not have the {} checksum", wrong.algorithm()),
            );
            assert_eq!(place.left(), NOTHING);
        }
    }
    let error = place.local("x.raw.gz", &packed[..50_000], None).unwrap_err();
    assert_says(&error, Kind::Failed, "cannot decompress FILE");
    assert_eq!(place.left(), NOTHING);
}

#[test]
fn a_file_of_the_host_that_cannot_be_read_is_an_error() {
    let place = Place::new();
    let job =
        Local { shown: "FILE", directory: place.directory.path(), name: "x.raw", expected: None };
    let directory = File::open("/").unwrap();
    let error = run(local(&place.ui, directory, &job)).unwrap_err();
    assert_says(&error, Kind::Failed, "Is a directory");
}

#[test]
fn what_may_be_secret_in_an_address_is_told_to_the_server_alone() {
    type Answer = fn(&Request, usize) -> Reply;
    let answers: [Answer; 12] = [
        |request, number| match number {
            0 => Reply::file(&content(300_000), A, request).cut(100_000),
            _ => Reply::file(&content(300_000), B, request).cut(100),
        },
        |_, _| Reply::hang_up(),
        |_, _| Reply::new(503, ""),
        |_, _| Reply::new(503, "").header("Retry-After", "100000"),
        |_, _| Reply::new(404, ""),
        |_, _| Reply::new(403, ""),
        |_, _| Reply::new(206, "part"),
        |_, _| Reply::new(200, "page").header("Content-Type", "text/html"),
        |_, _| Reply::whole(b"image", A).unframed(),
        |_, _| Reply::whole(b"image", A).promise(1 << 60),
        |_, _| Reply::redirect("/x.raw?token=secret"),
        |_, _| Reply::silence(),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let server = Server::new(answer);
        let place = Place::with(IMPATIENT);
        let url = server.url("/x.raw?token=secret").replace("http://", "http://user:hidden@");
        let error = place.fetch(&url, None).unwrap_err();
        let record = std::fs::read_to_string(place.path(".download.json")).unwrap_or_default();
        let told = format!(
            "{error:?} {} {:?} {:?} {record}",
            error.full_message(),
            error.hints(),
            place.ui.0.borrow()
        );
        assert!(!told.contains("secret") && !told.contains("hidden"), "{number}: {told}");
        let request = &server.requests()[0];
        assert_eq!(request.path, "/x.raw?token=secret");
        assert!(
            request.header("authorization").is_some_and(|value| value.starts_with("Basic ")),
            "{request:?}"
        );
    }
    // A record that is kept, and a checksum that is wrong.
    let server = Server::new(|request, _| Reply::file(&content(300_000), A, request));
    let place = Place::new();
    let url = server.url("/x.raw?token=secret");
    place.fetch(&url, None).unwrap();
    let record = String::from_utf8(place.read(".download.json")).unwrap();
    assert!(record.contains(&server.url("/x.raw\"")) && !record.contains("secret"), "{record}");
    let error = place.fetch(&url, Some(&sha256(b"other"))).unwrap_err();
    assert!(!error.full_message().contains("secret"), "{}", error.full_message());
}
