//! What an operation of sealing is, and what it can do.

/// Something that is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// It is done unless told otherwise.
    pub default: bool,
    /// It is one of `virt-sysprep`'s, too.
    pub sysprep: bool,
    /// What it does, in order.
    pub work: &'static [Work],
}

/// One thing an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Removes what the glob matches, with everything below it.
    Remove(&'static str),
    /// The same, but for files of these names.
    RemoveBut(&'static str, &'static [&'static str]),
    /// Removes the files below a directory; the directories stay.
    RemoveFiles(&'static str),
    /// Makes files empty; they stay.
    Empty(&'static str),
    /// Writes this into a file that is there.
    Rewrite(&'static str, &'static str),
    /// Removes the lines of a file that begin with one of these words.
    DropLines(&'static str, &'static [&'static str]),
    /// What takes more than a path.
    Special(Special),
}

/// What takes more than a path. How: `appliance/init/special.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Editors' and package managers' left-over copies (`*~`, `*.bak`) below /etc, /root, /srv,
    /// /tmp and /var.
    BackupFiles,
    /// NetworkManager's own connections that name a card (`interface-name`, `mac-address`, `uuid`).
    NmConnections,
    /// Private keys and known hosts in `~/.ssh`; `authorized_keys` and `config` stay.
    SshUserDirectories,
    /// Accounts with a UID in the range of people, with their homes.
    UserAccounts,
    /// New UUIDs for ext4, xfs and btrfs file systems.
    FilesystemUuids,
    /// New UUIDs for LVM physical volumes and volume groups.
    LvmUuids,
    /// The machine-id: empty, so that the next boot makes a new one. Always the last.
    MachineId,
    /// `/etc/hostname` empty, and its name out of `/etc/hosts`: a clone takes its own name at its
    /// first boot.
    Hostname,
    /// The EFI system partition's random seed.
    EspRandomSeed,
    /// `/.unconfigured`, which makes old Red Hat systems ask at their next boot.
    FlagReconfiguration,
    /// Installs the unit that gives a clone host keys and a name of its own at its first boot.
    FirstBoot,
    /// What the customise options say.
    Customise,
}

impl Special {
    /// Where, in words.
    pub fn places(self) -> &'static str {
        match self {
            Self::BackupFiles => {
                "files called `*~` and `*.bak` below `/etc`, `/root`, `/srv`, `/tmp`, `/var`"
            }
            Self::NmConnections => {
                "`/etc/NetworkManager/system-connections/*.nmconnection` with `mac-address=`, \
                 `interface-name=` or `uuid=`"
            }
            Self::SshUserDirectories => {
                "`~/.ssh/*` but authorized_keys, authorized_keys2, authorized_keys.d, config, \
                 config.d, rc, environment"
            }
            Self::UserAccounts => {
                "`/etc/passwd`, `shadow`, `group`, `gshadow`, `subuid`, `subgid`; homes below \
                 `/home`; `/var/spool/mail/USER`"
            }
            Self::FilesystemUuids => {
                "superblocks; `/etc/fstab`, `/etc/crypttab`, `/etc/default/grub`, \
                 `/etc/kernel/cmdline`, GRUB's and the boot loader specification's files in `/boot`"
            }
            Self::LvmUuids => "LVM's metadata; not where `/boot` is on LVM",
            Self::MachineId => {
                "empties `/etc/machine-id` (`uninitialized` stays); `/var/lib/dbus/machine-id`"
            }
            Self::Hostname => "empties `/etc/hostname`; the line of 127.0.1.1 in `/etc/hosts`",
            Self::EspRandomSeed => "`loader/random-seed` in `/boot/efi`, `/efi`, `/boot`",
            Self::FlagReconfiguration => "creates `/.unconfigured`",
            Self::FirstBoot => {
                "creates `/usr/lib/cowhand/first-boot` and `/etc/systemd/system/cowhand-*.service`"
            }
            Self::Customise => "see above",
        }
    }
}
