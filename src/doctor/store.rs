//! The store as a whole: may it be written, do locks work, is there room, is it private, what lies
//! around in it?

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Finding, Remedy, permissions};
use crate::context::Context;
use crate::error::{IoContext, Result};
use crate::model::{Layer, Name, Record, human};
use crate::seal::pending;
use crate::store::trash::Found;
use crate::store::{Store, plain};
use crate::sys::{flock, space};

/// Less free space than this is worth a warning, in bytes, where it is less than a fifth.
const LITTLE: u64 = 1 << 30;
/// With less than this, and less than a tenth, a guest that writes is about to stop.
const NOTHING: u64 = 64 << 20;
/// Fewer files than this can be made.
const FEW_FILES: u64 = 1000;
/// A temporary file that nobody has touched for so long has no writer any more.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Looks at the store without looking into it.
pub(super) fn examine(context: &Context) -> Result<Vec<Finding>> {
    let store = &context.store;
    let root = store.layout.root();
    if !plain::is_there(&store.layout.store_json()) {
        return Ok(vec![match layout_is_used(store) {
            true => Finding::fail(
                "store",
                format!("{} is missing", store.layout.store_json().display()),
            )
            .hint("cowhand doctor --repair    writes it anew")
            .remedy(Some(Remedy::WriteStoreFile)),
            false => {
                Finding::warn("store", format!("there is no store at {} (yet)", root.display()))
                    .hint("the first VM makes it; another one: --store DIR, COWHAND_STORE")
            }
        }]);
    }
    let mut findings = Vec::new();
    match store.check_identity() {
        Ok(()) => findings.push(Finding::ok("store", root.display().to_string())),
        Err(error) if error.is_newer() => findings.push(
            Finding::fail("store", error.full_message())
                .hint("use that version; nothing is changed by this one"),
        ),
        Err(error) => findings.push(
            Finding::fail("store", error.full_message())
                .hint("cowhand doctor --repair    writes it anew")
                .remedy(Some(Remedy::WriteStoreFile)),
        ),
    }
    findings.extend(misplaced(store));
    let unmounted = unmounted(store);
    if !unmounted.is_empty() {
        findings.extend(unmounted);
        return Ok(findings);
    }
    findings.extend(locks(root));
    findings.push(room(root)?);
    findings.extend(permissions::examine(context)?);
    findings.extend(temporary(store)?);
    findings.extend(sealing(store)?);
    findings.extend(store.look_at_clock().map(|ahead| {
        Finding::warn("clock", ahead.to_string()).hint(
            "nothing is removed for its age or date until you say that the clock is right: \
             cowhand gc --yes",
        )
    }));
    let trash = store.list_trash()?;
    let records = store.records()?;
    for found in &trash {
        findings.extend(anothers(&records, found));
    }
    for found in &trash {
        let Some(why) = found.fault() else { continue };
        let finding = Finding::warn(
            "trash",
            format!("what is in {} cannot be taken back: {why}", found.path.display()),
        );
        findings.push(finding.hint(match found.is_newer() {
            true => "use that version; nothing is changed by this one",
            false => {
                "put its entry.json right by hand; gc removes the directory once it is older \
                 than 7 days"
            }
        }));
    }
    let trash: u64 = trash.iter().map(|found| found.bytes).sum();
    if trash > 0 {
        findings.push(
            Finding::info("trash", format!("{} are in the trash, for undo", human(trash)))
                .hint("cowhand gc    empties it of what is older than 7 days"),
        );
    }
    Ok(findings)
}

/// The directories of the store that are not there, or in whose place another one is.
fn unmounted(store: &Store) -> Vec<Finding> {
    let directories = store.may_be_mounted();
    let errors = directories.iter().filter_map(|path| store.refuse_unmarked(path).err());
    errors
        .map(|error| Finding::fail("store", error.message()).hint(error.hints().join("; ")))
        .collect()
}

/// An entry of the trash that names what a VM or template has: taking it back is refused.
fn anothers(records: &[(Name, Record)], found: &Found) -> Option<Finding> {
    let entry = found.entry.as_ref().ok()?;
    let is_named = |layer: &Layer| {
        let others = records
            .iter()
            .filter(|(_, record)| entry.uuid().is_some_and(|uuid| uuid != record.uuid));
        others.into_iter().find(|(_, record)| record.layers().any(|named| named == layer))
    };
    let (layer, owner) =
        entry.layers.iter().find_map(|layer| Some((layer, &is_named(layer)?.0)))?;
    let about = format!(
        "what is in {} cannot be taken back: its entry.json names layer {layer}, which belongs to \
         {owner}",
        found.path.display()
    );
    Some(Finding::warn("trash", about).hint(format!(
        "take {layer} out of its list of layers by hand; gc removes the directory once it is older \
         than 7 days"
    )))
}

/// What lies in the place of a file or a directory of the store's own, and is none.
fn misplaced(store: &Store) -> Vec<Finding> {
    let layout = &store.layout;
    let mut places = vec![
        ("locks", layout.store_lock()),
        ("clock", layout.clock()),
        ("qemu", layout.probe_cache()),
        ("space", layout.reserve()),
        ("sealing", layout.sealing()),
        ("memory", layout.rams()),
        ("locks", layout.slots()),
    ];
    for (check, directory) in [("locks", layout.slots()), ("memory", layout.rams())] {
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        places.extend(files.map(|file| (check, file.path())));
    }
    places.into_iter().filter_map(|(check, path)| of_misplaced(store, check, path)).collect()
}

/// What is said of what lies in the place of a file, and is none; or in that of a directory.
pub(super) fn of_misplaced(store: &Store, check: &'static str, path: PathBuf) -> Option<Finding> {
    let finding = Finding::fail(check, what_is_misplaced(store, &path)?);
    Some(
        finding
            .hint("cowhand doctor --repair    moves it into the trash")
            .remedy(Some(Remedy::SetAside(path))),
    )
}

/// What is wrong with what lies at `path`, if it is of another kind than what belongs there.
pub(super) fn what_is_misplaced(store: &Store, path: &Path) -> Option<String> {
    let layout = &store.layout;
    if ![layout.sealing(), layout.rams(), layout.slots()].iter().any(|directory| directory == path)
    {
        return plain::damage(path).map(|damage| damage.message().to_owned());
    }
    (plain::is_there(path) && !path.is_dir())
        .then(|| format!("{} is not a directory", path.display()))
}

/// Are there VMs?
fn layout_is_used(store: &Store) -> bool {
    store.directories().is_ok_and(|names| !names.is_empty())
}

/// Two descriptors of one file must not have its lock at once. On a file system where they can,
/// nothing here is safe.
fn locks(root: &Path) -> Option<Finding> {
    let file = match tempfile::Builder::new().prefix(".").suffix(".tmp").tempfile_in(root) {
        Ok(file) => file,
        Err(error) => {
            return Some(
                Finding::warn("store", format!("the store cannot be written: {error}"))
                    .hint("VMs can be looked at; nothing can be changed or started"),
            );
        }
    };
    let other = File::open(file.path());
    let held = flock::try_exclusive(file.as_file()).and_then(|_| flock::try_exclusive(&other?));
    match held {
        Ok(false) => Some(Finding::ok("locks", "flock works on its file system")),
        Ok(true) => Some(
            Finding::fail(
                "locks",
                "flock has no effect on the store's file system: two commands could change a VM at \
                 once",
            )
            .hint("move the store to a local file system"),
        ),
        Err(error) => Some(
            Finding::fail(
                "locks",
                format!(
                    "flock does not work on the store's file system: \
                     {error}"
                ),
            )
            .hint("move the store to a local file system"),
        ),
    }
}

fn room(root: &Path) -> Result<Finding> {
    let free = space::free(root).on("look at", root)?;
    let (total, files) = space::size(root).on("look at", root)?;
    let about = format!("{} of {} are free", human(free), human(total));
    let hint =
        "make room: cowhand gc --older-than 0 empties the trash; what takes room: cowhand ls -a";
    let below = |bytes, percent| free < bytes && free < total / 100 * percent;
    if below(NOTHING, 10) {
        return Ok(Finding::fail("space", format!("{about}: guests that write will be stopped"))
            .hint(hint));
    }
    if let Some(files @ ..FEW_FILES) = files {
        let about = format!("{about}, but only {files} more files can be made");
        return Ok(Finding::warn("space", about).hint(hint));
    }
    Ok(match below(LITTLE, 20) || below(u64::MAX, 5) {
        true => Finding::warn("space", about).hint(hint),
        false => Finding::ok("space", about),
    })
}

/// Files that were to be renamed into their place, and whose writer has died.
fn temporary(store: &Store) -> Result<Vec<Finding>> {
    let layout = &store.layout;
    let mut directories = vec![layout.root().to_path_buf()];
    directories.extend(store.directories()?.iter().map(|name| layout.vm(name)));
    let forgotten = |about: Metadata| {
        about
            .modified()
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok())
            .is_some_and(|age| age > FORGOTTEN)
    };
    let mut findings = Vec::new();
    for entry in directories
        .iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') && name.ends_with(".tmp") && entry.metadata().is_ok_and(forgotten)
        {
            let path = entry.path();
            findings.push(
                Finding::info("leftovers", format!("{} was never finished", path.display()))
                    .hint("cowhand doctor --repair    removes it")
                    .remedy(Some(Remedy::RemoveTemporary(path))),
            );
        }
    }
    Ok(findings)
}

/// What a `seal` of image files has left that was cut short.
fn sealing(store: &Store) -> Result<Vec<Finding>> {
    let finding = |left: pending::Left| {
        let (directory, size) = (left.directory.display(), human(left.bytes));
        let disks: Vec<String> = left.disks.iter().map(|disk| disk.display().to_string()).collect();
        let disks = disks.join(" ");
        match (left.started, disks.is_empty()) {
            (true, true) => Finding::warn(
                "sealing",
                format!(
                    "the order in {directory} cannot be \
                     read"
                ),
            )
            .hint(format!(
                "let the version that wrote it complete the `seal`; to forget it: rm \
                 -r {directory}    its disks may be sealed in part"
            )),
            (true, false) => Finding::warn(
                "sealing",
                format!(
                    "a `seal` of {disks} was cut short \
                     while it wrote to them"
                ),
            )
            .hint(format!("cowhand seal {disks}    completes it")),
            (false, false) => Finding::info(
                "sealing",
                format!(
                    "a `seal` of {disks} was cut short \
                     before it wrote to them ({size})"
                ),
            )
            .hint(format!(
                "cowhand seal {disks}    completes it; gc forgets it when it is \
                 older than 7 days"
            )),
            (false, true) => Finding::info(
                "leftovers",
                format!(
                    "{directory} is left of a `seal` \
                     that was cut short ({size})"
                ),
            )
            .hint("cowhand gc    removes it"),
        }
    };
    Ok(pending::left(store)?.into_iter().map(finding).collect())
}
