//! Flags every verb has, and the environment behind them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use etcetera::BaseStrategy;
use nix::unistd::Uid;

use crate::error::{Error, Result};
use crate::output::{Color, Format, Terminal, Trace};
use crate::settings::{Accel, Confine, Settings};
use crate::sys::fault;
use crate::ui::Ui;

/// Flags every verb has.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// Directory of the store [default: /var/lib/cowhand for root, else $XDG_DATA_HOME/cowhand]
    #[arg(long, global = true, value_name = "DIR", env = "COWHAND_STORE", hide_env_values = true)]
    store: Option<PathBuf>,
    /// Output format
    #[arg(
        long,
        global = true,
        value_name = "FORM",
        default_value = "table",
        hide_possible_values = false
    )]
    pub format: Format,
    /// Print no confirmations and notes; lists show names only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Show each QMP command and program that is run; -vv also shows the replies in full
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Use colours (NO_COLOR is respected)
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
    /// Accelerator for the guest's processor
    #[arg(
        long,
        global = true,
        value_name = "ACCEL",
        env = "COWHAND_ACCEL",
        default_value = "auto",
        hide_env_values = true
    )]
    accel: AccelArg,
    /// How QEMU is confined: see docs/security.md
    #[arg(
        long,
        global = true,
        value_name = "HOW",
        env = "COWHAND_CONFINE",
        default_value = "default",
        hide_env_values = true
    )]
    confine: ConfineArg,
    /// Seconds to wait for another command on the same VM to end
    #[arg(long, global = true, value_name = "SECS", default_value_t = 60)]
    wait: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AccelArg {
    /// KVM if it is usable on this host, else TCG with a warning
    Auto,
    /// KVM; fail if it is not usable
    Kvm,
    /// Emulation by QEMU, which is slow
    Tcg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ConfineArg {
    /// Use every protection that the host offers
    Default,
    /// Require every protection; else refuse to start the VM
    Strict,
    /// Do not confine QEMU: it can reach what you can reach
    Off,
}

impl Global {
    /// What the library needs to know, from flags and environment.
    pub(super) fn settings(&self) -> Result<Settings> {
        let user = nix::unistd::geteuid();
        Ok(Settings {
            store: store(self.store.as_deref())?,
            runtime: runtime(user, non_empty("XDG_RUNTIME_DIR").map(PathBuf::from)),
            accel: match self.accel {
                AccelArg::Auto => Accel::Auto,
                AccelArg::Kvm => Accel::Kvm,
                AccelArg::Tcg => Accel::Tcg,
            },
            confine: match self.confine {
                ConfineArg::Default => Confine::Default,
                ConfineArg::Strict => Confine::Strict,
                ConfineArg::Off => Confine::Off,
            },
            qemu: non_empty("COWHAND_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into()).into(),
            search_path: std::env::var_os("PATH").unwrap_or_default(),
            lock_wait: Duration::from_secs(self.wait),
        })
    }

    /// Where notes, warnings and progress go.
    pub(super) fn ui(&self) -> Box<dyn Ui> {
        Box::new(Terminal { quiet: self.quiet || self.format == Format::Json })
    }
}

/// The directory of the store: the one that is `named`, else the user's.
pub(super) fn store(named: Option<&Path>) -> Result<PathBuf> {
    match named {
        Some(store) if store.as_os_str().is_empty() => {
            Err(Error::usage("--store or COWHAND_STORE is an empty string"))
        }
        Some(store) => Ok(store.to_path_buf()),
        None if nix::unistd::geteuid().is_root() => Ok(PathBuf::from("/var/lib/cowhand")),
        None => Ok(data_home()?.join("cowhand")),
    }
}

fn data_home() -> Result<PathBuf> {
    let base = etcetera::choose_base_strategy().map_err(|source| {
        Error::failed("cannot determine your home directory")
            .hint("use --store DIR")
            .because(source)
    })?;
    Ok(base.data_dir())
}

/// The directory of a login of root (pam_systemd). It is removed when root logs out, and guests go
/// on running.
const OF_A_LOGIN: &str = "/run/user/0";

/// `$XDG_RUNTIME_DIR/cowhand`; without that variable `/run/cowhand` for root, and a private
/// directory in /tmp else. Root does not use that of a login, its own or another user's (`sudo -E`,
/// `su`).
fn runtime(user: Uid, session: Option<PathBuf>) -> PathBuf {
    let is_roots = |session: &Path| session.metadata().map_or(true, |about| about.uid() == 0);
    let lasts = |session: &PathBuf| {
        !user.is_root() || (session != Path::new(OF_A_LOGIN) && is_roots(session))
    };
    match session.filter(lasts) {
        Some(session) => session.join("cowhand"),
        None if user.is_root() => PathBuf::from("/run/cowhand"),
        None => PathBuf::from(format!("/tmp/cowhand-{user}")),
    }
}

fn non_empty(variable: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(variable).filter(|value| !value.is_empty())
}

/// Arms the fault a test asks for, see [`crate::sys::fault`]; a release asks nobody.
pub(super) fn arm_faults(tell: fn(&str)) {
    if !cfg!(debug_assertions) {
        return;
    }
    if let Some((place, fault)) =
        std::env::var("COWHAND_FAULT").ok().and_then(|text| fault::parse(&text))
    {
        fault::arm(place, fault, tell);
    }
    if let Some(seconds) = std::env::var("COWHAND_PATIENCE").ok().and_then(|text| text.parse().ok())
    {
        fault::set_patience(Duration::from_secs(seconds));
    }
}

/// Do these words ask for JSON? For those that cannot be parsed.
pub(super) fn wants_json(words: &[String]) -> bool {
    let ours = words.iter().take_while(|word| *word != "--").collect::<Vec<_>>();
    ours.iter().any(|word| *word == "--format=json")
        || ours.windows(2).any(|two| two[0] == "--format" && two[1] == "json")
}

/// Shows what is done under the hood, on standard error.
pub(super) fn trace(verbose: u8) {
    let level = match verbose {
        0 => return,
        1 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| Trace)
        .with_ansi(false)
        .without_time()
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_root_do_not_go_where_the_end_of_a_login_removes_them() {
        let at = |user: u32, session: Option<&str>| {
            runtime(Uid::from_raw(user), session.map(PathBuf::from))
        };
        assert_eq!(at(0, Some("/run/user/0")), Path::new("/run/cowhand"));
        assert_eq!(at(0, Some("/run/user/0/")), Path::new("/run/cowhand"));
        assert_eq!(at(0, None), Path::new("/run/cowhand"));
        assert_eq!(at(0, Some("/proc")), Path::new("/proc/cowhand"));
        assert_eq!(at(0, Some("/not/there/yet")), Path::new("/not/there/yet/cowhand"));
        // Only root can make one that is another user's.
        let another = tempfile::tempdir().expect("a directory");
        if nix::unistd::chown(another.path(), Some(Uid::from_raw(1000)), None).is_ok() {
            assert_eq!(at(0, another.path().to_str()), Path::new("/run/cowhand"));
        }
        assert_eq!(at(1000, Some("/run/user/1000")), Path::new("/run/user/1000/cowhand"));
        assert_eq!(at(1000, None), Path::new("/tmp/cowhand-1000"));
    }
}
