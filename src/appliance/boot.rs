//! Booting the appliance with a guest's disks, giving it its job and hearing what comes of it. It
//! ends with us, however we end.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::initramfs;
use super::kernel::{Kernel, Wanted, numbers};
use super::protocol::{Event, Job, LINE, PAYLOAD, PORT};
use crate::context::Context;
use crate::error::{Error, IoContext, Kind, Result};
use crate::qemu::accel::{self, Chosen, Host};
use crate::qemu::probe::Probe;
use crate::seal::Report;
use crate::sys::pidfd::PidFd;
use crate::sys::{command, files};

/// How long its kernel may take to start our program.
const START: Duration = Duration::from_secs(180);
/// How long it may take to switch itself off once it has said its last word.
const END: Duration = Duration::from_secs(60);
/// How much of what programs print, or of what is on the console, is kept, in bytes.
const PRINTED: usize = 64 << 10;
/// How many of its warnings are shown.
const WARNINGS: usize = 100;
/// How long sealing may take, unless it is said: scripts may install packages.
pub(crate) const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Its memory where it only moves files about; and where it runs the guest's programs, which may be
/// package managers.
const MEMORY: u64 = 256 << 20;
const MEMORY_FOR_PROGRAMS: u64 = 1 << 30;

/// A disk for the appliance.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Drive {
    /// The VM's name for it.
    pub target: String,
    /// The block nodes, in the order in which they have to be made.
    pub nodes: Vec<Value>,
    /// The name of the topmost one.
    pub top: String,
}

/// How the appliance is to be booted.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    /// The kernel that is wanted.
    pub kernel: &'a Wanted,
    /// The disks, in the guest's order.
    pub drives: &'a [Drive],
    /// The files a job carries along, if any.
    pub payload: Option<&'a Path>,
    /// The guest's own programs will be run.
    pub programs: bool,
    /// How long all of it may take.
    pub limit: Duration,
}

/// Boots the appliance, has it do `job` and waits until it is off.
pub(crate) async fn run(context: &Context, boot: &Boot<'_>, job: &Job) -> Result<Report> {
    let kernel = Kernel::find(boot.kernel)?;
    let initramfs = initramfs::get(context, &kernel)?;
    let probe = Probe::get(context)?;
    let chosen = accel::choose(context.settings.accel, &Host::observe())?;
    if let Some(warning) = &chosen.warning {
        context.ui.warn(warning);
    }
    let failed =
        |source: std::io::Error| Error::failed("cannot start the appliance").because(source);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    let (console, writer) = Console::new().map_err(failed)?;
    let console_path = files::proc_path(&writer);
    let fd = OwnedFd::from(theirs);
    let machine = Machine {
        qemu: &probe.path,
        kernel: &kernel.image,
        initramfs: &initramfs.path,
        accel: &chosen,
        cpu: cpu(&chosen, &probe.version, &kernel.version),
        console: &console_path,
        port: fd.as_raw_fd(),
        network: job.network,
    };
    let argv = argv(&machine, boot);
    ours.set_nonblocking(true).map_err(failed)?;
    let stream = UnixStream::from_std(ours).map_err(failed)?;
    let child = command::helper(&argv, fd).map_err(failed)?;
    let mut appliance = Appliance { child, console: Some((console, writer)) };
    let work = async {
        let report = appliance.converse(context, stream, job).await?;
        appliance.ended().await?;
        Ok(report)
    };
    match timeout(boot.limit, work).await {
        Ok(result) => result,
        Err(_) => {
            let seconds = boot.limit.as_secs();
            Err(appliance
                .died(&format!(
                    "it did not end within {seconds} s and was ended; nothing was changed"
                ))
                .await
                .hint("if what it does takes longer: --appliance-timeout DURATION (90s, 45m, 2h)"))
        }
    }
}

/// What the appliance's console says: a guest decides how much that is, so only the end of it is
/// kept, and no file is written.
struct Console(JoinHandle<Vec<u8>>);

impl Console {
    /// One, and the end to write to it. It is read until all writers are gone.
    fn new() -> std::io::Result<(Self, PipeWriter)> {
        let (reader, writer) = std::io::pipe()?;
        Ok((Self(std::thread::spawn(move || end_of(reader))), writer))
    }

    /// The end of what it said; its writers are gone.
    fn words(self) -> String {
        String::from_utf8_lossy(&self.0.join().unwrap_or_default()).into_owned()
    }
}

fn end_of(mut reader: PipeReader) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = reader.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..read]);
        // Twice as much, so that not every byte moves all others.
        if kept.len() > 2 * PRINTED {
            kept.drain(..kept.len() - PRINTED);
        }
    }
    kept
}

struct Appliance {
    child: Child,
    console: Option<(Console, PipeWriter)>,
}

impl Appliance {
    async fn converse(
        &mut self,
        context: &Context,
        stream: UnixStream,
        job: &Job,
    ) -> Result<Report> {
        let (input, mut output) = stream.into_split();
        let mut lines = BufReader::new(input);
        let words = serde_json::to_string(job)
            .map_err(|error| Error::failed("cannot write down the job").because(error))?;
        // It waits in the socket until the appliance has its port open.
        let told = timeout(START, output.write_all(format!("{words}\n").as_bytes())).await;
        if !matches!(told, Ok(Ok(()))) {
            return Err(self.died("it did not take its job").await);
        }
        let mut task = context.ui.task("appliance: starting", 0);
        let (mut up, mut printed, mut warnings) = (false, String::new(), 0_usize);
        loop {
            let limit = if up { Duration::MAX } else { START };
            let mut line = String::new();
            // A guest's program that finds the port could write to it for ever.
            let line = match timeout(limit, (&mut lines).take(LINE).read_line(&mut line)).await {
                Ok(Ok(1..)) => line.trim_end(),
                Ok(_) => return Err(self.died("it ended in the middle").await),
                Err(_) => {
                    return Err(self
                        .died(&format!("it did not start within {} s", START.as_secs()))
                        .await);
                }
            };
            let event: Event = serde_json::from_str(line).map_err(|error| {
                Error::failed("what the appliance says cannot be read").because(error)
            })?;
            tracing::debug!(target: "appliance", "{line}");
            match event {
                Event::Hello { kernel } => {
                    up = true;
                    tracing::debug!(target: "appliance", "kernel {kernel}");
                }
                Event::Operation { name } => {
                    drop(task);
                    task = context.ui.task(&format!("appliance: {name}"), 0);
                }
                Event::Warning { text } => {
                    warnings += 1;
                    match warnings.cmp(&WARNINGS) {
                        Ordering::Less => context.ui.warn(&text),
                        Ordering::Equal => {
                            context.ui.warn("more warnings of the appliance are not shown")
                        }
                        Ordering::Greater => {}
                    }
                }
                Event::Output { text } => {
                    tracing::debug!(target: "appliance", "{}", text.trim_end());
                    printed.push_str(&text);
                    // The end is what says why it failed.
                    let excess = printed.len().saturating_sub(PRINTED);
                    let cut = (excess..printed.len())
                        .find(|at| printed.is_char_boundary(*at))
                        .unwrap_or(printed.len());
                    printed.drain(..cut);
                }
                Event::Done { report, peak_bytes } => {
                    let peak = peak_bytes >> 20;
                    tracing::debug!(target: "appliance", "{peak} MiB of memory at most");
                    return Ok(report.bounded());
                }
                Event::Failed { kind, message, hints } => {
                    let kind = Kind::from_word(&kind).unwrap_or(Kind::Failed);
                    let error = hints.into_iter().fold(Error::new(kind, message), Error::hint);
                    return Err(if printed.is_empty() {
                        error
                    } else {
                        error.because(command::tail(printed.as_bytes()))
                    });
                }
            }
        }
    }

    /// It is gone or of no use any more: its own last words, or its console's, say why.
    async fn died(&mut self, what: &str) -> Error {
        let _ = self.child.kill();
        let mut words = Vec::new();
        let _ = self
            .child
            .stderr
            .take()
            .map(|stderr| stderr.take(PRINTED as u64).read_to_end(&mut words));
        let _ = self.child.wait();
        let mut words = command::tail(&words);
        if let Some((console, writer)) = self.console.take().filter(|_| words.is_empty()) {
            drop(writer);
            let text = console.words();
            // What the processor's registers were helps nobody.
            let text = text.split(" Call Trace:").next().unwrap_or_default();
            words = command::tail(text.as_bytes());
        }
        let error = Error::qemu(format!("the appliance failed: {what}"));
        if words.is_empty() { error } else { error.because(format!("\"{words}\"")) }
    }

    /// Everything is written when QEMU has ended in order.
    async fn ended(&mut self) -> Result<()> {
        let process = PidFd::open(self.child.id().cast_signed())
            .map_err(|source| Error::failed("cannot wait for the appliance").because(source))?;
        if timeout(END, process.ended()).await.is_err() {
            return Err(self.died("it did not switch itself off").await);
        }
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            _ => Err(self.died("QEMU ended with an error").await),
        }
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Everything that goes into the argument vector but the disks.
struct Machine<'a> {
    qemu: &'a Path,
    kernel: &'a Path,
    initramfs: &'a Path,
    accel: &'a Chosen,
    cpu: String,
    console: &'a Path,
    port: i32,
    network: bool,
}

/// QEMU 7 emulates `cmpxchg16b` wrongly, and Linux 6.5 and newer use it wherever it is announced:
/// they die early. (Programs of the guest's that were built for processors that have it, x86-64-v2,
/// say so and end.)
fn cpu(accel: &Chosen, qemu: &str, kernel: &str) -> String {
    match accel.accel == "tcg" && numbers(qemu) < vec![8] && numbers(kernel) >= vec![6, 5] {
        true => format!("{},cx16=off", accel.cpu),
        false => accel.cpu.to_owned(),
    }
}

fn argv(machine: &Machine<'_>, boot: &Boot<'_>) -> Vec<String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let escaped = |path: &Path| text(path).replace(',', ",,");
    let mut args = vec![text(machine.qemu)];
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    let memory = if boot.programs { MEMORY_FOR_PROGRAMS } else { MEMORY };
    option("-name", "cowhand-appliance".to_owned());
    option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
    );
    option("-machine", "q35,graphics=off".to_owned());
    option("-accel", machine.accel.accel.to_owned());
    option("-cpu", machine.cpu.clone());
    option("-m", format!("{memory}B"));
    option("-rtc", "base=utc".to_owned());
    option("-display", "none".to_owned());
    option("-kernel", text(machine.kernel));
    option("-initrd", text(machine.initramfs));
    // A panic is an end, and its words are on the console.
    let append = "console=ttyS0 quiet panic=-1 random.trust_cpu=on no_timer_check mitigations=off \
                  cryptomgr.notests";
    option("-append", append.to_owned());
    option("-chardev", format!("file,id=console,path={}", escaped(machine.console)));
    option("-device", json!({"driver": "isa-serial", "chardev": "console"}).to_string());
    option("-chardev", format!("socket,id=port,fd={}", machine.port));
    option("-device", json!({"driver": "virtio-serial-pci", "id": "serial"}).to_string());
    option(
        "-device",
        json!({"driver": "virtserialport", "bus": "serial.0", "chardev": "port", "name": PORT})
            .to_string(),
    );
    for drive in boot.drives {
        for node in &drive.nodes {
            option("-blockdev", node.to_string());
        }
        // A full disk is an error for the appliance to see, and not a reason to stand still.
        let device = json!({
            "driver": "virtio-blk-pci", "drive": drive.top, "serial": drive.target, "discard": true,
            "werror": "report", "rerror": "report",
        });
        option("-device", device.to_string());
    }
    if let Some(payload) = boot.payload {
        let file = json!({
            "driver": "file", "node-name": "payload-file", "filename": payload, "read-only": true,
        });
        let raw = json!({
            "driver": "raw", "node-name": "payload", "file": "payload-file", "read-only": true,
        });
        option("-blockdev", file.to_string());
        option("-blockdev", raw.to_string());
        option(
            "-device",
            json!({"driver": "virtio-blk-pci", "drive": "payload", "serial": PAYLOAD}).to_string(),
        );
    }
    if machine.network {
        option("-netdev", json!({"type": "user", "id": "net0"}).to_string());
        option("-device", json!({"driver": "virtio-net-pci", "netdev": "net0"}).to_string());
    }
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        args.push(flag.to_owned());
    }
    args
}

/// The files a job carries along, one behind the other in one image; each is addressed by its
/// place.
#[derive(Debug)]
pub struct Payload {
    file: File,
    length: u64,
}

impl Payload {
    /// An empty one.
    pub fn new() -> Result<Self> {
        // It has no name: it goes when we go, however that is.
        let file = tempfile::tempfile()
            .map_err(|source| Error::failed("cannot make a temporary file").because(source))?;
        Ok(Self { file, length: 0 })
    }

    /// Puts a file of the host's behind the others. Returns where it begins, and its length.
    pub fn add(&mut self, path: &Path) -> Result<(u64, u64)> {
        let mut from = File::open(path).on("read", path)?;
        let at = self.length;
        let copied = std::io::copy(&mut from, &mut self.file).on("copy", path)?;
        self.length += copied;
        Ok((at, copied))
    }

    /// The image, as large as a disk can be; `None` when there is nothing in it. It goes when this
    /// does.
    pub fn finish(&mut self) -> Result<Option<PathBuf>> {
        if self.length == 0 {
            return Ok(None);
        }
        let whole = self.length.next_multiple_of(512);
        let path =
            PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()));
        self.file.set_len(whole).on("write", &path)?;
        Ok(Some(path))
    }
}
