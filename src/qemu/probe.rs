//! What a QEMU binary can do, asked once (`query-version`, `query-machines` of a machine that is
//! never started) and kept until the binary changes. Nothing is guessed from a version number.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::store::{atomic, plain};
use crate::sys::command;

/// What was found out about one binary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Probe {
    /// The binary.
    pub path: PathBuf,
    /// Its length and modification time: another file asks for another probe.
    stamp: (u64, i64, i64),
    /// `7.2.22`.
    pub version: String,
    /// It can map a file copy-on-write that it may only read (`memory-backend-file` has `rom`,
    /// since 8.2).
    pub readonly_memory: bool,
    /// The machine types it knows, with what an alias stands for.
    machines: BTreeMap<String, String>,
}

impl Probe {
    /// Looks into the binary named in the settings, or into the cache.
    pub(crate) fn get(context: &Context) -> Result<Self> {
        let path = find(context)?;
        let about = path.metadata().on("read", &path)?;
        let stamp = (about.len(), about.mtime(), about.mtime_nsec());
        let cache = context.store.layout.probe_cache();
        let mut cached: Vec<Self> = plain::read_if_possible(&cache)
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        if let Some(probe) = cached.iter().find(|probe| probe.path == path && probe.stamp == stamp)
        {
            return Ok(probe.clone());
        }
        let probe = ask(path, stamp)?;
        cached.retain(|other| other.path != probe.path && other.path.exists());
        cached.push(probe.clone());
        write(&cache, &cached);
        Ok(probe)
    }

    /// Puts it into the cache of a store that was not there yet when QEMU was asked.
    pub(crate) fn keep(&self, context: &Context) {
        let cache = context.store.layout.probe_cache();
        if !plain::is_there(&cache) {
            write(&cache, std::slice::from_ref(self));
        }
    }

    /// The versioned machine type behind `name` (`q35` → `pc-q35-7.2`).
    pub(crate) fn machine(&self, name: &str) -> Result<String> {
        self.machines.get(name).cloned().ok_or_else(|| {
            Error::refused(format!(
                "{} (QEMU {}) has no machine type {name}",
                self.path.display(),
                self.version
            ))
            .hint(format!("see what it has: {} -machine help", self.path.display()))
        })
    }
}

/// Only a cache: a store that cannot be written costs the next command a probe.
fn write(cache: &Path, probes: &[Probe]) {
    if let Ok(text) = serde_json::to_vec(probes) {
        let _ = atomic::write_unflushed(cache, &text);
    }
}

/// The system emulator of the settings, with its full path.
fn find(context: &Context) -> Result<PathBuf> {
    let wanted = &context.settings.qemu;
    let path = command::find(wanted, &context.settings.search_path).ok_or_else(|| {
        let place = if wanted.components().count() > 1 {
            "is not there, or not executable"
        } else {
            "is not in PATH"
        };
        Error::failed(format!("QEMU is not installed: {} {place}", wanted.display())).hint(
            "install it (apt-get install qemu-system-x86), or name it: \
             COWHAND_QEMU=/path/to/qemu-system-x86_64",
        )
    })?;
    std::path::absolute(&path).on("find", &path)
}

#[derive(Deserialize)]
struct Machine {
    name: String,
    #[serde(default)]
    alias: Option<String>,
}

fn ask(path: PathBuf, stamp: (u64, i64, i64)) -> Result<Probe> {
    let args =
        ["-nodefaults", "-no-user-config", "-machine", "none", "-display", "none", "-qmp", "stdio"];
    let line = |name: &str, arguments: Value| {
        json!({"execute": name, "arguments": arguments}).to_string() + "\n"
    };
    let script = [
        line("qmp_capabilities", json!({})),
        line("query-machines", json!({})),
        line("qom-list-properties", json!({"typename": "memory-backend-file"})),
        line("quit", json!({})),
    ]
    .concat();
    let output = command::conversation(&path, args, script.as_bytes())?;
    parse(path.clone(), stamp, &output).ok_or_else(|| {
        Error::qemu(format!("{} does not answer as QEMU does", path.display()))
            .because(command::tail(&output))
    })
}

/// Reads the greeting and the answer to `query-machines` from what QEMU printed. Pure.
fn parse(path: PathBuf, stamp: (u64, i64, i64), output: &[u8]) -> Option<Probe> {
    let lines: Vec<Value> = output
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    let version = lines.iter().find_map(|line| line.pointer("/QMP/version/qemu"))?;
    let number = |part| version.get(part).and_then(Value::as_u64);
    let version = format!("{}.{}.{}", number("major")?, number("minor")?, number("micro")?);
    let mut lists =
        lines.iter().filter_map(|line| line.get("return").filter(|value| value.is_array()));
    let list = lists.next()?;
    let properties = lists.next().and_then(Value::as_array);
    let readonly_memory =
        properties.is_some_and(|all| all.iter().any(|property| property["name"] == "rom"));
    let machines: Vec<Machine> = serde_json::from_value(list.clone()).ok()?;
    let machines = machines
        .into_iter()
        .flat_map(|machine| {
            let name = machine.name.clone();
            std::iter::once((name.clone(), name.clone()))
                .chain(machine.alias.map(|alias| (alias, name)))
        })
        .collect();
    Some(Probe { path, stamp, version, readonly_memory, machines })
}

/// The offline engine that belongs to a system emulator: the storage daemon beside it, or in the
/// search path.
pub(crate) fn storage_daemon(emulator: &Path, context: &Context) -> Option<PathBuf> {
    let name = Path::new("qemu-storage-daemon");
    let beside = emulator.parent().map(|directory| directory.join(name));
    beside
        .and_then(|path| command::find(&path, &context.settings.search_path))
        .or_else(|| command::find(name, &context.settings.search_path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_resolved_and_unknown_fields_are_survived() {
        let output = concat!(
            r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "#,
            r#""package": ""}, "capabilities": []}}
{"return": {}}
{"return": [{"name": "pc-q35-7.2", "alias": "q35", "acpi": true}, {"name": "none", "brand-new": 1}]}
{"return": [{"name": "mem-path", "type": "string"}, {"name": "rom", "type": "OnOffAuto"}]}
{"return": {}}"#
        );
        let probe = parse("/q".into(), (0, 0, 0), output.as_bytes()).expect("a probe");
        assert_eq!(probe.version, "7.2.22");
        assert!(probe.readonly_memory);
        assert_eq!(probe.machine("q35").expect("a machine"), "pc-q35-7.2");
        assert!(probe.machine("pc-q35-99").is_err());
        assert_eq!(parse("/q".into(), (0, 0, 0), b"hello"), None);
    }
}
