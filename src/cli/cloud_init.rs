use std::path::PathBuf;

use clap::Args;

use crate::cloudinit::request::Request;

/// What is said to cloud-init in the guest.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "For cloud-init in the guest, at its first boot and that of each clone"
)]
pub(super) struct CloudInit {
    /// File with user-data, or directory with user-data and optionally meta-data, network-config
    /// and vendor-data
    #[arg(
        long, value_name = "FILE|DIRECTORY",
        conflicts_with_all = ["user", "ssh_key", "password_file", "packages", "run"],
    )]
    cloud_init: Option<PathBuf>,
    /// Create this user, with sudo rights without a password
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Authorise this public SSH key for the user given with --user, or for the image's default
    /// user; can be repeated
    #[arg(long, value_name = "KEY.pub")]
    ssh_key: Vec<PathBuf>,
    /// Set the password of the user given with --user to the first line of this file
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Host name of the guest [default: the name of the VM]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Install these packages, separated by commas; can be repeated
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    packages: Vec<String>,
    /// Run this shell command at the end of cloud-init; can be repeated
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
