//! A laboratory: one store, one directory for sockets, and words to speak of guests instead of
//! processes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::tier;

/// Long enough for a noisy machine, short enough to end.
pub const PATIENCE: Duration = Duration::from_secs(300);

pub struct Lab {
    // Unmounted before the directory is removed that it is mounted in.
    disk: Option<Disk>,
    appliance: Option<(PathBuf, PathBuf)>,
    unconfined: bool,
    directory: tempfile::TempDir,
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    /// The command must have worked.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "it failed:\n{}\n{}", self.out, self.err);
        self.out
    }

    /// The command must have failed with this exit code and these words.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "\nstdout: {}\nstderr: {}", self.out, self.err);
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in: {}", self.err);
        }
        self
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Lab {
    /// In the first tier it lies in memory, where there is room for it: what is written to the disk
    /// of a busy host takes an eighth of the time. In the second it lies on the disk.
    pub fn new() -> Self {
        if tier::first_or(true, false) { Self::in_memory() } else { Self::on_the_disk() }
    }

    fn on_the_disk() -> Self {
        // Short: the sockets' paths have to fit into 108 bytes.
        Self::of(tempfile::Builder::new().prefix("cw").tempdir_in("/tmp").unwrap())
    }

    /// One in memory, where there is room for it, in both tiers: for commands that are killed or
    /// fail at many places, while the host goes on.
    pub fn in_memory() -> Self {
        in_memory(1000).map_or_else(Self::on_the_disk, Self::of)
    }

    fn of(directory: tempfile::TempDir) -> Self {
        std::fs::create_dir(directory.path().join("run")).unwrap();
        Self { directory, disk: None, appliance: None, unconfined: false }
    }

    /// One whose QEMUs reach what we reach: a test lets them open files of its own.
    pub fn unconfined() -> Self {
        let mut lab = Self::new();
        lab.unconfined = true;
        lab
    }

    /// One whose store lies on a file system of its own, whose power can be cut; or the reason why
    /// not for `test`.
    pub fn with_power(test: &str, file_system: &str, megabytes: u64) -> Option<Self> {
        let mut lab = Self::new();
        lab.disk = Disk::new(test, lab.path(), file_system, megabytes);
        lab.disk.is_some().then_some(lab)
    }

    /// The power fails: what was not flushed is gone, so are all processes and sockets. Then the
    /// host boots again.
    pub fn cut_power(&self) {
        self.lose_disk();
        self.boot();
    }

    /// The disk under the store fails: what was not flushed is gone, and from here on everything is
    /// an I/O error.
    pub fn lose_disk(&self) {
        self.disk.as_ref().unwrap().cut();
    }

    /// The host boots: no process is left, no socket, and the disk is as it was when it was lost.
    pub fn boot(&self) {
        for directory in
            std::fs::read_dir(self.path().join("run/cowhand")).into_iter().flatten().flatten()
        {
            if let Ok(stream) = UnixStream::connect(directory.path().join("status.sock")) {
                let peer = nix::sys::socket::getsockopt(
                    &stream,
                    nix::sys::socket::sockopt::PeerCredentials,
                )
                .unwrap();
                kill(peer.pid());
            }
            std::fs::remove_dir_all(directory.path()).unwrap();
        }
        self.disk.as_ref().unwrap().boot();
    }

    /// Where copies lie that share their blocks with the store's files, where the file system can.
    pub fn beside_the_store(&self) -> PathBuf {
        self.store().parent().unwrap().to_owned()
    }

    /// Copies a store; on a file system whose power can be cut, down to its disk.
    pub fn copy_tree(&self, from: &Path, to: &Path) {
        copy_tree(from, to);
        if self.disk.is_some() {
            let done = Command::new("sync").arg("-f").arg(to).output().unwrap();
            assert!(done.status.success(), "{done:?}");
        }
    }

    /// From here on, commands find a kernel for the appliance, whatever the host has: the one of
    /// the tiny guest, which starts quickly and reads ext4.
    pub fn needs_an_appliance(&mut self) {
        self.appliance = Some(with_modules(&made("kernel", &[]), "vmlinux"));
    }

    /// The same with Debian's, which has all else in modules: `vmlinuz`, as distributions have it,
    /// or `vmlinux`, which need not be unpacked.
    pub fn needs_debians_appliance(&mut self, image: &str) {
        self.appliance = Some(with_modules(&guest("kernel").image, image));
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn store(&self) -> PathBuf {
        match &self.disk {
            Some(disk) => disk.mount.join("store"),
            None => self.path().join("store"),
        }
    }

    /// The `cowhand` that is tested.
    pub fn program() -> OsString {
        // Another build can be tried, an older one for example: does a test of today fail there?
        std::env::var_os("COWHAND_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_cowhand").into())
    }

    /// `cowhand …`, ready to be started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(Self::program());
        command
            .args(args)
            .env("COWHAND_STORE", self.store())
            .env("XDG_RUNTIME_DIR", self.path().join("run"));
        command.env("COWHAND_ACCEL", "tcg").env_remove("NO_COLOR").stdin(Stdio::null());
        if self.unconfined {
            command.env("COWHAND_CONFINE", "off");
        }
        if let Some((kernel, modules)) = &self.appliance {
            command
                .env("COWHAND_APPLIANCE_KERNEL", kernel)
                .env("COWHAND_APPLIANCE_MODULES", modules);
        }
        command
    }

    /// Runs `cowhand …` to its end.
    pub fn run(&self, args: &[&str]) -> Done {
        let done: Done = self.command(args).output().unwrap().into();
        if std::env::var_os("COWHAND_TRACE").is_some() {
            eprintln!(
                "cowhand {} → {} {}{}",
                args.join(" "),
                done.code,
                done.out.trim(),
                done.err.trim()
            );
        }
        done
    }

    /// Runs it; it must work.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.run(args).ok()
    }

    /// Runs it with `--format json`; it must work.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[&["--format", "json"], args].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// Starts it and does not wait.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Stops a command at its fault point `at` (a number or a name), acts with its process id, and
    /// lets it go on. Returns how it ended and what it said, first the point it was stopped at.
    pub fn stopped_at(
        &self,
        args: &[&str],
        at: &str,
        act: impl FnOnce(i32),
    ) -> (ExitStatus, Vec<String>) {
        let mut command = self.command(args);
        command
            .env("COWHAND_FAULT", format!("{at}:stall"))
            .stderr(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let point = lines.by_ref().find(|line| line.starts_with("fault ")).unwrap();
        let pid = child.id().cast_signed();
        eventually("a standstill", || {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ")
        });
        act(pid);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGCONT)
            .unwrap();
        let said: Vec<String> = std::iter::once(point).chain(lines).collect();
        (child.wait().unwrap(), said)
    }

    /// Makes the VM `name` on a raw file of `megabytes`, used in place: something that takes a
    /// while to copy.
    #[track_caller]
    pub fn large(&self, name: &str, megabytes: usize) {
        let source = self.path().join(format!("{name}.raw"));
        std::fs::write(&source, vec![1; megabytes << 20]).unwrap();
        self.ok(&["create", name, "--disk", &format!("{},use", source.to_str().unwrap())]);
    }

    /// Makes the VM `name` from the tiny guest, with more options.
    #[track_caller]
    pub fn tiny(&self, name: &str, options: &[&str]) {
        let guest = guest("tiny");
        let mut args = vec!["create", name, "--disk"];
        let disk = guest.disk();
        args.extend([
            disk.as_str(),
            "--kernel",
            &guest.kernel,
            "--initrd",
            &guest.initrd,
            "--append",
            &guest.cmdline,
        ]);
        // The emulator's own processor can do much more, which takes an eighth of the boot to find
        // out and to use.
        args.extend(["--memory", "192M", "--cpus", "1", "--cpu", "qemu64"]);
        args.extend(options);
        self.ok(&args);
    }

    /// Runs a shell command in a guest; it must work.
    #[track_caller]
    pub fn sh(&self, vm: &str, script: &str) -> String {
        // Most guests are asked once or twice, which is not worth a helper.
        self.ok(&["exec", "--agent-only", "--timeout", "200", vm, "--", "sh", "-c", script])
    }

    /// Writes a file in a guest, down to its disk.
    #[track_caller]
    pub fn write(&self, vm: &str, path: &str, text: &str) {
        self.sh(vm, &format!("echo '{text}' > {path}; sync"));
    }

    /// The text of a file in a guest, or `None` when there is none.
    #[track_caller]
    pub fn read(&self, vm: &str, path: &str) -> Option<String> {
        let text = self.sh(vm, &format!("cat {path} 2>/dev/null || echo NONE"));
        Some(text.trim().to_owned()).filter(|text| text != "NONE")
    }

    /// The text of a file on the first disk of a point that nobody writes to, or `None` when there
    /// is none: what a guest would read, without booting it. The tiny guest's root is the second
    /// partition.
    #[track_caller]
    pub fn on_disk(&self, point: &str, path: &str) -> Option<String> {
        let (raw, root) = (self.path().join("looked-at.raw"), self.path().join("looked-at.ext4"));
        self.ok(&["image", "export", point, raw.to_str().unwrap(), "--force", "--disk", "vda"]);
        let table: Value =
            serde_json::from_str(&tool("sfdisk", &["--json", raw.to_str().unwrap()])).unwrap();
        let partition = &table["partitiontable"]["partitions"][1];
        let bytes = |key: &str| partition[key].as_u64().unwrap() * 512;
        let copy = File::create(&root).unwrap();
        copy.set_len(bytes("size")).unwrap();
        for (number, chunk) in chunks_with_data(&File::open(&raw).unwrap()) {
            let place = (number * CHUNK).checked_sub(bytes("start"));
            if let Some(place) = place.filter(|place| *place < bytes("size")) {
                copy.write_all_at(&chunk, place).unwrap();
            }
        }
        // The journal is put in, as a kernel does that mounts it; what a boot could not put right
        // is an error (2 and more).
        let root = root.to_str().unwrap();
        tool("sh", &["-c", "e2fsck -p -f \"$0\" || [ $? = 1 ]", root]);
        // `debugfs` says on the other stream what is not there, and has worked all the same.
        let [directory, name] =
            path.rsplit_once('/').map(|(directory, name)| [directory, name]).unwrap();
        let listed = tool("debugfs", &["-R", &format!("ls -p {directory}/"), root]);
        assert!(listed.contains("/./"), "{point}: {directory} cannot be listed: {listed}");
        if !listed.contains(&format!("/{name}/")) {
            return None;
        }
        Some(tool("debugfs", &["-R", &format!("cat {path}"), root]).trim().to_owned())
    }

    #[track_caller]
    pub fn state(&self, vm: &str) -> String {
        self.shown(vm)["state"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn pid(&self, vm: &str) -> i32 {
        i32::try_from(self.shown(vm)["pid"].as_i64().unwrap()).unwrap()
    }

    /// What `show` says once QEMU has answered it. It waits for half a second, and says that it
    /// knows no more than that QEMU runs: on a busy host that may be too short.
    #[track_caller]
    fn shown(&self, vm: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let about = self.json(&["show", vm]);
            if about["reason"] != "QEMU does not answer" || Instant::now() > deadline {
                return about;
            }
        }
    }

    /// The same for another command that looks at QEMUs.
    #[track_caller]
    pub fn answered(&self, args: &[&str]) -> Done {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let done = self.run(args);
            if !format!("{done:?}").contains("does not answer") || Instant::now() > deadline {
                return done;
            }
        }
    }

    /// The ids of the layers under the first disk, active layer first.
    #[track_caller]
    pub fn chain(&self, vm: &str) -> Vec<String> {
        let chains = self.json(&["disk", "chain", vm]);
        let layers = chains[0]["layers"].as_array().unwrap();
        layers.iter().map(|layer| layer["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Says `commands` on the QMP socket that is there for the user's own tools; each must be
    /// answered with a return.
    #[track_caller]
    pub fn user_qmp(&self, vm: &str, commands: &[Value]) -> Vec<Value> {
        let socket = self.store().join("vms").join(vm).join("run/user-qmp.sock");
        let mut stream = UnixStream::connect(std::fs::canonicalize(socket).unwrap()).unwrap();
        let mut lines =
            BufReader::new(stream.try_clone().unwrap()).lines().map(|line| line.unwrap());
        let hello = serde_json::json!({"execute": "qmp_capabilities"});
        let mut answers = Vec::new();
        for command in [&hello].into_iter().chain(commands) {
            writeln!(stream, "{command}").unwrap();
            let answer = lines
                .by_ref()
                .map(|line| serde_json::from_str::<Value>(&line).unwrap())
                .find(|line| line.get("return").is_some() || line.get("error").is_some())
                .unwrap();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            answers.push(answer["return"].clone());
        }
        answers
    }

    /// Bytes on disk of the active layer of the first disk.
    pub fn allocated(&self, vm: &str) -> u64 {
        let file = self.store().join("layers").join(format!("{}.qcow2", self.chain(vm)[0]));
        std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512
    }

    /// The files in the pool, whole or not.
    pub fn layer_files(&self) -> Vec<String> {
        files_in(&self.store().join("layers"))
    }

    /// The directories of VMs, of those that never came to be, too.
    pub fn vm_directories(&self) -> Vec<String> {
        files_in(&self.store().join("vms"))
    }

    /// Everything in the store with its content's size, to show that a refused command changed
    /// nothing.
    pub fn fingerprint(&self) -> BTreeMap<PathBuf, u64> {
        let mut all = BTreeMap::new();
        walk(&self.store(), &mut all);
        // What observers and lockers may touch; a copy of a store becomes one of its own by its
        // first lock.
        all.retain(|path, _| {
            !path.ends_with("lock")
                && !path.ends_with("store.lock")
                && !path.ends_with("run.lock")
                && !path.ends_with("clock.json")
                && !path.ends_with("store.json")
                && !path.ends_with("qemu-probe.json")
        });
        all
    }

    /// Every image of the pool must be sound.
    #[track_caller]
    pub fn check_images(&self) {
        self.check_images_for(&[0]);
    }

    /// The same after a QEMU was killed, which may leave clusters that nobody uses (exit code 3):
    /// space, not data.
    #[track_caller]
    pub fn check_images_after_a_kill(&self) {
        self.check_images_for(&[0, 3]);
    }

    #[track_caller]
    fn check_images_for(&self, codes: &[i32]) {
        for file in self.layer_files().iter().filter(|file| file.ends_with(".qcow2")) {
            let path = self.store().join("layers").join(file);
            let output = Command::new("qemu-img")
                .args(["check", "-U", "-f", "qcow2"])
                .arg(&path)
                .output()
                .unwrap();
            let code = output.status.code().unwrap();
            assert!(codes.contains(&code), "{file}: {code}: {}", Done::from(output).out);
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in self.vm_directories() {
            let _ = self.run(&["stop", "--force", "--wait", "20", &name]);
        }
    }
}

/// A file system in a file, mounted through a loop device.
struct Disk {
    image: PathBuf,
    mount: PathBuf,
    options: &'static str,
    _memory: Option<tempfile::TempDir>,
}

/// What the host has left, in MiB.
fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? >> 10)
}

/// A directory in memory, where it has room for `megabytes`: below a file system whose power is
/// only said to fail, nothing is learned from waiting for a real disk.
fn in_memory(megabytes: u64) -> Option<tempfile::TempDir> {
    let room = nix::sys::statvfs::statvfs("/dev/shm").ok()?;
    let free = (room.blocks_available() * room.fragment_size()) >> 20;
    // Others do the same at this moment, and their guests need memory, too.
    if free.min(memory_available()?) <= 4 * megabytes {
        return None;
    }
    let directory = tempfile::Builder::new().prefix("cwd").tempdir_in("/dev/shm").ok()?;
    // Linux has these attributes in memory since 6.6; without them, what is noted in them would not
    // be tested.
    rustix::fs::setxattr(directory.path(), "user.cowhand", b"", rustix::fs::XattrFlags::empty())
        .ok()?;
    Some(directory)
}

impl Disk {
    fn new(test: &str, directory: &Path, file_system: &str, megabytes: u64) -> Option<Self> {
        let memory = in_memory(megabytes);
        let image = memory.as_ref().map_or(directory, |memory| memory.path()).join("disk.img");
        let mount = directory.join("disk");
        // Nothing is to be written back before its time, and no heuristics of the file system may
        // do the work of an fsync that is missing.
        let options = if file_system == "ext4" {
            "loop,noatime,commit=900,noauto_da_alloc"
        } else {
            "loop,noatime"
        };
        std::fs::create_dir(&mount).unwrap();
        File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        // Nothing is kept back for root.
        let reserved: &[&str] = if file_system == "ext4" { &["-m", "0"] } else { &[] };
        let made = Command::new(format!("mkfs.{file_system}"))
            .arg("-q")
            .args(reserved)
            .arg(&image)
            .output();
        if !made.is_ok_and(|made| made.status.success()) {
            skip(test, &format!("mkfs.{file_system} is not there"));
            return None;
        }
        let disk = Self { image, mount, options, _memory: memory };
        if !disk.mount().status.success() {
            skip(
                test,
                &format!(
                    "mounting a file system from a file needs root, a loop device and {file_system}"
                ),
            );
            return None;
        }
        Some(disk)
    }

    fn mount(&self) -> Output {
        Command::new("mount")
            .args(["-o", self.options])
            .arg(&self.image)
            .arg(&self.mount)
            .output()
            .unwrap()
    }

    /// Has a loop device the file open?
    fn is_attached(&self) -> bool {
        let is_ours = |entry: std::fs::DirEntry| {
            let file = std::fs::read_to_string(entry.path().join("loop/backing_file"));
            file.is_ok_and(|file| Path::new(file.trim_end()) == self.image)
        };
        std::fs::read_dir("/sys/block").unwrap().flatten().any(is_ours)
    }

    /// Stops the file system at once: what is not on the disk by now never gets there
    /// (`FS_IOC_SHUTDOWN` without a flush of the log, as xfstests does).
    fn cut(&self) {
        let done = Command::new("xfs_io")
            .args(["-x", "-c", "shutdown"])
            .arg(&self.mount)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    fn boot(&self) {
        eventually("an unused file system", || {
            Command::new("umount").arg(&self.mount).output().unwrap().status.success()
        });
        // A namespace of mounts that another test has just made holds it, too, for an instant.
        eventually("a file system that is mounted nowhere", || !self.is_attached());
        let mounted = self.mount();
        assert!(mounted.status.success(), "{mounted:?}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).output();
    }
}

/// How long the chunks of [`chunks_with_data`] are.
pub const CHUNK: u64 = 65536;

/// The chunks of a file that are not holes in all their length, with their numbers; the last one is
/// shorter.
pub fn chunks_with_data(file: &File) -> impl Iterator<Item = (u64, Vec<u8>)> {
    let length = file.metadata().unwrap().len();
    let mut next = 0;
    std::iter::from_fn(move || {
        let number = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(next * CHUNK)).ok()? / CHUNK;
        next = number + 1;
        let mut chunk = vec![0; usize::try_from(CHUNK.min(length - number * CHUNK)).unwrap()];
        file.read_exact_at(&mut chunk, number * CHUNK).unwrap();
        Some((number, chunk))
    })
}

pub fn files_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn walk(path: &Path, all: &mut BTreeMap<PathBuf, u64>) {
    let Ok(entries) = std::fs::read_dir(path) else { return };
    for entry in entries.map(Result::unwrap) {
        let about = entry.metadata().unwrap();
        all.insert(entry.path(), if about.is_file() { about.len() } else { 0 });
        if about.is_dir() {
            walk(&entry.path(), all);
        }
    }
}

/// A guest made by `scripts/guest`.
#[derive(Debug, Clone)]
pub struct Guest {
    image: PathBuf,
    pub kernel: String,
    pub initrd: String,
    pub cmdline: String,
}

impl Guest {
    pub fn disk(&self) -> String {
        self.image.to_str().unwrap().to_owned()
    }
}

/// The guest called `name`, made if it is not in the cache.
pub fn guest(name: &str) -> Guest {
    static MADE: OnceLock<Mutex<BTreeMap<String, Guest>>> = OnceLock::new();
    let mut made =
        MADE.get_or_init(Mutex::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    made.entry(name.to_owned()).or_insert_with(|| make(name)).clone()
}

fn make(name: &str) -> Guest {
    let image = made("guest", &[name]);
    let beside = |extension: &str| image.with_extension(extension).to_str().unwrap().to_owned();
    // Its own kernel boots in the same way, but for three times as long.
    let kernel = if name == "tiny" {
        with_modules(&made("kernel", &[]), "vmlinux").0
    } else {
        beside("vmlinuz").into()
    };
    Guest {
        kernel: kernel.to_str().unwrap().to_owned(),
        initrd: beside("initrd"),
        cmdline: std::fs::read_to_string(beside("cmdline")).unwrap_or_default().trim().to_owned(),
        image,
    }
}

/// A kernel in the directory of one and the directory of its modules.
fn with_modules(kernel: &Path, image: &str) -> (PathBuf, PathBuf) {
    (kernel.join(image), kernel.join("modules").read_dir().unwrap().next().unwrap().unwrap().path())
}

/// What `scripts/SCRIPT` makes, or has made. It is asked once in a run of nextest, whose tests are
/// processes of their own.
fn made(script: &str, args: &[&str]) -> PathBuf {
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_default();
    let answer =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(["made-", script, &args.concat()].concat());
    let known = std::fs::read_to_string(&answer).unwrap_or_default();
    if let Some(path) = known.strip_prefix(&format!("{run}\n")).filter(|_| !run.is_empty()) {
        return path.into();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(script);
    let output = Command::new(path).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "scripts/{script} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let path = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    if !run.is_empty() {
        let half = PathBuf::from(format!("{}.{}", answer.display(), std::process::id()));
        std::fs::write(&half, format!("{run}\n{path}"))
            .and_then(|()| std::fs::rename(&half, &answer))
            .unwrap();
    }
    path.into()
}

/// Copies a directory with everything in it.
pub fn copy_tree(from: &Path, to: &Path) {
    let done =
        Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// Waits until `condition` holds.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A test that cannot run here says so, and why.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
}

/// Is this finding of `doctor` about the machine that the tests run on?
pub fn is_about_the_host(finding: &Value) -> bool {
    finding["check"] == "kvm" || finding["check"] == "confinement"
}

/// Kills a process at once; one that has just gone is as good.
pub fn kill(pid: i32) {
    signal(pid, nix::sys::signal::Signal::SIGKILL);
}

/// Asks a process to end.
pub fn terminate(pid: u32) {
    signal(i32::try_from(pid).unwrap(), nix::sys::signal::Signal::SIGTERM);
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => panic!("{signal} to {pid}: {error}"),
    }
}

/// Runs `qemu-img`; it must work.
#[track_caller]
pub fn qemu_img(args: &[&str]) -> String {
    tool("qemu-img", args)
}

/// Runs a program of the host; it must work.
#[track_caller]
pub fn tool(program: &str, args: &[&str]) -> String {
    // A user has no way to what only root needs as a rule.
    let way = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", way).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A small file system of its own, mounted from a file; needs root.
pub struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    /// One of `megabytes`, or the reason why not for `test`.
    pub fn new(test: &str, megabytes: u64) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("cws").tempdir_in("/tmp").unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0700"), "none"])
            .arg(directory.path())
            .output()
            .unwrap();
        if !mounted.status.success() {
            skip(test, "mounting a file system needs root");
            return None;
        }
        Some(Self { directory })
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.directory.path()).output();
    }
}

/// A small generator of our own, so that a seed says all (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    pub fn one_of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}
