//! What a user asks of cloud-init, made into a seed.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::error::{Error, IoContext, Result};
use crate::model::{Seed, hash_password, public_key};

/// All documents of a seed together have at most this many bytes, as in the largest clouds. They
/// are part of the record, and of each snapshot's.
pub(crate) const LONGEST: usize = 16 << 10;

/// How `user-data` may begin, in whatever case: cloud-init does nothing with any other that is no
/// MIME message (`cloudinit/handlers`, `INCLUSION_TYPES_MAP`).
const BEGINNINGS: [&str; 6] =
    ["#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler", "## template: jinja"];

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// A file that is the `user-data`, or a directory with `user-data` and, maybe, `meta-data`,
    /// `network-config`, `vendor-data`.
    pub documents: Option<PathBuf>,
    /// A user that is made.
    pub user: Option<String>,
    /// Files with the public keys that let this user, or the image's own, in.
    pub ssh_keys: Vec<PathBuf>,
    /// A file whose first line is the user's password.
    pub password: Option<PathBuf>,
    /// What the guest calls itself.
    pub hostname: Option<String>,
    /// Packages that are installed.
    pub packages: Vec<String>,
    /// Shell commands that are run at the end, in order.
    pub commands: Vec<String>,
}

impl Request {
    /// The seed; `None` where nothing was asked for.
    pub(crate) fn seed(&self) -> Result<Option<Seed>> {
        if *self == Self::default() {
            return Ok(None);
        }
        let hostname = self.hostname.clone();
        let Some(documents) = &self.documents else {
            let (user_data, meta_data) = (self.user_data()?, "{}".to_owned());
            return bounded(Seed {
                user_data,
                meta_data,
                network_config: None,
                vendor_data: None,
                hostname,
            })
            .map(Some);
        };
        let alone = Self {
            documents: self.documents.clone(),
            hostname: hostname.clone(),
            ..Self::default()
        };
        if *self != alone {
            return Err(Error::usage(
                "--cloud-init is all of the user-data: it goes with --hostname alone",
            )
            .hint("write users, keys, packages and commands into that file"));
        }
        let seed = match documents.is_dir() {
            true => directory(documents)?,
            false => Seed {
                user_data: required(documents)?,
                meta_data: "{}".to_owned(),
                network_config: None,
                vendor_data: None,
                hostname: None,
            },
        };
        let file = if documents.is_dir() { documents.join("user-data") } else { documents.clone() };
        check_user_data(&seed.user_data, &file)?;
        bounded(Seed { hostname: hostname.or(seed.hostname), ..seed }).map(Some)
    }

    /// A cloud-config.
    fn user_data(&self) -> Result<String> {
        let keys = self.ssh_keys.iter().map(|path| key(path)).collect::<Result<Vec<_>>>()?;
        let password = self.password.as_ref().map(|path| password(path)).transpose()?;
        let is_odd = |name: &String| {
            name.is_empty() || name.starts_with('-') || name.contains(char::is_whitespace)
        };
        if let Some(package) = self.packages.iter().find(|name| is_odd(name)) {
            return Err(Error::usage(format!("{package:?} is no name of a package")));
        }
        if self.commands.iter().any(|command| command.trim().is_empty()) {
            return Err(Error::usage("an empty command cannot be run"));
        }
        let mut config = Map::new();
        let mut user = Map::new();
        if !keys.is_empty() {
            user.insert("ssh_authorized_keys".into(), json!(keys));
        }
        if let Some(hash) = &password {
            user.insert("lock_passwd".into(), json!(false));
            user.insert("passwd".into(), json!(hash));
            // Of a user that the image has already.
            user.insert("hashed_passwd".into(), json!(hash));
        }
        match &self.user {
            Some(name) => {
                check_user(name)?;
                user.insert("name".into(), json!(name));
                user.insert("shell".into(), json!("/bin/bash"));
                user.insert("sudo".into(), json!("ALL=(ALL) NOPASSWD:ALL"));
                config.insert("users".into(), json!([user]));
            }
            None if password.is_some() => {
                return Err(Error::usage("--password-file needs --user: whose password is it?"));
            }
            // The image's own user.
            None if !keys.is_empty() => {
                drop(config.insert("ssh_authorized_keys".into(), json!(keys)))
            }
            None => {}
        }
        if password.is_some() {
            config.insert("ssh_pwauth".into(), json!(true));
        }
        if !self.packages.is_empty() {
            config.insert("package_update".into(), json!(true));
            config.insert("packages".into(), json!(self.packages));
        }
        if !self.commands.is_empty() {
            config.insert("runcmd".into(), json!(self.commands));
        }
        Ok(format!("#cloud-config\n{}", super::yaml(&Value::Object(config))))
    }
}

/// The documents in a directory, as NoCloud names them.
fn directory(path: &Path) -> Result<Seed> {
    let known = ["user-data", "meta-data", "network-config", "vendor-data"];
    for entry in std::fs::read_dir(path).on("list", path)? {
        let name = entry.on("list", path)?.file_name();
        if !known.iter().any(|known| name == *known) {
            return Err(Error::usage(format!(
                "{} is none of a seed's documents",
                path.join(name).display()
            ))
            .hint(format!("they are: {}", known.join(", "))));
        }
    }
    let file = path.join("meta-data");
    let (meta_data, hostname) = others(&optional(&file)?.unwrap_or_default(), &file)?;
    Ok(Seed {
        user_data: required(&path.join("user-data"))?,
        meta_data,
        network_config: optional(&path.join("network-config"))?,
        vendor_data: optional(&path.join("vendor-data"))?,
        hostname,
    })
}

/// What a `meta-data` says but for what belongs to each VM, as JSON; and the host's name, if it has
/// one. It is JSON, or a line for each key.
fn others(text: &str, path: &Path) -> Result<(String, Option<String>)> {
    let refuse = |what: &str| {
        Err(Error::usage(format!("{}: {what}", path.display())).hint(
            "write KEY: VALUE on a line for each, or JSON; what is longer belongs into user-data",
        ))
    };
    let mut all = Map::new();
    if text.trim_start().starts_with('{') {
        match serde_json::from_str(text) {
            Ok(map) => all = map,
            Err(error) => return refuse(&format!("it is no JSON: {error}")),
        }
    } else {
        for line in text
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.starts_with('#') && *line != "---")
        {
            let is_key =
                |key: &str| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
            let Some((key, value)) = line.split_once(':').filter(|(key, _)| is_key(key)) else {
                return refuse(&format!("{line:?} is no key and value"));
            };
            let value = value.split(" #").next().unwrap_or_default().trim();
            if value.is_empty()
                || value.starts_with(['|', '>', '[', '{', '&', '*', '!', '%', '@', '`'])
            {
                return refuse(&format!("the value of {key} is more than a word or a text"));
            }
            all.insert(key.to_owned(), value.trim_matches(['"', '\'']).into());
        }
    }
    all.remove("instance-id");
    let hostname = match all.remove("local-hostname") {
        None => None,
        Some(Value::String(name)) => Some(name),
        Some(_) => return refuse("the local-hostname is no text"),
    };
    Ok((super::yaml(&Value::Object(all)), hostname.filter(|name| !name.is_empty())))
}

fn required(path: &Path) -> Result<String> {
    optional(path)?.ok_or_else(|| Error::not_found(format!("{} is not there", path.display())))
}

/// Pipes are fine: the user has named it.
fn optional(path: &Path) -> Result<Option<String>> {
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.on("read", path)?,
    };
    let mut bytes = Vec::new();
    let limit = u64::try_from(LONGEST).unwrap_or(u64::MAX) + 1;
    file.take(limit).read_to_end(&mut bytes).on("read", path)?;
    if bytes.len() > LONGEST {
        return Err(too_long(&path.display().to_string()));
    }
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| Error::usage(format!("{} is no text (UTF-8)", path.display())))
}

fn too_long(what: &str) -> Error {
    Error::usage(format!(
        "{what} is too long: a seed for cloud-init has at most {} KiB",
        LONGEST >> 10
    ))
    .hint("let it fetch the rest: a first line of #include, and URLs below")
}

fn bounded(seed: Seed) -> Result<Seed> {
    seed.hostname.as_deref().map_or(Ok(()), check_hostname)?;
    let texts = [
        Some(&seed.user_data),
        Some(&seed.meta_data),
        seed.network_config.as_ref(),
        seed.vendor_data.as_ref(),
    ];
    let bytes: usize = texts.into_iter().flatten().map(String::len).sum();
    if bytes > LONGEST { Err(too_long("all of it together")) } else { Ok(seed) }
}

fn check_user_data(text: &str, path: &Path) -> Result<()> {
    let start = text.trim_start().to_ascii_lowercase();
    let is_mime = || {
        start
            .lines()
            .take_while(|line| !line.is_empty())
            .any(|line| line.starts_with("mime-version:"))
    };
    if BEGINNINGS.iter().any(|beginning| start.starts_with(beginning)) || is_mime() {
        return Ok(());
    }
    let first: String = text.lines().next().unwrap_or_default().chars().take(40).collect();
    Err(Error::usage(format!(
        "cloud-init would ignore {}: its first line is {first:?}",
        path.display()
    ))
    .hint("a cloud-config begins with #cloud-config, a script with #!"))
}

/// Refuses what no host can be called (RFC 1123).
pub(crate) fn check_hostname(name: &str) -> Result<()> {
    let is_label = |label: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
        (1..=63).contains(&label.len())
            && label.chars().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match name.len() <= 253 && name.split('.').all(is_label) {
        true => Ok(()),
        false => Err(Error::usage(format!("{name:?} is no name of a host"))
            .hint("letters, digits and dashes, with dots between")),
    }
}

fn check_user(name: &str) -> Result<()> {
    let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let is_name = name.len() <= 32
        && name.chars().all(rest)
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    match is_name {
        true => Ok(()),
        false => Err(Error::usage(format!("{name:?} is no name of a user")).hint(
            "small letters, digits, dashes and underscores, \
             at most 32, not a digit or a dash first",
        )),
    }
}

fn key(path: &Path) -> Result<String> {
    public_key(&required(path)?)
        .map_err(|error| Error::usage(format!("{}: {}", path.display(), error.full_message())))
}

fn password(path: &Path) -> Result<String> {
    let text = required(path)?;
    let word = text.lines().next().unwrap_or_default();
    if word.is_empty() {
        return Err(Error::usage(format!(
            "the first line of {} is empty, and that is no password",
            path.display()
        ))
        .hint("to disable login by password, omit --password-file"));
    }
    hash_password(word)
}

#[cfg(test)]
mod tests;
