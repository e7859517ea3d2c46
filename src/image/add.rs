//! `image add`: a file or a download becomes an image of the store.
//!
//! A download goes into a directory of `downloads/` that is named after its address and locked, so
//! two commands that want the same file do not get it twice, and one that was cut short goes on.
//! What was copied into the pool is inspected again there.

mod resolve;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use jiff::Timestamp;
pub use resolve::Request;
use resolve::{Place, Resolved, resolve};
use uuid::Uuid;

use super::{downloads, source};
use crate::change::{self, Plan, Run};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::fetch::digest::{self, Digest};
use crate::fetch::http::{Client, Limits};
use crate::fetch::unpack::Packing;
use crate::fetch::{self, Job, Local, Url, http, partial};
use crate::layer::foreign;
use crate::layer::foreign::rule::{Ask, Spelling};
use crate::layer::import::{self, Candidate};
use crate::model::{
    Config, Credentials, Disk, Firmware, Format, ImageOrigin, Layer, LogLimit, Name, Nic, Record,
    Role,
};
use crate::qemu::probe::Probe;
use crate::steps::layers::{CopyFile, SetMode};
use crate::steps::record::WriteRecord;
use crate::template::freeze;

/// A VM that is cloned from an image, rather than created with `--image`, gets so much memory, in
/// bytes, and so many CPUs.
const MEMORY: u64 = 1 << 30;
const CPUS: u32 = 2;

/// An image of the store.
#[derive(Debug, Clone)]
pub struct Added {
    /// Its name.
    pub name: Name,
    /// Its record.
    pub record: Record,
}

/// Makes an image of what the request names. Refused if there is something of that name.
pub async fn add(context: &Context, request: &Request) -> Result<Added> {
    let resolved = resolve(context, request)?;
    refuse_taken(context, &resolved)?;
    obtain(context, resolved, false).await
}

/// The image from the source that the request names; it is added if there is none yet.
pub async fn ensure(context: &Context, request: &Request) -> Result<Added> {
    let mut resolved = resolve(context, request)?;
    // An image that is there has to have the checksum that the user says.
    if resolved.checksum.is_said {
        find_checksum(context, &mut resolved).await?;
    }
    match existing(context, &resolved)? {
        Some(added) => Ok(added),
        None => {
            refuse_taken(context, &resolved)?;
            obtain(context, resolved, true).await
        }
    }
}

fn refuse_taken(context: &Context, resolved: &Resolved) -> Result<()> {
    let name = &resolved.name;
    if !context.store.exists(name) {
        return Ok(());
    }
    let record = context.store.load(name).ok();
    let is_same = |record: &Record| {
        record.image().is_some_and(|image| is_same_source(image, &resolved.origin))
    };
    let by = match &record {
        Some(record) if is_same(record) => {
            "an image from the same source, which may be another version".to_owned()
        }
        Some(record) => format!("another {}", record.kind()),
        None => "a VM, template or image whose record cannot be read".to_owned(),
    };
    let hint = format!("call the image otherwise: cowhand image add {} NAME", resolved.word);
    Err(Error::exists(format!("the name {name} is taken by {by}")).hint(hint))
}

fn is_same_source(image: &ImageOrigin, origin: &ImageOrigin) -> bool {
    match &origin.catalogue {
        Some(entry) => image.catalogue.as_ref() == Some(entry),
        None => origin.address.is_some() && image.address == origin.address,
    }
}

/// An image that was made of the same source before, and has the checksum that the user says.
fn existing(context: &Context, resolved: &Resolved) -> Result<Option<Added>> {
    let said = resolved.checksum.digest.as_ref().filter(|_| resolved.checksum.is_said);
    let has_it = |image: &ImageOrigin| match said {
        Some(digest @ Digest::Sha256(_)) => image.sha256.as_ref() == Some(&digest.to_string()),
        Some(digest @ Digest::Sha512(_)) => image.sha512.as_ref() == Some(&digest.to_string()),
        None => true,
    };
    let is_it = |record: &Record| {
        record.image().is_some_and(|image| is_same_source(image, &resolved.origin) && has_it(image))
    };
    let mut records = context.store.records()?.into_iter();
    Ok(records.find(|(_, record)| is_it(record)).map(|(name, record)| Added { name, record }))
}

/// Reads the source, inspects it, and makes the image. With `reuse`, one that another command has
/// made meanwhile will do.
async fn obtain(context: &Context, mut resolved: Resolved, reuse: bool) -> Result<Added> {
    context.prepare_store()?;
    // The machine of clones; a host without QEMU is told so before anything is read.
    let machine = Probe::get(context)?.machine("q35")?;
    find_checksum(context, &mut resolved).await?;
    match resolved.place.clone() {
        Place::Url(url) => from_url(context, resolved, machine, &url, reuse).await,
        Place::File(path)
            if resolved.checksum.digest.is_some() || Packing::by_name(&resolved.file).is_some() =>
        {
            from_read_file(context, resolved, machine, &path).await
        }
        Place::File(path) => {
            let candidate = import::examine(context, &ask(&path, resolved.format)).await?;
            keep(context, resolved, machine, candidate).await
        }
    }
}

/// Looks the checksum up in the checksum file, which is an address or a file.
async fn find_checksum(context: &Context, resolved: &mut Resolved) -> Result<()> {
    if resolved.checksum.digest.is_some() {
        resolved.origin.verified = true;
        return Ok(());
    }
    let Some(sums) = resolved.checksum.sums.take() else { return Ok(()) };
    let (text, shown) = if sums.contains("://") {
        let url = source::url(&sums)?;
        resolved.origin.verified = url.scheme() == "https";
        if !resolved.origin.verified {
            context.ui.warn(&format!(
                "{} is read over http, so the image is not verified: anybody on the way could \
                 change both",
                http::shown(&url)
            ));
        }
        let text = fetch::text(&Client::new(Limits::default())?, &*context.ui, &url).await?;
        (text, http::shown(&url))
    } else {
        let (path, mut text) = (Path::new(&sums), String::new());
        let file = foreign::open(path)?.file;
        let read = file.take(fetch::TEXT + 1).read_to_string(&mut text).on("read", path)?;
        if read as u64 > fetch::TEXT {
            return Err(Error::refused(format!("{sums} is too long for a checksum file")));
        }
        resolved.origin.verified = true;
        (text, sums)
    };
    resolved.checksum.digest = Some(digest::find(&text, &resolved.published, &shown)?);
    Ok(())
}

/// A file of the host that is checked or decompressed.
async fn from_read_file(
    context: &Context,
    mut resolved: Resolved,
    machine: String,
    path: &Path,
) -> Result<Added> {
    let file = foreign::open(path)?.file;
    let (directory, _lock) =
        downloads::claim(context, &Uuid::new_v4().simple().to_string()).await?;
    let made = async {
        let shown = path.display().to_string();
        let expected = resolved.checksum.digest.as_ref();
        let job = Local { shown: &shown, directory: &directory, name: &resolved.file, expected };
        let fetched = fetch::local(&*context.ui, file, &job).await?;
        resolved.note(&fetched);
        let candidate = import::examine(context, &ask(&fetched.path, resolved.format)).await?;
        keep(context, resolved, machine, candidate).await
    };
    let made = made.await;
    // What stays is removed by gc.
    let _ = std::fs::remove_dir_all(&directory);
    made
}

/// A download. One that was cut short, or whose format is in question, stays for the next time.
async fn from_url(
    context: &Context,
    mut resolved: Resolved,
    machine: String,
    url: &Url,
    reuse: bool,
) -> Result<Added> {
    if resolved.checksum.digest.is_none() {
        let how =
            if url.scheme() == "https" { "" } else { ", and anybody on the way could change it" };
        context.ui.warn(&format!(
            "{} is not verified{how}: say its checksum with --sha256 HEX or --sums URL",
            resolved.origin.source
        ));
    }
    let (directory, lock) = downloads::claim(context, &partial::key(url)[..16]).await?;
    // Unless there is something to go on from.
    let give_up = |error: Error| {
        let _ = std::fs::remove_dir(&directory);
        error
    };
    // Another command may have made it meanwhile.
    if reuse && let Some(added) = existing(context, &resolved)? {
        let _ = std::fs::remove_dir(&directory);
        return Ok(added);
    }
    refuse_taken(context, &resolved).map_err(give_up)?;
    let client = Client::new(Limits::default()).map_err(give_up)?;
    let expected = resolved.checksum.digest.as_ref();
    let job = Job { url, directory: &directory, lock: &lock, name: &resolved.file, expected };
    let fetched = fetch::download(&client, &*context.ui, &job).await.map_err(give_up)?;
    resolved.note(&fetched);
    let ask = ask(&fetched.path, resolved.format);
    let candidate = match import::examine(context, &ask).await {
        Ok(candidate) => candidate,
        Err(error) => {
            // Where the user has to say which format it has, the next command need not download it
            // once more.
            if foreign::look(&ask).is_err() {
                return Err(error);
            }
            let _ = std::fs::remove_dir_all(&directory);
            let why = error
                .full_message()
                .replace(&fetched.path.display().to_string(), &resolved.origin.source);
            return Err(Error::new(error.kind(), why).hint(
                "if it is the right file, download it by other means, put it right, then: cowhand \
                 image add FILE",
            ));
        }
    };
    let added = keep(context, resolved, machine, candidate).await?;
    // What stays is removed by gc.
    let _ = std::fs::remove_dir_all(&directory);
    Ok(added)
}

fn ask(path: &Path, said: Option<Format>) -> Ask<'_> {
    Ask { path, said, spelling: Spelling::Option }
}

/// Copies the file into the pool, where it is inspected again, and makes its record.
async fn keep(
    context: &Context,
    resolved: Resolved,
    machine: String,
    candidate: Candidate,
) -> Result<Added> {
    let name = resolved.name;
    let store_lock = context.lock_store().await?;
    change::recover::sweep(context, &store_lock).await?;
    let lock = context.store.claim(&context.operation, &store_lock, &name)?;
    drop(store_lock);
    let layer = Layer::new(candidate.format);
    let disk = Disk::new("vda", layer.clone(), candidate.virtual_bytes);
    let now = Timestamp::now();
    let record = Record {
        role: Role::Template {
            frozen: now,
            sealed: false,
            stamps: Vec::new(),
            image: Some(resolved.origin),
        },
        uuid: Uuid::new_v4(),
        created: now,
        origin: None,
        config: config(machine, disk),
        current: None,
        snapshots: Vec::new(),
        warm: None,
        ephemeral: None,
        autostart: false,
    };
    let copy = CopyFile {
        from: candidate.path,
        id: Some(candidate.id),
        layer: layer.clone(),
        backing: None,
    };
    let set_mode = SetMode { layers: vec![layer], before: vec![0o600], mode: freeze::MODE };
    let plan = Plan::before([copy.into(), set_mode.into()]).pivot(WriteRecord::of(&record));
    change::run(&lock, plan, &mut Run::with_no_qemu(context, &name)).await?;
    let record = context.store.load(&name)?;
    Ok(Added { name, record })
}

/// The machine of a VM that is cloned from an image. One that is created with `--image` has what
/// was asked for.
fn config(machine: String, disk: Disk) -> Config {
    Config {
        machine,
        cpu: None,
        memory_bytes: MEMORY,
        cpus: CPUS,
        firmware: Firmware::Bios,
        kernel: None,
        nics: vec![Nic::new()],
        generation: Uuid::new_v4(),
        disks: vec![disk],
        nvram: None,
        cdroms: Vec::new(),
        limits: Default::default(),
        log_limit: LogLimit::default(),
        seed: None,
        credentials: Credentials::default(),
        tags: BTreeMap::new(),
    }
}
