//! What is put in: the options of `virt-customize(1)`, by their names, done in the user's order.
//! Passwords come after everything else, as there; SELinux labels last of all.

use serde::{Deserialize, Serialize};

/// One of the options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Option_ {
    /// Its name, without dashes.
    pub name: &'static str,
    /// The form of its value; `None`: it takes none.
    pub value: Option<&'static str>,
    /// What it does.
    pub help: &'static str,
}

const fn option(name: &'static str, value: &'static str, help: &'static str) -> Option_ {
    Option_ { name, value: Some(value), help }
}

/// All of them.
pub(crate) const OPTIONS: &[Option_] = &[
    option("append-line", "FILE:LINE", "Append a line to a file"),
    option("chmod", "MODE:FILE", "Change the permissions of a file (octal)"),
    option(
        "chown",
        "UID:GID:PATH",
        "Change the owner of a path (numbers, or names the guest knows)",
    ),
    option("copy-in", "LOCAL:DIR", "Copy a file or a tree into a directory of the guest"),
    option("delete", "GLOB", "Delete files and directories"),
    option(
        "edit",
        "FILE:EXPR",
        "Edit a file with a Perl expression (the guest's perl; else sed -E): 's/a/b/'",
    ),
    option("firstboot", "SCRIPT", "Run a script at the first boot of each clone"),
    option("firstboot-command", "CMD", "Run a command at the first boot of each clone"),
    option("hostname", "NAME", "Set this host name for all clones"),
    option(
        "install",
        "PKG,PKG",
        "Install packages with the guest's package manager (--network, or a local source)",
    ),
    option("link", "TARGET:LINK[:LINK]", "Create symbolic links"),
    option("mkdir", "DIR", "Create a directory, with its parents"),
    option("motd", "TEXT", "Set the message of the day"),
    option("move", "SOURCE:DEST", "Move a file or directory"),
    option(
        "password",
        "USER:SELECTOR",
        "Set a user's password: file:FILE (first line), stdin, \
         password:WORD, random, locked, disabled",
    ),
    option("root-password", "SELECTOR", "Set root's password; SELECTOR as in --password"),
    option("run", "SCRIPT", "Run a script in the guest's file system"),
    option("run-command", "CMD", "Run a command in the guest's file system"),
    Option_ {
        name: "selinux-relabel",
        value: None,
        help: "Relabel all files for SELinux at the next boot",
    },
    option(
        "ssh-inject",
        "USER[:SELECTOR]",
        "Authorise an SSH key for a user: file:KEY.pub, string:KEY [default: your own key]",
    ),
    option("timezone", "ZONE", "Set the time zone (Europe/Berlin)"),
    option("touch", "FILE", "Create an empty file, or set its time"),
    option("truncate", "FILE", "Truncate a file to zero length"),
    option("uninstall", "PKG,PKG", "Remove packages"),
    Option_ { name: "update", value: None, help: "Update all packages" },
    option("upload", "FILE:DEST", "Copy a file to a path in the guest"),
    option("write", "FILE:CONTENT", "Write text into a file"),
];

/// Something to put in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Customisation {
    AppendLine {
        path: String,
        line: String,
    },
    Chmod {
        path: String,
        mode: u32,
    },
    Chown {
        path: String,
        user: String,
        group: String,
    },
    Delete {
        glob: String,
    },
    Edit {
        path: String,
        expression: String,
    },
    /// `name` is the file's own, below the directory of first-boot scripts.
    Firstboot {
        name: String,
        script: Blob,
    },
    Hostname {
        name: String,
    },
    Install {
        packages: Vec<String>,
    },
    Link {
        target: String,
        link: String,
    },
    Mkdir {
        path: String,
    },
    Motd {
        text: String,
    },
    Move {
        from: String,
        to: String,
    },
    /// `hash` as `crypt(5)` has it; `None`: no password will do.
    Password {
        user: String,
        hash: std::option::Option<String>,
    },
    Run {
        name: String,
        script: Blob,
    },
    SelinuxRelabel,
    SshInject {
        user: String,
        key: String,
    },
    Timezone {
        zone: String,
    },
    Touch {
        path: String,
    },
    Truncate {
        path: String,
    },
    Uninstall {
        packages: Vec<String>,
    },
    Update,
    /// A file whose content comes along; into a directory under its own name.
    Upload {
        path: String,
        name: String,
        mode: u32,
        content: Blob,
    },
    /// A link that is a part of a tree that comes along.
    Symlink {
        path: String,
        target: String,
    },
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blob {
    /// It is short, and here.
    Text(String),
    /// It is in the payload: from this byte on, so many.
    Payload(u64, u64),
}

impl Customisation {
    /// Does it run a program of the guest's?
    pub fn runs_programs(&self) -> bool {
        matches!(
            self,
            Self::Edit { .. }
                | Self::Install { .. }
                | Self::Run { .. }
                | Self::Uninstall { .. }
                | Self::Update
        )
    }

    /// Is it done when everything has been taken out, so that it stays?
    pub fn is_late(&self) -> bool {
        matches!(
            self,
            Self::Firstboot { .. }
                | Self::Hostname { .. }
                | Self::Password { .. }
                | Self::SelinuxRelabel
                | Self::SshInject { .. }
        )
    }
}

/// Something to put in, and the option that asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The option, as the user knows it.
    pub label: String,
    /// What.
    pub what: Customisation,
}
