//! The start of a QEMU: its argument vector, and what it expects to find beside its sockets.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::Mode;

use super::{boot_files, descriptors, limits, sockets, terminate};
use crate::cloudinit;
use crate::context::Context;
use crate::error::{Error, IoContext, Kind, Result};
use crate::layer::{chain, info, sealed};
use crate::model::{Chain, Firmware, Name, Record};
use crate::qemu::accel::{self, Chosen, Host};
use crate::qemu::cmdline::{self, Machine, StartMode};
use crate::qemu::probe::Probe;
use crate::qemu::qmp::Qmp;
use crate::qemu::sockets::Sockets;
use crate::qemu::{confinement, firmware, process};
use crate::settings::Confine;
use crate::store::{Store, make_directory};
use crate::sys::confine::Confinement;
use crate::sys::confine::tried;
use crate::sys::{cgroup, files};

/// A start as asked for.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// What QEMU does once it is there.
    pub how: StartMode<'a>,
    /// What it keeps open, for the locks on it.
    pub held: Vec<OwnedFd>,
    /// It is killed when we are.
    pub with_us: bool,
}

impl<'a> From<StartMode<'a>> for Launch<'a> {
    fn from(how: StartMode<'a>) -> Self {
        Self { how, held: Vec::new(), with_us: false }
    }
}

/// Starts the QEMU of a VM whose lock the caller holds and which does not run.
pub(crate) async fn launch(
    context: &Context,
    name: &Name,
    record: &Record,
    launch: impl Into<Launch<'_>>,
) -> Result<Qmp> {
    let Launch { how: wanted, held, with_us } = launch.into();
    // A guest does nothing before it has its limits.
    let waits = matches!(wanted, StartMode::Running) && !record.config.limits.are_none();
    let how = if waits { StartMode::Paused } else { wanted };
    let store = &context.store;
    if let Some(old) = sockets::of(context, name) {
        process::clear(&old);
    }
    let sockets = Sockets::new(sockets::directory(context, record.uuid)?);
    if context.settings.confine == Confine::Default && !tried::has_landlock() {
        context.ui.warn(
            "this kernel has no Landlock: QEMU is confined by a separate root directory only, \
             if this host gives it one (cowhand doctor tells)",
        );
    }
    let chosen = accel::choose(context.settings.accel, &Host::observe())?;
    if let Some(warning) = &chosen.warning {
        context.ui.warn(warning);
    }
    let layers = store.layout.layers();
    let (argv, confinement) =
        with_machine(context, name, record, &chosen, &sockets, how, |machine| {
            let links = machine.chains.iter().flat_map(Chain::links);
            links.for_each(|link| info::note_backing(store, &link.layer));
            let wanted = context.settings.confine;
            (cmdline::argv(machine), confinement::of(machine, wanted, &layers))
        })?;
    unseal(store, record);
    make_private_directory(context, &sockets)?;
    process::clear_sockets(&sockets);
    fill_directory(name, record, &sockets)?;
    point_run_link(&store.layout.run_link(name), sockets.directory())?;
    let serial_log = store.layout.serial_log(name);
    files::append_private(&serial_log).on("open", &serial_log)?;
    let (run_lock, log) = (store.layout.run_lock(name), store.layout.qemu_log(name));
    // What the last QEMU printed is of no use any more.
    let _ = std::fs::remove_file(store.layout.older_qemu_log(name));
    let log_limit = record.config.log_limit.bytes();
    let files =
        process::Files { run_lock: &run_lock, log: &log, log_limit, held, with_us, confinement };
    let is_confined = files.confinement.is_some();
    let is_filtered = files.confinement.as_ref().is_some_and(Confinement::filters_destinations);
    let started = process::start(&argv, &sockets, files).await;
    let mut qmp = started.map_err(|error| match error.kind() {
        Kind::Qemu => did_not_start(error, name, is_confined),
        _ => error,
    })?;
    if let Err(error) = limit(&mut qmp, name, record, waits).await {
        let told = match last_words(context, name) {
            Some(words) => error.because(words),
            None => error,
        };
        return Err(match terminate::quit(context, name, qmp).await {
            Ok(()) => told,
            Err(second) => told.hint(second.full_message()),
        });
    }
    if is_filtered {
        warn_of_destinations(context, name, &qmp);
    }
    Ok(qmp)
}

/// Gives a guest that was just started its limits, and lets it run if it waits for them alone.
async fn limit(qmp: &mut Qmp, name: &Name, record: &Record, waits: bool) -> Result<()> {
    if !record.config.limits.are_none() {
        limits::apply(qmp, name, &record.config).await?;
    }
    if waits {
        qmp.cont_until_running().await?;
    }
    Ok(())
}

/// Root may expect that the destinations of a guest are filtered. For an ordinary user they never
/// are.
fn warn_of_destinations(context: &Context, name: &Name, qmp: &Qmp) {
    let is_root = nix::unistd::geteuid().is_root();
    if is_root && !qmp.pid().is_some_and(cgroup::has_one) {
        context.ui.warn(&format!(
            "this host filters no destinations: the guest of {name} reaches the host's loopback \
             and private networks (cowhand doctor --security tells why)"
        ));
    }
}

/// Makes ready what `argv` names, so that a shell can start the VM: the directory of its sockets
/// and what lies in it, the link that leads there, and its serial log, which is for its owner
/// alone.
pub(crate) fn make_ready(
    context: &Context,
    name: &Name,
    record: &Record,
    sockets: &Sockets,
) -> Result<()> {
    unseal(&context.store, record);
    make_private_directory(context, sockets)?;
    fill_directory(name, record, sockets)?;
    // A store that cannot be written has a VM that cannot be started, but its plan can be read.
    let _ = point_run_link(&context.store.layout.run_link(name), sockets.directory());
    let serial_log = context.store.layout.serial_log(name);
    match files::append_private(&serial_log) {
        Err(error) if !is_not_writable(&error) => Err(error).on("open", &serial_log),
        _ => Ok(()),
    }
}

fn is_not_writable(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem)
}

/// Forgets what was noted of the layers that the guest is going to write to: an older record, put
/// back by hand, may name layers that were sealed.
fn unseal(store: &Store, record: &Record) {
    for disk in record.config.writable() {
        sealed::forget(store, &disk.layer);
    }
}

fn did_not_start(error: Error, name: &Name, is_confined: bool) -> Error {
    let told = Error::qemu(format!("{name} did not start"))
        .because(error.full_message())
        .hint(format!("the whole command: cowhand plan {name}"));
    match is_confined {
        true => told.hint(format!(
            "if it needs a file that it may not open: cowhand start {name} --confine off"
        )),
        false => told,
    }
}

/// What QEMU expects to find beside its sockets.
fn fill_directory(name: &Name, record: &Record, sockets: &Sockets) -> Result<()> {
    make_pipes(sockets)?;
    make_seed(name, record, sockets)?;
    make_credentials(record, sockets)
}

/// The error of a layer, which by itself does not say whose it is.
fn damaged_disk(name: &Name, error: &Error) -> Error {
    let told = match error.kind() {
        Kind::Damaged | Kind::NotFound => Error::damaged(format!("a disk of {name} is damaged")),
        // It could not be looked at.
        other => Error::new(other, format!("a disk of {name} cannot be used")),
    };
    let told =
        error.hints().iter().fold(told.because(error.full_message()), |told, hint| told.hint(hint));
    told.hint(format!("what can be done about it: cowhand doctor {name}"))
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

/// What cloud-init is told, where it is told something. It may hold a password, so it is for its
/// owner alone, like its directory.
fn make_seed(name: &Name, record: &Record, sockets: &Sockets) -> Result<()> {
    let Some(seed) = &record.config.seed else { return Ok(()) };
    let image = cloudinit::image::of(&cloudinit::files(seed, name, record.uuid))?;
    write_private(sockets, &sockets.seed(), &image, "the seed for cloud-init")
}

/// What systemd in the guest is given, a file for each credential.
fn make_credentials(record: &Record, sockets: &Sockets) -> Result<()> {
    for (name, content) in record.config.credentials.encoded() {
        let text = format!("io.systemd.credential.binary:{name}={content}");
        write_private(
            sockets,
            &sockets.credential(name),
            text.as_bytes(),
            &format!("the credential {name}"),
        )?;
    }
    Ok(())
}

/// Writes a file beside the sockets. By a rename, so that a QEMU which is just being started finds
/// a whole one, whoever else makes one.
fn write_private(sockets: &Sockets, path: &Path, bytes: &[u8], what: &str) -> Result<()> {
    let failed =
        |error: std::io::Error| Error::failed(format!("cannot make {what}")).because(error);
    let mut file = tempfile::NamedTempFile::new_in(sockets.directory()).map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.persist(path).map(drop).map_err(|error| failed(error.error))
}

/// The argument vector of `record`, as it would be started here and now.
pub(crate) fn argv(
    context: &Context,
    name: &Name,
    record: &Record,
    accel: &Chosen,
    sockets: &Sockets,
    how: StartMode<'_>,
) -> Result<Vec<String>> {
    with_machine(context, name, record, accel, sockets, how, cmdline::argv)
}

/// What `make` says of the machine of `record`, as it would be started here and now.
fn with_machine<T>(
    context: &Context,
    name: &Name,
    record: &Record,
    accel: &Chosen,
    sockets: &Sockets,
    how: StartMode<'_>,
    make: impl FnOnce(&Machine<'_>) -> T,
) -> Result<T> {
    let probe = Probe::get(context)?;
    let config = &record.config;
    probe.machine(&config.machine)?;
    if let Some(boot) = &config.kernel {
        boot_files::check_kernel(boot)?;
    }
    boot_files::check_isos(config)
        .map_err(|error| error.hint(format!("or eject it: cowhand cdrom eject {name}")))?;
    let chains: Vec<Chain> = config
        .volumes()
        .map(|disk| chain::of_disk(&context.store, disk))
        .collect::<Result<_>>()
        .map_err(|error| damaged_disk(name, &error))?;
    descriptors::refuse_too_many(name, &chains)?;
    let uefi = (config.firmware == Firmware::Uefi).then(firmware::find).transpose()?;
    Ok(make(&Machine {
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

/// Makes the directory of the sockets. It and the one above it have to be ours alone.
fn make_private_directory(context: &Context, sockets: &Sockets) -> Result<()> {
    make_directory(sockets.directory())?;
    private(&context.settings.runtime)?;
    private(sockets.directory())
}

/// The directory has to be ours alone: whoever owns a QMP socket owns the host's user.
fn private(directory: &Path) -> Result<()> {
    let about = directory.symlink_metadata().on("look at", directory)?;
    if !about.is_dir()
        || about.uid() != nix::unistd::geteuid().as_raw()
        || about.mode() & 0o077 != 0
    {
        return Err(Error::refused(format!(
            "{} is not a directory of yours alone",
            directory.display()
        ))
        .hint(format!("if it is yours: chmod 700 {}", directory.display())));
    }
    Ok(())
}

/// What the last QEMU of `name` said before it ended, quoted.
pub(crate) fn last_words(context: &Context, name: &Name) -> Option<String> {
    process::last_words(&context.store.layout.qemu_log(name))
}

fn point_run_link(link: &Path, directory: &Path) -> Result<()> {
    if std::fs::read_link(link).is_ok_and(|target| target == directory) {
        return Ok(());
    }
    let _ = std::fs::remove_file(link);
    std::os::unix::fs::symlink(directory, link).on("create", link)
}
