//! What a step says that it touches is all that it changes: every file of a store is looked at
//! before and after it. And undoing it brings back what was there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::layers::{CopyChain, CopyFile, CreateOverlay, LinkFile, Resize, SetMode, WrapFile};
use super::merge::{MergeLayers, RemoveLayers, RemoveMemory};
use super::qemu::{Resume, StopQemu};
use super::record::WriteRecord;
use super::restore::RestoreLayers;
use super::trash::{DropTrash, TrashLayers};
use crate::change::planned::Planned;
use crate::change::run::Run;
use crate::change::step::Touches;
use crate::context::Context;
use crate::layer::{create, sealed, stamp};
use crate::model::{Format, Layer, Merge, MergeKind, Name, RamImage, Record};
use crate::settings::{Accel, Confine, Settings};
use crate::store::trash::{self, Entry};
use crate::store::{Store, make_directory, schema};
use crate::ui::Silent;

/// A directory of the trash, and one that is made by the step.
const TRASH: &str = "20260101T000000000Z-revert-vm";
const NEW_TRASH: &str = "20260202T000000000Z-revert-vm";

/// A store: `base` ← `middle` ← `top`, `loose` with no overlay, `raw`; `trashed` on `base` in the
/// trash.
struct Bench {
    directory: tempfile::TempDir,
    context: Context,
    name: Name,
    base: Layer,
    middle: Layer,
    top: Layer,
    loose: Layer,
    raw: Layer,
    trashed: Layer,
    memory: RamImage,
}

impl Bench {
    fn new() -> Self {
        // In memory where there is some: everything is flushed.
        let directory =
            tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let settings = Settings {
            store: directory.path().join("store"),
            runtime: directory.path().join("run"),
            accel: Accel::default(),
            confine: Confine::Default,
            qemu: "qemu-system-x86_64".into(),
            search_path: OsString::new(),
            lock_wait: Duration::ZERO,
        };
        let context = Context::open(settings, Box::new(Silent), "test").expect("a store");
        let [base, middle, top, loose, trashed] = [(); 5].map(|()| Layer::new(Format::Qcow2));
        let (raw, memory, name) =
            (Layer::new(Format::Raw), RamImage::new(true), "vm".parse().expect("a name"));
        let bench =
            Self { directory, context, name, base, middle, top, loose, raw, trashed, memory };
        bench.fill();
        bench
    }

    fn store(&self) -> &Store {
        &self.context.store
    }

    fn fill(&self) {
        let store = self.store();
        store.prepare().expect("a store");
        let pairs =
            [(&self.base, None), (&self.middle, Some(&self.base)), (&self.top, Some(&self.middle))];
        for (layer, backing) in
            pairs.into_iter().chain([(&self.loose, None), (&self.trashed, Some(&self.base))])
        {
            create::empty(store, layer, backing, 1 << 20).expect("a layer");
        }
        let raw = store.layout.layer(&self.raw);
        std::fs::write(&raw, [7; 4096]).expect("a layer");
        std::fs::set_permissions(&raw, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
        [&self.base, &self.middle].into_iter().for_each(|layer| sealed::note(store, layer));
        make_directory(&store.layout.vm(&self.name)).expect("a directory");
        make_directory(&store.layout.rams()).expect("a directory");
        let layout = &store.layout;
        for path in [
            layout.partial_ram(&self.memory),
            layout.whole_ram(&self.memory),
            layout.ram(&self.memory),
        ] {
            std::fs::write(path, "memory").expect("a file");
        }
        std::fs::write(self.outside(), [5; 1 << 16]).expect("a file");
        store.save(&self.name, &record("before")).expect("a record");
        let entry = Entry::new(trash::Kind::Revert, &self.name, "test").of(&record("before"));
        let trash = store.open_trash(TRASH, &entry).expect("trash");
        store.trash_layer(&trash, &self.trashed).expect("trash");
    }

    /// A file of the user's, outside the store.
    fn outside(&self) -> PathBuf {
        self.directory.path().join("disk.raw")
    }

    fn look(&self) -> Files {
        let mut files = Files::new();
        list(self.directory.path(), &mut files);
        files
    }

    fn run<T, F: AsyncFnOnce(&mut Run<'_>) -> T>(&self, work: F) -> T {
        let mut run = Run::with_no_qemu(&self.context, &self.name);
        wait(work(&mut run))
    }

    fn apply(&self, step: &Planned) {
        self.run(async |run| step.apply(run).await)
            .unwrap_or_else(|error| panic!("{step:?}: {}", error.full_message()));
    }

    fn undo(&self, step: &Planned) {
        self.run(async |run| step.undo(run).await)
            .unwrap_or_else(|error| panic!("{step:?}: {}", error.full_message()));
    }

    /// Does one of the things that `touches` names cover this file?
    fn covers(&self, touches: &Touches, path: &Path) -> bool {
        let layout = &self.store().layout;
        let mut layers = touches.changes.iter().chain(&touches.makes);
        let of_record = [layout.vm_json(&self.name), layout.spare_json(&self.name)];
        let in_trash = |directory: &String| path.starts_with(layout.trash().join(directory));
        let is_of = |image: &&crate::model::LayerId| {
            path.parent() == Some(&layout.rams())
                && path
                    .file_name()
                    .is_some_and(|name| name.as_bytes().starts_with(image.as_str().as_bytes()))
        };
        layers.any(|layer| path == layout.layer(layer) || path == layout.partial_layer(layer))
            || touches.images.iter().any(|image| is_of(&image))
            || touches.trash.as_ref().is_some_and(in_trash)
            || (touches.writes_record && of_record.iter().any(|of_record| path == of_record))
    }
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}

fn record(role: &str) -> Record {
    let text = include_bytes!("../../tests/fixtures/vm-v1.json");
    let mut record = schema::parse_record(text).expect("a record");
    record.config.tags.insert("role".to_owned(), role.to_owned());
    record
}

/// A file: all that a step may change of it.
#[derive(Debug, Clone, PartialEq)]
struct Look {
    content: Vec<u8>,
    mode: u32,
    notes: Vec<Option<Vec<u8>>>,
    /// Its inode, and when it was written to.
    identity: (u64, i64, i64),
}

type Files = BTreeMap<PathBuf, Look>;

fn list(directory: &Path, files: &mut Files) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let about = path.symlink_metadata().expect("it is there");
        let mut look = Look {
            content: Vec::new(),
            mode: about.mode(),
            notes: Vec::new(),
            identity: (about.ino(), 0, 0),
        };
        if about.is_dir() {
            list(&path, files);
        } else {
            look.identity = (about.ino(), about.mtime(), about.mtime_nsec());
            look.notes = ["user.cowhand.backing", "user.cowhand.sealed"]
                .map(|name| note(&path, name))
                .to_vec();
            look.content = match about.is_symlink() {
                true => std::fs::read_link(&path).expect("a link").as_os_str().as_bytes().to_vec(),
                false => std::fs::read(&path).expect("a file"),
            };
        }
        files.insert(path, look);
    }
}

fn note(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut bytes = [0_u8; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut bytes[..]).ok()?;
    Some(bytes[..length].to_vec())
}

/// The paths that are not what they were.
fn changed(before: &Files, after: &Files) -> Vec<PathBuf> {
    let all = before.keys().chain(after.keys().filter(|path| !before.contains_key(*path)));
    all.filter(|path| before.get(*path) != after.get(*path)).cloned().collect()
}

/// The same without inodes and times, for what is written anew.
fn contents(files: &Files) -> Files {
    let look = |look: &Look| Look { identity: (0, 0, 0), ..look.clone() };
    files.iter().map(|(path, file)| (path.clone(), look(file))).collect()
}

/// How a step is made on a bench.
type Make = fn(&Bench) -> Planned;

fn mode(layers: &[&Layer], before: u32, mode: u32) -> Planned {
    let layers: Vec<Layer> = layers.iter().copied().cloned().collect();
    SetMode { before: vec![before; layers.len()], layers, mode }.into()
}

fn new() -> Layer {
    Layer::new(Format::Qcow2)
}

/// Steps that come before the pivot of a plan, so that they can be undone.
const UNDOABLE: &[(&str, Make)] = &[
    ("an overlay", |on| {
        CreateOverlay { layer: new(), backing: Some(on.top.clone()), virtual_bytes: 1 << 20 }.into()
    }),
    ("an empty layer", |_| {
        CreateOverlay { layer: new(), backing: None, virtual_bytes: 1 << 20 }.into()
    }),
    ("a copy of a file", |on| {
        CopyFile { from: on.outside(), id: None, layer: Layer::new(Format::Raw), backing: None }
            .into()
    }),
    ("a file as a qcow2", |on| WrapFile { from: on.outside(), layer: new() }.into()),
    ("a copy of a layer", |on| CopyChain { source: on.base.clone(), layer: new() }.into()),
    ("a file in its place", |on| {
        LinkFile { file: on.outside(), layer: Layer::new(Format::Raw) }.into()
    }),
    ("layers that are only read", |on| mode(&[&on.top, &on.loose, &on.raw], 0o600, 0o400)),
    ("layers out of the trash", |on| {
        let below = vec![stamp::of(on.store(), &on.base).expect("it is there")];
        RestoreLayers { directory: TRASH.to_owned(), layers: vec![on.trashed.clone()], below }
            .into()
    }),
];

/// Steps that are a pivot, or come after one.
const FINAL: &[(&str, Make)] = &[
    ("layers that are written again", |on| {
        let path = on.store().layout.layer(&on.top);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o400)).expect("it is ours");
        mode(&[&on.top], 0o400, 0o600)
    }),
    ("a disk that has the size", |on| {
        Resize { target: "vda".to_owned(), layer: on.top.clone(), before: 1 << 19, after: 1 << 20 }
            .into()
    }),
    ("a stream that was done", |on| {
        let merge = Merge::pair("vda", MergeKind::Stream, &on.top, &on.loose, 0);
        MergeLayers { merges: vec![Merge { below: Some(on.middle.clone()), ..merge }] }.into()
    }),
    ("layers that are removed", |on| {
        std::fs::write(on.store().layout.partial_layer(&on.loose), "half").expect("a file");
        RemoveLayers { layers: vec![on.top.clone(), on.loose.clone(), on.raw.clone()] }.into()
    }),
    ("memory that is removed", |on| RemoveMemory { images: vec![on.memory.clone()] }.into()),
    ("a record", |_| WriteRecord::of(&record("after")).into()),
    ("the first record", |on| {
        std::fs::remove_file(on.store().layout.vm_json(&on.name)).expect("it is there");
        std::fs::remove_file(on.store().layout.spare_json(&on.name)).expect("it is there");
        WriteRecord::of(&record("after")).into()
    }),
    ("layers into the trash", |on| {
        let layers = vec![on.top.clone(), on.loose.clone()];
        TrashLayers::of(&record("before"), NEW_TRASH.to_owned(), trash::Kind::Revert, layers, None)
            .into()
    }),
    ("layers into trash that is there", |on| {
        TrashLayers::of(
            &record("before"),
            TRASH.to_owned(),
            trash::Kind::Revert,
            vec![on.top.clone()],
            None,
        )
        .into()
    }),
    ("trash that is empty", |on| {
        let trash = on.store().layout.trash().join(TRASH);
        on.store().restore_layer(&trash, &on.trashed).expect("it is there");
        DropTrash { directory: TRASH.to_owned() }.into()
    }),
    ("trash with a layer in it", |_| DropTrash { directory: TRASH.to_owned() }.into()),
    ("a QEMU that does not run", |_| StopQemu {}.into()),
    ("a guest that does not run", |_| Resume {}.into()),
];

/// Steps that find nothing to do in [`Bench`].
const IDLE: &[&str] =
    &["a disk that has the size", "a QEMU that does not run", "a guest that does not run"];

#[test]
fn a_step_changes_nothing_but_what_it_says_that_it_touches() {
    for (what, make) in UNDOABLE.iter().chain(FINAL) {
        let bench = Bench::new();
        let step = make(&bench);
        let before = bench.look();
        bench.apply(&step);
        let after = bench.look();
        let (changed, touches) = (changed(&before, &after), step.touches());
        assert_eq!(changed.is_empty(), IDLE.contains(what), "{what}: {changed:?}");
        let missing: Vec<_> = changed.iter().filter(|path| !bench.covers(&touches, path)).collect();
        assert!(missing.is_empty(), "{what}: {step:?} changes {missing:?}, and says nothing of it");
        bench.apply(&step);
        assert_eq!(contents(&bench.look()), contents(&after), "{what}, applied again");
    }
}

#[test]
fn a_step_that_is_undone_leaves_everything_as_it_was() {
    for (what, make) in UNDOABLE {
        let bench = Bench::new();
        let step = make(&bench);
        let before = bench.look();
        bench.undo(&step);
        assert_eq!(
            changed(&before, &bench.look()),
            Vec::<PathBuf>::new(),
            "{what}, which never happened"
        );
        bench.apply(&step);
        for _ in 0..2 {
            bench.undo(&step);
            assert_eq!(changed(&before, &bench.look()), Vec::<PathBuf>::new(), "{what}, undone");
        }
        // It was cut short: a layer that is made is not whole.
        if let Some(layer) = step.touches().makes {
            std::fs::write(bench.store().layout.partial_layer(&layer), "half").expect("a file");
        }
        bench.undo(&step);
        assert_eq!(changed(&before, &bench.look()), Vec::<PathBuf>::new(), "{what}, half done");
    }
}
