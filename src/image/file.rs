//! Image files: looked at, checked and converted wherever they lie, and made of a point of a VM.
//! Nothing here changes the store.
//!
//! A file a user names may come from anybody: it is inspected before QEMU's programs see it, and
//! these run in a cage (`layer/foreign`, `sys/cage`). A file that names other files is refused,
//! unless the user asks for these.

mod progress;
mod write;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::change::OpenVm;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::layer::foreign::rule::{Ask, Spelling};
use crate::layer::foreign::{self, chain as chains};
use crate::layer::inspect::{self, Reference, Role};
use crate::layer::{chain, import, opened};
use crate::model::{Disk, Format, Layer, PointRef};
use crate::qemu::img::{Checked, Img, Info, Inside, Repair, Source};
use crate::sys::cage::Held;
use crate::sys::image_lock;
use crate::vm::list;
use write::{Origin, write};
pub use write::{Target, Written, check_target};

/// What is known of an image without opening any file it names, with its internal snapshots.
pub async fn info(context: &Context, path: &Path, format: Option<Format>) -> Result<Seen> {
    let file = foreign::look(&option(path, format))?;
    file.refuse_unusable()?;
    let names: Vec<Reference> = file.inspection.names.clone();
    let info = match names.is_empty() {
        true => {
            let path = file.held.path();
            Img::find(context)?
                .holding([&file.held])
                .info(&path, Source::alone(&path, file.format))
                .await?
        }
        // No program of QEMU's sees it: it would open these files.
        false => Info {
            format: file.format.to_string(),
            virtual_bytes: file.inspection.virtual_bytes,
            allocated_bytes: file
                .held
                .path()
                .metadata()
                .map(|about| about.blocks() * 512)
                .on("read", &file.path)?,
            backing: names
                .iter()
                .find(|name| name.role == Role::Backing)
                .and_then(|name| name.name.clone()),
            backing_format: file.inspection.backing_format.clone(),
            snapshots: Vec::new(),
            encrypted: file.inspection.encrypted,
        },
    };
    Ok(Seen { info, variant: file.inspection.variant, names })
}

/// An image that was looked at.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What `qemu-img info` says; of an image that names other files, what its headers say.
    pub info: Info,
    /// The variant of its format.
    pub variant: Option<String>,
    /// The other files it names. They were not opened.
    pub names: Vec<Reference>,
}

/// Checks an image; with `repair`, puts right what can be.
/// `None`: the format (raw, vpc) has nothing that could be checked.
pub async fn check(
    context: &Context,
    path: &Path,
    format: Option<Format>,
    repair: bool,
) -> Result<(Format, Option<Checked>)> {
    let file = foreign::look(&option(path, format))?;
    file.refuse_references()?;
    let in_use = image_lock::is_written_to(&file.held.path()).on("look at the locks of", path)?;
    if repair && in_use {
        return Err(Error::refused(format!(
            "{} is in use: a running QEMU writes to it",
            path.display()
        )));
    }
    if !file.format.can_be_checked() {
        return Ok((file.format, None));
    }
    let path = file.held.path();
    let source = Source::alone(&path, file.format);
    let repair = if repair { Repair::All } else { Repair::Nothing };
    let checked =
        Img::find(context)?.holding([&file.held]).check(&path, source, in_use, repair).await?;
    Ok((file.format, Some(checked)))
}

fn option(path: &Path, said: Option<Format>) -> Ask<'_> {
    Ask { path, said, spelling: Spelling::Option }
}

/// Converts an image into a new file. With `within`, the files it names are used, too: those beside
/// it, and those below these directories; each is inspected and listed before.
pub async fn convert(
    context: &Context,
    from: &Path,
    format: Option<Format>,
    within: Option<&[PathBuf]>,
    to: &Target,
) -> Result<Written> {
    let file = foreign::look(&option(from, format))?;
    let tree = match within {
        Some(within) => chains::resolve(file, within)?,
        None => {
            file.refuse_references()?;
            chains::resolve(file, &[])?
        }
    };
    let held = tree.held();
    for (file, held) in tree.files().iter().zip(&held) {
        if image_lock::is_written_to(&held.path()).on("look at the locks of", file)? {
            return Err(Error::refused(format!(
                "{} is in use: a running QEMU writes to it",
                file.display()
            ))
            .hint("if it belongs to a VM of the store: cowhand image export VM@SNAPSHOT FILE"));
        }
    }
    import::tell(context, &tree);
    let scratch = tempfile::tempdir()
        .map_err(|error| Error::failed("cannot make a directory").because(error))?;
    let node = tree.node(scratch.path())?;
    let from = Origin {
        path: scratch.path(),
        source: Source::Node(node),
        virtual_bytes: tree.image.inspection.virtual_bytes,
        others: Vec::new(),
        held: held.iter().collect(),
        within: None,
    };
    write(context, from, to).await
}

/// Converts an overlay of our own on `below`, which has been inspected, into a new file.
pub async fn convert_overlay(
    context: &Context,
    overlay: &Path,
    (below, below_format): (&Held, Format),
    to: &Target,
) -> Result<Written> {
    let file = |path: &Path| json!({"driver": "file", "filename": path.to_string_lossy()});
    let mut base = json!({"driver": below_format.as_str(), "file": file(&below.path())});
    if matches!(below_format, Format::Qcow2 | Format::Vmdk) {
        base["backing"] = Value::Null;
    }
    let node = json!({"driver": "qcow2", "file": file(overlay), "backing": base});
    let opened = File::open(overlay).on("open", overlay)?;
    let virtual_bytes = inspect::inspect(&opened, Format::Qcow2).on("read", overlay)?.virtual_bytes;
    let source = Source::Node(node);
    let from = Origin {
        path: overlay,
        source,
        virtual_bytes,
        others: Vec::new(),
        held: vec![below],
        within: None,
    };
    write(context, from, to).await
}

/// Flattens one disk of a point into a file, also while the VM runs.
pub async fn export(
    context: &Context,
    point: &PointRef,
    target: Option<&str>,
    to: &Target,
) -> Result<Written> {
    let vm = &point.vm;
    // Keeps the layers from being merged meanwhile.
    let opened = OpenVm::open(context, vm).await?;
    let record = &opened.record;
    let (config, tag) = match &point.snapshot {
        Some(name) => {
            let snapshot = record.snapshot(vm, name)?;
            (&snapshot.config, snapshot.tag())
        }
        None if opened.is_running()? => {
            return Err(Error::refused(format!(
                "{vm} is running: its disks change while they would \
                 be written out"
            ))
            .hint(format!(
                "export a snapshot: cowhand snapshot create {vm} NOW && cowhand image export \
                 {vm}@NOW FILE"
            )));
        }
        None => (&record.config, None),
    };
    let disk: &Disk = match (target, &config.disks[..]) {
        (Some(target), _) => list::disk_of(vm, config, target)?,
        (None, [disk]) => disk,
        (None, []) => return Err(Error::refused(format!("{point} has no disk"))),
        (None, many) => {
            let names: Vec<&str> = many.iter().map(|disk| disk.target.as_str()).collect();
            return Err(Error::usage(format!(
                "{point} has {} disks, and a file holds one",
                many.len()
            ))
            .hint(format!("say which: --disk {}", names.join(" or --disk "))));
        }
    };
    export_disk(context, Of { disk, tag }, to).await
}

/// A disk of a VM, or what an internal snapshot of it holds.
#[derive(Debug, Clone, Copy)]
pub struct Of<'a> {
    /// The disk.
    pub disk: &'a Disk,
    /// The tag of the snapshot.
    pub tag: Option<&'a str>,
}

/// Flattens a disk of a VM, whose lock the caller holds, into a file.
pub async fn export_disk(
    context: &Context,
    Of { disk, tag }: Of<'_>,
    to: &Target,
) -> Result<Written> {
    let layer: &Layer = &disk.layer;
    let chain = chain::whole(&context.store, layer)?;
    let (mut others, mut in_place) = (Vec::new(), Vec::new());
    for link in chain.links() {
        match opened::open(&context.store, &link.layer)?.in_place {
            // Whatever is put in its place meanwhile is not read.
            Some(pinned) => in_place.push(pinned.held()?),
            None => others.push(link.path.clone()),
        }
    }
    let alone = others.is_empty() && in_place.len() == 1;
    let path = &if alone { in_place[0].path() } else { context.store.layout.layer(layer) };
    let from = Origin {
        path,
        source: if alone {
            Source::alone(path, layer.format)
        } else {
            Source::File(path, layer.format)
        },
        virtual_bytes: chain.active().virtual_bytes.max(disk.virtual_bytes),
        others,
        held: in_place.iter().collect(),
        // A snapshot is not inside what the guest only reads.
        within: tag
            .filter(|_| !disk.read_only)
            .map(|tag| (Inside { tag, virtual_bytes: disk.virtual_bytes }, layer.format)),
    };
    write(context, from, to).await
}
