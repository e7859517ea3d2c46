//! The values of customise options: how they are read, and what is refused.

use std::io::{BufRead, Read};
use std::path::Path;

use crate::error::{Error, IoContext, Result};

/// What can stand for a password.
pub(super) const SELECTORS: &str = "a selector is one of file:FILE, stdin, password:WORD, random, \
                                    locked, disabled; other users see WORD in `ps`";
/// The longest password, in bytes.
const LONGEST_PASSWORD: u64 = 4096;

/// The next line, without its end.
pub(super) fn first_line(input: &mut dyn BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    input.take(LONGEST_PASSWORD + 1).read_line(&mut line)?;
    if line.len() as u64 > LONGEST_PASSWORD {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "its first line is too long for a password",
        ));
    }
    let end = line.trim_end_matches(['\n', '\r']).len();
    line.truncate(end);
    Ok(line)
}

pub(super) fn pair<'a>(value: &'a str, form: &str) -> Result<(&'a str, &'a str)> {
    value
        .split_once(':')
        .filter(|(first, _)| !first.is_empty())
        .ok_or_else(|| Error::usage(format!("the value is not of the form {form}")))
}

pub(super) fn absolute(path: &str) -> Result<String> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(path.to_owned());
    }
    Err(Error::usage(format!("{path:?} is not an absolute path of the guest")))
}

pub(super) fn account(name: &str) -> Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-$".contains(c);
    if name.is_empty() || name.starts_with('-') || !name.chars().all(fine) {
        return Err(Error::usage(format!("{name:?} is no user's name")));
    }
    Ok(name.to_owned())
}

pub(super) fn host_name(name: &str) -> Result<String> {
    let fine = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    if name.len() > 253 || !name.split('.').all(fine) {
        return Err(Error::usage(format!("{name:?} is no host name")));
    }
    Ok(name.to_owned())
}

pub(super) fn packages(list: &str) -> Result<Vec<String>> {
    let packages: Vec<String> =
        list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match packages.iter().find(|name| name.starts_with('-')) {
        Some(bad) => Err(Error::usage(format!("{bad:?} is no package"))),
        None if packages.is_empty() => Err(Error::usage("no package is named")),
        None => Ok(packages),
    }
}

pub(super) fn numbered(number: usize, what: &str) -> String {
    let name: String = Path::new(what)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    format!("{number:04}-{name}")
}

/// The program of a shell command, without what it is given; nothing where a variable stands before
/// it.
pub(super) fn program(command: &str) -> &str {
    command.split_whitespace().next().filter(|word| !word.contains('=')).unwrap_or_default()
}

/// The user's own key, one in a file, or the key itself.
pub(super) fn public_key(selector: Option<&str>, home: Option<&Path>) -> Result<String> {
    let key = match selector.map(|selector| selector.split_once(':').unwrap_or((selector, ""))) {
        Some(("string", key)) => key.to_owned(),
        Some(("file", path)) => std::fs::read_to_string(path).on("read", Path::new(path))?,
        Some((other, _)) => {
            return Err(Error::usage(format!("{other:?} is neither file:KEY.pub nor string:KEY")));
        }
        None => {
            let candidates = ["id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub"];
            let found = home.and_then(|home| {
                candidates
                    .iter()
                    .map(|name| home.join(".ssh").join(name))
                    .find(|path| path.exists())
            });
            let path = found.ok_or_else(|| {
                Error::not_found("you have no SSH key of your own (~/.ssh/id_*.pub)")
                    .hint("name one: --ssh-inject USER:file:KEY.pub; or make one: ssh-keygen")
            })?;
            std::fs::read_to_string(&path).on("read", &path)?
        }
    };
    crate::model::public_key(&key)
}
