//! What is put in: the options of `virt-customize(1)`, by their names, done in the user's order. Passwords come after everything else, as
//! there; SELinux labels last of all.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::appliance::boot::Payload;
use crate::error::{Error, IoContext, Result};

/// One of the options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Option_ {
    /// Its name, without dashes.
    pub name: &'static str,
    /// The form of its value; `None`: it takes none.
    pub value: Option<&'static str>,
    /// What it does.
    pub help: &'static str,
}

const fn option(name: &'static str, value: &'static str, help: &'static str) -> Option_ {
    Option_ { name, value: Some(value), help }
}

/// All of them.
pub const OPTIONS: &[Option_] = &[
    option("append-line", "FILE:LINE", "Append a line to a file"),
    option("chmod", "MODE:FILE", "Change the permissions of a file (octal)"),
    option("chown", "UID:GID:PATH", "Change the owner of a path (numbers, or names the guest knows)"),
    option("copy-in", "LOCAL:DIR", "Copy a file or a tree into a directory of the guest"),
    option("delete", "GLOB", "Delete files and directories"),
    option("edit", "FILE:EXPR", "Edit a file with a Perl expression (the guest's perl; else sed -E): 's/a/b/'"),
    option("firstboot", "SCRIPT", "Run a script of yours at the first boot of each clone"),
    option("firstboot-command", "CMD", "Run a command at the first boot of each clone"),
    option("hostname", "NAME", "Give all clones this host name, instead of each its own"),
    option("install", "PKG,PKG", "Install packages with the guest's package manager (--network, or a local source)"),
    option("link", "TARGET:LINK[:LINK]", "Make symbolic links"),
    option("mkdir", "DIR", "Make a directory, with its parents"),
    option("motd", "TEXT", "Set the message of the day"),
    option("move", "SOURCE:DEST", "Move a file or directory"),
    option("password", "USER:SELECTOR", "Set a user's password: password:WORD, file:FILE, random, locked, disabled"),
    option("root-password", "SELECTOR", "Set root's password"),
    option("run", "SCRIPT", "Run a script of yours in the guest's tree"),
    option("run-command", "CMD", "Run a command in the guest's tree"),
    Option_ { name: "selinux-relabel", value: None, help: "Let SELinux label everything anew at the next boot" },
    option(
        "ssh-inject",
        "USER[:SELECTOR]",
        "Let a key log in as a user: file:KEY.pub, string:KEY [default: your own key]",
    ),
    option("timezone", "ZONE", "Set the time zone (Europe/Berlin)"),
    option("touch", "FILE", "Make an empty file, or set its time"),
    option("truncate", "FILE", "Make a file empty"),
    option("uninstall", "PKG,PKG", "Remove packages"),
    Option_ { name: "update", value: None, help: "Bring all packages up to date" },
    option("upload", "FILE:DEST", "Copy a file to a place in the guest"),
    option("write", "FILE:CONTENT", "Write text into a file"),
];

/// Something to put in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Customisation {
    AppendLine {
        path: String,
        line: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    Chown {
        path: String,
        user: String,
        group: String,
    },
    Delete {
        glob: String,
    },
    Edit {
        path: String,
        expression: String,
    },
    /// `name` is the file's own, below the directory of first-boot scripts.
    Firstboot {
        name: String,
        script: Blob,
    },
    Hostname {
        name: String,
    },
    Install {
        packages: Vec<String>,
    },
    Link {
        target: String,
        link: String,
    },
    Mkdir {
        path: String,
    },
    Motd {
        text: String,
    },
    Move {
        from: String,
        to: String,
    },
    /// `hash` as `crypt(5)` has it; `None`: no password will do.
    Password {
        user: String,
        hash: std::option::Option<String>,
    },
    Run {
        name: String,
        script: Blob,
    },
    SelinuxRelabel,
    SshInject {
        user: String,
        key: String,
    },
    Timezone {
        zone: String,
    },
    Touch {
        path: String,
    },
    Truncate {
        path: String,
    },
    Uninstall {
        packages: Vec<String>,
    },
    Update,
    /// A file whose content comes along; into a directory under its own name.
    Upload {
        path: String,
        name: String,
        mode: u32,
        content: Blob,
    },
    /// A link that is a part of a tree that comes along.
    Symlink {
        path: String,
        target: String,
    },
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blob {
    /// It is short, and here.
    Text(String),
    /// It is in the payload: from this byte on, so many.
    Payload(u64, u64),
}

impl Customisation {
    /// Does it run a program of the guest's?
    pub fn runs_programs(&self) -> bool {
        matches!(
            self,
            Self::Edit { .. } | Self::Install { .. } | Self::Run { .. } | Self::Uninstall { .. } | Self::Update
        )
    }

    /// Is it done when everything has been taken out, so that it stays?
    pub fn is_late(&self) -> bool {
        matches!(
            self,
            Self::Firstboot { .. }
                | Self::Hostname { .. }
                | Self::Password { .. }
                | Self::SelinuxRelabel
                | Self::SshInject { .. }
        )
    }

    /// Its option, for reports.
    pub fn option(&self) -> &'static str {
        match self {
            Self::AppendLine { .. } => "append-line",
            Self::Chmod { .. } => "chmod",
            Self::Chown { .. } => "chown",
            Self::Delete { .. } => "delete",
            Self::Edit { .. } => "edit",
            Self::Firstboot { .. } => "firstboot",
            Self::Hostname { .. } => "hostname",
            Self::Install { .. } => "install",
            Self::Link { .. } => "link",
            Self::Mkdir { .. } => "mkdir",
            Self::Motd { .. } => "motd",
            Self::Move { .. } => "move",
            Self::Password { .. } => "password",
            Self::Run { .. } => "run",
            Self::SelinuxRelabel => "selinux-relabel",
            Self::SshInject { .. } => "ssh-inject",
            Self::Timezone { .. } => "timezone",
            Self::Touch { .. } => "touch",
            Self::Truncate { .. } => "truncate",
            Self::Uninstall { .. } => "uninstall",
            Self::Update => "update",
            Self::Upload { .. } => "upload",
            Self::Symlink { .. } => "copy-in",
        }
    }
}

/// Everything the user asked for, with what is read from the host's files.
#[derive(Debug, Default)]
pub struct Wishes {
    /// In the order in which they are done.
    pub customisations: Vec<Customisation>,
    /// Passwords that were made up, as `USER: WORD`, to be shown once.
    pub passwords: Vec<String>,
    late: Vec<Customisation>,
    last: Vec<Customisation>,
}

impl Wishes {
    /// What these options, in this order, ask for. Files of the host's go into `payload`; `home` is where the user's own keys are.
    pub fn read(options: &[(String, String)], payload: &mut Payload, home: Option<&Path>) -> Result<Self> {
        let mut wishes = Self::default();
        for (name, value) in options {
            wishes.add(name, value, payload, home).map_err(|error| match error.message().starts_with("--") {
                true => error,
                false => Error::new(error.kind(), format!("--{name}: {}", error.full_message())),
            })?;
        }
        let (late, last) = (std::mem::take(&mut wishes.late), std::mem::take(&mut wishes.last));
        wishes.customisations.extend(late.into_iter().chain(last));
        Ok(wishes)
    }

    fn add(&mut self, name: &str, value: &str, payload: &mut Payload, home: Option<&Path>) -> Result<()> {
        use Customisation as C;
        let number = self.customisations.len();
        let one = match name {
            "append-line" => {
                let (path, line) = pair(value, "FILE:LINE")?;
                C::AppendLine { path: absolute(path)?, line: line.to_owned() }
            }
            "chmod" => {
                let (mode, path) = pair(value, "MODE:FILE")?;
                let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
                C::Chmod {
                    path: absolute(path)?,
                    mode: mode.ok_or_else(|| Error::usage(format!("{value:?} has no octal mode")))?,
                }
            }
            "chown" => {
                let (user, rest) = pair(value, "UID:GID:PATH")?;
                let (group, path) = pair(rest, "UID:GID:PATH")?;
                C::Chown { path: absolute(path)?, user: user.to_owned(), group: group.to_owned() }
            }
            "copy-in" => {
                let (local, directory) = pair(value, "LOCAL:DIR")?;
                return self.tree(Path::new(local), &absolute(directory)?, payload);
            }
            "delete" => C::Delete { glob: absolute(value)? },
            "edit" => {
                let (path, expression) = pair(value, "FILE:EXPR")?;
                C::Edit { path: absolute(path)?, expression: expression.to_owned() }
            }
            "firstboot" => C::Firstboot { name: numbered(number, value), script: blob(Path::new(value), payload)? },
            "firstboot-command" => C::Firstboot { name: numbered(number, "command"), script: shell(value) },
            "hostname" => C::Hostname { name: host_name(value)? },
            "install" => C::Install { packages: packages(value)? },
            "link" => {
                let (target, links) = pair(value, "TARGET:LINK[:LINK]")?;
                for link in links.split(':') {
                    self.customisations.push(C::Link { target: target.to_owned(), link: absolute(link)? });
                }
                return Ok(());
            }
            "mkdir" => C::Mkdir { path: absolute(value)? },
            "motd" => C::Motd { text: value.to_owned() },
            "move" => {
                let (from, to) = pair(value, "SOURCE:DEST")?;
                C::Move { from: absolute(from)?, to: absolute(to)? }
            }
            "password" => {
                let (user, selector) = pair(value, "USER:SELECTOR")?;
                return self.password(user, selector);
            }
            "root-password" => return self.password("root", value),
            "run" => C::Run { name: value.to_owned(), script: blob(Path::new(value), payload)? },
            "run-command" => C::Run { name: value.to_owned(), script: shell(value) },
            "selinux-relabel" => {
                self.last.push(C::SelinuxRelabel);
                return Ok(());
            }
            "ssh-inject" => {
                let (user, selector) = value.split_once(':').map_or((value, None), |(user, key)| (user, Some(key)));
                C::SshInject { user: account(user)?, key: public_key(selector, home)? }
            }
            "timezone" => {
                if value.is_empty()
                    || value.starts_with('/')
                    || value.split('/').any(|part| part == ".." || part.is_empty())
                {
                    return Err(Error::usage(format!("{value:?} is no time zone"))
                        .hint("write it as in /usr/share/zoneinfo: Europe/Berlin"));
                }
                C::Timezone { zone: value.to_owned() }
            }
            "touch" => C::Touch { path: absolute(value)? },
            "truncate" => C::Truncate { path: absolute(value)? },
            "uninstall" => C::Uninstall { packages: packages(value)? },
            "update" => C::Update,
            "upload" => {
                let (local, path) = pair(value, "FILE:DEST")?;
                let local = Path::new(local);
                let mode = local.metadata().on("read", local)?.permissions().mode() & 0o7777;
                let name = local.file_name().unwrap_or_default().to_string_lossy().into_owned();
                C::Upload { path: absolute(path)?, name, mode, content: blob(local, payload)? }
            }
            "write" => {
                let (path, content) = pair(value, "FILE:CONTENT")?;
                let content = Blob::Text(content.to_owned());
                C::Upload { path: absolute(path)?, name: String::new(), mode: 0o644, content }
            }
            other => return Err(Error::usage(format!("there is no customise option {other:?}"))),
        };
        self.customisations.push(one);
        Ok(())
    }

    /// A file or a tree of the host's, below `directory`.
    fn tree(&mut self, local: &Path, directory: &str, payload: &mut Payload) -> Result<()> {
        let about = local.symlink_metadata().on("read", local)?;
        let name = std::path::absolute(local).on("find", local)?;
        let name =
            name.file_name().ok_or_else(|| Error::usage(format!("{} has no name", local.display())))?.to_string_lossy();
        let path = format!("{}/{name}", directory.trim_end_matches('/'));
        let mode = about.permissions().mode() & 0o7777;
        if about.is_symlink() {
            let target = std::fs::read_link(local).on("read", local)?.to_string_lossy().into_owned();
            self.customisations.push(Customisation::Symlink { path, target });
        } else if about.is_dir() {
            self.customisations.push(Customisation::Mkdir { path: path.clone() });
            self.customisations.push(Customisation::Chmod { path: path.clone(), mode });
            let mut inside: Vec<PathBuf> =
                std::fs::read_dir(local).on("list", local)?.flatten().map(|entry| entry.path()).collect();
            inside.sort();
            for entry in inside {
                self.tree(&entry, &path, payload)?;
            }
        } else if about.is_file() {
            let content = blob(local, payload)?;
            self.customisations.push(Customisation::Upload { path, name: String::new(), mode, content });
        } else {
            return Err(Error::refused(format!("{} is neither file, directory nor link", local.display())));
        }
        Ok(())
    }

    fn password(&mut self, user: &str, selector: &str) -> Result<()> {
        let user = account(user)?;
        let (kind, word) = selector.split_once(':').map_or((selector, None), |(kind, word)| (kind, Some(word)));
        let hash = match (kind, word) {
            ("password", Some(word)) => Some(hash(word)?),
            ("file", Some(path)) => {
                let text = std::fs::read_to_string(path).on("read", Path::new(path))?;
                Some(hash(text.lines().next().unwrap_or_default())?)
            }
            ("random", None) => {
                let word = uuid::Uuid::new_v4().simple().to_string()[..20].to_owned();
                self.passwords.push(format!("{user}: {word}"));
                Some(hash(&word)?)
            }
            ("disabled" | "locked", None) => None,
            _ => {
                return Err(Error::usage(format!("{selector:?} does not say what the password of {user} is to be"))
                    .hint("one of password:WORD, file:FILE, random, locked, disabled"));
            }
        };
        self.late.push(Customisation::Password { user, hash });
        Ok(())
    }
}

fn pair<'a>(value: &'a str, form: &str) -> Result<(&'a str, &'a str)> {
    value
        .split_once(':')
        .filter(|(first, _)| !first.is_empty())
        .ok_or_else(|| Error::usage(format!("{value:?} is not of the form {form}")))
}

fn absolute(path: &str) -> Result<String> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(path.to_owned());
    }
    Err(Error::usage(format!("{path:?} is not an absolute path of the guest")))
}

fn account(name: &str) -> Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-$".contains(c);
    if name.is_empty() || name.starts_with('-') || !name.chars().all(fine) {
        return Err(Error::usage(format!("{name:?} is no user's name")));
    }
    Ok(name.to_owned())
}

fn host_name(name: &str) -> Result<String> {
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

fn packages(list: &str) -> Result<Vec<String>> {
    let packages: Vec<String> =
        list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match packages.iter().find(|name| name.starts_with('-')) {
        Some(bad) => Err(Error::usage(format!("{bad:?} is no package"))),
        None if packages.is_empty() => Err(Error::usage("no package is named")),
        None => Ok(packages),
    }
}

fn numbered(number: usize, what: &str) -> String {
    let name: String = Path::new(what)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .collect();
    format!("{number:04}-{name}")
}

fn shell(command: &str) -> Blob {
    Blob::Text(format!("#!/bin/sh\n{command}\n"))
}

fn blob(path: &Path, payload: &mut Payload) -> Result<Blob> {
    let (at, length) = payload.add(path)?;
    Ok(Blob::Payload(at, length))
}

/// The user's own key, one in a file, or the key itself.
fn public_key(selector: Option<&str>, home: Option<&Path>) -> Result<String> {
    let key = match selector.map(|selector| selector.split_once(':').unwrap_or((selector, ""))) {
        Some(("string", key)) => key.to_owned(),
        Some(("file", path)) => std::fs::read_to_string(path).on("read", Path::new(path))?,
        Some((other, _)) => {
            return Err(Error::usage(format!("{other:?} is neither file:KEY.pub nor string:KEY")));
        }
        None => {
            let candidates = ["id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub"];
            let found = home
                .and_then(|home| candidates.iter().map(|name| home.join(".ssh").join(name)).find(|path| path.exists()));
            let path = found.ok_or_else(|| {
                Error::not_found("you have no SSH key of your own (~/.ssh/id_*.pub)")
                    .hint("name one: --ssh-inject USER:file:KEY.pub; or make one: ssh-keygen")
            })?;
            std::fs::read_to_string(&path).on("read", &path)?
        }
    };
    let key = key.trim();
    if key.contains("PRIVATE KEY") {
        return Err(Error::usage("that is a private key, which belongs in no guest; name the .pub file beside it"));
    }
    if key.lines().count() != 1 || key.split_whitespace().count() < 2 {
        return Err(Error::usage("that is no public key (one line: type, key, comment)"));
    }
    Ok(key.to_owned())
}

/// As `crypt(5)`'s sha512crypt, which every distribution's PAM knows.
fn hash(word: &str) -> Result<String> {
    use sha_crypt::PasswordHasher;
    if word.is_empty() {
        return Err(Error::usage("an empty password lets everybody in").hint("to let nobody in by password: locked"));
    }
    let hash = sha_crypt::ShaCrypt::SHA512
        .hash_password(word.as_bytes())
        .map_err(|error| Error::failed(format!("the password cannot be hashed: {error}")))?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<Vec<Customisation>> {
        let options: Vec<(String, String)> =
            options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Wishes::read(&options, &mut Payload::new()?, None).map(|wishes| wishes.customisations)
    }

    #[test]
    fn the_order_is_the_users_and_passwords_and_labels_come_last() {
        let all = read(&[
            ("selinux-relabel", ""),
            ("root-password", "locked"),
            ("write", "/a:b:c"),
            ("touch", "/x"),
            ("link", "/t:/l1:/l2"),
        ]);
        let names: Vec<&str> = all.expect("good").iter().map(Customisation::option).collect();
        assert_eq!(names, ["upload", "touch", "link", "link", "password", "selinux-relabel"]);
    }

    #[test]
    fn bad_values_are_refused_by_the_options_name() {
        for (name, value) in [
            ("write", "nopath"),
            ("write", "relative:x"),
            ("chmod", "9:/x"),
            ("hostname", "bad name"),
            ("password", "root:nonsense"),
            ("root-password", "password:"),
            ("ssh-inject", "root:string:nonsense"),
            ("ssh-inject", "root:string:-----BEGIN OPENSSH PRIVATE KEY-----"),
            ("timezone", "../../etc/passwd"),
            ("install", "-y"),
            ("upload", "/does/not/exist:/x"),
        ] {
            let error = read(&[(name, value)]).expect_err(name);
            assert!(error.message().starts_with(&format!("--{name}: ")), "{}", error.message());
        }
    }

    #[test]
    fn a_password_is_hashed_before_it_goes_anywhere() {
        let all = read(&[("root-password", "password:sesame")]).expect("good");
        let Customisation::Password { hash: Some(hash), .. } = &all[0] else { panic!("{all:?}") };
        assert!(hash.starts_with("$6$") && !hash.contains("sesame"), "{hash}");
    }
}
