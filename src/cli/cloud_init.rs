use std::path::PathBuf;

use clap::Args;

use crate::cloudinit::request::Request;

/// What is said to cloud-init in the guest.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "For cloud-init in the guest, at its first boot and that of each clone"
)]
pub(super) struct CloudInit {
    /// A file that is the user-data, or a directory with user-data and, maybe, meta-data,
    /// network-config and vendor-data
    #[arg(
        long, value_name = "FILE|DIRECTORY",
        conflicts_with_all = ["user", "ssh_key", "password_file", "packages", "run"],
    )]
    cloud_init: Option<PathBuf>,
    /// Make this user, who may do everything by sudo
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Let the owner of this public key in by SSH, as the user of --user or the image's own; can be
    /// repeated
    #[arg(long, value_name = "KEY.pub")]
    ssh_key: Vec<PathBuf>,
    /// Give the user of --user the password in the first line of this file
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// What the guest calls itself [default: the name of the VM]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Install these packages; can be repeated
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    packages: Vec<String>,
    /// Run this in a shell at the end; can be repeated
    #[arg(long, value_name = "COMMAND")]
    run: Vec<String>,
}

impl CloudInit {
    pub(super) fn request(self) -> Request {
        Request {
            documents: self.cloud_init,
            user: self.user,
            ssh_keys: self.ssh_key,
            password: self.password_file,
            hostname: self.hostname,
            packages: self.packages,
            commands: self.run,
        }
    }
}
