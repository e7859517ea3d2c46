//! Starting a VM, and saying how it would be started.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use uuid::Uuid;

use super::open;
use super::ports;
use super::status;
use crate::cloudinit;
use crate::context::Context;
use crate::error::{Error, IoContext, Kind, Result};
use crate::layer::pool::Pool;
use crate::layer::{chain, sealed};
use crate::model::{Chain, Firmware, Name, Record, State};
use crate::qemu::accel::{self, Chosen, Host};
use crate::qemu::cmdline::{self, How, Machine, Sockets};
use crate::qemu::probe::Probe;
use crate::qemu::qmp::Qmp;
use crate::qemu::{firmware, process};
use crate::store::{Store, make_directory};
use crate::sys::files;

/// Starts `name`; with `paused`, its CPUs wait for `resume`.
pub async fn start(context: &Context, name: &Name, paused: bool) -> Result<()> {
    let (lock, record) = open::open_vm(context, name, "start").await?;
    match status::observe(context, name).await?.state {
        State::Running | State::Paused => {
            Err(Error::refused(format!("{name} is running already")).hint(format!("see it: cowhand show {name}")))
        }
        State::Stopped | State::Crashed => {
            refuse_unstartable(context, name, &record)?;
            let how = if paused { How::Paused } else { How::Running };
            start_locked(context, lock.name(), &record, how).await.map(drop)
        }
    }
}

/// A VM whose disks belong to another one is not started, neither by us nor by hand; nor is one whose ports are taken.
fn refuse_unstartable(context: &Context, name: &Name, record: &Record) -> Result<()> {
    let damaged = |why: String| {
        Error::damaged(format!("{name} must not be started: {why}"))
            .hint(format!("what can be done about it: cowhand doctor {name}"))
    };
    if let Some(misfit) = Pool::scan(&context.store)?.misfit(name, record) {
        return Err(damaged(format!("{misfit}, so its record is not the last one")));
    }
    ports::refuse_taken(context, record.config.nics.iter().flat_map(|nic| &nic.ports))
        .map_err(|error| error.hint(format!("another port: cowhand set {name} ports=HOST:GUEST,…")))
}

/// The error of a layer, which by itself does not say whose it is.
fn damaged_disk(name: &Name, error: &Error) -> Error {
    let told = match error.kind() {
        Kind::Damaged | Kind::NotFound => Error::damaged(format!("a disk of {name} is damaged")),
        // It could not be looked at.
        other => Error::new(other, format!("a disk of {name} cannot be used")),
    };
    let told = error.hints().iter().fold(told.because(error.full_message()), |told, hint| told.hint(hint));
    told.hint(format!("what can be done about it: cowhand doctor {name}"))
}

/// A start as asked for.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What QEMU does once it is there.
    pub how: How<'a>,
    /// What it keeps open, for the locks on it.
    pub held: Vec<OwnedFd>,
    /// It is killed when we are.
    pub with_us: bool,
}

/// Starts a VM whose lock the caller holds and which does not run.
pub async fn start_locked(context: &Context, name: &Name, record: &Record, how: How<'_>) -> Result<Qmp> {
    launch(context, name, record, Launch { how, held: Vec::new(), with_us: false }).await
}

/// The same, with more to say about it.
pub async fn launch(context: &Context, name: &Name, record: &Record, launch: Launch<'_>) -> Result<Qmp> {
    let Launch { how, held, with_us } = launch;
    let store = &context.store;
    if let Some(old) = status::sockets(context, name) {
        process::clear(&old);
    }
    let sockets = Sockets::new(runtime_directory(context, record.uuid)?);
    let chosen = accel::choose(context.settings.accel, &Host::observe())?;
    if let Some(warning) = &chosen.warning {
        context.ui.warn(warning);
    }
    let argv = argv(context, name, record, &chosen, &sockets, how)?;
    unseal(store, record);
    make_private_directory(context, &sockets)?;
    process::clear_sockets(&sockets);
    make_pipes(&sockets)?;
    make_seed(name, record, &sockets)?;
    make_credentials(record, &sockets)?;
    point_run_link(&store.layout.run_link(name), sockets.directory())?;
    let serial_log = store.layout.serial_log(name);
    files::append_private(&serial_log).on("open", &serial_log)?;
    let (run_lock, log) = (store.layout.run_lock(name), store.layout.qemu_log(name));
    // What the last QEMU printed is of no use any more.
    let _ = std::fs::remove_file(store.layout.older_qemu_log(name));
    let log_limit = record.config.log_limit.bytes();
    let files = process::Files { run_lock: &run_lock, log: &log, log_limit, held, with_us };
    process::start(&argv, &sockets, files).await.map_err(|error| match error.kind() {
        Kind::Qemu => prefix(error, name),
        _ => error,
    })
}

/// Forgets what was noted of the layers that the guest is going to write to: an older record, put back by hand, may name layers that were sealed.
fn unseal(store: &Store, record: &Record) {
    for disk in record.config.writable() {
        sealed::forget(store, &disk.layer);
    }
}

fn prefix(error: Error, name: &Name) -> Error {
    Error::qemu(format!("{name} did not start"))
        .because(error.full_message())
        .hint(format!("the whole command: cowhand plan {name}"))
}

/// The argument vector `name` would be started with; what `start` would refuse is refused. Makes the directory of its sockets and
/// pipes, without which a shell could not start it, and its serial log, which is for its owner alone; and notes where the
/// directory is, so that a VM that is started by hand is seen.
pub fn plan(context: &Context, name: &Name, paused: bool) -> Result<Vec<String>> {
    let record = context.store.load(name)?;
    open::refuse_template(name, &record, "start")?;
    open::refuse_overruled(context, name, &record)?;
    if context.store.has_journal(name) && !status::is_running(context, name)? {
        return Err(Error::damaged(format!(
            "a change of {name} was cut short, and its disks may be half-way between two states"
        ))
        .hint(format!("any command that changes it puts that right first: cowhand start {name}")));
    }
    let chosen = accel::choose(context.settings.accel, &Host::observe())?;
    let sockets = Sockets::new(runtime_directory(context, record.uuid)?);
    let how = if paused { How::Paused } else { How::Running };
    let runs = status::is_running(context, name)?;
    if !runs {
        refuse_unstartable(context, name, &record)?;
    }
    let argv = argv(context, name, &record, &chosen, &sockets, how)?;
    if !runs {
        unseal(&context.store, &record);
        make_private_directory(context, &sockets)?;
        make_pipes(&sockets)?;
        make_seed(name, &record, &sockets)?;
        make_credentials(&record, &sockets)?;
        // A store that cannot be written has a VM that cannot be started, but its plan can be read.
        let _ = point_run_link(&context.store.layout.run_link(name), sockets.directory());
        let serial_log = context.store.layout.serial_log(name);
        match files::append_private(&serial_log) {
            Err(error) if !is_not_writable(&error) => return Err(error).on("open", &serial_log),
            _ => {}
        }
    }
    Ok(argv)
}

fn is_not_writable(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
}

/// The pipes of the guest agent, which QEMU expects to find.
fn make_pipes(sockets: &Sockets) -> Result<()> {
    let agent = sockets.agent();
    for pipe in [agent.to_guest(), agent.from_guest()] {
        match nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR) {
            Err(nix::errno::Errno::EEXIST) => {}
            other => other.on("create", &pipe)?,
        }
    }
    Ok(())
}

/// What cloud-init is told, where it is told something. It may hold a password, so it is for its owner alone, like its directory.
fn make_seed(name: &Name, record: &Record, sockets: &Sockets) -> Result<()> {
    let Some(seed) = &record.config.seed else { return Ok(()) };
    let image = cloudinit::image::of(&cloudinit::files(seed, name, record.uuid))?;
    write_private(sockets, &sockets.seed(), &image, "the seed for cloud-init")
}

/// What systemd in the guest is given, a file for each credential.
fn make_credentials(record: &Record, sockets: &Sockets) -> Result<()> {
    for (name, content) in record.config.credentials.encoded() {
        let text = format!("io.systemd.credential.binary:{name}={content}");
        write_private(sockets, &sockets.credential(name), text.as_bytes(), &format!("the credential {name}"))?;
    }
    Ok(())
}

/// Writes a file beside the sockets. By a rename, so that a QEMU which is just being started finds a whole one, whoever else makes one.
fn write_private(sockets: &Sockets, path: &Path, bytes: &[u8], what: &str) -> Result<()> {
    let failed = |error: std::io::Error| Error::failed(format!("cannot make {what}")).because(error);
    let mut file = tempfile::NamedTempFile::new_in(sockets.directory()).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.persist(path).map(drop).map_err(|error| failed(error.error))
}

/// The argument vector of `record`, as it would be started here and now.
pub fn argv(
    context: &Context,
    name: &Name,
    record: &Record,
    accel: &Chosen,
    sockets: &Sockets,
    how: How<'_>,
) -> Result<Vec<String>> {
    let probe = Probe::get(context)?;
    let config = &record.config;
    probe.machine(&config.machine)?;
    if let Some(boot) = &config.kernel {
        super::requirements::check_kernel(boot)?;
    }
    super::cdrom::check_isos(config).map_err(|error| error.hint(format!("or eject it: cowhand cdrom eject {name}")))?;
    let chains: Vec<Chain> = config
        .volumes()
        .map(|disk| chain::of_disk(&context.store, disk))
        .collect::<Result<_>>()
        .map_err(|error| damaged_disk(name, &error))?;
    super::descriptors::refuse_too_many(name, &chains)?;
    let uefi = (config.firmware == Firmware::Uefi).then(firmware::find).transpose()?;
    Ok(cmdline::argv(&Machine {
        qemu: &probe.path,
        name,
        uuid: record.uuid,
        config,
        chains: &chains,
        accel,
        uefi_code: uefi.as_ref().map(|uefi| uefi.code.as_path()),
        sockets,
        serial_log: &context.store.layout.serial_log(name),
        how,
    }))
}

/// The first part of the name of a directory of sockets; the second is the store's.
fn of_vm(uuid: Uuid) -> String {
    uuid.simple().to_string()[..12].to_owned()
}

/// Can `directory`, which was noted at the last start of `name`, be the one of its sockets? That of another store, or of
/// another VM of this one, was noted in what this store was copied from.
pub fn is_of(context: &Context, name: &Name, directory: &Path) -> bool {
    let last = directory.file_name().unwrap_or_default().to_string_lossy();
    let Some(vm) = last.strip_suffix(&context.store.place()) else { return false };
    // Of a VM whose record cannot be read, the store has to do.
    context.store.has_uuid(name, |uuid| vm == of_vm(uuid)).unwrap_or(true)
}

/// Where the sockets of the VM with this UUID go. They belong to the store as well: a copy of it has VMs of the same UUIDs,
/// and the QEMU of one must not be taken for that of the other. Refused when a socket's path would be longer than the kernel allows.
pub fn runtime_directory(context: &Context, uuid: Uuid) -> Result<PathBuf> {
    let name = format!("{}{}", of_vm(uuid), context.store.place());
    let directory = context.settings.runtime.join(name);
    let longest = Sockets::new(directory.clone()).all().iter().map(|path| path.as_os_str().len()).max().unwrap_or(0);
    if longest > Sockets::LONGEST {
        return Err(Error::refused(format!(
            "sockets below {} would have paths of {longest} bytes; the kernel allows {}",
            context.settings.runtime.display(),
            Sockets::LONGEST
        ))
        .hint("set XDG_RUNTIME_DIR to a shorter directory"));
    }
    Ok(directory)
}

/// Makes the directory of the sockets. It and the one above it have to be ours alone.
fn make_private_directory(context: &Context, sockets: &Sockets) -> Result<()> {
    make_directory(sockets.directory())?;
    private(&context.settings.runtime)?;
    private(sockets.directory())
}

/// The directory has to be ours alone: whoever owns a QMP socket owns the host's user.
fn private(directory: &Path) -> Result<()> {
    let about = directory.symlink_metadata().on("look at", directory)?;
    if !about.is_dir() || about.uid() != nix::unistd::geteuid().as_raw() || about.mode() & 0o077 != 0 {
        return Err(Error::refused(format!("{} is not a directory of yours alone", directory.display()))
            .hint(format!("if it is yours: chmod 700 {}", directory.display())));
    }
    Ok(())
}

/// What the last QEMU of `name` said before it ended, quoted.
pub fn last_words(context: &Context, name: &Name) -> Option<String> {
    process::last_words(&context.store.layout.qemu_log(name))
}

fn point_run_link(link: &Path, directory: &Path) -> Result<()> {
    if std::fs::read_link(link).is_ok_and(|target| target == directory) {
        return Ok(());
    }
    let _ = std::fs::remove_file(link);
    std::os::unix::fs::symlink(directory, link).on("create", link)
}
