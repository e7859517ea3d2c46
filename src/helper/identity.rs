//! Becoming somebody else: guests that go on from the same memory agree in everything, down to the
//! next random number, until each has been through here. What programs have already read into their
//! own memory (the boot id, a generator of their own) cannot be helped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::DIRECTORY;
use super::frame::{Became, Identity};
use crate::sys::inside;

/// SSH servers under the names distributions have for them, sockets first.
const SSH: [&str; 4] = ["ssh.socket", "sshd.socket", "ssh.service", "sshd.service"];

fn ssh_services() -> PathBuf {
    Path::new(DIRECTORY).join("ssh-services")
}

fn host_key_types() -> PathBuf {
    Path::new(DIRECTORY).join("host-keys")
}

/// Takes down what no two guests may share and a running program holds: the SSH server and its host
/// keys. Everything is written to the disk.
pub(super) fn prepare() -> Vec<String> {
    let mut problems = Vec::new();
    let keys = host_keys();
    if !keys.is_empty() && !has("ssh-keygen") {
        problems.push("there is no ssh-keygen, so clones will share SSH host keys".to_owned());
    } else if !keys.is_empty() {
        let active: Vec<&str> = SSH
            .into_iter()
            .filter(|unit| quietly("systemctl", &["is-active", "--quiet", unit]))
            .collect();
        if !active.is_empty() && !quietly("systemctl", &[&["stop"], &active[..]].concat()) {
            problems.push(
                "its SSH server could not be stopped, and knows the old host keys".to_owned(),
            );
        }
        let kinds: Vec<&str> = keys.iter().map(|(kind, _)| kind.as_str()).collect();
        let noted = fs::write(ssh_services(), active.join("\n"))
            .and_then(|()| fs::write(host_key_types(), kinds.join("\n")));
        if let Err(error) = noted {
            problems.push(format!("SSH host keys: {error}"));
        }
        for (_, path) in keys {
            let _ = fs::remove_file(path.with_extension("pub"));
            if let Err(error) = fs::remove_file(&path) {
                problems.push(format!("{}: {error}", path.display()));
            }
        }
    }
    rustix::fs::sync();
    problems
}

/// Private host keys, and their types.
fn host_keys() -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir("/etc/ssh").into_iter().flatten().flatten();
    let key = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = name.strip_prefix("ssh_host_")?.strip_suffix("_key")?.to_owned();
        Some((kind, entry.path()))
    };
    let mut keys: Vec<_> = entries.filter_map(key).collect();
    keys.sort();
    keys
}

/// Makes this guest who it is to be.
pub(super) fn become_(identity: &Identity) -> Became {
    let mut became = Became::default();
    let mut problem = |what: &str, result: Result<(), String>| {
        if let Err(why) = result {
            became.problems.push(format!("{what}: {why}"));
        }
    };
    // Everything made below is to come from it.
    let reseeded = reseed(&identity.entropy);
    let is_reseeded = reseeded.is_ok();
    problem("random generator", reseeded);
    problem("clock", inside::set_clock(identity.now_ns).map_err(|error| error.to_string()));
    problem("hostname", rename(&identity.hostname));
    problem("machine-id", renumber(&identity.machine_id));
    for (from, to) in &identity.cards {
        problem("network card", change_card(from, to));
    }
    problem("SSH host keys", make_host_keys());
    became.reseeded = is_reseeded;
    became
}

fn reseed(entropy: &str) -> Result<(), String> {
    let digits = entropy.as_bytes().chunks_exact(2);
    let bytes: Option<Vec<u8>> =
        digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok()).collect();
    let bytes = bytes.filter(|bytes| bytes.len() >= 32).ok_or("too little was sent")?;
    inside::add_entropy(&bytes).map_err(|error| error.to_string())
}

fn rename(name: &str) -> Result<(), String> {
    let old = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    write("/proc/sys/kernel/hostname", name)?;
    if Path::new("/etc/hostname").exists() {
        write("/etc/hostname", &format!("{name}\n"))?;
    }
    let Ok(hosts) = fs::read_to_string("/etc/hosts") else { return Ok(()) };
    let renamed = in_hosts(&hosts, &old, name);
    if renamed == hosts { Ok(()) } else { write("/etc/hosts", &renamed) }
}

/// `hosts(5)` with another name for this machine.
fn in_hosts(hosts: &str, old: &str, new: &str) -> String {
    let mut renamed = false;
    let mut lines: Vec<String> = Vec::new();
    for line in hosts.lines() {
        let ours = line.starts_with("127.") || line.starts_with("::1");
        if ours && line.split_whitespace().skip(1).any(|word| word == old) && old != "localhost" {
            renamed = true;
            let words: Vec<&str> =
                line.split_whitespace().map(|word| if word == old { new } else { word }).collect();
            lines.push(words.join(" "));
        } else {
            lines.push(line.to_owned());
        }
    }
    if !renamed && !hosts.split_whitespace().any(|word| word == new) {
        lines.push(format!("127.0.1.1 {new}"));
    }
    lines.join("\n") + "\n"
}

fn renumber(id: &str) -> Result<(), String> {
    for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
        // Not every guest has one; the second is a link to the first nearly everywhere.
        if Path::new(path).symlink_metadata().is_ok_and(|about| about.is_file()) {
            write(path, &format!("{id}\n"))?;
        }
    }
    Ok(())
}

fn change_card(from: &str, to: &str) -> Result<(), String> {
    let parts: Option<Vec<u8>> =
        to.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let address: [u8; 6] = parts
        .and_then(|parts| parts.try_into().ok())
        .ok_or_else(|| format!("{to} is no address"))?;
    let cards = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let has = |card: &fs::DirEntry| {
        fs::read_to_string(card.path().join("address"))
            .is_ok_and(|address| address.trim().eq_ignore_ascii_case(from))
    };
    // A guest without a driver for it has no card.
    let Some(card) = cards.into_iter().find(has) else { return Ok(()) };
    let name = card.file_name().to_string_lossy().into_owned();
    inside::set_card_address(&name, address).map_err(|error| format!("{name}: {error}"))
}

/// What takes long and nobody waits for begins so late, in seconds, that a guest made for one short
/// command is gone before: first the server, then RSA.
const LATER: [&str; 2] = ["1", "10"];

/// Host keys of the types that were there, then the server, which goes without RSA for the first
/// seconds.
fn make_host_keys() -> Result<(), String> {
    let Ok(types) = fs::read_to_string(host_key_types()) else { return Ok(()) };
    let _ = fs::remove_file(host_key_types());
    let services = fs::read_to_string(ssh_services()).unwrap_or_default();
    let services: Vec<&str> = services.lines().collect();
    let make = |kind: &str| {
        let path = format!("/etc/ssh/ssh_host_{kind}_key");
        quietly("ssh-keygen", &["-q", "-t", kind, "-N", "", "-C", "", "-f", &path])
    };
    let (slow, quick): (Vec<&str>, Vec<&str>) = types.lines().partition(|kind| *kind == "rsa");
    // Newer servers know fewer types: one that cannot be made is no reason to leave out the others.
    let failed = quick.iter().copied().filter(|kind| !make(kind)).collect::<Vec<_>>();
    let script = in_background(failed.len() < quick.len(), &slow, &services);
    if !script.is_empty() {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        inside::prepare(&mut command, false, None);
        if let Ok(mut child) = command.spawn() {
            std::thread::spawn(move || child.wait());
        }
    }
    if failed.is_empty() {
        Ok(())
    } else {
        Err(format!("ssh-keygen cannot make {}", failed.join(", ")))
    }
}

/// The shell's part. Without a quick key there is nothing the server could start with.
fn in_background(has_keys: bool, slow: &[&str], services: &[&str]) -> String {
    let [soon, late] = LATER;
    let services = services.join(" ");
    let mut script = String::new();
    if has_keys && !services.is_empty() {
        script += &format!("sleep {soon}; systemctl start {services}; ");
    }
    if let (true, [_, ..]) = (has_keys, slow) {
        script += &format!("sleep {late}; ");
    }
    for kind in slow {
        script +=
            &format!("nice ssh-keygen -q -t {kind} -N '' -C '' -f /etc/ssh/ssh_host_{kind}_key; ");
    }
    if !slow.is_empty() && !services.is_empty() {
        // A socket has nothing to learn: its service starts with each connection, or is told.
        let verb = if has_keys {
            "try-reload-or-restart ssh.service sshd.service".to_owned()
        } else {
            format!("start {services}")
        };
        script += &format!("systemctl {verb}");
    }
    script
}

fn has(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .any(|directory| Path::new(directory).join(program).exists())
}

fn quietly(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    inside::prepare(&mut command, false, None);
    command.status().is_ok_and(|status| status.success())
}

fn write(path: &str, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::{in_background, in_hosts};

    #[test]
    fn the_ssh_server_starts_with_the_quick_keys_and_learns_the_slow_one() {
        let keygen = "nice ssh-keygen -q -t rsa -N '' -C '' -f /etc/ssh/ssh_host_rsa_key; ";
        assert_eq!(
            in_background(true, &["rsa"], &["ssh.service"]),
            format!(
                "sleep 1; systemctl start ssh.service; sleep 10; {keygen}systemctl \
                 try-reload-or-restart ssh.service sshd.service"
            )
        );
        assert_eq!(
            in_background(false, &["rsa"], &["ssh.service"]),
            format!("{keygen}systemctl start ssh.service")
        );
        assert_eq!(in_background(true, &["rsa"], &[]), format!("sleep 10; {keygen}"));
        assert_eq!(
            in_background(true, &[], &["ssh.service"]),
            "sleep 1; systemctl start ssh.service; "
        );
        assert_eq!(in_background(true, &[], &[]), "");
    }

    #[test]
    fn the_name_in_hosts_is_replaced_as_a_word_and_added_once() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1\tdeb12.example deb12\n10.0.0.1 deb12\n";
        let renamed = in_hosts(hosts, "deb12", "run-1");
        assert_eq!(renamed, "127.0.0.1 localhost\n127.0.1.1 deb12.example run-1\n10.0.0.1 deb12\n");
        assert_eq!(
            in_hosts("127.0.0.1 localhost\n", "localhost", "a"),
            "127.0.0.1 localhost\n127.0.1.1 a\n"
        );
        assert_eq!(in_hosts("127.0.1.1 a\n", "other", "a"), "127.0.1.1 a\n");
    }
}
