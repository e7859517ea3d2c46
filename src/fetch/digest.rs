//! Checksums of files: SHA-256 and SHA-512, and the files in which projects publish them.

use std::fmt;

use sha2::{Digest as _, Sha256, Sha512};

use crate::error::{Error, Result};

/// A checksum as a project publishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Digest {
    /// 32 bytes.
    Sha256([u8; 32]),
    /// 64 bytes.
    Sha512([u8; 64]),
}

impl Digest {
    /// Reads 64 or 128 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        match text.len() {
            64 => bytes(text).map(Self::Sha256),
            128 => bytes(text).map(Self::Sha512),
            _ => None,
        }
    }

    /// The digits of `--sha256`.
    pub fn sha256(text: &str) -> Result<Self> {
        let digest = Self::from_hex(text).filter(|digest| matches!(digest, Self::Sha256(_)));
        digest.ok_or_else(|| Error::usage("a SHA-256 checksum has 64 hexadecimal digits"))
    }

    /// The digits of `--sha512`.
    pub fn sha512(text: &str) -> Result<Self> {
        let digest = Self::from_hex(text).filter(|digest| matches!(digest, Self::Sha512(_)));
        digest.ok_or_else(|| Error::usage("a SHA-512 checksum has 128 hexadecimal digits"))
    }

    /// The name of the algorithm.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Sha512(_) => "SHA-512",
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: &[u8] = match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        };
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        if !pair.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// Computes the checksum that is asked for, and SHA-256 in any case.
#[derive(Debug)]
pub struct Hasher {
    sha256: Sha256,
    sha512: Option<Sha512>,
}

impl Hasher {
    /// Of no bytes yet, to be compared with `expected`.
    pub fn new(expected: Option<&Digest>) -> Self {
        let sha512 = matches!(expected, Some(Digest::Sha512(_))).then(Sha512::new);
        Self { sha256: Sha256::new(), sha512 }
    }

    /// Of these bytes, too.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
    }

    /// The checksums.
    pub fn finish(self) -> Sums {
        Sums {
            sha256: Digest::Sha256(self.sha256.finalize().into()),
            sha512: self.sha512.map(|sha512| Digest::Sha512(sha512.finalize().into())),
        }
    }
}

/// The checksums of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    /// SHA-256.
    pub sha256: Digest,
    /// SHA-512, where it was asked for.
    pub sha512: Option<Digest>,
}

impl Sums {
    /// The one of the kind of `expected`.
    fn like(&self, expected: &Digest) -> Option<&Digest> {
        match expected {
            Digest::Sha256(_) => Some(&self.sha256),
            Digest::Sha512(_) => self.sha512.as_ref(),
        }
    }

    /// Refuses the file called `what` unless it has the checksum `expected`.
    pub fn check(&self, what: &str, expected: &Digest) -> Result<()> {
        match self.like(expected) {
            Some(found) if found == expected => Ok(()),
            found => {
                let found = found.map_or("none".to_owned(), Digest::to_string);
                let algorithm = expected.algorithm();
                Err(Error::refused(format!(
                    "{what} does not have the {algorithm} checksum {expected}, but {found}: it was \
                     changed, or damaged on its way"
                ))
                .hint(
                    "compare the checksum with the one that the project publishes, \
                     then run the command again",
                ))
            }
        }
    }
}

/// The checksum of `name` in a checksum file, which is called `what`. It may have lines as
/// `sha256sum` writes them, `SHA256 (name) = …` as BSD and Fedora do, or be a single checksum.
/// Lines of a signature around them are passed over. Where there are several kinds, the longest
/// checksum counts. A file of one line that is called as the image, with an ending, is about the
/// image whatever it says: the image may have been given another name since.
pub fn find(text: &str, name: &str, what: &str) -> Result<Digest> {
    let lines: Vec<(Option<&str>, Digest)> = text.lines().filter_map(line).collect();
    let mut found: Vec<&Digest> = lines
        .iter()
        .filter(|(of, _)| of.is_some_and(|of| base(of) == name))
        .map(|(_, digest)| digest)
        .collect();
    if found.is_empty()
        && let [(of, alone)] = &lines[..]
        && (of.is_none() || base(what).starts_with(name))
    {
        found.push(alone);
    }
    let longest = found.iter().map(|digest| digest.to_string().len()).max();
    found.retain(|digest| Some(digest.to_string().len()) == longest);
    found.dedup();
    match found[..] {
        [digest] => Ok(digest.clone()),
        [] if lines.is_empty() => Err(Error::refused(format!(
            "{what} is no checksum file: it has no SHA-256 or SHA-512 checksum"
        ))
        .hint("name the checksum file of the image: --sums URL; or the checksum: --sha256 HEX")),
        [] => Err(Error::refused(format!("{what} has no checksum of {name}")).hint(
            "name the checksum file of the image: --sums URL; or the checksum: --sha256 HEX",
        )),
        _ => Err(Error::refused(format!("{what} has several different checksums of {name}"))
            .hint("say which is the right one: --sha256 HEX")),
    }
}

/// The file and the checksum of one line.
fn line(line: &str) -> Option<(Option<&str>, Digest)> {
    let line = line.trim();
    // `SHA256 (name) = hex`
    if let Some((_, rest)) =
        line.split_once('(').filter(|(kind, _)| matches!(kind.trim_end(), "SHA256" | "SHA512"))
        && let Some((name, hex)) = rest.rsplit_once(')')
        && let Some(digest) =
            hex.trim_start().strip_prefix('=').and_then(|hex| Digest::from_hex(hex.trim()))
    {
        return Some((Some(name), digest));
    }
    // `hex  name`, `hex *name`, `hex`
    let (hex, name) =
        line.split_once(char::is_whitespace).map_or((line, None), |(hex, name)| (hex, Some(name)));
    let name = name.map(|name| name.trim_start().trim_start_matches('*'));
    Digest::from_hex(hex).map(|digest| (name.filter(|name| !name.is_empty()), digest))
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(digit: char, length: usize) -> String {
        digit.to_string().repeat(length)
    }

    #[test]
    fn checksum_files_of_all_projects_are_read() {
        let (a, b, long) = (hex('a', 64), hex('b', 64), hex('c', 128));
        for text in [
            format!("{b}  other.img\n{a}  x.img\n"),
            format!("{b} *other.img\n{a} *./x.img\r\n"),
            format!("# x.img: 3 bytes\nSHA256 (other.img) = {b}\nSHA256 (x.img) = {a}\n"),
            format!(
                "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nSHA256 (x.img) = \
                 {a}\n-----BEGIN PGP SIGNATURE-----\n"
            ),
            format!("{a}\n"),
            format!("{a}  x.img\n{a}  dir/x.img\n"),
        ] {
            assert_eq!(find(&text, "x.img", "sums").expect(&text).to_string(), a);
        }
        let both = format!("{a}  x.img\n{long}  x.img\n");
        assert_eq!(find(&both, "x.img", "sums").expect("the longer one").to_string(), long);
    }

    #[test]
    fn a_checksum_file_of_one_image_may_have_another_name_in_it() {
        let a = hex('a', 64);
        let text = format!("{a}  x-20261101.img\n");
        assert_eq!(
            find(&text, "x.img", "https://host/x.img.SHA256").expect("it is that").to_string(),
            a
        );
        find(&text, "x.img", "https://host/SHA256SUMS").expect_err("it may be any");
    }

    #[test]
    fn what_is_no_checksum_of_the_file_is_refused() {
        let (a, b) = (hex('a', 64), hex('b', 64));
        for (text, word) in [
            ("<html>404</html>".to_owned(), "is no checksum file"),
            (String::new(), "is no checksum file"),
            (format!("{a}  y.img\n"), "has no checksum of x.img"),
            (format!("{a}  x.img\n{b}  x.img\n"), "several different"),
            (format!("{a}  y.img\n{b}\n"), "has no checksum of x.img"),
            (format!("{}  x.img\n", hex('a', 40)), "is no checksum file"),
        ] {
            let error = find(&text, "x.img", "sums").expect_err(&text);
            assert!(error.message().contains(word), "{error:?}");
        }
        for text in ["", "aa", &hex('g', 64), &hex('+', 64), &hex('a', 128)] {
            assert!(Digest::sha256(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_is_compared_with_the_kind_of_checksum_that_is_known() {
        let expected =
            Digest::from_hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
                .expect("SHA-256 of abc");
        let long = Digest::from_hex(concat!(
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a",
            "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ))
        .expect("SHA-512 of abc");
        for expected in [expected, long] {
            let mut hasher = Hasher::new(Some(&expected));
            hasher.update(b"ab");
            hasher.update(b"c");
            hasher.finish().check("abc", &expected).expect("it is that");
            let error = Hasher::new(Some(&expected))
                .finish()
                .check("nothing", &expected)
                .expect_err("it is empty");
            assert!(error.message().contains(&expected.to_string()), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in ".{0,400}", name in ".{0,20}") {
            let _ = find(&text, &name, "sums");
            let _ = Digest::from_hex(&text);
        }
    }
}
