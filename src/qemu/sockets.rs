//! Where the sockets of one VM lie, and what else there is for as long as its QEMU runs.

use std::path::{Path, PathBuf};

use crate::model::PORTS;

/// How the files of credentials begin.
const CREDENTIAL: &str = "credential.";

/// Where one VM's sockets lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sockets {
    directory: PathBuf,
}

impl Sockets {
    /// The longest path a Unix socket can have (`sun_path`, 108 bytes with the final zero).
    pub const LONGEST: usize = 107;

    /// The sockets in `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Their directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ours: whoever connects holds the VM's lock.
    pub fn qmp(&self) -> PathBuf {
        self.directory.join("qmp.sock")
    }

    /// For observers, who ask one question and hang up.
    pub fn status(&self) -> PathBuf {
        self.directory.join("status.sock")
    }

    /// For the user's own tools.
    pub fn user_qmp(&self) -> PathBuf {
        self.directory.join("user-qmp.sock")
    }

    /// The guest agent: a pair of named pipes, as QEMU's `pipe` character device wants them.
    pub fn agent(&self) -> Pipes {
        Pipes { stem: self.directory.join("agent") }
    }

    /// The serial console.
    pub fn console(&self) -> PathBuf {
        self.directory.join("console.sock")
    }

    /// The seed for cloud-init: a disk that lies beside the sockets, since it is made anew for each
    /// start.
    pub fn seed(&self) -> PathBuf {
        self.directory.join("seed.img")
    }

    /// What systemd in the guest is given under this name, in a file, since other users see the
    /// arguments of a program.
    pub fn credential(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{CREDENTIAL}{name}"))
    }

    /// What is there of these, also of an earlier start.
    pub fn credentials(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let is_one =
            |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with(CREDENTIAL);
        entries.filter(is_one).map(|entry| entry.path()).collect()
    }

    /// A link to the control group of the QEMU, where it has one: it stays behind when QEMU ends.
    pub fn group(&self) -> PathBuf {
        self.directory.join("group")
    }

    /// A port of the helper in the guest.
    pub fn port(&self, index: usize) -> PathBuf {
        self.directory.join(format!("port{index}.sock"))
    }

    /// All of them, the pipes and the seed.
    pub fn all(&self) -> Vec<PathBuf> {
        let agent = self.agent();
        let mut all = vec![
            self.qmp(),
            self.status(),
            self.user_qmp(),
            agent.to_guest(),
            agent.from_guest(),
            self.console(),
        ];
        all.extend((0..PORTS).map(|index| self.port(index)));
        all.push(self.seed());
        all
    }
}

/// Two named pipes. QEMU holds both open for as long as it lives, so the guest never sees its host
/// side closed: `qemu-ga` sleeps for 100 ms at a time while it is (`channel-posix.c`), and would
/// answer every command of ours that much later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipes {
    stem: PathBuf,
}

impl Pipes {
    /// What QEMU is told; it adds `.in` and `.out`.
    pub fn stem(&self) -> &Path {
        &self.stem
    }

    /// What is written here, the guest reads.
    pub fn to_guest(&self) -> PathBuf {
        self.stem.with_extension("in")
    }

    /// What the guest writes is read here.
    pub fn from_guest(&self) -> PathBuf {
        self.stem.with_extension("out")
    }
}
