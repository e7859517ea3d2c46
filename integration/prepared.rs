//! Guests that are up already. Booting the tiny guest takes seconds under emulation, and to most
//! tests it is only the way to a guest: so it is done once for each kind of guest, and a lab gets a
//! copy of the store that came of it.
//!
//! The copy holds a VM with a snapshot of its memory. Going back to it and removing it leaves what
//! `create` and `start` would have left, and a guest whose agent answers. Where starting a guest is
//! what is tested, tests start one ([`Lab::booted_anew`]).

use std::ffi::OsString;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::SystemTime;

use crate::lab::{Lab, guest};

/// What the VM is called until it gets the name it is to have.
const NAME: &str = "web";
/// The snapshot of its memory.
const UP: &str = "is-up";

/// Has the tiny guest ask for an address; it has the one that it will get, and says which one it
/// got.
pub const LEASE: &str = "udhcpc -f -n -q -i eth0 -s /bin/true 2>&1";

impl Lab {
    /// Makes and starts the VM `name` from the tiny guest, and waits until its agent answers.
    #[track_caller]
    pub fn booted(&self, name: &str) {
        self.booted_with(name, &[]);
    }

    /// The same with more options; each of these sets is a guest of its own.
    #[track_caller]
    pub fn booted_with(&self, name: &str, options: &[&str]) {
        if self.store().exists() {
            // A store can be copied, a VM cannot.
            return self.booted_anew(name, options);
        }
        self.prepared("booted", options, |lab| {
            lab.booted_anew(NAME, options);
            lab.ok(&["snapshot", "create", NAME, UP, "--memory"]);
            lab.ok(&["stop", "--force", NAME]);
        });
        if name != NAME {
            self.ok(&["rename", NAME, name]);
        }
        let point = format!("{name}@{UP}");
        self.ok(&["snapshot", "revert", &point]);
        self.ok(&["snapshot", "rm", &point]);
        // What the way to it has left; nobody would expect an `undo`.
        for entry in std::fs::read_dir(self.store().join("trash")).unwrap() {
            std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        self.sh(name, "true");
    }

    /// The same by booting it here.
    #[track_caller]
    pub fn booted_anew(&self, name: &str, options: &[&str]) {
        self.tiny(name, options);
        self.ok(&["start", name]);
        self.sh(name, "true");
    }

    /// A lab with the warm template `t`, of the tiny guest, which has asked QEMU for an address.
    pub fn warm() -> Self {
        let lab = Self::new();
        lab.warm_again();
        lab
    }

    /// Puts the store of [`Lab::warm`] in the place of this lab's, of which nothing may run.
    pub fn warm_again(&self) {
        let _ = std::fs::remove_dir_all(self.store());
        self.prepared("warm", &[], |lab| {
            lab.tiny("t", &[]);
            lab.ok(&["template", "create", "t", "--no-seal", "--warm", "--ready", LEASE]);
        });
    }

    /// Copies the store that `make` makes in an empty lab into this one, where there is none. It is
    /// made once for each cowhand, QEMU and guest; `options` are what else it depends on.
    #[track_caller]
    pub fn prepared(&self, kind: &str, options: &[&str], make: impl FnOnce(&Lab)) {
        let qemu = std::env::var_os("COWHAND_QEMU")
            .unwrap_or_else(|| "/usr/bin/qemu-system-x86_64".into());
        let cowhand: OsString = Lab::program();
        // Where it is kept says what it is of; what lies beside it, of which version of these.
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("prepared")
            .join(format!("{kind}-{:016x}", hash(&(options, &qemu, &cowhand))));
        let versions = [cowhand, qemu, guest("tiny").disk().into(), guest("tiny").kernel.into()]
            .map(|file| {
                let about = std::fs::metadata(&file).unwrap();
                (
                    about.len(),
                    about.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap(),
                )
            });
        let version = format!("{:016x}", hash(&versions));
        std::fs::create_dir_all(&place).unwrap();
        // One test makes it, the others wait; and nobody makes another one while it is copied.
        let lock = File::create(place.join("lock")).unwrap();
        let _lock = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
        let (store, made) = (place.join("store"), place.join("version"));
        if std::fs::read_to_string(&made).ok().as_ref() != Some(&version) {
            let _ = std::fs::remove_file(&made);
            let _ = std::fs::remove_dir_all(&store);
            let lab = Lab::new();
            make(&lab);
            lab.copy_tree(&lab.store(), &store);
            std::fs::write(&made, &version).unwrap();
        }
        self.copy_tree(&store, &self.store());
    }
}

fn hash(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}
