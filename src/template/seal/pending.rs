//! What is between "all of it worked" and "all of it is in the disks": overlays that have to be committed into bare image files, all or none.
//!
//! ```text
//! sealing/ID/: overlays written ─▶ ORDER ─▶ "started" ─▶ commits ─▶ order removed ─▶ overlays removed
//! cut short:   counts for nothing  carried on by the next `seal` that names all of its disks
//! ```
//! Everything lies in the store, which is its owner's alone. Nothing beside an image is read: a directory with images may belong to another user.
//! An order notes what the disks looked like, and is carried out on files that this command was given and has open, never on a path that it
//! names itself. Until the commits have started the disks must not have changed; afterwards they must at least be the same files.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::file::{base_nodes, overlay_nodes};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::model::{Format, human, printable};
use crate::qemu::offline::Offline;
use crate::qemu::qmp::jobs::Milestone;
use crate::store::{Store, atomic, make_directory};
use crate::sys::files::{self, Pinned};
use crate::sys::{fault, flock, space};

/// The version of an order that is written today.
const SCHEMA: u32 = 1;
/// The name of an order in its directory.
const ORDER: &str = "order.json";
/// The most bytes an order may have: some thousand disks.
const LONGEST: u64 = 1 << 20;

/// Disks, and what they looked like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Order {
    schema: u32,
    /// Some of it may be in the disks.
    started: bool,
    /// The overlay of each is called after its place in this list.
    disks: Vec<Stamped>,
}

/// A disk, and what it looked like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamped {
    path: PathBuf,
    format: Format,
    device: u64,
    inode: u64,
    /// Nanoseconds since 1970, where the file system notes it: an inode is used again when its file is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    born: Option<u128>,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamped {
    fn of(path: &Path, format: Format, about: &Metadata) -> Self {
        let born = about.created().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        Self {
            path: path.to_owned(),
            format,
            device: about.dev(),
            inode: about.ino(),
            born: born.map(|since| since.as_nanos()),
            bytes: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
        }
    }

    /// Is it the same file? The number of a device may be another after a boot.
    fn is_same(&self, other: &Self) -> bool {
        let born = (self.born.is_some() && other.born.is_some()).then_some(self.born == other.born);
        let placed = self.device == other.device || (self.path == other.path && born == Some(true));
        self.inode == other.inode && placed && born != Some(false)
    }

    /// Is it what it was?
    fn is_unchanged(&self, now: &Self) -> bool {
        (self.bytes, self.modified) == (now.bytes, now.modified)
    }
}

/// A disk of this command's.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// The file, open.
    pub file: &'a Pinned,
    /// Its format.
    pub format: Format,
}

impl Given<'_> {
    fn stamp(&self) -> Result<Stamped> {
        let about = self.file.file.metadata().on("look at", &self.file.path)?;
        Ok(Stamped::of(&self.file.path, self.format, &about))
    }
}

/// A directory in the store for the overlays of one command. It goes with this, unless an order was given in it.
#[derive(Debug)]
pub struct Work {
    directory: PathBuf,
    /// Says that a command is at work in it.
    _lock: File,
    keep: bool,
}

impl Work {
    /// A new one. What commands have left that died before they gave an order is removed.
    pub fn begin(context: &Context) -> Result<Self> {
        let store = &context.store;
        store.prepare()?;
        let all = store.layout.sealing();
        make_directory(&all)?;
        // So that no directory is seen that is made, and not yet locked.
        let guard = files::open_directory(&all).on("open", &all)?;
        flock::exclusive(&guard).on("lock", &all)?;
        for found in found(store)? {
            if found.order.is_none() && !found.is_damaged {
                remove(&found.directory)?;
            }
        }
        let directory = all.join(Uuid::new_v4().simple().to_string());
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .create(&directory)
            .on("create", &directory)?;
        let lock = files::open_directory(&directory).on("open", &directory)?;
        // Who looks around may have it for a moment.
        flock::exclusive(&lock).on("lock", &directory)?;
        Ok(Self { directory, _lock: lock, keep: false })
    }

    /// The overlay of the disk with this number.
    pub fn overlay(&self, number: usize) -> PathBuf {
        overlay(&self.directory, number)
    }

    /// A file of another name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Notes that the overlays of these disks are done, and commits them: from here on they are carried on. Refused while nothing has happened when a disk's file
    /// system may have no room for what its overlay holds.
    pub async fn commit(mut self, context: &Context, disks: &[Given<'_>]) -> Result<()> {
        let overlays: Vec<PathBuf> = (0..disks.len()).map(|number| self.overlay(number)).collect();
        for overlay in &overlays {
            File::open(overlay).and_then(|file| file.sync_all()).on("flush", overlay)?;
        }
        refuse_full(disks, &overlays)?;
        let order =
            Order { schema: SCHEMA, started: false, disks: disks.iter().map(Given::stamp).collect::<Result<_>>()? };
        atomic::sync_directory(&context.store.layout.sealing())?;
        order.write(&self.directory)?;
        self.keep = true;
        order.carry_out(context, &self.directory, disks).await
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.keep {
            let _ = remove(&self.directory);
        }
    }
}

fn overlay(directory: &Path, number: usize) -> PathBuf {
    directory.join(format!("{number}.qcow2"))
}

fn refuse_full(disks: &[Given<'_>], overlays: &[PathBuf]) -> Result<()> {
    let mut needed: BTreeMap<u64, (u64, &Path)> = BTreeMap::new();
    for (disk, overlay) in disks.iter().zip(overlays) {
        let device = disk.file.file.metadata().on("look at", &disk.file.path)?.dev();
        let bytes = std::fs::metadata(overlay).on("look at", overlay)?.blocks() * 512;
        needed.entry(device).or_insert((0, &disk.file.path)).0 += bytes;
    }
    for (bytes, path) in needed.into_values() {
        let free = space::free(path.parent().unwrap_or(path)).on("look at the file system of", path)?;
        if free < bytes {
            return Err(Error::refused(format!(
                "the file system of {} may have no room for what is to be written ({} are free, {} were changed); nothing was changed",
                path.display(),
                human(free),
                human(bytes)
            ))
            .hint(crate::error::MAKE_ROOM));
        }
    }
    Ok(())
}

/// A directory of an earlier command, which is not at work any more.
#[derive(Debug)]
struct Found {
    directory: PathBuf,
    /// Nobody else takes it meanwhile.
    _lock: File,
    order: Option<Order>,
    /// There is an order that cannot be read.
    is_damaged: bool,
    age: Duration,
    bytes: u64,
}

/// Is there no such directory?
fn is_none(error: &std::io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].contains(&errno))
}

/// The directories of commands, at work or not.
fn directories(store: &Store) -> Result<Vec<PathBuf>> {
    let all = store.layout.sealing();
    let entries = match std::fs::read_dir(&all) {
        // Of what is no directory `doctor` tells.
        Err(error) if is_none(&error) => return Ok(Vec::new()),
        other => other.on("list", &all)?,
    };
    let mut directories = Vec::new();
    for entry in entries {
        let entry = entry.on("list", &all)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            directories.push(entry.path());
        }
    }
    directories.sort();
    Ok(directories)
}

/// What earlier commands have left. One that is at work keeps its directory to itself.
fn found(store: &Store) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for directory in directories(store)? {
        let lock = match files::open_directory(&directory) {
            // It has just come to its end.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.on("open", &directory)?,
        };
        if !flock::try_exclusive(&lock).on("lock", &directory)?
            || !flock::is_still_at(&lock, &directory).unwrap_or(false)
        {
            continue;
        }
        let order = read(&directory.join(ORDER));
        let inside = std::fs::read_dir(&directory).into_iter().flatten().flatten();
        let age = lock.metadata().and_then(|about| about.modified()).ok().and_then(|time| time.elapsed().ok());
        found.push(Found {
            bytes: inside.filter_map(|file| file.metadata().ok()).map(|about| about.blocks() * 512).sum(),
            age: age.unwrap_or_default(),
            is_damaged: order.is_err(),
            order: order.ok().flatten(),
            directory,
            _lock: lock,
        });
    }
    Ok(found)
}

/// Reads an order. `None`: there is none. An error: it is not to be understood.
fn read(path: &Path) -> std::io::Result<Option<Order>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let about = file.metadata()?;
    if !about.is_file() || about.uid() != nix::unistd::geteuid().as_raw() || about.len() > LONGEST {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text)?;
    parse(&text).map(Some)
}

fn parse(text: &[u8]) -> std::io::Result<Order> {
    let order: Order = serde_json::from_slice(text)?;
    if order.schema != SCHEMA || order.disks.is_empty() {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    Ok(order)
}

fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).on("remove", directory),
        _ => Ok(()),
    }
}

/// Words of a command that names these disks.
fn names<'a>(paths: impl Iterator<Item = &'a Path>) -> String {
    paths.map(printable::shell).collect::<Vec<_>>().join(" ")
}

/// Carries on what earlier commands have left for these disks; with `completes` false, says what has to be done first. An order that names other disks, too, is
/// for a command that names all of them.
pub async fn carry_on(context: &Context, disks: &[Given<'_>], completes: bool) -> Result<()> {
    for directory in directories(&context.store)? {
        let concerns = match read(&directory.join(ORDER)) {
            Ok(None) => false,
            Ok(Some(order)) => order.concerns(disks)?,
            Err(_) => {
                let shown = directory.display();
                context
                    .ui
                    .warn(&format!("what an earlier `seal` has left in {shown} cannot be read; see cowhand doctor"));
                false
            }
        };
        if !concerns {
            continue;
        }
        // Whoever has it now may be another `seal` of this disk, or `doctor` who only looks: an order must not be passed over.
        let what = format!("an earlier `seal` of {}", disks[0].file.path.display());
        let Some(_lock) = context.store.lock_directory(context, &directory, &what).await? else { continue };
        let Some(order) = read(&directory.join(ORDER)).on("read", &directory)? else { continue };
        if let Some(mine) = order.matched(disks, &directory)? {
            if !completes {
                return Err(Error::refused(format!(
                    "an earlier `seal` of {} was cut short and has to be completed first",
                    order.disks[0].path.display()
                ))
                .hint(format!("seal it: cowhand seal {}", names(order.disks.iter().map(|disk| disk.path.as_path())))));
            }
            let name = order.disks[0].path.display().to_string();
            order.carry_out(context, &directory, &mine).await?;
            context.ui.note(&format!("{name}: an earlier `seal` was cut short and has been completed"));
        }
    }
    Ok(())
}

impl Order {
    fn write(&self, directory: &Path) -> Result<()> {
        let text = serde_json::to_vec(self).map_err(|error| Error::failed("cannot write an order").because(error))?;
        atomic::write(&directory.join(ORDER), &text)
    }

    /// Is it about one of these disks?
    fn concerns(&self, disks: &[Given<'_>]) -> Result<bool> {
        let now: Vec<Stamped> = disks.iter().map(Given::stamp).collect::<Result<_>>()?;
        Ok(self.disks.iter().any(|disk| now.iter().any(|now| disk.is_same(now) || disk.path == now.path)))
    }

    /// This command's disks in the order's order, if it concerns them: all of them have to be named, and to be what they were.
    fn matched<'a>(&self, disks: &[Given<'a>], directory: &Path) -> Result<Option<Vec<Given<'a>>>> {
        let now: Vec<Stamped> = disks.iter().map(Given::stamp).collect::<Result<_>>()?;
        let forget = format!("to forget that one: rm -r {}", directory.display());
        let mut mine = Vec::new();
        let mut missing = Vec::new();
        for disk in &self.disks {
            let at = now.iter().position(|now| disk.is_same(now));
            let replaced = at.is_none() && now.iter().any(|now| now.path == disk.path);
            if replaced || at.is_some_and(|at| !self.started && !disk.is_unchanged(&now[at])) {
                return Err(Error::refused(format!(
                    "an earlier `seal` of {} was cut short, and it is not the disk any more that it was then",
                    disk.path.display()
                ))
                .hint(forget));
            }
            match at {
                Some(at) => mine.push(disks[at]),
                None => missing.push(disk.path.as_path()),
            }
        }
        match (mine.is_empty(), &missing[..]) {
            (true, _) => Ok(None),
            (false, []) => Ok(Some(mine)),
            (false, [first, ..]) => Err(Error::refused(format!(
                "an earlier `seal` of {} was cut short; it writes to {} as well, which is not named here",
                mine[0].file.path.display(),
                first.display()
            ))
            .hint(format!(
                "name all of its disks: cowhand seal {}",
                names(self.disks.iter().map(|disk| disk.path.as_path()))
            ))
            .hint(forget)),
        }
    }

    /// Commits all overlays into `disks`, which are the order's. Doing it again after it was cut short does no harm: they have all of it.
    async fn carry_out(mut self, context: &Context, directory: &Path, disks: &[Given<'_>]) -> Result<()> {
        let lost = |number| {
            Error::damaged(format!("{} is missing: what was sealed is lost", overlay(directory, number).display()))
                .hint(format!("to forget it: rm -r {}", directory.display()))
        };
        if let Some(number) = (0..disks.len()).find(|number| !overlay(directory, *number).is_file()) {
            return Err(lost(number));
        }
        self.started = true;
        self.write(directory)?;
        for (number, disk) in disks.iter().enumerate() {
            fault::point("a sealed disk, about to be written").on("write", &disk.file.path)?;
            // The format is the order's: what the header says by now counts no more than before.
            commit(context, &Given { format: self.disks[number].format, ..*disk }, &overlay(directory, number)).await?;
        }
        let order = directory.join(ORDER);
        fault::point("order.json, about to go").on("remove", &order)?;
        std::fs::remove_file(&order).on("remove", &order)?;
        atomic::sync_directory(directory)?;
        fault::point("order.json, gone").on("remove", directory)?;
        remove(directory)
    }
}

async fn commit(context: &Context, disk: &Given<'_>, overlay: &Path) -> Result<()> {
    const JOB: &str = "cw-seal";
    let below = disk.file.held()?;
    let mut engine = Offline::start_on(context, &below, overlay).await?;
    let nodes = base_nodes("base", &below.path(), disk.format).into_iter();
    for node in nodes.chain(overlay_nodes("top", overlay, "base")) {
        engine.qmp.add_node(node).await?;
    }
    let task = context.ui.task(&format!("writing {}", disk.file.path.display()), 0);
    engine.qmp.call::<Value>("block-commit", json!({"job-id": JOB, "device": "top", "auto-dismiss": false})).await?;
    let job = engine.qmp.wait_for_job(JOB, Milestone::Ready, &*task).await?;
    if job.status == "ready" {
        engine.qmp.complete_job(JOB).await?;
    }
    engine.qmp.wait_for_job(JOB, Milestone::Concluded, &*task).await?;
    engine.qmp.dismiss_job(JOB).await?;
    engine.quit().await;
    disk.file.file.sync_all().on("flush", &disk.file.path)
}

/// What an earlier command has left, for those who look after the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Where.
    pub directory: PathBuf,
    /// The disks it is for; none when they are not known.
    pub disks: Vec<PathBuf>,
    /// Some of it may be in the disks: only the next `seal` of them knows how to go on.
    pub started: bool,
    /// It counts for nothing.
    pub is_waste: bool,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Everything earlier commands have left that are not at work any more.
pub fn left(store: &Store) -> Result<Vec<Left>> {
    Ok(found(store)?.into_iter().map(Left::from).collect())
}

impl From<Found> for Left {
    fn from(found: Found) -> Self {
        let started = found.is_damaged || found.order.as_ref().is_some_and(|order| order.started);
        let disks = found.order.into_iter().flat_map(|order| order.disks).map(|disk| disk.path).collect::<Vec<_>>();
        Self { is_waste: disks.is_empty() && !started, directory: found.directory, disks, started, bytes: found.bytes }
    }
}

/// Removes what counts for nothing, and what was not begun for longer than `age`. What may be in the disks in part stays.
pub fn sweep(store: &Store, age: Duration, dry_run: bool) -> Result<Vec<Left>> {
    let all = store.layout.sealing();
    let guard = match files::open_directory(&all) {
        Err(error) if is_none(&error) => return Ok(Vec::new()),
        other => other.on("open", &all)?,
    };
    flock::exclusive(&guard).on("lock", &all)?;
    let mut swept = Vec::new();
    for found in found(store)? {
        let started = found.is_damaged || found.order.as_ref().is_some_and(|order| order.started);
        if started || (found.order.is_some() && found.age < age) {
            continue;
        }
        if !dry_run {
            remove(&found.directory)?;
        }
        swept.push(found.into());
    }
    Ok(swept)
}

/// What versions before this one have left beside a disk. It is never read. Where nobody but us can have put it there, the disk may be
/// half written, and is refused; else a note says how to remove it.
pub fn refuse_old(context: &Context, disk: &Path) -> Result<()> {
    let name = disk.file_name().unwrap_or_default().to_string_lossy();
    let old: Vec<PathBuf> = ["seal.json", "sealing"]
        .map(|ending| disk.with_file_name(format!(".{name}.cowhand-{ending}")))
        .into_iter()
        .filter(|path| path.symlink_metadata().is_ok())
        .collect();
    let words = names(old.iter().map(PathBuf::as_path));
    if old.len() == 2 && old.iter().all(|path| is_ours_alone(path)) {
        return Err(Error::refused(format!(
            "a `seal` of {} by an older version was cut short, and may have written half of it",
            disk.display()
        ))
        .hint("complete it with that version; this one does not read what lies beside a disk")
        .hint(format!("or, if the disk has been replaced since: rm {words}")));
    }
    if !old.is_empty() {
        context.ui.note(&format!(
            "{words}: left by a `seal` of an older version, or by another user; it is not used. To remove it: rm {words}"
        ));
    }
    Ok(())
}

/// A regular file of ours, in a directory that is ours and that nobody else can write to.
fn is_ours_alone(path: &Path) -> bool {
    let us = nix::unistd::geteuid().as_raw();
    let directory = path.parent().and_then(|directory| directory.symlink_metadata().ok());
    let is_private = |about: std::fs::Metadata| about.uid() == us && about.mode() & 0o022 == 0;
    path.symlink_metadata().is_ok_and(|about| about.is_file() && about.nlink() == 1 && about.uid() == us)
        && directory.is_some_and(is_private)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp() -> Stamped {
        Stamped {
            path: "/images/a".into(),
            format: Format::Raw,
            device: 1,
            inode: 2,
            born: Some(3),
            bytes: 4,
            modified: (5, 6),
        }
    }

    #[test]
    fn a_file_that_was_replaced_is_another_one() {
        let old = stamp();
        assert!(old.is_same(&Stamped { bytes: 9, path: "/elsewhere".into(), ..stamp() }));
        assert!(!old.is_same(&Stamped { inode: 9, ..stamp() }));
        // The inode was used again.
        assert!(!old.is_same(&Stamped { born: Some(9), ..stamp() }));
        // The host was booted.
        assert!(old.is_same(&Stamped { device: 9, ..stamp() }));
        assert!(!old.is_same(&Stamped { device: 9, path: "/elsewhere".into(), ..stamp() }));
        assert!(!old.is_same(&Stamped { device: 9, born: None, ..stamp() }));
        assert!(old.is_same(&Stamped { born: None, ..stamp() }));
    }

    #[test]
    fn orders_that_are_not_ours_are_not_understood() {
        let whole = Order { schema: SCHEMA, started: false, disks: vec![stamp()] };
        let text = serde_json::to_vec(&whole).expect("written");
        assert_eq!(parse(&text).expect("read"), whole);
        for bad in [Order { schema: 2, ..whole.clone() }, Order { disks: Vec::new(), ..whole }] {
            assert!(parse(&serde_json::to_vec(&bad).expect("written")).is_err());
        }
        assert!(parse(&text[..text.len() - 1]).is_err());
        let directory = tempfile::tempdir().expect("directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("good"), &text).expect("written");
        std::os::unix::fs::symlink(at("good"), at("link")).expect("link");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("pipe");
        File::create(at("long")).and_then(|file| file.set_len(LONGEST + 1)).expect("long");
        assert!(read(&at("good")).is_ok_and(|order| order.is_some()));
        assert!(read(&at("none")).is_ok_and(|order| order.is_none()));
        for bad in ["link", "pipe", "long"] {
            assert!(read(&at(bad)).is_err(), "{bad}");
        }
    }
}
