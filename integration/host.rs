//! A host of its own, in namespaces: this host's programs, an `/etc` and a store of its own, and an
//! init system as process 1.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::lab::{Done, Lab, eventually, guest, kill};

/// Makes the root of the host at `$ROOT` and runs `$INIT` there as process 1.
const BOOT: &str = r#"
set -e
mount --make-rprivate /
# Control groups of its own, below this one.
mkdir -p "$ROOT/cgroup"
mount -t cgroup2 cgroup2 "$ROOT/cgroup" && mkdir "$ROOT/cgroup/$GROUP" || exit $NO_GROUPS
echo $$ > "$ROOT/cgroup/$GROUP/cgroup.procs"
exec unshare --pid --ipc --net --uts --cgroup --fork --kill-child=KILL sh -c '
set -e
root="$ROOT/root"
mount -t tmpfs tmpfs "$root"
cd "$root"
mkdir -p usr etc run tmp proc sys dev root old log var/lib/cowhand var/log ".$GUESTS"
mount -t overlay -o "lowerdir=$ROOT/programs:/usr" overlay usr
for name in bin sbin lib lib64; do ln -s "usr/$name" "$name"; done
cp -a "$ROOT/etc/." etc
cp /etc/passwd /etc/group etc
mount --bind "$STORE" var/lib/cowhand
mount --bind "$GUESTS" ".$GUESTS"
mount --bind "$ROOT/log" log
mount -t tmpfs tmpfs dev
mkdir dev/shm dev/pts
for name in null zero full random urandom tty; do cp -a "/dev/$name" dev; done
touch dev/console log/console
mount --bind log/console dev/console
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
pivot_root . old
# What this host has mounted is not held for longer than this took.
umount -l /old
exec env -i container=test COWHAND_ACCEL=tcg PATH=/usr/sbin:/usr/bin $INIT
'
"#;

/// Removes the control groups of a host that has ended.
const CLEAR: &str = r#"
mount --make-rprivate /
mount -t cgroup2 cgroup2 "$ROOT/cgroup"
find "$ROOT/cgroup/$GROUP" -depth -type d -exec rmdir {} +
"#;

/// The exit code of [`BOOT`] where there can be no control groups.
const NO_GROUPS: i32 = 77;

/// A host that runs.
pub struct Host {
    directory: tempfile::TempDir,
    process: Child,
    init: i32,
}

impl Host {
    /// Boots a host with the store of `lab` at its usual place. `init` is the command line of its
    /// process 1, `name` the name of that process; `prepare` gets a directory, where it puts files
    /// below `etc` and `programs`, which is its `/usr`. `Err` says why there can be no such host
    /// here.
    pub fn boot(
        lab: &Lab,
        init: &str,
        name: &str,
        prepare: impl FnOnce(&Path),
    ) -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("only root can make namespaces with mounts and control groups".to_owned());
        }
        let directory = tempfile::Builder::new().prefix("cwh").tempdir_in("/tmp").unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["root", "log", "etc", "programs/bin"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::fs::copy(Lab::program(), at("programs/bin/cowhand")).unwrap();
        prepare(directory.path());
        let errors = File::create(at("log/errors")).unwrap();
        let mut command = in_namespace(directory.path(), BOOT);
        command
            .env("STORE", lab.store())
            .env("INIT", init)
            .env("GUESTS", Path::new(&guest("tiny").disk()).parent().unwrap());
        command.stdin(Stdio::null()).stdout(errors.try_clone().unwrap()).stderr(errors);
        let mut host = Self { process: command.spawn().unwrap(), init: 0, directory };
        let mut ended = None;
        eventually("process 1 of the host", || {
            host.init =
                child_of(host.process.id()).filter(|pid| is_called(*pid, name)).unwrap_or_default();
            ended = host.process.try_wait().unwrap();
            host.init != 0 || ended.is_some()
        });
        match ended {
            None => Ok(host),
            Some(ended) if ended.code() == Some(NO_GROUPS) => {
                Err("no file system of control groups can be mounted".to_owned())
            }
            Some(ended) => panic!("the host did not boot: {ended}: {}", host.log("errors")),
        }
    }

    /// Runs a program in the host.
    pub fn run(&self, words: &[&str]) -> Done {
        let mut command = Command::new("nsenter");
        command
            .args([
                "-t",
                &self.init.to_string(),
                "-m",
                "-p",
                "-i",
                "-n",
                "-u",
                "-C",
                "-r",
                "-w",
                "--",
            ])
            .args(words);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin")
            .env("COWHAND_ACCEL", "tcg")
            .stdin(Stdio::null());
        command.output().unwrap().into()
    }

    /// What was written to `/log/NAME`.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join("log").join(name)).unwrap_or_default()
    }

    /// Waits until its process 1 has ended.
    pub fn wait(&mut self) {
        eventually("the end of the host", || self.process.try_wait().unwrap().is_some());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Process 1 takes all others with it, and `unshare` waits for it.
        match self.init {
            0 => drop(self.process.kill()),
            init if self.process.try_wait().is_ok_and(|ended| ended.is_none()) => kill(init),
            _ => {}
        }
        let _ = self.process.wait();
        let _ = in_namespace(self.directory.path(), CLEAR).stderr(Stdio::null()).status();
    }
}

/// `script`, in a namespace of mounts.
fn in_namespace(directory: &Path, script: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--", "sh", "-c", script])
        .env("ROOT", directory);
    command.env("NO_GROUPS", NO_GROUPS.to_string());
    command.env("GROUP", directory.file_name().unwrap());
    command
}

fn child_of(pid: u32) -> Option<i32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .ok()?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

fn is_called(pid: i32, name: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
}
