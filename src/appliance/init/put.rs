//! Carries out the customise options.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Host;
use super::devices;
use super::program::in_tree;
use super::tree::Tree;
use crate::error::{Error, IoContext, Result};
use crate::seal::PathChange;
use crate::seal::customise::{Blob, Customisation as C, Wish};
use crate::seal::firstboot;

/// One of them.
pub(super) fn one(host: &mut Host, tree: &mut Tree, wish: &Wish) -> Result<()> {
    tree.begin(&wish.label);
    apply(host, tree, &wish.what).map_err(|error| {
        let named = Error::new(error.kind(), format!("{}: {}", wish.label, error.full_message()));
        error.hints().iter().cloned().fold(named, Error::hint)
    })
}

fn apply(host: &mut Host, tree: &mut Tree, customisation: &C) -> Result<()> {
    match customisation {
        C::AppendLine { path, line } => {
            let path = there(tree, path)?;
            if !path.exists() {
                tree.touch(&path, PathChange::Changed);
                return Ok(());
            }
            let mut text = std::fs::read(&path).on("read", &path)?;
            if !text.is_empty() && !text.ends_with(b"\n") {
                text.push(b'\n');
            }
            text.extend_from_slice(format!("{line}\n").as_bytes());
            tree.rewrite(&path, &text)
        }
        C::Chmod { path, mode } => changed(tree, &there(tree, path)?, |path| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode))
                .on("set the mode of", path)
        }),
        C::Chown { path, user, group } => {
            let (user, group) = (number("/etc/passwd", user)?, number("/etc/group", group)?);
            changed(tree, &there(tree, path)?, |path| {
                std::os::unix::fs::lchown(path, Some(user), Some(group))
                    .on("set the owner of", path)
            })
        }
        C::Delete { glob } => tree.glob(glob)?.iter().try_for_each(|path| tree.remove_now(path)),
        C::Edit { path, expression } => edit(host, tree, &there(tree, path)?, expression),
        C::Firstboot { name, script } => {
            let content = content(script)?;
            // What an earlier sealing has put there stays.
            let numbered = |n: u32| {
                Path::new(firstboot::SCRIPTS).join(if n == 1 {
                    name.clone()
                } else {
                    format!("{name}-{n}")
                })
            };
            let is_other = |path: &PathBuf| !std::fs::read(path).is_ok_and(|old| old != content);
            let path = (1..).map(numbered).find(is_other).unwrap_or_else(|| numbered(1));
            tree.write(&path, &content, 0o755)
        }
        C::Hostname { name } => hostname(tree, name),
        C::Install { packages } => packages_of(host, tree, Verb::Install, packages),
        C::Uninstall { packages } => packages_of(host, tree, Verb::Uninstall, packages),
        C::Update => packages_of(host, tree, Verb::Update, &[]),
        C::Link { target, link } => tree.link(target, Path::new(link)),
        C::Symlink { path, target } => tree.link(target, Path::new(path)),
        C::Mkdir { path } => mkdir(tree, Path::new(path)),
        C::Motd { text } => {
            tree.write(Path::new("/etc/motd"), format!("{}\n", text.trim_end()).as_bytes(), 0o644)
        }
        C::Move { from, to } => {
            let from = there(tree, from)?;
            let to = into(
                Path::new(to),
                from.file_name().unwrap_or_default().to_string_lossy().as_ref(),
            );
            tree.touch(&from, PathChange::Removed);
            tree.touch(&to, PathChange::Created);
            if tree.dry_run { Ok(()) } else { std::fs::rename(&from, &to).on("move", &from) }
        }
        C::Password { user, hash } => password(tree, user, hash.as_deref()),
        C::Run { name, script } => run(host, tree, name, script),
        C::SelinuxRelabel => tree.write(Path::new("/.autorelabel"), b"", 0o644),
        C::SshInject { user, key } => ssh_inject(tree, user, key),
        C::Timezone { zone } => {
            let file = PathBuf::from(format!("/usr/share/zoneinfo/{zone}"));
            if !file.exists() {
                return Err(Error::not_found(format!("the guest knows no time zone {zone}"))
                    .hint("does it have tzdata?"));
            }
            let debian = Path::new("/etc/timezone");
            tree.link(&format!("../usr/share/zoneinfo/{zone}"), Path::new("/etc/localtime"))?;
            tree.rewrite(debian, format!("{zone}\n").as_bytes())
        }
        C::Touch { path } => {
            let path = Path::new(path);
            match path.exists() {
                false => tree.write(path, b"", 0o644),
                true => changed(tree, path, |path| {
                    let now = std::fs::FileTimes::new().set_modified(std::time::SystemTime::now());
                    File::options()
                        .write(true)
                        .open(path)
                        .and_then(|file| file.set_times(now))
                        .on("touch", path)
                }),
            }
        }
        C::Truncate { path } => tree.empty(&there(tree, path)?),
        C::Upload { path, name, mode, content: blob } => {
            upload(tree, &into(Path::new(path), name), *mode, blob)
        }
    }
}

/// A path that has to be there; in a dry run, one that would be by then.
fn there(tree: &Tree, path: &str) -> Result<PathBuf> {
    let path = PathBuf::from(path);
    match path.symlink_metadata() {
        Ok(_) => Ok(path),
        Err(_) if tree.would_be_there(&path) => Ok(path),
        Err(_) => Err(Error::not_found(format!("the guest has no {}", path.display()))),
    }
}

/// A file of that name in the directory, if it is one; else the path itself.
fn into(path: &Path, name: &str) -> PathBuf {
    let is_directory = path.is_dir() || path.to_string_lossy().ends_with('/');
    if is_directory && !name.is_empty() { path.join(name) } else { path.to_owned() }
}

fn changed(tree: &mut Tree, path: &Path, change: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    tree.touch(path, PathChange::Changed);
    if tree.dry_run { Ok(()) } else { change(path) }
}

/// The number of a user or group: as written, or as the guest knows it.
fn number(file: &str, name: &str) -> Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    found.ok_or_else(|| Error::not_found(format!("the guest's {file} has no {name}")))
}

fn edit(host: &mut Host, tree: &mut Tree, path: &Path, expression: &str) -> Result<()> {
    tree.touch(path, PathChange::Changed);
    if tree.dry_run {
        return Ok(());
    }
    let path = path.to_string_lossy();
    match ["/usr/bin/perl", "/bin/perl"].into_iter().find(|perl| Path::new(perl).exists()) {
        Some(perl) => in_tree(host, "perl", perl, &["-i", "-p", "-e", expression, "--", &path]),
        None => in_tree(host, "sed", "sed", &["-i", "-E", "-e", expression, "--", &path]),
    }
}

fn hostname(tree: &mut Tree, name: &str) -> Result<()> {
    let path = Path::new("/etc/hostname");
    let old = std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    tree.write(path, format!("{name}\n").as_bytes(), 0o644)?;
    let own = |line: &str| line.split_whitespace().next() == Some("127.0.1.1");
    let names = match name.split_once('.') {
        Some((short, _)) => format!("{name} {short}"),
        None => name.to_owned(),
    };
    tree.edit_lines(Path::new("/etc/hosts"), |line| {
        let is_old =
            own(line) && (old.is_empty() || line.split_whitespace().any(|word| word == old));
        Some(if is_old { format!("127.0.1.1 {names}") } else { line.to_owned() })
    })?;
    // Red Hat 6 and older.
    tree.edit_lines(Path::new("/etc/sysconfig/network"), |line| {
        Some(if line.starts_with("HOSTNAME=") {
            format!("HOSTNAME={name}")
        } else {
            line.to_owned()
        })
    })
}

fn mkdir(tree: &mut Tree, path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    tree.touch(path, PathChange::Created);
    if tree.dry_run {
        return Ok(());
    }
    std::fs::create_dir_all(path).on("create", path)?;
    tree.label(path);
    Ok(())
}

fn password(tree: &mut Tree, user: &str, hash: Option<&str>) -> Result<()> {
    let path = Path::new("/etc/shadow");
    let text = std::fs::read_to_string(path).on("read the guest's", path)?;
    if !text.lines().any(|line| line.split(':').next() == Some(user)) {
        return Err(Error::not_found(format!("the guest has no user {user}")));
    }
    let days = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs() / 86400);
    tree.edit_lines(path, |line| {
        let mut fields: Vec<String> = line.split(':').map(str::to_owned).collect();
        if fields[0] == user && fields.len() > 2 {
            fields[1] = hash.unwrap_or("!*").to_owned();
            fields[2] = days.to_string();
        }
        Some(fields.join(":"))
    })
}

fn run(host: &mut Host, tree: &mut Tree, name: &str, script: &Blob) -> Result<()> {
    tree.touch(Path::new(name), PathChange::Ran);
    if tree.dry_run {
        return Ok(());
    }
    let path = Path::new("/run/cowhand-script");
    std::fs::write(path, content(script)?).on("write", path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .on("set the mode of", path)?;
    in_tree(host, name, "/run/cowhand-script", &[])
}

/// As `ssh-copy-id` does it: `authorized_keys` of the user, which only the user may write.
fn ssh_inject(tree: &mut Tree, user: &str, key: &str) -> Result<()> {
    let passwd =
        std::fs::read_to_string("/etc/passwd").on("read the guest's", Path::new("/etc/passwd"))?;
    let fields = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields[0] == user);
    let Some([_, _, uid, gid, _, home, ..]) = fields.as_deref() else {
        return Err(Error::not_found(format!("the guest has no user {user}")));
    };
    let (uid, gid) = (uid.parse().unwrap_or(0), gid.parse().unwrap_or(0));
    let directory = Path::new(home).join(".ssh");
    let path = directory.join("authorized_keys");
    if let Some(link) = [&directory, &path].into_iter().find(|path| path.is_symlink()) {
        return Err(Error::refused(format!(
            "the guest's {} is a link, which is not followed",
            link.display()
        )));
    }
    let mut text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.on("read the guest's", &path)?,
    };
    if text.split(|byte| *byte == b'\n').any(|line| line.trim_ascii() == key.as_bytes()) {
        return Ok(());
    }
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text.extend_from_slice(format!("{key}\n").as_bytes());
    let is_new = !directory.exists();
    tree.write(&path, &text, 0o600)?;
    if tree.dry_run {
        return Ok(());
    }
    if is_new {
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o700))
            .on("set the mode of", &directory)?;
    }
    for path in [&directory, &path] {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).on("set the owner of", path)?;
    }
    Ok(())
}

fn upload(tree: &mut Tree, path: &Path, mode: u32, blob: &Blob) -> Result<()> {
    if let Blob::Text(text) = blob {
        // A file that is there keeps its mode, as with `>` in a shell.
        let mode = path.metadata().map_or(mode, |about| about.mode() & 0o7777);
        return tree.write(path, text.as_bytes(), mode);
    }
    tree.write(path, b"", mode)?;
    if tree.dry_run {
        return Ok(());
    }
    let mut file = File::options().write(true).truncate(true).open(path).on("write", path)?;
    let mut from = reader(blob)?;
    std::io::copy(&mut from, &mut file).on("write", path)?;
    file.flush().on("write", path)
}

fn content(blob: &Blob) -> Result<Vec<u8>> {
    match blob {
        Blob::Text(text) => Ok(text.clone().into_bytes()),
        Blob::Payload(..) => {
            let mut bytes = Vec::new();
            reader(blob)?.read_to_end(&mut bytes).on("read", Path::new("the payload"))?;
            Ok(bytes)
        }
    }
}

/// The payload lies on a disk, whose device is outside the guest's tree: it was opened before that
/// became our root.
fn reader(blob: &Blob) -> Result<Box<dyn Read>> {
    match blob {
        Blob::Text(text) => Ok(Box::new(std::io::Cursor::new(text.clone().into_bytes()))),
        Blob::Payload(_, 0) => Ok(Box::new(std::io::empty())),
        Blob::Payload(at, length) => {
            let mut file = devices::payload()?;
            file.seek(SeekFrom::Start(*at)).on("read", Path::new("the payload"))?;
            Ok(Box::new(file.take(*length)))
        }
    }
}

#[derive(Clone, Copy)]
enum Verb {
    Install,
    Uninstall,
    Update,
}

/// With the package manager the guest has.
fn packages_of(host: &mut Host, tree: &mut Tree, verb: Verb, packages: &[String]) -> Result<()> {
    let managers: [(&str, [&str; 3]); 6] = [
        (
            "/usr/bin/apt-get",
            [
                "apt-get -q update && apt-get -q -y install",
                "apt-get -q -y remove",
                "apt-get -q update && apt-get -q -y dist-upgrade",
            ],
        ),
        ("/usr/bin/dnf", ["dnf -y install", "dnf -y remove", "dnf -y upgrade"]),
        ("/usr/bin/yum", ["yum -y install", "yum -y remove", "yum -y update"]),
        ("/usr/bin/zypper", ["zypper -n install", "zypper -n remove", "zypper -n update"]),
        ("/sbin/apk", ["apk add -U", "apk del", "apk upgrade -U"]),
        (
            "/usr/bin/pacman",
            ["pacman -Sy --noconfirm", "pacman -R --noconfirm", "pacman -Syu --noconfirm"],
        ),
    ];
    let Some((_, commands)) = managers.into_iter().find(|(path, _)| Path::new(path).exists())
    else {
        return Err(Error::refused("the guest has no package manager that is known here"));
    };
    let command = commands[match verb {
        Verb::Install => 0,
        Verb::Uninstall => 1,
        Verb::Update => 2,
    }];
    tree.touch(Path::new(command), PathChange::Ran);
    if tree.dry_run {
        return Ok(());
    }
    // The names are arguments, never a part of the command.
    let script = format!("{command} \"$@\"");
    let mut args = vec!["-c", script.as_str(), "sh"];
    args.extend(packages.iter().map(String::as_str));
    in_tree(host, command, "/bin/sh", &args)
}
