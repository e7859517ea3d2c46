//! Snapshots of libvirt come over with their guest: external ones as files, internal ones inside
//! their images.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::lab::{Lab, eventually, qemu_img, tool};

/// A domain whose disk `vda` is this file.
fn domain(file: &Path, memory: u32) -> String {
    format!(
        "<domain type='qemu'><name>web</name><uuid>5bb3ec0e-0f5c-4c8e-8f3a-3f3c7d1a2b4d</uuid>
  <memory unit='MiB'>{memory}</memory><vcpu>1</vcpu><os><type arch='x86_64' \
         machine='pc'>hvm</type></os>
  <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/>
    <target dev='hda' bus='ide'/></disk></devices></domain>",
        file.display()
    )
}

/// A snapshot, as `virsh snapshot-dumpxml` prints it.
struct Snap<'a> {
    name: &'a str,
    parent: Option<&'a str>,
    /// `internal`, `external`, `no`.
    kind: &'a str,
    /// What the disk was on.
    file: &'a Path,
    time: u32,
}

impl Snap<'_> {
    fn xml(&self) -> String {
        let parent = self
            .parent
            .map(|name| format!("<parent><name>{name}</name></parent>"))
            .unwrap_or_default();
        let overlay = match self.kind {
            "external" => "<driver type='qcow2'/><source file='/somewhere/else'/>",
            _ => "",
        };
        format!(
            "<domainsnapshot><name>{}</name><description>as it \
             was</description><state>shutoff</state>{parent}
  <creationTime>{}</creationTime><memory snapshot='no'/>
  <disks><disk name='hda' snapshot='{}'>{overlay}</disk></disks>{}</domainsnapshot>",
            self.name,
            self.time,
            self.kind,
            domain(self.file, 64)
        )
    }
}

fn word(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn overlay(path: &Path, backing: &Path) {
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &word(backing), "-F", "qcow2", &word(path)]);
}

fn put(path: &Path, byte: u8, megabyte: u32) {
    let command = format!("write -P {byte} {megabyte}M 1M");
    tool("qemu-io", &["-f", "qcow2", "-c", &command, &word(path)]);
}

/// The first bytes of each megabyte of a point's disk.
fn bytes(lab: &Lab, point: &str) -> Vec<u8> {
    let raw = lab.path().join("looked-at.raw");
    lab.ok(&["image", "export", point, &word(&raw), "--force"]);
    std::fs::read(&raw).unwrap().chunks(1 << 20).map(|chunk| chunk[0]).collect()
}

impl Lab {
    /// How often the guest of a VM that does not run has booted.
    fn on_sector(&self, vm: &str) -> u8 {
        let raw = self.path().join("looked-at.raw");
        self.ok(&["image", "export", vm, &word(&raw), "--force"]);
        std::fs::read(&raw).unwrap()[512]
    }
}

/// Writes the snapshots into a directory, and the domain beside it; returns both.
fn write(lab: &Lab, head: &Path, snapshots: &[Snap<'_>]) -> (String, String) {
    let directory = lab.path().join("snapshots");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir(&directory).unwrap();
    for (at, snapshot) in snapshots.iter().enumerate() {
        // In no order.
        std::fs::write(directory.join(format!("{}.xml", snapshots.len() - at)), snapshot.xml())
            .unwrap();
    }
    let xml = lab.path().join("web.xml");
    std::fs::write(&xml, domain(head, 96)).unwrap();
    (word(&xml), word(&directory))
}

/// Writes a domain whose disk has `base` below it, and its one snapshot, which is that.
pub fn on_top_of(lab: &Lab, base: &Path) {
    let head = lab.path().join("head.qcow2");
    overlay(&head, base);
    put(&head, 7, 2);
    write(
        lab,
        &head,
        &[Snap { name: "one", parent: None, kind: "external", file: base, time: 1000 }],
    );
}

fn fates(done: &Value) -> Vec<String> {
    let parts = done["parts"].as_array().unwrap().iter();
    let text = |part: &Value, key: &str| part[key].as_str().unwrap().to_owned();
    let snapshots = parts.filter(|part| text(part, "what").starts_with("snapshot"));
    snapshots
        .map(|part| format!("{} {}: {}", text(part, "fate"), text(part, "what"), text(part, "how")))
        .collect()
}

fn tree(lab: &Lab, vm: &str) -> Vec<(String, Value, String, bool)> {
    let listed = lab.json(&["snapshot", "ls", vm]);
    let row = |row: &Value| {
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        (text("name"), row["parent"].clone(), text("kind"), row["current"] == true)
    };
    listed.as_array().unwrap().iter().map(row).collect()
}

#[test]
fn external_snapshots_with_a_branch_come_over_as_a_tree() {
    let lab = Lab::new();
    let at = |name: &str| lab.path().join(name);
    let (base, one, two, side) =
        (at("base.qcow2"), at("one.qcow2"), at("two.qcow2"), at("side.qcow2"));
    qemu_img(&["create", "-q", "-f", "qcow2", &word(&base), "4M"]);
    put(&base, 1, 0);
    overlay(&one, &base);
    put(&one, 2, 1);
    overlay(&two, &one);
    put(&two, 3, 2);
    // Another way on from the first one, with a snapshot of its own.
    overlay(&side, &base);
    put(&side, 9, 3);
    let snap = |name, parent, file, time| Snap { name, parent, kind: "external", file, time };
    let snapshots = [
        snap("first", None, &base, 1000),
        snap("second", Some("first"), &one, 2000),
        snap("aside", Some("first"), &side, 3000),
    ];
    let (xml, directory) = write(&lab, &two, &snapshots);
    let before: Vec<String> =
        [&base, &one, &two, &side].map(|file| tool("sha256sum", &[&word(file)])).into();
    let beside = format!("--with-backing={}", lab.path().display());
    // Without it, only files of the domain and those in the directory.
    let listed = lab.json(&["import", &xml, "--snapshots", &directory, "--dry-run"]);
    assert!(fates(&listed)[2].starts_with("left snapshot aside: disk hda is"), "{listed}");
    let listed = lab.json(&["import", &xml, "--snapshots", &directory, &beside, "--dry-run"]);
    assert_eq!(
        fates(&listed),
        [
            "kept snapshot first: external", "kept snapshot second: external",
            "kept snapshot aside: external"
        ]
    );
    lab.ok(&["import", &xml, "--snapshots", &directory, &beside]);
    let row = |name: &str, parent: Value, current| {
        (name.to_owned(), parent, "external".to_owned(), current)
    };
    let expected = [
        row("first", Value::Null, false),
        row("second", json!("first"), true),
        row("aside", json!("first"), false),
    ];
    assert_eq!(tree(&lab, "web"), expected);
    let shown = lab.json(&["snapshot", "show", "web@first"]);
    assert_eq!(
        (&shown["memory_size_bytes"], &shown["created"]),
        (&json!(64 << 20), &json!("1970-01-01T00:16:40Z"))
    );
    // Four files, four layers.
    assert_eq!(lab.layer_files().len(), 4);
    let now: Vec<String> =
        [&base, &one, &two, &side].map(|file| tool("sha256sum", &[&word(file)])).into();
    assert_eq!(now, before);
    assert_eq!(bytes(&lab, "web"), [1, 2, 3, 0]);
    assert_eq!(bytes(&lab, "web@second"), [1, 2, 0, 0]);
    // They are snapshots like any other.
    lab.ok(&["snapshot", "revert", "web@aside"]);
    assert_eq!(bytes(&lab, "web"), [1, 0, 0, 9]);
    assert_eq!(lab.json(&["show", "web"])["memory_bytes"], 64 << 20);
    lab.ok(&["undo", "web"]);
    assert_eq!(
        (bytes(&lab, "web"), lab.json(&["show", "web"])["memory_bytes"].clone()),
        (vec![1, 2, 3, 0], json!(96 << 20))
    );
    lab.ok(&["clone", "web@first", "copy"]);
    assert_eq!(bytes(&lab, "copy"), [1, 0, 0, 0]);
    lab.ok(&["snapshot", "rm", "web@second", "web@aside"]);
    assert_eq!(bytes(&lab, "web"), [1, 2, 3, 0]);
    lab.check_images();
    let found = lab.run(&["--format", "json", "doctor", "web"]);
    assert_eq!(found.code, 0, "{found:?}");
}

#[test]
fn internal_snapshots_come_over_inside_their_images() {
    let lab = Lab::new();
    let image = crate::buses::counter(&lab, "disk.qcow2");
    // QEMU would take the first name for the number of the second one.
    qemu_img(&["snapshot", "-c", "2", &word(&image)]);
    put_sector(&image, 3);
    qemu_img(&["snapshot", "-c", "three, times", &word(&image)]);
    put_sector(&image, 7);
    let snap = |name, parent, time| Snap { name, parent, kind: "internal", file: &image, time };
    let (xml, directory) =
        write(&lab, &image, &[snap("2", None, 1000), snap("three, times", Some("2"), 2000)]);
    let done = lab.json(&["import", &xml, "--snapshots", &directory]);
    assert_eq!(
        fates(&done),
        ["kept snapshot 2: internal", "changed snapshot three, times: internal, as three--times"]
    );
    let row = |name: &str, parent: Value, current| {
        (name.to_owned(), parent, "internal".to_owned(), current)
    };
    assert_eq!(
        tree(&lab, "web"),
        [row("2", Value::Null, false), row("three--times", json!("2"), true)]
    );
    // The guest counts its boots from there.
    for (snapshot, line) in
        [(None, "boots: 8 "), (Some("web@three--times"), "boots: 4 "), (Some("web@2"), "boots: 1 ")]
    {
        if let Some(snapshot) = snapshot {
            lab.ok(&["snapshot", "revert", snapshot]);
        }
        lab.ok(&["start", "web"]);
        eventually(line, || lab.ok(&["logs", "web", "--raw"]).contains(line));
        lab.ok(&["stop", "--force", "web"]);
    }
    lab.ok(&["clone", "web@three--times", "copy"]);
    assert_eq!(lab.on_sector("copy"), 3);
    lab.ok(&["snapshot", "rm", "web@2"]);
    assert_eq!(tree(&lab, "web").len(), 1);
    lab.ok(&["snapshot", "revert", "web@three--times"]);
    lab.check_images();
}

/// How often the guest has booted.
fn put_sector(image: &Path, boots: u8) {
    let command = format!("write -P {boots} 512 512");
    tool("qemu-io", &["-f", "qcow2", "-c", &command, &word(image)]);
}

#[test]
fn a_snapshot_that_cannot_come_over_is_left_out_and_its_children_stay() {
    let lab = Lab::new();
    let at = |name: &str| lab.path().join(name);
    let (base, head, gone) = (at("base.qcow2"), at("head.qcow2"), at("gone.qcow2"));
    qemu_img(&["create", "-q", "-f", "qcow2", &word(&base), "4M"]);
    overlay(&head, &base);
    let elsewhere = PathBuf::from("/etc/hostname");
    let snap = |name, parent, kind, file| Snap { name, parent, kind, file, time: 1000 };
    let snapshots = [
        snap("lost", None, "external", &gone),
        snap("child", Some("lost"), "external", &base),
        snap("secret", None, "external", &elsewhere),
        snap("written", None, "external", &head),
        snap("nothing", None, "no", &base),
        snap("inside", None, "internal", &head),
        snap("ring", Some("round"), "external", &base),
        snap("round", Some("ring"), "external", &base),
    ];
    let (xml, directory) = write(&lab, &head, &snapshots);
    let done = lab.json(&["import", &xml, "--snapshots", &directory]);
    let fates = fates(&done);
    for words in [
        "left snapshot lost: disk hda is not there",
        "kept snapshot child: external",
        "left snapshot secret: disk hda is /etc/hostname, which only the XML names",
        "left snapshot written: the domain writes to",
        "left snapshot nothing: disk hda is not in it",
        "left snapshot inside: it is not inside",
        "left snapshot ring: its parent follows it",
    ] {
        assert!(fates.iter().any(|fate| fate.starts_with(words)), "{words}: {fates:#?}");
    }
    assert_eq!(tree(&lab, "web"), [("child".to_owned(), Value::Null, "external".to_owned(), true)]);
    lab.ok(&["snapshot", "revert", "web@child"]);
    // What is no snapshot at all is refused, and nothing is made.
    let before = lab.fingerprint();
    let bad = at("snapshots/bad.xml");
    for (text, words) in [
        ("<domain/>", "its root is <domain>"),
        ("<domainsnapshot/>", "it has no name"),
        ("", "is not the XML of a libvirt snapshot"),
        (&*snapshots[1].xml(), "two snapshots child"),
    ] {
        std::fs::write(&bad, text).unwrap();
        lab.run(&["import", &xml, "--snapshots", &directory, "--name", "x"]).fails(5, &[words]);
    }
    std::fs::remove_file(&bad).unwrap();
    nix::unistd::mkfifo(&bad, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    lab.run(&["import", &xml, "--snapshots", &directory, "--name", "x"]).fails(5, &["bad.xml"]);
    std::fs::remove_file(&bad).unwrap();
    lab.run(&["import", &xml, "--snapshots", &directory, "--name", "x", "--strict"])
        .fails(5, &["left snapshot lost"]);
    lab.run(&["import", &xml, "--snapshots", &directory, "--name", "x", "--disk-mode", "use"])
        .fails(2, &["--disk-mode use"]);
    lab.run(&["import", &xml, "--snapshots", "libvirt", "--name", "x"])
        .fails(2, &["--libvirt DOMAIN"]);
    lab.run(&["import", &xml, "--snapshots", "/nowhere", "--name", "x"]).fails(3, &["/nowhere"]);
    assert_eq!(lab.fingerprint(), before);
}

#[test]
fn what_is_not_sealed_is_no_snapshot() {
    let lab = Lab::new();
    let at = |name: &str| lab.path().join(name);
    let (base, one, raw) = (at("base.qcow2"), at("one.qcow2"), at("raw.img"));
    qemu_img(&["create", "-q", "-f", "qcow2", &word(&base), "4M"]);
    overlay(&one, &base);
    std::fs::write(&raw, vec![0; 4 << 20]).unwrap();
    let snap = |name, kind, file, time| Snap { name, parent: None, kind, file, time };
    // The base is written to again: libvirt has committed the overlay into it.
    let (xml, directory) = write(&lab, &base, &[snap("late", "external", &one, 1000)]);
    let beside = format!("--with-backing={}", lab.path().display());
    let done = lab.json(&["import", &xml, "--snapshots", &directory, &beside, "--name", "a"]);
    assert!(fates(&done)[0].contains("left snapshot late: the domain writes to"), "{done}");
    // Two of the same file: what came between them has been merged.
    let both = [snap("early", "external", &base, 1000), snap("later", "external", &base, 2000)];
    let (xml, directory) = write(&lab, &one, &both);
    let done = lab.json(&["import", &xml, "--snapshots", &directory, "--name", "b"]);
    let expected = [
        "left snapshot early: what was written after it has been merged",
        "kept snapshot later: external",
    ];
    for (fate, expected) in fates(&done).iter().zip(expected) {
        assert!(fate.starts_with(expected), "{done}");
    }
    // A raw disk has nothing inside, whatever its guest has written to it.
    std::fs::copy(&base, &raw).unwrap();
    tool("qemu-img", &["snapshot", "-c", "inside", &word(&raw)]);
    std::fs::File::options().write(true).open(&raw).unwrap().set_len(4 << 20).unwrap();
    let (xml, directory) = write(&lab, &raw, &[snap("inside", "internal", &raw, 1000)]);
    let text = std::fs::read_to_string(&xml)
        .unwrap()
        .replace("type='qcow2'/><source", "type='raw'/><source");
    std::fs::write(&xml, text).unwrap();
    let done = lab.json(&["import", &xml, "--snapshots", &directory, "--name", "c"]);
    assert!(
        fates(&done)[0].contains("left snapshot inside: one of its files has another format"),
        "{done}"
    );
    // Other disks than today's.
    let (xml, directory) = write(&lab, &one, &[snap("other", "external", &base, 1000)]);
    let text =
        std::fs::read_to_string(at("snapshots/1.xml")).unwrap().replace("dev='hda'", "dev='hdb'");
    std::fs::write(at("snapshots/1.xml"), text).unwrap();
    let done = lab.json(&["import", &xml, "--snapshots", &directory, "--name", "d"]);
    assert!(fates(&done)[0].contains("not those that the domain has today"), "{done}");
}

/// A command that dies in the middle of it is undone: the VM has snapshots from its first record
/// on.
#[test]
fn an_import_with_snapshots_that_is_killed_leaves_nothing() {
    let lab = Lab::new();
    let at = |name: &str| lab.path().join(name);
    let (base, head) = (at("base.qcow2"), at("head.qcow2"));
    qemu_img(&["create", "-q", "-f", "qcow2", &word(&base), "4M"]);
    overlay(&head, &base);
    qemu_img(&["snapshot", "-c", " inside ", &word(&head)]);
    let snapshots = [
        Snap { name: "one", parent: None, kind: "external", file: &base, time: 1000 },
        // With its blanks, which are those of the tag.
        Snap { name: " inside ", parent: Some("one"), kind: "internal", file: &head, time: 2000 },
        Snap { name: "inside", parent: Some("one"), kind: "internal", file: &head, time: 3000 },
    ];
    let (xml, directory) = write(&lab, &head, &snapshots);
    let import = ["import", &xml, "--snapshots", &directory];
    for point in
        ["journal.json, in its place", "copy-file, done", "save, about to happen", "save, done"]
    {
        let died =
            lab.command(&import).env("COWHAND_FAULT", format!("{point}:die")).output().unwrap();
        assert!(!died.status.success(), "{point}: {died:?}");
        lab.ok(&["create", "other", "--size", "1M"]);
        lab.ok(&["rm", "other"]);
        lab.ok(&["gc", "--older-than", "0"]);
        if point == "save, done" {
            assert_eq!(lab.json(&["ls"]).as_array().unwrap().len(), 1);
            lab.ok(&["rm", "web"]);
            lab.ok(&["gc", "--older-than", "0"]);
        }
        assert!(
            lab.vm_directories().is_empty() && lab.layer_files().is_empty(),
            "{point}: {:?}",
            lab.layer_files()
        );
    }
    let done = lab.json(&import);
    let expected = [
        "kept snapshot one: external",
        "changed snapshot  inside : internal, as inside",
        "left snapshot inside: it is not inside",
    ];
    for (fate, expected) in fates(&done).iter().zip(expected) {
        assert!(fate.starts_with(expected), "{fate}: {done}");
    }
}

/// What libvirt answers may name any file; what lies in a directory may not, though libvirt has
/// answered the domain.
#[test]
fn libvirt_is_asked_for_snapshots_and_a_directory_is_not_taken_for_its_answer() {
    let lab = Lab::new();
    let at = |name: &str| lab.path().join(name);
    std::fs::create_dir_all(at("images")).unwrap();
    std::fs::create_dir_all(at("programs")).unwrap();
    let (base, head, side) =
        (at("images/base.qcow2"), at("images/head.qcow2"), at("images/side.qcow2"));
    qemu_img(&["create", "-q", "-f", "qcow2", &word(&base), "4M"]);
    overlay(&head, &base);
    overlay(&side, &base);
    let snap = |name, file| Snap { name, parent: None, kind: "external", file, time: 1000 };
    let (xml, directory) = write(&lab, &head, &[snap("one", &base), snap("two", &side)]);
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n'dumpxml --inactive --domain web') cat {xml} ;;\n\
         'snapshot-list --name --domain web') printf 'one\\ntwo\\n\\n' ;;\n\
         'snapshot-dumpxml --domain web --snapshotname one') cat {directory}/2.xml ;;\n\
         'snapshot-dumpxml --domain web --snapshotname two') cat {directory}/1.xml ;;\n\
         'snapshot-current --name --domain web') echo two ;;\n\
         *) echo \"what: $*\" >&2; exit 1 ;;\nesac\n"
    );
    let virsh = at("programs/virsh");
    std::fs::write(&virsh, script).unwrap();
    std::fs::set_permissions(&virsh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", at("programs").display(), std::env::var("PATH").unwrap());
    let import = |name: &str, snapshots: &str| {
        let args = [
            "--format", "json", "import", "--libvirt", "web", "--snapshots", snapshots, "--name",
            name,
        ];
        let done = lab.command(&args).env("PATH", &path).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        serde_json::from_slice::<Value>(&done.stdout).unwrap()
    };
    let done = import("a", "libvirt");
    assert_eq!(fates(&done), ["kept snapshot one: external", "kept snapshot two: external"]);
    // The one that libvirt says, whatever the disks look like.
    assert_eq!(tree(&lab, "a").iter().find(|row| row.3).unwrap().0, "two");
    let done = import("b", &directory);
    assert!(
        fates(&done).iter().any(|fate| fate.starts_with("left snapshot two: disk hda is")),
        "{done}"
    );
}
