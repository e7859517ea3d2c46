//! What the user's customise options ask for: their values are read and checked here, with what
//! they take from the host's files.

mod files;
mod given;
mod values;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use files::{blob, tree};
pub use given::RawOption;
use values::{
    SELECTORS, absolute, account, first_line, host_name, numbered, packages, pair, program,
    public_key,
};

use super::customise::{Blob, Customisation, Wish};
use crate::appliance::boot::Payload;
use crate::error::{Error, IoContext, Result};
use crate::model::hash_password;

/// A password that was made up, to be shown once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedPassword {
    /// Whose.
    pub user: String,
    /// It.
    pub password: String,
}

/// Everything the user asked for, with what is read from the host's files.
#[derive(Debug, Default)]
pub struct CustomiseOptions {
    /// In the order in which they are done.
    pub wishes: Vec<Wish>,
    /// Passwords that were made up.
    pub passwords: Vec<GeneratedPassword>,
}

impl CustomiseOptions {
    /// What these options, in this order, ask for. Files of the host's go into `payload`; `home` is
    /// where the user's own keys are; each password that comes on standard input is the next line
    /// of `input`.
    pub fn read(
        options: &[RawOption],
        payload: &mut Payload,
        home: Option<&Path>,
        input: &mut dyn BufRead,
    ) -> Result<Self> {
        let mut all = Self::default();
        let (mut late, mut last) = (Vec::new(), Vec::new());
        for (number, given) in options.iter().enumerate() {
            let label = given.label();
            let wanted = all.understand(number, given, payload, home, input).map_err(|error| {
                let named = Error::new(error.kind(), format!("{label}: {}", error.full_message()));
                error.hints().iter().cloned().fold(named, Error::hint)
            })?;
            for what in wanted {
                let wish = Wish { label: label.clone(), what };
                match wish.what {
                    Customisation::Password { .. } => late.push(wish),
                    Customisation::SelinuxRelabel => last.push(wish),
                    _ => all.wishes.push(wish),
                }
            }
        }
        all.wishes.extend(late.into_iter().chain(last));
        Ok(all)
    }

    fn understand(
        &mut self,
        number: usize,
        given: &RawOption,
        payload: &mut Payload,
        home: Option<&Path>,
        input: &mut dyn BufRead,
    ) -> Result<Vec<Customisation>> {
        let (name, value) = (given.name.as_str(), given.value.as_str());
        use Customisation as C;
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
                    mode: mode
                        .ok_or_else(|| Error::usage(format!("{value:?} has no octal mode")))?,
                }
            }
            "chown" => {
                let (user, rest) = pair(value, "UID:GID:PATH")?;
                let (group, path) = pair(rest, "UID:GID:PATH")?;
                C::Chown { path: absolute(path)?, user: user.to_owned(), group: group.to_owned() }
            }
            "copy-in" => {
                let (local, directory) = pair(value, "LOCAL:DIR")?;
                return tree(Path::new(local), &absolute(directory)?, payload);
            }
            "delete" => C::Delete { glob: absolute(value)? },
            "edit" => {
                let (path, expression) = pair(value, "FILE:EXPR")?;
                C::Edit { path: absolute(path)?, expression: expression.to_owned() }
            }
            "firstboot" => C::Firstboot {
                name: numbered(number, value),
                script: blob(Path::new(value), payload)?,
            },
            "firstboot-command" => {
                C::Firstboot { name: numbered(number, "command"), script: shell(value) }
            }
            "hostname" => C::Hostname { name: host_name(value)? },
            "install" => C::Install { packages: packages(value)? },
            "link" => {
                let (target, links) = pair(value, "TARGET:LINK[:LINK]")?;
                let link = |link| Ok(C::Link { target: target.to_owned(), link: absolute(link)? });
                return links.split(':').map(link).collect();
            }
            "mkdir" => C::Mkdir { path: absolute(value)? },
            "motd" => C::Motd { text: value.to_owned() },
            "move" => {
                let (from, to) = pair(value, "SOURCE:DEST")?;
                C::Move { from: absolute(from)?, to: absolute(to)? }
            }
            "password" => {
                // What has no user in front may be a password, and is not repeated.
                let (user, selector) = value
                    .split_once(':')
                    .filter(|(user, _)| !user.is_empty())
                    .ok_or_else(|| {
                    Error::usage("the value is not of the form USER:SELECTOR").hint(SELECTORS)
                })?;
                self.password(user, selector, input)?
            }
            "root-password" => self.password("root", value, input)?,
            "run" => C::Run { name: value.to_owned(), script: blob(Path::new(value), payload)? },
            "run-command" => {
                let name =
                    Some(program(value)).filter(|name| !name.is_empty()).unwrap_or("a command");
                C::Run { name: name.to_owned(), script: shell(value) }
            }
            "selinux-relabel" => C::SelinuxRelabel,
            "ssh-inject" => {
                let (user, selector) =
                    value.split_once(':').map_or((value, None), |(user, key)| (user, Some(key)));
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
        Ok(vec![one])
    }

    fn password(
        &mut self,
        user: &str,
        selector: &str,
        input: &mut dyn BufRead,
    ) -> Result<Customisation> {
        let user = account(user)?;
        let (kind, word) =
            selector.split_once(':').map_or((selector, None), |(kind, word)| (kind, Some(word)));
        let hash = match (kind, word) {
            ("password", Some(word)) => Some(hash_password(word)?),
            ("stdin" | "-", None) | ("file", Some("-")) => {
                Some(hash_password(&first_line(input).on("read", Path::new("standard input"))?)?)
            }
            ("file", Some(path)) => {
                let path = Path::new(path);
                let file = File::open(path).on("read", path)?;
                Some(hash_password(&first_line(&mut BufReader::new(file)).on("read", path)?)?)
            }
            ("random", None) => {
                let word = uuid::Uuid::new_v4().simple().to_string()[..20].to_owned();
                let hash = hash_password(&word)?;
                self.passwords.push(GeneratedPassword { user: user.clone(), password: word });
                Some(hash)
            }
            ("disabled" | "locked", None) => None,
            // The selector may be the password itself, and is not repeated.
            _ => {
                return Err(Error::usage(format!(
                    "the selector does not say what the password of {user} is to be"
                ))
                .hint(SELECTORS));
            }
        };
        Ok(Customisation::Password { user, hash })
    }
}

fn shell(command: &str) -> Blob {
    Blob::Text(format!("#!/bin/sh\n{command}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<Vec<Wish>> {
        let given = |(name, value): &(&str, &str)| RawOption {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
            place: None,
        };
        let options: Vec<RawOption> = options.iter().map(given).collect();
        let mut input: &[u8] = b"first\r\nsecond\n";
        CustomiseOptions::read(&options, &mut Payload::new()?, None, &mut input)
            .map(|all| all.wishes)
    }

    fn word_of(wish: &Wish, word: &str) -> bool {
        use sha_crypt::PasswordVerifier;
        let Customisation::Password { hash: Some(hash), .. } = &wish.what else { return false };
        sha_crypt::ShaCrypt::SHA512.verify_password(word.as_bytes(), hash.as_str()).is_ok()
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
        let labels: Vec<String> = all.expect("good").into_iter().map(|wish| wish.label).collect();
        let link = "--link /t:/l1:/l2";
        assert_eq!(
            labels,
            ["--write /a", "--touch /x", link, link, "--root-password", "--selinux-relabel"]
        );
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
            ("root-password", "file:/does/not/exist"),
            ("ssh-inject", "root:string:nonsense"),
            ("ssh-inject", "root:string:-----BEGIN OPENSSH PRIVATE KEY-----"),
            ("timezone", "../../etc/passwd"),
            ("install", "-y"),
            ("upload", "/does/not/exist:/x"),
        ] {
            let error = read(&[(name, value)]).expect_err(name);
            assert!(error.message().starts_with(&format!("--{name}")), "{}", error.message());
        }
    }

    #[test]
    fn a_password_is_hashed_before_it_goes_anywhere() {
        let all = read(&[("root-password", "password:sesame")]).expect("good");
        let Customisation::Password { hash: Some(hash), .. } = &all[0].what else {
            panic!("{all:?}")
        };
        assert!(hash.starts_with("$6$") && !hash.contains("sesame"), "{hash}");
    }

    #[test]
    fn a_password_comes_from_a_file_or_the_next_line_of_standard_input() {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        std::io::Write::write_all(&mut file, b"kept\nnot this\n").expect("written");
        let selector = format!("ann:file:{}", file.path().display());
        let all = read(&[
            ("root-password", "stdin"),
            ("password", &selector),
            ("password", "bob:file:-"),
        ]);
        let all = all.expect("good");
        assert!(
            word_of(&all[0], "first") && word_of(&all[1], "kept") && word_of(&all[2], "second"),
            "{all:?}"
        );
        assert!(
            read(&[("root-password", "stdin"), ("root-password", "-"), ("root-password", "-")])
                .is_err(),
            "at its end"
        );
        std::io::Write::write_all(&mut file.reopen().expect("file"), &[b'x'; 5000])
            .expect("written");
        assert!(read(&[("password", &selector)]).is_err(), "too long");
    }

    #[test]
    fn of_a_command_only_the_program_is_shown() {
        for (value, name) in [
            ("fetch --token sesame", "fetch"),
            ("TOKEN=sesame fetch", "a command"),
            ("", "a command"),
        ] {
            let all = read(&[("run-command", value)]).expect("good");
            assert!(
                matches!(&all[0].what, Customisation::Run { name: shown, .. } if shown == name),
                "{all:?}"
            );
        }
    }

    #[test]
    fn what_may_be_secret_is_in_no_label_and_no_error() {
        const SECRET: &str = "sesame";
        for (name, value) in [
            ("root-password", "sesame"),
            ("root-password", "password:sesame"),
            ("root-password", "sesame:more"),
            ("password", "sesame"),
            ("password", "ann:sesame"),
            ("password", ":sesame"),
            ("password", "ann:password:sesame"),
            ("write", "/etc/token:sesame"),
            ("append-line", "/etc/token:sesame"),
            ("edit", "/etc/token:s/x/sesame/"),
            ("motd", "sesame"),
            ("run-command", "TOKEN=sesame fetch"),
            ("run-command", "fetch --token sesame"),
            ("firstboot-command", "fetch sesame"),
        ] {
            let shown = match read(&[(name, value)]) {
                Ok(all) => all[0].label.clone(),
                Err(error) => format!("{} {:?}", error.full_message(), error.hints()),
            };
            assert!(!shown.contains(SECRET), "--{name} {value}: {shown}");
        }
    }
}
