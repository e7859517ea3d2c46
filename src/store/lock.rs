//! Who may change what. A lock is a flock on a file that is never unlinked by itself; the file says who holds it and why.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::{Store, how_to_mend, make_directory, plain};
use crate::context::Context;
use crate::error::{Error, IoContext, Kind, Result};
use crate::model::Name;
use crate::sys::files;
use crate::sys::flock as lock_file;

/// The right to create and delete names and to rely on a scan of references. Held briefly.
#[derive(Debug)]
pub struct StoreLock(#[allow(dead_code)] File);

/// The right to start the shells of one template that wait. Nobody asks for it who holds another lock.
#[derive(Debug)]
pub struct PoolLock(#[allow(dead_code)] File);

/// The right to change one VM and to talk to its QEMU.
#[derive(Debug)]
pub struct VmLock {
    name: Name,
    _file: File,
}

impl VmLock {
    /// The same lock, of a VM whose directory was given another name.
    pub fn moved(self, name: &Name) -> Self {
        Self { name: name.clone(), ..self }
    }

    /// Which VM.
    pub fn name(&self) -> &Name {
        &self.name
    }
}

impl Store {
    /// Takes the store's lock, waiting for its holder.
    pub async fn lock(&self, context: &Context) -> Result<StoreLock> {
        self.prepare_for(context)?;
        acquire(context, &self.layout.store_lock(), "the store").await.map(StoreLock)
    }

    /// Takes the store's lock where `store.json` is to be mended first.
    pub async fn lock_unprepared(&self, context: &Context) -> Result<StoreLock> {
        acquire(context, &self.layout.store_lock(), "the store").await.map(StoreLock)
    }

    /// [`Store::prepare`], which says what it has found.
    pub fn prepare_for(&self, context: &Context) -> Result<()> {
        if self.prepare()? {
            context.ui.note(&format!(
                "the store {} seems to have been copied, or moved from another file system: it is a store of its own from now on, and its VMs are others than those of the original",
                self.layout.root().display()
            ));
        }
        Ok(())
    }

    /// Takes the store's lock for a change of `names`. Whoever is at work on one of them now is waited for first: a copy may take long, and others need the
    /// store.
    pub async fn lock_for(&self, context: &Context, names: &[&Name]) -> Result<StoreLock> {
        for name in names {
            let path = self.layout.lock(name);
            if lock_file::is_held(&path).unwrap_or(true) {
                drop(self.lock_vm(context, name).await?);
            }
        }
        self.lock(context).await
    }

    /// Takes the lock of one VM, waiting for its holder, who is named.
    pub async fn lock_vm(&self, context: &Context, name: &Name) -> Result<VmLock> {
        if !self.layout.vm(name).exists() {
            return Err(self.unknown(name));
        }
        self.prepare_for(context)?;
        self.lock_vm_unprepared(context, name).await
    }

    /// The same in a store that may not be fit for changes.
    pub async fn lock_vm_unprepared(&self, context: &Context, name: &Name) -> Result<VmLock> {
        if !self.layout.vm(name).exists() {
            return Err(self.unknown(name));
        }
        let file = acquire(context, &self.layout.lock(name), name.as_str()).await;
        let file = file.map_err(|error| mended_by(name, error))?;
        Ok(VmLock { name: name.clone(), _file: file })
    }

    /// Takes the lock of a directory, waiting for its holder. `None`: it is gone by now.
    pub async fn lock_directory(&self, context: &Context, path: &Path, what: &str) -> Result<Option<File>> {
        let directory = match files::open_directory(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.on("open", path)?,
        };
        if !lock_file::try_exclusive(&directory).on("lock", path)? {
            wait_for(context, &directory, path, what).await?;
        }
        Ok(lock_file::is_still_at(&directory, path).on("check", path)?.then_some(directory))
    }

    /// Takes the lock of the pool of the template `name` with this UUID, waiting for its holder, who is named.
    pub async fn lock_pool(&self, context: &Context, name: &Name, uuid: Uuid) -> Result<PoolLock> {
        make_directory(&self.layout.slots())?;
        let path = self.layout.pool_lock(&uuid.simple().to_string());
        acquire(context, &path, &format!("the pool of {name}")).await.map(PoolLock)
    }

    /// Takes the lock of one VM only if nobody holds it. One that is no file can be taken by nobody: `doctor` tells of it.
    pub fn try_lock_vm(&self, name: &Name, operation: &str) -> Result<Option<VmLock>> {
        let path = self.layout.lock(name);
        let file = match open_lock(&path) {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Damaged) => return Ok(None),
            other => other?,
        };
        if !lock_file::try_exclusive(&file).on("lock", &path)?
            || !lock_file::is_still_at(&file, &path).on("check", &path)?
        {
            return Ok(None);
        }
        sign(&file, operation);
        Ok(Some(VmLock { name: name.clone(), _file: file }))
    }
}

/// Opens a lock. What is no file is damage.
pub fn open_lock(path: &Path) -> Result<File> {
    lock_file::open(path).or_else(|error| match plain::damage(path) {
        Some(damage) => {
            Err(damage.hint("what can be done about it: cowhand doctor; to do it: cowhand doctor --repair"))
        }
        None => Err(error).on("open the lock", path),
    })
}

/// The error with what helps, if something is in the place of the lock of `name`.
fn mended_by(name: &Name, error: Error) -> Error {
    match error.kind() {
        Kind::Damaged => {
            Error::damaged(format!("{name} cannot be locked: {}", error.message())).hint(how_to_mend(name))
        }
        _ => error,
    }
}

async fn acquire(context: &Context, path: &Path, what: &str) -> Result<File> {
    loop {
        let file = open_lock(path)?;
        if !lock_file::try_exclusive(&file).on("lock", path)? {
            wait_for(context, &file, path, what).await?;
        }
        // Its directory may have been renamed or removed while we waited: then the lock we got guards nothing.
        if lock_file::is_still_at(&file, path).on("check", path)? {
            sign(&file, &context.operation);
            return Ok(file);
        }
        if !path.parent().is_some_and(Path::exists) {
            return Err(Error::not_found(format!("{what} is gone: it was removed or renamed meanwhile")));
        }
    }
}

/// So long waiting needs no word.
const MOMENT: Duration = Duration::from_millis(500);

/// Waits in a thread of its own, because flock(2) knows no time limit; a thread that waits in vain ends with the process.
async fn wait_for(context: &Context, file: &File, path: &Path, what: &str) -> Result<()> {
    let limit = context.settings.lock_wait;
    let waiting = file.try_clone().on("open the lock", path)?;
    let (send, mut receive) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = send.send(lock_file::exclusive(&waiting));
    });
    let moment = limit.min(MOMENT);
    let mut waited = tokio::time::timeout(moment, &mut receive).await;
    let holder = holder(path);
    if waited.is_err() {
        context.ui.note(&format!("waiting for {what}: {holder} is at work"));
        waited = tokio::time::timeout(limit - moment, receive).await;
    }
    match waited {
        Ok(Ok(result)) => result.on("lock", path),
        _ => Err(Error::locked(format!("{what} is locked by {holder}; waited {} s", limit.as_secs()))
            .hint("run the command again later, or wait longer with --wait SECS")),
    }
}

/// Writes down who holds the lock. Only information: a failure is no reason not to go on.
fn sign(mut file: &File, operation: &str) {
    let _ = file
        .set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{} {operation}", std::process::id()));
}

fn holder(path: &Path) -> String {
    let mut text = String::new();
    let read = plain::open(path).ok().flatten().and_then(|file| file.take(4096).read_to_string(&mut text).ok());
    match (read, text.trim().split_once(' ')) {
        (Some(_), Some((pid, operation))) => format!("`{operation}` (pid {pid})"),
        _ => "another command".to_owned(),
    }
}
