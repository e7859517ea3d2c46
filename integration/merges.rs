//! Merges whose data does not reach the disk: the layers stay as they were, the message says why,
//! and with the disk well again they are merged.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::exhaustion::Filler;
use crate::lab::{Done, Lab};
use crate::tier;

/// A merge of every kind, done by `snapshot rm`: which snapshot goes, and how many MiB lie in the
/// layer of the first, of the second, and in the active one.
struct Kind {
    name: &'static str,
    removed: &'static str,
    written: [u64; 3],
    /// The place in the chain, from below, of the layer that is written.
    into: usize,
}

const KINDS: [Kind; 4] = [
    Kind { name: "commit-below", removed: "first", written: [20, 4, 4], into: 0 },
    Kind { name: "stream-below", removed: "first", written: [4, 20, 4], into: 1 },
    Kind { name: "commit-active", removed: "second", written: [4, 20, 4], into: 1 },
    Kind { name: "stream-active", removed: "second", written: [4, 4, 20], into: 2 },
];

impl Kind {
    /// A VM with two snapshots.
    fn make(&self, lab: &Lab) {
        lab.ok(&["create", self.name, "--size", "80M", "--memory", "64M", "--net", "none"]);
        for (at, snapshot) in [Some("first"), Some("second"), None].into_iter().enumerate() {
            let head =
                lab.store().join("layers").join(format!("{}.qcow2", lab.chain(self.name)[0]));
            let command = format!("write -P {} {}M {}M", at + 1, at * 24, self.written[at]);
            let done = Command::new("qemu-io")
                .args(["-f", "qcow2", "-c", &command])
                .arg(head)
                .output()
                .unwrap();
            assert!(done.status.success(), "{done:?}");
            if let Some(snapshot) = snapshot {
                lab.ok(&["snapshot", "create", self.name, snapshot]);
            }
        }
    }

    /// The id of the layer that is written.
    fn target(&self, lab: &Lab) -> String {
        let chain = lab.chain(self.name);
        chain[chain.len() - 1 - self.into].clone()
    }

    /// What the active layer, and the snapshot that stays, read as.
    fn bytes(&self, lab: &Lab) -> [Vec<u8>; 2] {
        let stays = if self.removed == "first" { "second" } else { "first" };
        [self.name.to_owned(), format!("{}@{stays}", self.name)].map(|point| {
            let raw = lab.path().join("point.raw");
            lab.ok(&["image", "export", &point, raw.to_str().unwrap(), "--force"]);
            std::fs::read(raw).unwrap()
        })
    }

    fn remove(&self, lab: &Lab) -> Command {
        lab.command(&["snapshot", "rm", &format!("{}@{}", self.name, self.removed)])
    }
}

/// QEMU and its storage daemon, in a directory of their own. They open the file of one layer
/// through `blkdebug`, which lets every flush of it fail.
fn unable_to_flush(directory: &Path, layer: &str) -> PathBuf {
    std::fs::create_dir_all(directory).unwrap();
    let rewrite = format!(
        r#"#!/bin/bash
        options='^(.*)(\{{[^{{}}]*"driver":"file"[^{{}}]*\}})(.*)$'
        # The options of the node, wherever they are in a text, put below blkdebug.
        rewrite() {{
            text=$1
            [[ $text == *'"node-name":"f-{layer}"'* && $text =~ $options ]] || return
            file=${{BASH_REMATCH[2]}}
            file=${{file/'"node-name":"f-{layer}",'/}}
            file=${{file/',"node-name":"f-{layer}"'/}}
            text='{{"driver":"blkdebug","node-name":"f-{layer}",'
            text+='"inject-error":[{{"event":"none","iotype":"flush","errno":5}}],"image":'
            text=${{BASH_REMATCH[1]}}$text$file}}${{BASH_REMATCH[3]}}
        }}
        "#
    );
    let qemu =
        std::env::var("COWHAND_QEMU").unwrap_or_else(|_| "/usr/bin/qemu-system-x86_64".to_owned());
    let system = format!(
        r#"args=()
        for arg; do rewrite "$arg"; args+=("$text"); done
        exec '{qemu}' "${{args[@]}}""#
    );
    // The daemon behind a relay; it ends with the relay.
    let daemon = r#"fd=${2##*fd=}
        coproc daemon {
            eval "exec $fd>&-"
            exec setpriv --pdeathsig KILL /usr/bin/qemu-storage-daemon \
                --chardev stdio,id=qmp --monitor chardev=qmp
        }
        exec {from}<&"${daemon[0]}" {to}>&"${daemon[1]}"
        while read -r -u "$fd" line; do rewrite "$line"; printf '%s\n' "$text" >&"$to"; done &
        exec {to}>&-
        cat <&"$from" >&"$fd""#;
    for (name, script) in [("qemu-system-x86_64", system.as_str()), ("qemu-storage-daemon", daemon)]
    {
        std::fs::write(directory.join(name), format!("{rewrite}{script}\n")).unwrap();
        std::fs::set_permissions(
            directory.join(name),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
    }
    directory.join("qemu-system-x86_64")
}

/// The layers are what they were, and named in what was said.
#[track_caller]
fn was_kept(lab: &Lab, kind: &Kind, done: Done, chain: &[String], why: &[&str]) {
    let said = done.ok();
    assert!(said.contains("could not be merged"), "{}: {said}", kind.name);
    for word in why {
        assert!(said.contains(word), "{}: {word:?} is not in: {said}", kind.name);
    }
    assert_eq!(lab.chain(kind.name), chain, "{}", kind.name);
}

/// With the disk well again, what is hidden is merged, and no point has changed.
#[track_caller]
fn is_merged_later(lab: &Lab, kind: &Kind, bytes: &[Vec<u8>; 2]) {
    assert!(
        kind.bytes(lab) == *bytes,
        "{}: the merge that failed has changed something",
        kind.name
    );
    lab.ok(&["gc"]);
    assert_eq!(lab.chain(kind.name).len(), 2, "{}", kind.name);
    assert!(kind.bytes(lab) == *bytes, "{}: the merge has changed something", kind.name);
    let rows = lab.json(&["disk", "check", kind.name]);
    assert!(
        rows.as_array().unwrap().iter().all(|row| row["damaged"] == false),
        "{}: {rows}",
        kind.name
    );
}

/// `stop` of QMP says nothing of a flush that failed: what was merged would be in no layer after
/// the next power cut.
#[test]
fn a_merge_whose_flush_fails_keeps_the_layers_running_or_stopped() {
    // The script that is QEMU here starts one that may lie elsewhere.
    let lab = Lab::unconfined();
    // The others are flushed by their job, too.
    for kind in &KINDS[..tier::first_or(2, 4)] {
        kind.make(&lab);
        let (chain, bytes) = (lab.chain(kind.name), kind.bytes(&lab));
        let target = kind.target(&lab);
        let qemu = unable_to_flush(&lab.path().join(kind.name), &target);
        let why = ["Input/output error"];

        let done = kind.remove(&lab).env("COWHAND_QEMU", &qemu).output().unwrap().into();
        was_kept(&lab, kind, done, &chain, &why);
        is_merged_later(&lab, kind, &bytes);
        lab.ok(&["rm", kind.name]);

        kind.make(&lab);
        let (chain, bytes) = (lab.chain(kind.name), kind.bytes(&lab));
        let qemu = unable_to_flush(&lab.path().join(kind.name), &kind.target(&lab));
        let started =
            lab.command(&["start", kind.name]).env("COWHAND_QEMU", &qemu).output().unwrap();
        Done::from(started).ok();
        let done = kind.remove(&lab).output().unwrap().into();
        was_kept(&lab, kind, done, &chain, &why);
        assert_eq!(lab.state(kind.name), "running", "{}", kind.name);
        lab.ok(&["stop", "--force", kind.name]);
        is_merged_later(&lab, kind, &bytes);
        lab.ok(&["rm", kind.name]);
    }
}

#[test]
fn a_merge_without_room_keeps_the_layers_running_or_stopped() {
    const NAME: &str = "a_merge_without_room_keeps_the_layers_running_or_stopped";
    let Some(lab) = Lab::with_power(NAME, "ext4", 300) else { return };
    for kind in &KINDS[..tier::first_or(1, 4)] {
        for running in [false, true] {
            kind.make(&lab);
            let (chain, bytes) = (lab.chain(kind.name), kind.bytes(&lab));
            if running {
                lab.ok(&["start", kind.name]);
            }
            let filler = Filler::new(&lab, 200 << 10);
            let done = kind.remove(&lab).output().unwrap().into();
            drop(filler);
            was_kept(&lab, kind, done, &chain, &["No space left"]);
            if running {
                assert_eq!(lab.state(kind.name), "running", "{}", kind.name);
                lab.ok(&["stop", "--force", kind.name]);
            }
            is_merged_later(&lab, kind, &bytes);
            lab.ok(&["rm", kind.name]);
        }
    }
}
