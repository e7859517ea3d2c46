//! Taking a lock for a command: its holder is waited for, as long as the user allows, and named.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;

use super::Context;
use crate::error::{Error, IoContext, Kind, Result};
use crate::model::Name;
use crate::store::lock::{self, PoolLock, StoreLock, VmLock, open_lock};
use crate::store::{how_to_mend, make_directory};
use crate::sys::{files, flock};

impl Context {
    /// Takes the store's lock, waiting for its holder.
    pub async fn lock_store(&self) -> Result<StoreLock> {
        self.prepare_store()?;
        acquire(self, &self.store.layout.store_lock(), "the store").await.map(StoreLock)
    }

    /// Takes the store's lock where `store.json` is to be mended first.
    pub async fn lock_store_unprepared(&self) -> Result<StoreLock> {
        acquire(self, &self.store.layout.store_lock(), "the store").await.map(StoreLock)
    }

    /// [`Store::prepare`](crate::store::Store::prepare), which says what it has found.
    pub fn prepare_store(&self) -> Result<()> {
        if self.store.prepare()? {
            self.ui.note(&format!(
                "the store {} seems to have been copied, or moved from another file system: it is \
                 a separate store from now on, and its VMs are not those of the original",
                self.store.layout.root().display()
            ));
        }
        Ok(())
    }

    /// Takes the store's lock for a change of `names`. Whoever is at work on one of them now is
    /// waited for first: a copy may take long, and others need the store.
    pub async fn lock_store_for(&self, names: &[&Name]) -> Result<StoreLock> {
        for name in names {
            let path = self.store.layout.lock(name);
            if flock::is_held(&path).unwrap_or(true) {
                drop(self.lock_vm(name).await?);
            }
        }
        self.lock_store().await
    }

    /// Takes the lock of one VM, waiting for its holder, who is named.
    pub async fn lock_vm(&self, name: &Name) -> Result<VmLock> {
        if !self.store.layout.vm(name).exists() {
            return Err(self.store.unknown(name));
        }
        self.prepare_store()?;
        self.lock_vm_unprepared(name).await
    }

    /// The same in a store that may not be fit for changes.
    pub async fn lock_vm_unprepared(&self, name: &Name) -> Result<VmLock> {
        if !self.store.layout.vm(name).exists() {
            return Err(self.store.unknown(name));
        }
        let file = acquire(self, &self.store.layout.lock(name), name.as_str()).await;
        let file = file.map_err(|error| mended_by(name, error))?;
        Ok(VmLock::held(name, file))
    }

    /// Takes the lock of a directory, waiting for its holder. `None`: it is gone by now.
    pub async fn lock_directory(&self, path: &Path, what: &str) -> Result<Option<File>> {
        let directory = match files::open_directory(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.on("open", path)?,
        };
        if !flock::try_exclusive(&directory).on("lock", path)? {
            wait_for(self, &directory, path, what).await?;
        }
        Ok(flock::is_still_at(&directory, path).on("check", path)?.then_some(directory))
    }

    /// Takes the lock of the pool of the template `name` with this UUID, waiting for its holder,
    /// who is named.
    pub async fn lock_pool(&self, name: &Name, uuid: Uuid) -> Result<PoolLock> {
        make_directory(&self.store.layout.slots())?;
        let path = self.store.layout.pool_lock(&uuid.simple().to_string());
        acquire(self, &path, &format!("the pool of {name}")).await.map(PoolLock)
    }
}

/// The error with what helps, if something is in the place of the lock of `name`.
fn mended_by(name: &Name, error: Error) -> Error {
    match error.kind() {
        Kind::Damaged => Error::damaged(format!("{name} cannot be locked: {}", error.message()))
            .hint(how_to_mend(name)),
        _ => error,
    }
}

async fn acquire(context: &Context, path: &Path, what: &str) -> Result<File> {
    loop {
        let file = open_lock(path)?;
        if !flock::try_exclusive(&file).on("lock", path)? {
            wait_for(context, &file, path, what).await?;
        }
        // Its directory may have been renamed or removed while we waited: then the lock we got
        // guards nothing.
        if flock::is_still_at(&file, path).on("check", path)? {
            lock::sign(&file, &context.operation);
            return Ok(file);
        }
        if !path.parent().is_some_and(Path::exists) {
            return Err(Error::not_found(format!(
                "{what} is gone: it was removed or renamed meanwhile"
            )));
        }
    }
}

/// So long waiting needs no word.
const MOMENT: Duration = Duration::from_millis(500);

/// Waits in a thread of its own, because flock(2) knows no time limit; a thread that waits in vain
/// ends with the process.
async fn wait_for(context: &Context, file: &File, path: &Path, what: &str) -> Result<()> {
    let limit = context.settings.lock_wait;
    let waiting = file.try_clone().on("open the lock", path)?;
    let (send, mut receive) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = send.send(flock::exclusive(&waiting));
    });
    let moment = limit.min(MOMENT);
    let mut waited = tokio::time::timeout(moment, &mut receive).await;
    let holder = lock::holder(path);
    if waited.is_err() {
        context.ui.note(&format!("waiting for {what}: {holder} is at work"));
        waited = tokio::time::timeout(limit - moment, receive).await;
    }
    match waited {
        Ok(Ok(result)) => result.on("lock", path),
        _ => Err(Error::locked(format!(
            "{what} is locked by {holder}; waited {} s",
            limit.as_secs()
        ))
        .hint("run the command again later, or wait longer with --wait SECS")),
    }
}
