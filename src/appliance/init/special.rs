//! The operations that take more than a path.

use std::path::{Path, PathBuf};

use super::Host;
use super::system::System;
use super::tree::{Tree, files_below};
use crate::error::Result;
use crate::seal::PathChange;
use crate::seal::Plan;
use crate::seal::customise::Customisation;
use crate::seal::firstboot;
use crate::seal::operations::Special;

/// Where we are, and what else is going to be done.
pub(super) struct Place<'a> {
    /// The system.
    pub system: &'a System,
    /// Everything.
    pub plan: &'a Plan,
}

/// One of them.
pub(super) fn one(
    host: &mut Host,
    tree: &mut Tree,
    special: Special,
    place: &Place<'_>,
) -> Result<()> {
    match special {
        Special::BackupFiles => backup_files(tree),
        Special::NmConnections => nm_connections(tree),
        Special::SshUserDirectories => ssh_user_directories(tree),
        Special::UserAccounts => user_accounts(tree),
        Special::LvmUuids => lvm_uuids(host, tree, place.system),
        Special::MachineId => machine_id(tree),
        Special::Hostname => hostname(tree, place.plan),
        Special::EspRandomSeed => esp_random_seed(tree),
        Special::FlagReconfiguration => tree.write(Path::new("/.unconfigured"), b"", 0o644),
        Special::FirstBoot => first_boot(host, tree, place),
        // Done where they are called for.
        Special::Customise | Special::FilesystemUuids => Ok(()),
    }
}

fn backup_files(tree: &mut Tree) -> Result<()> {
    for top in ["/etc", "/root", "/srv", "/tmp", "/var"] {
        for path in files_below(Path::new(top)) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if (name.ends_with('~') || name.ends_with(".bak"))
                && path.symlink_metadata().is_ok_and(|about| about.is_file())
            {
                tree.remove(&path)?;
            }
        }
    }
    Ok(())
}

/// A connection somebody configured is configuration; one that names a card or carries a UUID of
/// its own belongs to this machine.
fn nm_connections(tree: &mut Tree) -> Result<()> {
    for path in tree.glob("/etc/NetworkManager/system-connections/*.nmconnection")? {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let is_bound = ["mac-address=", "interface-name=", "uuid="]
            .iter()
            .any(|key| text.lines().any(|line| line.starts_with(key)));
        if is_bound {
            tree.remove(&path)?;
        }
    }
    Ok(())
}

fn ssh_user_directories(tree: &mut Tree) -> Result<()> {
    let kept = [
        "authorized_keys", "authorized_keys2", "authorized_keys.d", "config", "config.d", "rc",
        "environment",
    ];
    for path in tree.glob("~/.ssh/*")? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !kept.contains(&name.as_str()) {
            tree.remove(&path)?;
        }
    }
    Ok(())
}

/// The accounts between `UID_MIN` and `UID_MAX` of `/etc/login.defs`.
fn user_accounts(tree: &mut Tree) -> Result<()> {
    let definitions = std::fs::read_to_string("/etc/login.defs").unwrap_or_default();
    let limit = |name: &str, usual: u32| {
        let value =
            definitions.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or(usual)
    };
    let people = limit("UID_MIN", 1000)..=limit("UID_MAX", 60000);
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut names: Vec<String> = Vec::new();
    for fields in passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()) {
        let [name, _, uid, _, _, home, ..] = fields[..] else { continue };
        if uid.parse().is_ok_and(|uid: u32| people.contains(&uid)) && name != "nobody" {
            names.push(name.to_owned());
            // A home that is a directory of the system's is not the user's to lose.
            if home.starts_with("/home/") && home.len() > "/home/".len() {
                tree.remove(Path::new(home))?;
            }
            tree.remove(&PathBuf::from(format!("/var/spool/mail/{name}")))?;
        }
    }
    let is_gone = |name: &str| names.iter().any(|gone| gone == name);
    for file in
        ["/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/subuid", "/etc/subgid"]
    {
        let is_group = file.contains("group") || file.contains("gshadow");
        tree.edit_lines(Path::new(file), |line| {
            let (name, _) = line.split_once(':').unwrap_or((line, ""));
            if is_gone(name) {
                return None;
            }
            if !is_group {
                return Some(line.to_owned());
            }
            let (head, members) = line.rsplit_once(':').unwrap_or((line, ""));
            let members: Vec<&str> = members.split(',').filter(|member| !is_gone(member)).collect();
            Some(format!("{head}:{}", members.join(",")))
        })?;
    }
    Ok(())
}

fn lvm_uuids(host: &mut Host, tree: &mut Tree, system: &System) -> Result<()> {
    if system.boots_from_lvm {
        return host.warn(
            "lvm-uuids: /boot is on LVM, and GRUB knows the volume group by its UUID: it keeps it",
        );
    }
    // Done when the tree is not mounted any more; here it is only said.
    for group in &system.volume_groups {
        tree.touch(&PathBuf::from(format!("/dev/{group}")), PathChange::Changed);
    }
    Ok(())
}

/// Empty, the file is filled at the next boot without making that a *first* boot, which might ask
/// questions on the console (`machine-id(5)`); `uninitialized` is what an image says that wants
/// one, and stays.
fn machine_id(tree: &mut Tree) -> Result<()> {
    let id = Path::new("/etc/machine-id");
    let dbus = Path::new("/var/lib/dbus/machine-id");
    // Some have the one as a link to the other.
    let is_one = id.canonicalize().is_ok_and(|id| dbus.canonicalize().is_ok_and(|dbus| id == dbus));
    if std::fs::read_to_string(id).is_ok_and(|text| text.trim() != "uninitialized") {
        tree.empty(id)?;
    }
    if !is_one && dbus.symlink_metadata().is_ok_and(|about| about.is_file()) {
        match id.exists() {
            true => tree.link("/etc/machine-id", dbus)?,
            false => tree.remove_now(dbus)?,
        }
    }
    Ok(())
}

fn hostname(tree: &mut Tree, plan: &Plan) -> Result<()> {
    if plan.wishes.iter().any(|wish| matches!(wish.what, Customisation::Hostname { .. })) {
        return Ok(());
    }
    let path = Path::new("/etc/hostname");
    let old = std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    tree.empty(path)?;
    if old.is_empty() || old == "localhost" {
        return Ok(());
    }
    let short = old.split('.').next().unwrap_or(&old).to_owned();
    let is_own = |line: &str| {
        line.split_whitespace().next() == Some("127.0.1.1")
            && line.split_whitespace().any(|word| word == old || word == short)
    };
    tree.edit_lines(Path::new("/etc/hosts"), |line| (!is_own(line)).then(|| line.to_owned()))
}

/// `loader/random-seed` and the token of `systemd-boot(7)`.
fn esp_random_seed(tree: &mut Tree) -> Result<()> {
    for place in ["/boot/efi", "/efi", "/boot"] {
        tree.remove(&Path::new(place).join("loader/random-seed"))?;
    }
    Ok(())
}

fn first_boot(host: &mut Host, tree: &mut Tree, place: &Place<'_>) -> Result<()> {
    let systemd = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"]
        .iter()
        .any(|path| Path::new(path).exists());
    let scripts =
        place.plan.wishes.iter().any(|wish| matches!(wish.what, Customisation::Firstboot { .. }));
    if !systemd {
        if scripts || Path::new("/etc/ssh/sshd_config").exists() {
            host.warn(format!(
                "{} has no systemd: host keys, a name and first-boot scripts are up to its own \
                 start-up ({} does it)",
                place.system.name,
                firstboot::SCRIPT_PATH
            ))?;
        } else {
            return Ok(());
        }
    }
    tree.write(Path::new(firstboot::SCRIPT_PATH), firstboot::SCRIPT.as_bytes(), 0o755)?;
    let needed = |unit: &&firstboot::Unit| {
        Path::new(unit.needs).exists() || (scripts && unit.needs == firstboot::SCRIPTS)
    };
    for unit in firstboot::UNITS.iter().filter(|unit| systemd && needed(unit)) {
        if let Some(flag) = unit.flag {
            tree.write(Path::new(flag), b"", 0o644)?;
        }
        tree.write(Path::new(unit.path), unit.text.as_bytes(), 0o644)?;
        tree.link(unit.path, Path::new(unit.wanted))?;
    }
    Ok(())
}
