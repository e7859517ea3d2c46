use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json as value;

use super::App;
use super::create::within;
use crate::error::{Error, Result};
use crate::image::{self, Target, Written};
use crate::model::{Format, PointRef, human};
use crate::output::{json, table};

/// Look at image files, check and convert them, and make one of a point of a VM
#[derive(Debug, Subcommand)]
pub enum Image {
    Info(Info),
    Check(Check),
    Convert(Convert),
    Export(Export),
}

impl Image {
    pub async fn run(self, app: &App) -> Result<()> {
        match self {
            Self::Info(verb) => verb.run(app).await,
            Self::Check(verb) => verb.run(app).await,
            Self::Convert(verb) => verb.run(app).await,
            Self::Export(verb) => verb.run(app).await,
        }
    }
}

/// Show what an image is: format, sizes, backing file, internal snapshots
#[derive(Debug, Args)]
pub struct Info {
    /// The file
    file: PathBuf,
    /// Its format [default: by its header, if its name agrees]
    #[arg(short = 'f', long, value_name = "FORMAT")]
    image_format: Option<Format>,
}

impl Info {
    async fn run(self, app: &App) -> Result<()> {
        let about = image::info(&app.context, &self.file, self.image_format).await?;
        app.printer.result(&table::image(&self.file, &about), &json::image(&self.file, &about));
        Ok(())
    }
}

/// Check an image (`qemu-img check`); exit code 8 when data may be lost
#[derive(Debug, Args)]
pub struct Check {
    /// The file
    file: PathBuf,
    /// Its format [default: by its header, if its name agrees]
    #[arg(short = 'f', long, value_name = "FORMAT")]
    image_format: Option<Format>,
    /// Put right what can be
    #[arg(long)]
    repair: bool,
}

impl Check {
    async fn run(self, app: &App) -> Result<()> {
        let (format, checked) = image::check(&app.context, &self.file, self.image_format, self.repair).await?;
        let shown = self.file.display();
        let Some(checked) = checked else {
            app.printer.result(&format!("{shown}: {format}: there is nothing to check"), &value!({"format": format}));
            return Ok(());
        };
        let text = format!(
            "{shown}: {} corruptions, {} leaked clusters, {} errors; put right: {}",
            checked.corruptions,
            checked.leaks,
            checked.errors,
            checked.corruptions_fixed + checked.leaks_fixed
        );
        app.printer.result(&text, &json::checked(&checked));
        if checked.corruptions > checked.corruptions_fixed || checked.errors > 0 {
            return Err(
                Error::damaged(format!("{shown} is damaged")).hint(format!("cowhand image check {shown} --repair"))
            );
        }
        Ok(())
    }
}

/// Convert an image into a new file
#[derive(Debug, Args)]
pub struct Convert {
    /// The image
    source: PathBuf,
    /// The new file
    target: PathBuf,
    /// The image's format [default: by its header, if its name agrees]
    #[arg(short = 'f', long, value_name = "FORMAT")]
    image_format: Option<Format>,
    /// The new file's format [default: by its name, else qcow2]
    #[arg(short = 'O', long, value_name = "FORMAT")]
    output_format: Option<Format>,
    /// Also read the files that the image names, from its own directory or DIRECTORY
    ///
    /// An image can name any file of the host as its backing file, its data file or an extent, so this is for images of
    /// your own. Each file is inspected and listed before it is read.
    #[arg(long, value_name = "DIRECTORY", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    with_backing: Vec<OsString>,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
}

impl Convert {
    async fn run(self, app: &App) -> Result<()> {
        let target = Target { path: self.target, format: self.output_format, force: self.force };
        let within = within(self.with_backing);
        let written = image::convert(&app.context, &self.source, self.image_format, within.as_deref(), &target).await?;
        tell(app, &written);
        Ok(())
    }
}

/// Flatten a point of a VM into one file, also while the VM runs
#[derive(Debug, Args)]
pub struct Export {
    /// VM@SNAPSHOT, a template, or a stopped VM
    point: PointRef,
    /// The new file
    file: PathBuf,
    /// Which disk, where there are several
    #[arg(long)]
    disk: Option<String>,
    /// The new file's format [default: by its name, else qcow2]
    #[arg(short = 'O', long, value_name = "FORMAT")]
    output_format: Option<Format>,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
}

impl Export {
    async fn run(self, app: &App) -> Result<()> {
        let target = Target { path: self.file, format: self.output_format, force: self.force };
        let written = image::export(&app.context, &self.point, self.disk.as_deref(), &target).await?;
        tell(app, &written);
        Ok(())
    }
}

fn tell(app: &App, written: &Written) {
    let text = format!("wrote {} ({}, {})", written.path.display(), written.format, human(written.bytes));
    app.printer.done(&text, &value!({"file": written.path, "format": written.format, "bytes": written.bytes}));
}
