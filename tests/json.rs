//! The JSON of results, to the byte: each with all its optional parts, and with none of them. The
//! keys are a contract (`docs/cli.md`), so a snapshot changes only by keys that are added.

use std::path::Path;
use std::time::Duration;

use cowhand::clone::{Cloned, Kind};
use cowhand::disk::{check::Found, merge::Merged, resize::Resized};
use cowhand::doctor::{Finding, Level, Remedy};
use cowhand::ephemeral::{reset::Reset, standby::StandbyStatus};
use cowhand::error::Error;
use cowhand::image::add::Added;
use cowhand::image::catalogue::Entry;
use cowhand::image::file::{Seen, Written};
use cowhand::instance::status::Status;
use cowhand::layer::inspect::{Reference, Role as FileRole};
use cowhand::libvirt::{Fate, Note, export};
use cowhand::maintenance::gc::Collected;
use cowhand::maintenance::prune::Pruned;
use cowhand::merge::outcome::{Outcome, Removed, What};
use cowhand::model::{
    Bus, Cdrom, Chain, Ephemeral, Fingerprint, Firmware, Format, ImageOrigin, KernelBoot, Layer,
    Limits, Link, LogLimit, Memory, Merge, MergeKind, Name, PciSlot, Quiesced, Record, Role, Seed,
    Snapshot, SnapshotKind, State,
};
use cowhand::output::json;
use cowhand::qemu::img::{Checked, Info, Inner};
use cowhand::seal::options::GeneratedPassword;
use cowhand::seal::{PathChange, Performed, Report, Touched};
use cowhand::snapshot::create::Taken;
use cowhand::snapshot::{list::Row as SnapshotRow, revert::Reverted};
use cowhand::store::schema::parse_record;
use cowhand::sys::confine::observed::Observed;
use cowhand::template::list::Row as TemplateRow;
use cowhand::vm::list::{About, ChainRow, Details, DiskRow, Row};
use cowhand::warm::make::Warmed;
use serde::Serialize;

const DOCS: &str = include_str!("../docs/cli.md");

/// Holds the text of some results, and that it has the keys that the manual lists for `command`.
#[track_caller]
fn hold(command: &str, results: &impl Serialize) {
    let text = serde_json::to_string_pretty(results).unwrap();
    for key in documented(command) {
        assert!(text.contains(&format!("\"{key}\": ")), "{command} has no {key}: {text}");
    }
    insta::assert_snapshot!(format!("json of {command}"), text);
}

/// The keys in the first code span with braces that follows the command.
fn documented(command: &str) -> Vec<&'static str> {
    let section = DOCS.split("\n## JSON\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let Some((_, rest)) = section.split_once(&format!("`{command}`")) else { return Vec::new() };
    let from = ["`{", "`[{"].iter().filter_map(|start| rest.find(start)).min().unwrap();
    let span = rest[from + 1..].split('`').next().unwrap();
    let (mut open, mut keys, mut expected) = (Vec::new(), Vec::new(), false);
    for (at, c) in span.char_indices() {
        match c {
            '{' | '[' => {
                open.push(c);
                expected = true;
            }
            '}' | ']' => {
                open.pop();
                expected = false;
            }
            ',' => expected = true,
            ' ' | '\n' => {}
            'a'..='z' if expected && open.last() == Some(&'{') => {
                let word = &span[at..];
                keys.push(
                    &word[..word.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap()],
                );
                expected = false;
            }
            _ => expected = false,
        }
    }
    assert!(!keys.is_empty(), "{command}: {span}");
    keys
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn time() -> jiff::Timestamp {
    "2026-11-22T12:11:30.5Z".parse().unwrap()
}

fn layer(id: &str, format: Format) -> Layer {
    Layer { id: id.parse().unwrap(), format }
}

fn chain() -> Chain {
    let link = |layer: Layer| Link {
        path: Path::new("/store/layers").join(layer.file_name()),
        layer,
        virtual_bytes: 1 << 30,
        allocated_bytes: 4096,
        internal_snapshots: 0,
    };
    let layers = [layer("head000000", Format::Qcow2), layer("base000000", Format::Raw)];
    Chain::from_links(layers.map(link).into()).unwrap()
}

/// A VM with nothing that it need not have.
fn bare() -> Record {
    let mut record = parse_record(include_bytes!("fixtures/vm-v1.json")).unwrap();
    record.snapshots.clear();
    (record.current, record.origin) = (None, None);
    record.config.tags.clear();
    record.config.nics.clear();
    record.config.log_limit = LogLimit::Unlimited;
    record.config.limits = Limits { io: Some(20 << 20), iops: Some(500) };
    record
}

/// An image, with all that a VM or template can have.
fn full() -> Record {
    let mut record = parse_record(include_bytes!("fixtures/vm-v1.json")).unwrap();
    let text = |text: &str| Some(text.to_owned());
    let image = ImageOrigin {
        source: "https://example.org/a.qcow2".into(),
        catalogue: text("debian:12"),
        sha256: text("5891b5b5"),
        verified: true,
        ..ImageOrigin::default()
    };
    record.role =
        Role::Template { frozen: time(), sealed: true, stamps: Vec::new(), image: Some(image) };
    record.ephemeral = Some(Ephemeral { owner: None, expires: Some(time()), standby: false });
    record.autostart = true;
    let config = &mut record.config;
    config.cpu = text("max");
    config.firmware = Firmware::Uefi;
    config.kernel = Some(KernelBoot {
        kernel: "/boot/k".into(),
        initrd: Some("/boot/i".into()),
        append: text("quiet"),
    });
    config.nics[0].place = Some(PciSlot { bus: 1, slot: 0 });
    config.nics[0].ports.push("0.0.0.0:53:53/udp".parse().unwrap());
    config.disks[0].serial = text("WD-1");
    config.cdroms = vec![drive(Some("/srv/a.iso")), drive(None)];
    config.seed = Some(Seed {
        user_data: "#cloud-config\n".into(),
        meta_data: String::new(),
        network_config: None,
        vendor_data: None,
        hostname: text("web"),
    });
    config.credentials.insert("vmm.notify_socket", b"x").unwrap();
    record
}

fn drive(iso: Option<&str>) -> Cdrom {
    Cdrom { target: "sdb".into(), bus: Bus::Sata, iso: iso.map(Into::into) }
}

fn status(detail: Option<&str>) -> Status {
    Status { state: State::Paused, pid: detail.map(|_| 7), detail: detail.map(str::to_owned) }
}

#[test]
fn vms_in_json() {
    let row = |about, cut_short: Option<&str>| Row {
        name: name("web"),
        about,
        cut_short: cut_short.map(str::to_owned),
    };
    let about = |record, from: Option<&str>, detail| {
        Ok(About {
            record,
            status: status(detail),
            from: from.map(str::to_owned),
            own_bytes: 1,
            virtual_bytes: 2,
        })
    };
    let rows = [
        row(about(full(), Some("deb12@one"), Some("io-error")), Some("set web")),
        row(about(bare(), None, None), None),
        row(Err("vm.json is torn".into()), Some("set web")),
    ];
    hold("ls", &rows.iter().map(json::Vm::from).collect::<Vec<_>>());
    let (web, uuid) = (name("web"), bare().uuid);
    let states =
        (json::State::running(&web), json::State::paused(&web), json::State::stopped(&web, "acpi"));
    hold("start", &(states, json::Created::new(&web, uuid), json::Named::new(&web)));
    hold("rm", &json::Removed::new(&[web, name("db")]));
}

#[test]
fn all_of_a_vm_in_json() {
    let details = |record, chain, has_all: bool| Details {
        record,
        status: status(has_all.then_some("io-error")),
        from: has_all.then(|| "deb12".into()),
        accel: has_all.then_some("kvm"),
        chains: vec![chain],
        cut_short: has_all.then(|| "set web".into()),
        confinement: has_all.then(|| Observed {
            user: 1000,
            capabilities: vec!["SYS_PTRACE".into()],
            root_directory: true,
            processes: true,
            system_calls: true,
            network: false,
            destinations: true,
        }),
    };
    let (all, none) =
        (details(full(), Ok(chain()), true), details(bare(), Err("it is torn".into()), false));
    hold(
        "show",
        &(json::Details::new(&name("web"), &all), json::Details::new(&name("web"), &none)),
    );
}

#[test]
fn disks_in_json() {
    let row = |serial: Option<&str>| DiskRow {
        target: "vda".into(),
        bus: "virtio",
        serial: serial.map(str::to_owned),
        format: Format::Qcow2,
        file: "/store/layers/head000000.qcow2".into(),
        virtual_bytes: 2,
        allocated_bytes: 1,
        read_only: serial.is_some(),
    };
    hold("disk ls", &[row(Some("WD-1")), row(None)].each_ref().map(json::Disk::from));
    let (snapshots, shared_by) =
        (vec![vec![], vec![name("one")]], vec![vec![], vec![name("db"), name("deb12")]]);
    let row = ChainRow { target: "vda".into(), chain: chain(), snapshots, shared_by };
    hold("disk chain", &[json::Chain::from(&row)]);
    let checked =
        Checked { corruptions: 5, leaks: 4, errors: 3, corruptions_fixed: 2, leaks_fixed: 1 };
    let found = |checked| Found {
        target: "vda".into(),
        layer: layer("head000000", Format::Qcow2),
        checked,
        in_use: false,
    };
    hold(
        "disk check",
        &[found(Some(checked)), found(None)].each_ref().map(json::CheckedLayer::from),
    );
    hold("disk resize", &json::Resized::new("vda", &Resized { before: 1, after: 2 }));
    let drives = [drive(Some("/srv/a.iso")), drive(None)];
    hold("cdrom ls", &(drives.each_ref().map(json::Cdrom::from), json::NoCdrom::new("sdb")));
}

#[test]
fn merges_in_json() {
    let (top, base) = (layer("head000000", Format::Qcow2), layer("base000000", Format::Raw));
    let mut merge = Merge::pair("vda", MergeKind::Stream, &top, &base, 5);
    merge.between.push(layer("mid0000000", Format::Qcow2));
    let all = Merged {
        merges: vec![merge, Merge::pair("vdb", MergeKind::Commit, &top, &base, 0)],
        given_up: vec![name("one")],
    };
    let none = Merged { merges: Vec::new(), given_up: Vec::new() };
    hold(
        "disk commit",
        &(
            json::Merged::new(&name("web"), &all, true),
            json::Merged::new(&name("web"), &none, false),
        ),
    );
}

fn snapshot_row(has_all: bool) -> SnapshotRow {
    let host_cpu = Some("Xeon".to_owned());
    let writer = Fingerprint {
        qemu: "7.2".into(),
        accel: "kvm".into(),
        cpu: "host".into(),
        host_cpu,
        devices: vec!["a".into()],
    };
    let snapshot = Snapshot {
        name: name("two"),
        parent: has_all.then(|| name("one")),
        kind: if has_all {
            SnapshotKind::Internal { tag: "cw-two".into() }
        } else {
            SnapshotKind::External
        },
        created: time(),
        description: "before\nthe \"upgrade\"".into(),
        quiesced: has_all,
        vm_state: cowhand::model::VmState::Running,
        memory: has_all.then(|| Memory { image: None, bytes: 9, writer, leased: Vec::new() }),
        expires: has_all.then(time),
        config: bare().config,
    };
    let names = |names: &[&str]| names.iter().filter(|_| has_all).map(|text| name(text)).collect();
    SnapshotRow {
        snapshot,
        current: has_all,
        bytes: 7,
        children: names(&["three"]),
        descendants: names(&["three", "four"]),
    }
}

#[test]
fn snapshots_in_json() {
    let rows = [snapshot_row(true), snapshot_row(false)];
    hold("snapshot ls", &rows.each_ref().map(json::Snapshot::from));
    hold("snapshot show", &rows.each_ref().map(json::SnapshotInFull::from));
    let taken = Taken {
        name: name("two"),
        paused: Duration::from_nanos(12_345_678),
        frozen: Duration::ZERO,
        quiesce: Quiesced::NotAsked,
        total: Duration::from_secs(2),
        memory_lost: None,
    };
    hold("snapshot create", &json::TakenSnapshot::new(&rows[1], &taken));
    let reverted = Reverted { name: name("two"), state: State::Stopped };
    hold("snapshot revert", &json::Reverted::new(&name("web"), &reverted));
    let kinds = [
        What::Committed,
        What::Streamed,
        What::Trashed,
        What::Internal,
        What::Kept("db stands on it".into()),
    ];
    let outcomes = kinds.map(|what| Outcome { target: "vda".into(), what, bytes: 3 }).into();
    let all = Removed { name: name("two"), outcomes, lost_undo: vec!["set web".into()] };
    let none = Removed { name: name("one"), outcomes: Vec::new(), lost_undo: Vec::new() };
    hold(
        "snapshot rm",
        &(json::RemovedSnapshot::new(&all, true), json::RemovedSnapshot::new(&none, false)),
    );
}

fn template_row(record: Record, dependents: Vec<Name>) -> TemplateRow {
    TemplateRow { name: name("deb12"), record, frozen: time(), sealed: true, dependents, bytes: 8 }
}

#[test]
fn templates_and_sealing_in_json() {
    let rows = [template_row(full(), vec![name("web")]), template_row(bare(), Vec::new())];
    hold("template ls", &rows.each_ref().map(json::Template::from));
    let hows = [
        PathChange::Removed,
        PathChange::Emptied,
        PathChange::Changed,
        PathChange::Created,
        PathChange::Ran,
    ];
    let touched = hows.map(|how| Touched { path: "/etc/machine-id".into(), how }).into();
    let done = |name: &str, touched, more| Performed { name: name.into(), touched, more };
    let operations = vec![done("machine-id", touched, 3), done("logs", Vec::new(), 0)];
    let report =
        Report { system: "Debian 12".into(), mounts: vec!["vda1 on / (ext4)".into()], operations };
    let made_up = [GeneratedPassword { user: "root".into(), password: "tulip".into() }];
    let deb12 = name("deb12");
    let (sealed, empty) = (json::Sealed::new(&report, true), Report::default());
    let nothing = json::Sealed::new(&empty, false);
    hold(
        "seal",
        &(json::WithPasswords::new(&sealed, &made_up), json::WithPasswords::new(&nothing, &[])),
    );
    let all = json::FrozenTemplate::new(&deb12, true).with_report(&report, false).made_warm();
    let none = json::FrozenTemplate::new(&deb12, false);
    let created = (json::WithPasswords::new(&all, &made_up), json::WithPasswords::new(&none, &[]));
    insta::assert_snapshot!(
        "json of template create",
        serde_json::to_string_pretty(&created).unwrap()
    );
    let warm = json::Warmth::warm(&deb12, &Warmed { bytes: 6, took: Duration::from_micros(1500) });
    hold("template warm", &(warm, json::Warmth::cool(&deb12, 6)));
}

#[test]
fn images_in_json() {
    let rows = [template_row(full(), vec![name("web")]), template_row(bare(), Vec::new())];
    hold("image ls", &rows.each_ref().map(json::Image::from));
    let added = [full(), bare()].map(|record| Added { name: name("deb12"), record });
    hold("image add", &added.each_ref().map(json::AddedImage::from));
    let entry = |has_all: bool| Entry {
        name: "debian".into(),
        version: "12".into(),
        aliases: if has_all { vec!["bookworm".into()] } else { Vec::new() },
        url: "https://example.org/a.qcow2".into(),
        sums: has_all.then(|| "https://example.org/SUMS".into()),
        sha256: None,
        sha512: None,
        format: Format::Qcow2,
        user: has_all.then(|| "debian".into()),
    };
    hold(
        "image ls --catalogue",
        &[entry(true), entry(false)].each_ref().map(json::CatalogueImage::from),
    );
    let pruned = |image| Pruned { image, what: "image deb12".into(), bytes: 4 };
    hold(
        "image prune",
        &[pruned(Some(name("deb12"))), pruned(None)].each_ref().map(json::PrunedImage::from),
    );
    let inner =
        Inner { id: "1".into(), name: "one".into(), vm_state_bytes: 3, created: 1_700_000_000 };
    let file = |all: bool| Seen {
        info: Info {
            format: "qcow2".into(),
            virtual_bytes: 2,
            allocated_bytes: 1,
            backing: all.then(|| "base.raw".into()),
            backing_format: all.then(|| "raw".into()),
            snapshots: if all { vec![inner.clone()] } else { Vec::new() },
            encrypted: all,
        },
        variant: all.then(|| "monolithicSparse".into()),
        names: [Some("base.raw".to_owned()), None]
            .map(|name| Reference { role: FileRole::Backing, name })
            .into(),
    };
    let files = [file(true), file(false)];
    hold(
        "image info",
        &files.each_ref().map(|seen| json::ImageFile::new(Path::new("a.qcow2"), seen)),
    );
    let written = Written { path: "/tmp/b.raw".into(), format: Format::Raw, bytes: 5 };
    hold("image export", &(json::WrittenImage::from(&written), json::Unchecked::new(Format::Raw)));
}

#[test]
fn domains_of_libvirt_in_json() {
    let notes = [Fate::Kept, Fate::Changed, Fate::Left].map(|fate| Note {
        what: "disk sda".into(),
        fate,
        how: "virtio".into(),
    });
    let web = name("web");
    hold(
        "import",
        &(
            json::Imported::new(&web, bare().uuid, true, &notes),
            json::ImportPlan::new(&web, &notes),
        ),
    );
    let snapshots =
        vec![export::Written { name: name("one"), xml: "/out/one.xml".into(), is_current: true }];
    let exported = export::Exported { xml: "/out/web.xml".into(), snapshots, notes: notes.into() };
    hold("export", &json::Exported::new(&web, &exported, &["virsh define /out/web.xml".into()]));
}

#[test]
fn findings_and_errors_in_json() {
    let finding = |has_all: bool, repaired| Finding {
        check: "chain",
        vm: has_all.then(|| name("web")),
        level: Level::Warn,
        message: "it was cut short".into(),
        hint: has_all.then(|| "cowhand doctor --repair".into()),
        remedy: has_all.then(|| Remedy::Recover(name("web"))),
        repaired,
    };
    let findings = [finding(true, false), finding(true, true), finding(false, false)];
    hold("doctor", &findings.each_ref().map(json::Finding::from));
    let all =
        Error::refused("no").hint("one").hint("two").because("why").dependents(vec!["web".into()]);
    let none = Error::usage("bad");
    let errors = (json::Failure::from(&all), json::Failure::from(&none));
    insta::assert_snapshot!(
        "json of errors",
        serde_json::to_string(&errors.0).unwrap()
            + "\n"
            + &serde_json::to_string(&errors.1).unwrap()
    );
}

#[test]
fn what_does_not_stay_in_json() {
    let clone = |kind| Cloned {
        name: name("web"),
        kind,
        took: Duration::from_micros(1500),
        reason: "reflink".into(),
    };
    hold("clone", &[clone(Kind::Thin), clone(Kind::Full)].each_ref().map(json::Cloned::from));
    let made = Some((Kind::Warm, Duration::from_millis(3), Duration::from_millis(4)));
    let web = name("web");
    let (all, none) = (
        json::Run::new(Some(&web), made, Duration::from_millis(5)),
        json::Run::new(None, None, Duration::ZERO),
    );
    assert!(all.is_kept() && !none.is_kept());
    let told = |run| json::Ended {
        exit_code: 1,
        stdout: &"out\n",
        stderr: &"",
        truncated: true,
        timed_out: false,
        run,
    };
    hold("exec", &told(None));
    hold("run", &(told(Some(&all)), told(Some(&none)), json::Copied::new(3)));
    let reset = |kind| Reset { origin: "deb12".into(), kind };
    hold(
        "reset",
        &[reset(Some(Kind::Warm)), reset(None)].each_ref().map(|done| json::Reset::new(&web, done)),
    );
    let status = StandbyStatus { template: name("deb12"), wanted: 2, waiting: 1 };
    hold(
        "pool ls",
        &(json::StandbyStatus::from(&status), json::Filled::new(&web, 2, 1), json::Drained::new(1)),
    );
    let gone = [Collected { what: "web@one".into(), why: "expired", bytes: 4 }];
    hold("gc", &(json::Collected::new(&gone, true), json::Collected::new(&[], false)));
    hold(
        "version",
        &(
            json::Version::new("0.1.0", Some("1234567")),
            json::Version::new("0.1.0", None),
            json::Man::new(Path::new("/man")),
        ),
    );
}
