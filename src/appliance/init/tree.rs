//! Changing files of the guest's tree, which is our root by now, or only saying which would be
//! changed.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::appliance::protocol::LINE;
use crate::error::{Error, IoContext, Result};
use crate::seal::{PathChange, Performed, Touched};

/// How many bytes of paths a report may have: its line has to be taken by the host, whatever is on
/// the disks.
const ROOM: usize = (LINE - LINE / 4) as usize;

/// The tree.
pub(super) struct Tree {
    /// Change nothing.
    pub dry_run: bool,
    homes: Vec<PathBuf>,
    performed: Vec<Performed>,
    /// What the last of them has touched.
    seen: HashSet<Touched>,
    /// How many bytes of paths the report has room for.
    room: usize,
    /// What is going to be removed, and has been overwritten.
    doomed: BTreeSet<PathBuf>,
}

impl Tree {
    /// The tree under `/`.
    pub(super) fn new(dry_run: bool) -> Self {
        Self {
            dry_run,
            homes: homes(),
            performed: Vec::new(),
            seen: HashSet::new(),
            room: ROOM,
            doomed: BTreeSet::new(),
        }
    }

    /// From here on, what is touched belongs to the operation `name`.
    pub(super) fn begin(&mut self, name: &str) {
        // An option may stand for several things, one after the other.
        if self.performed.last().is_none_or(|last| last.name != name) {
            self.performed.push(Performed { name: name.to_owned(), touched: Vec::new(), more: 0 });
            self.seen.clear();
        }
    }

    /// Removes what has to go. What was touched, without operations that found nothing to do.
    pub(super) fn finish(mut self) -> Result<Vec<Performed>> {
        self.remove_doomed()?;
        Ok(self
            .performed
            .into_iter()
            .filter(|performed| !performed.touched.is_empty() || performed.more > 0)
            .collect())
    }

    /// Removes what has to go by now, so that what is written afterwards stays.
    pub(super) fn remove_doomed(&mut self) -> Result<()> {
        if self.dry_run {
            return Ok(());
        }
        // What was overwritten has to be on the disk before it is freed: a discard does not reach
        // parts of the image's clusters.
        rustix::fs::sync();
        std::mem::take(&mut self.doomed).iter().try_for_each(|path| unlink(path))
    }

    /// Notes that something happens to a path.
    pub(super) fn touch(&mut self, path: &Path, how: PathChange) {
        let touched = Touched { path: path.to_string_lossy().into_owned(), how };
        let Some(performed) = self.performed.last_mut() else { return };
        if self.seen.contains(&touched) {
            return;
        }
        // In JSON, with what stands around it; a byte of a path may become six.
        let length = serde_json::to_string(&touched).map_or(0, |text| text.len()) + 1;
        if length > self.room {
            self.room = 0;
            performed.more += 1;
            return;
        }
        self.room -= length;
        self.seen.insert(touched.clone());
        performed.touched.push(touched);
    }

    /// In a dry run: is it, or what it is in, something that would have been made by now?
    pub(super) fn would_be_there(&self, path: &Path) -> bool {
        let made = |touched: &Touched| {
            touched.how == PathChange::Created && path.starts_with(&touched.path)
        };
        self.dry_run && self.performed.iter().flat_map(|performed| &performed.touched).any(made)
    }

    /// What a glob matches; `~` is everybody's home, in which links to elsewhere are not followed:
    /// their owners make them as they please.
    pub(super) fn glob(&self, pattern: &str) -> Result<Vec<PathBuf>> {
        let is_a_users = pattern.starts_with('~');
        let strays = |path: &Path| {
            let home = self.homes.iter().find(|home| path.starts_with(home));
            let between = path
                .ancestors()
                .skip(1)
                .take_while(|parent| home.is_some_and(|home| *parent != home.as_path()));
            is_a_users && between.into_iter().any(Path::is_symlink)
        };
        let patterns = match pattern.strip_prefix('~') {
            Some(rest) => self
                .homes
                .iter()
                .map(|home| format!("{}{rest}", glob::Pattern::escape(&home.to_string_lossy())))
                .collect(),
            None => vec![pattern.to_owned()],
        };
        let mut found = Vec::new();
        for pattern in patterns {
            let paths = glob::glob(&pattern).map_err(|error| {
                Error::usage(format!("{pattern:?} is no pattern for paths")).because(error)
            })?;
            // What cannot be looked into is as good as not there; `.` and `..` are nobody's files.
            let is_real = |path: &PathBuf| {
                !matches!(path.to_string_lossy().rsplit('/').next(), Some("." | ".."))
            };
            found.extend(paths.flatten().filter(|path| is_real(path) && !strays(path)));
        }
        Ok(found)
    }

    /// Removes a path with everything below it, at the end of everything, and overwrites what it
    /// held, now. Links are removed, not followed.
    pub(super) fn remove(&mut self, path: &Path) -> Result<()> {
        if path.symlink_metadata().is_err() || !self.doomed.insert(path.to_owned()) {
            return Ok(());
        }
        self.touch(path, PathChange::Removed);
        if self.dry_run {
            return Ok(());
        }
        match path.symlink_metadata().is_ok_and(|about| about.is_dir()) {
            true => files_below(path).iter().try_for_each(|file| wipe(file)),
            false => wipe(path),
        }
    }

    /// The same, at once and without overwriting.
    pub(super) fn remove_now(&mut self, path: &Path) -> Result<()> {
        if path.symlink_metadata().is_ok() {
            self.touch(path, PathChange::Removed);
            if !self.dry_run {
                unlink(path)?;
            }
        }
        Ok(())
    }

    /// Removes the files below a directory, which stays, and its directories with it.
    pub(super) fn remove_files(&mut self, directory: &Path, keep: &[&str]) -> Result<()> {
        for file in files_below(directory) {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            if !keep.contains(&name.as_ref()) {
                self.remove(&file)?;
            }
        }
        Ok(())
    }

    /// Makes a file empty; its owner, mode and labels stay.
    pub(super) fn empty(&mut self, path: &Path) -> Result<()> {
        if path.metadata().is_ok_and(|about| about.is_file() && about.len() > 0) {
            self.touch(path, PathChange::Emptied);
            if !self.dry_run {
                File::options().write(true).truncate(true).open(path).on("empty", path)?;
            }
        }
        Ok(())
    }

    /// Gives a file that is there other content; its owner, mode and labels stay.
    pub(super) fn rewrite(&mut self, path: &Path, content: &[u8]) -> Result<()> {
        if std::fs::read(path).is_ok_and(|old| old != content) {
            self.touch(path, PathChange::Changed);
            if !self.dry_run {
                // It may have held a secret.
                wipe(path)?;
                let mut file = File::options().write(true).open(path).on("write", path)?;
                file.sync_data().on("write", path)?;
                file.set_len(0).on("write", path)?;
                file.write_all(content).on("write", path)?;
            }
        }
        Ok(())
    }

    /// Writes a file, and the directories it is in.
    pub(super) fn write(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        let there = path.exists();
        let same = |about: std::fs::Metadata| {
            about.mode() & 0o7777 == mode && about.len() == content.len() as u64
        };
        if path.metadata().is_ok_and(same) && std::fs::read(path).is_ok_and(|old| old == content) {
            return Ok(());
        }
        self.touch(path, if there { PathChange::Changed } else { PathChange::Created });
        if self.dry_run {
            return Ok(());
        }
        self.parents(path)?;
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(path)
            .on("write", path)?;
        file.write_all(content).on("write", path)?;
        if !there {
            self.label(path);
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .on("set the mode of", path)
    }

    /// Gives what was made the SELinux label of the directory it is in: nobody here would do it.
    pub(super) fn label(&self, path: &Path) {
        const LABEL: &str = "security.selinux";
        let mut label = [0u8; 256];
        let Some(parent) = path.parent() else { return };
        if let Ok(length) = rustix::fs::lgetxattr(parent, LABEL, &mut label) {
            // Where the file system has no labels, none is missed.
            let _ = rustix::fs::lsetxattr(
                path,
                LABEL,
                &label[..length],
                rustix::fs::XattrFlags::empty(),
            );
        }
    }

    /// Makes a symbolic link, in place of what is there.
    pub(super) fn link(&mut self, target: &str, link: &Path) -> Result<()> {
        if std::fs::read_link(link).is_ok_and(|old| old.as_os_str() == target) {
            return Ok(());
        }
        let there = link.symlink_metadata().is_ok();
        self.touch(link, if there { PathChange::Changed } else { PathChange::Created });
        if self.dry_run {
            return Ok(());
        }
        if there {
            std::fs::remove_file(link).on("remove", link)?;
        }
        self.parents(link)?;
        std::os::unix::fs::symlink(target, link).on("create", link)?;
        self.label(link);
        Ok(())
    }

    /// The directories a path is in.
    pub(super) fn parents(&self, path: &Path) -> Result<()> {
        match path.parent() {
            Some(parent) if !self.dry_run && !parent.exists() => {
                self.parents(parent)?;
                std::fs::create_dir(parent).on("create", parent)?;
                self.label(parent);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Lets `edit` make another text of a file's, line by line; `None` drops the line.
    pub(super) fn edit_lines(
        &mut self,
        path: &Path,
        mut edit: impl FnMut(&str) -> Option<String>,
    ) -> Result<()> {
        let Ok(old) = std::fs::read(path) else { return Ok(()) };
        let mut new = Vec::with_capacity(old.len());
        for line in old.split_inclusive(|byte| *byte == b'\n') {
            let bare = line.strip_suffix(b"\n").unwrap_or(line);
            let text = String::from_utf8_lossy(bare);
            match edit(&text) {
                None => {}
                // Whatever it is written in, what is not changed stays as it is.
                Some(same) if same == text => new.extend_from_slice(line),
                Some(other) => new.extend_from_slice(format!("{other}\n").as_bytes()),
            }
        }
        self.rewrite(path, &new)
    }
}

fn unlink(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(about) if about.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        // It was in a directory that went before.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.on("remove", path),
    }
}

/// Overwrites a file with zeros where it lies. Keys and the like are small; large files fill whole
/// clusters of the image, which are discarded.
fn wipe(path: &Path) -> Result<()> {
    const SMALL: u64 = 16 << 20;
    let Ok(about) = path.symlink_metadata() else { return Ok(()) };
    if !about.is_file() || about.nlink() > 1 || about.len() > SMALL {
        return Ok(());
    }
    let zeros = vec![0; usize::try_from(about.len()).unwrap_or(0)];
    File::options()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(&zeros))
        .on("overwrite", path)
}

/// Everything below a directory that is no directory; links are not followed.
pub(super) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

/// Everybody's home: what `/etc/passwd` says, and what lies in `/home`. Some services are at home
/// in directories of the system, where nothing of the kind that is looked for can be.
fn homes() -> Vec<PathBuf> {
    let nobodys = [
        "/", "/bin", "/sbin", "/usr", "/usr/bin", "/usr/sbin", "/dev", "/proc", "/sys", "/etc",
        "/nonexistent",
    ];
    let text = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = text.lines().filter_map(|line| line.split(':').nth(5)).map(PathBuf::from);
    let lying =
        std::fs::read_dir("/home").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut homes: Vec<PathBuf> = named
        .chain(lying)
        .chain([PathBuf::from("/root")])
        .filter(|home| {
            home.is_absolute()
                && home.is_dir()
                && !nobodys.iter().any(|place| home == Path::new(place))
        })
        .collect();
    homes.sort();
    homes.dedup();
    homes
}
