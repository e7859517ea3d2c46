use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::App;
use crate::error::Result;
use crate::model::Name;
use crate::output::{json, table};
use crate::vm::cdrom::{self, Change};

/// List, insert and eject ISO images; remove CD-ROM drives
#[derive(Debug, Subcommand)]
pub(super) enum Cdrom {
    Ls(Ls),
    Insert(Insert),
    Eject(Eject),
    Rm(Rm),
}

impl Cdrom {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        match self {
            Self::Ls(verb) => verb.run(app),
            Self::Insert(verb) => verb.run(app).await,
            Self::Eject(verb) => verb.run(app).await,
            Self::Rm(verb) => verb.run(app).await,
        }
    }
}

/// List the CD-ROM drives of a VM, and the ISO images in them
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// The VM or template
    vm: Name,
}

impl Ls {
    fn run(self, app: &App) -> Result<()> {
        let drives = app.context.store.load(&self.vm)?.config.cdroms;
        let entries: Vec<_> = drives.iter().map(json::Cdrom::from).collect();
        app.printer.result(&table::cdroms(&drives), &entries);
        Ok(())
    }
}

/// Insert an ISO image, replacing the current one; running or stopped
///
/// The file is not copied, so keep it in place. A stopped VM without a CD-ROM drive gets one.
#[derive(Debug, Args)]
pub(super) struct Insert {
    /// The VM
    vm: Name,
    /// The ISO image
    file: PathBuf,
    /// The drive, if the VM has several (`cdrom ls`)
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Also replace an image whose drive the guest has locked
    #[arg(long)]
    force: bool,
}

impl Insert {
    async fn run(self, app: &App) -> Result<()> {
        let change = Change { target: self.target, iso: Some(self.file), force: self.force };
        let drive = cdrom::change(&app.context, &self.vm, &change).await?;
        let text = format!("inserted into CD-ROM drive {} of {}", drive.target, self.vm);
        app.printer.done(&text, &json::Cdrom::from(&drive));
        Ok(())
    }
}

/// Eject the ISO image; running or stopped
#[derive(Debug, Args)]
pub(super) struct Eject {
    /// The VM
    vm: Name,
    /// The drive, if the VM has several (`cdrom ls`)
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Eject even if the guest has locked the drive
    #[arg(long)]
    force: bool,
}

impl Eject {
    async fn run(self, app: &App) -> Result<()> {
        let change = Change { target: self.target, iso: None, force: self.force };
        let drive = cdrom::change(&app.context, &self.vm, &change).await?;
        app.printer.done(
            &format!("CD-ROM drive {} of {} is empty", drive.target, self.vm),
            &json::Cdrom::from(&drive),
        );
        Ok(())
    }
}

/// Remove a CD-ROM drive from a stopped VM
#[derive(Debug, Args)]
pub(super) struct Rm {
    /// The VM
    vm: Name,
    /// The drive (`cdrom ls`)
    target: String,
}

impl Rm {
    async fn run(self, app: &App) -> Result<()> {
        cdrom::remove(&app.context, &self.vm, &self.target).await?;
        let text = format!("removed CD-ROM drive {} from {}", self.target, self.vm);
        app.printer.done(&text, &json::NoCdrom::new(&self.target));
        Ok(())
    }
}
