//! What runs inside the appliance: we are process 1, our memory is all there is, and the guest's
//! disks are ours to work on.
//!
//! | part | what it does |
//! |---|---|
//! | [`modules`] | loads kernel modules, only the ones that are needed |
//! | [`devices`], [`superblock`], [`lvm`] | finds out what is on the disks |
//! | [`system`], [`fstab`] | finds the operating system and mounts its tree as it would itself |
//! | [`tree`] | changes files, or says which it would |
//! | [`perform`], [`special`], [`uuids`] | carries out the operations |
//! | [`put`], [`program`] | carries out the customise options |

mod devices;
mod fstab;
mod lvm;
mod modules;
mod perform;
mod program;
mod put;
mod special;
mod superblock;
mod system;
mod tree;
mod uuids;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

use super::protocol::{Event, Job, PORT};
use crate::error::{Error, IoContext, Result};
use crate::seal::Report;

/// How often what appears by itself is looked for.
const TICK: Duration = Duration::from_millis(5);
/// How long it may take to appear.
const PATIENCE: Duration = Duration::from_secs(60);

/// Are we the appliance's `/init`, and not a program somebody runs? `name` is what we were started
/// as.
pub fn is_here(name: Option<&OsStr>) -> bool {
    nix::unistd::getpid().as_raw() == 1 && name.is_some_and(|name| name == "/init")
}

/// Does the job, and switches the machine off. What goes wrong before there is anybody to tell is a
/// panic, which the console shows.
pub fn main() -> ExitCode {
    let mut host = match connect() {
        Ok(host) => host,
        Err(error) => return fall(&error),
    };
    let told = match host.job().and_then(|job| work(&mut host, &job)) {
        Ok(report) => host.tell(&Event::Done { report, peak_bytes: peak() }),
        Err(error) => host.tell(&Event::Failed {
            kind: error.kind().word().to_owned(),
            message: error.full_message(),
            hints: error.hints().to_vec(),
        }),
    };
    match told {
        Ok(()) => {
            let _ = reboot(RebootCommand::PowerOff);
            ExitCode::SUCCESS
        }
        Err(error) => fall(&error),
    }
}

/// Process 1 that ends is a kernel panic, and that ends QEMU.
fn fall(error: &Error) -> ExitCode {
    if let Ok(mut console) = File::options().write(true).open("/dev/console") {
        let _ = writeln!(console, "cowhand appliance: {}", error.full_message());
    }
    ExitCode::FAILURE
}

/// Whoever booted us.
pub struct Host {
    lines: BufReader<File>,
    port: File,
}

impl Host {
    fn job(&mut self) -> Result<Job> {
        let mut line = String::new();
        self.lines.read_line(&mut line).on("read", Path::new(PORT))?;
        serde_json::from_str(&line)
            .map_err(|error| Error::failed("the job cannot be read").because(error))
    }

    /// Tells it something.
    pub fn tell(&mut self, event: &Event) -> Result<()> {
        let line = serde_json::to_string(event)
            .map_err(|error| Error::failed("cannot write a line").because(error))?;
        self.port.write_all(format!("{line}\n").as_bytes()).on("write to", Path::new(PORT))
    }

    /// Tells it what its user should know.
    pub fn warn(&mut self, text: impl Into<String>) -> Result<()> {
        self.tell(&Event::Warning { text: text.into() })
    }
}

fn connect() -> Result<Host> {
    for (kind, place) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")]
    {
        mount(kind, place, kind, MountFlags::empty(), None).on("mount", Path::new(place))?;
    }
    modules::load("base")?;
    let device = wait_for("the port to the host", port)?;
    let port =
        File::options().read(true).write(true).open(&device).on("open", Path::new(&device))?;
    let lines = BufReader::new(port.try_clone().on("open", Path::new(&device))?);
    let mut host = Host { lines, port };
    let kernel =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    host.tell(&Event::Hello { kernel })?;
    Ok(host)
}

/// Our port among those the kernel has found.
fn port() -> Option<String> {
    let ports = std::fs::read_dir("/sys/class/virtio-ports").ok()?;
    ports.flatten().find_map(|entry| {
        let name = std::fs::read_to_string(entry.path().join("name")).ok()?;
        let device = format!("/dev/{}", entry.file_name().to_string_lossy());
        (name.trim() == PORT && Path::new(&device).exists()).then_some(device)
    })
}

/// Waits for something the kernel makes appear; there is no event for all of it.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let began = std::time::Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if began.elapsed() > PATIENCE {
            return Err(Error::failed(format!("{what} did not appear")));
        }
        std::thread::sleep(TICK);
    }
}

fn work(host: &mut Host, job: &Job) -> Result<Report> {
    let disks = wait_for("the disks", || devices::disks(&job.disks))?;
    let mut system = system::find(host, &disks)?;
    system.mount_all(host)?;
    let mut report =
        Report { system: system.name.clone(), mounts: system.mounts(), operations: Vec::new() };
    devices::open_payload()?;
    if job.network {
        modules::load("network")?;
    }
    let outside = system.enter()?;
    let performed = perform::all(host, job, &system);
    outside.back()?;
    let (operations, uuids) = performed?;
    report.operations = operations;
    system.leave()?;
    uuids.carry_out()?;
    if !job.dry_run
        && !system.boots_from_lvm
        && job.plan.operations.iter().any(|name| name == "lvm-uuids")
    {
        lvm::new_uuids()?;
    }
    Ok(report)
}

/// The most memory that was in use, as far as process 1 can tell: what is not free now, and no
/// cache.
fn peak() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0)
            * 1024
    };
    field("MemTotal").saturating_sub(field("MemAvailable"))
}
