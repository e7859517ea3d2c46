use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::words::within;
use super::{App, each};
use crate::error::{Error, Result};
use crate::fetch::digest::Digest;
use crate::image::add::{self, Added};
use crate::image::catalogue::Catalogue;
use crate::image::file::{self, Target, Written};
use crate::image::list;
use crate::image::source::Source;
use crate::maintenance::prune;
use crate::maintenance::remove::{self, Options, Which};
use crate::model::{Format, Name, PointRef, human};
use crate::output::{self, json, table};

/// Manage images that VMs share; inspect, check, convert and export image files
#[derive(Debug, Subcommand)]
pub(super) enum Image {
    Add(Add),
    Ls(Ls),
    Rm(Rm),
    Prune(Prune),
    Info(Info),
    Check(Check),
    Convert(Convert),
    Export(Export),
}

impl Image {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        match self {
            Self::Add(verb) => verb.run(app).await,
            Self::Ls(verb) => verb.run(app),
            Self::Rm(verb) => verb.run(app).await,
            Self::Prune(verb) => verb.run(app).await,
            Self::Info(verb) => verb.run(app).await,
            Self::Check(verb) => verb.run(app).await,
            Self::Convert(verb) => verb.run(app).await,
            Self::Export(verb) => verb.run(app).await,
        }
    }
}

/// What a file has to be.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Checksum {
    /// Refuse an image that does not have this SHA-256 checksum
    #[arg(long, value_name = "HEX", conflicts_with = "sums")]
    sha256: Option<String>,
    /// Refuse an image that does not have this SHA-512 checksum
    #[arg(long, value_name = "HEX", conflicts_with_all = ["sums", "sha256"])]
    sha512: Option<String>,
    /// Refuse an image that does not have the checksum in this file, such as SHA256SUMS
    #[arg(long, value_name = "URL|FILE")]
    sums: Option<String>,
}

impl Checksum {
    /// Was any said?
    pub(super) fn is_any(&self) -> bool {
        self.sha256.is_some() || self.sha512.is_some() || self.sums.is_some()
    }

    /// The request for an image with that checksum.
    pub(super) fn request(
        self,
        source: Source,
        name: Option<Name>,
        format: Option<Format>,
    ) -> Result<add::Request> {
        let digest = match (&self.sha256, &self.sha512) {
            (Some(hex), _) => Some(Digest::sha256(hex)?),
            (None, Some(hex)) => Some(Digest::sha512(hex)?),
            (None, None) => None,
        };
        Ok(add::Request { source, name, format, digest, sums: self.sums })
    }
}

/// Add an image to the store; VMs share it with `create NAME --image IMAGE`
///
/// The image is downloaded (an interrupted download is resumed), verified if a checksum is given or
/// the catalogue has one, decompressed if its name ends in .xz, .zst, .gz or .bz2, inspected, and
/// copied into the store, where it never changes.
#[derive(Debug, Args)]
pub(super) struct Add {
    /// A file, an https or http URL, or NAME:VERSION of the catalogue (`image ls --catalogue`)
    #[arg(value_name = "FILE|URL|NAME:VERSION", value_hint = ValueHint::FilePath)]
    source: String,
    /// Name of the image [default: the file's name, or NAME-VERSION]
    #[arg(value_name = "NAME")]
    new_name: Option<Name>,
    /// Format of the image [default: detected from the header, if the file name agrees]
    #[arg(short = 'f', long, value_name = "FORMAT")]
    image_format: Option<Format>,
    #[command(flatten)]
    checksum: Checksum,
}

impl Add {
    async fn run(self, app: &App) -> Result<()> {
        // Not by clap, which would print an address with a password in it.
        let source = self.source.parse()?;
        let request = self.checksum.request(source, self.new_name, self.image_format)?;
        let added = add::add(&app.context, &request).await?;
        let Added { name, record } = &added;
        let bytes = record.config.disks.first().map_or(0, |disk| disk.virtual_bytes);
        let text = format!(
            "added image {name} ({}); make a VM of it: cowhand create NEW --image {name}",
            human(bytes)
        );
        app.printer.done(&text, &json::AddedImage::from(&added));
        Ok(())
    }
}

/// List images and the VMs that use them
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// List the catalogue of cloud images instead
    #[arg(long)]
    catalogue: bool,
}

impl Ls {
    fn run(self, app: &App) -> Result<()> {
        let is_quiet = app.printer.quiet && app.printer.format == output::Format::Table;
        if self.catalogue {
            let catalogue = Catalogue::load(&app.context.store)?;
            let entries = catalogue.entries();
            if is_quiet {
                entries.iter().for_each(|entry| {
                    app.printer.text(&format!("{}:{}", entry.name, entry.version))
                });
                return Ok(());
            }
            let values: Vec<_> = entries.iter().map(json::CatalogueImage::from).collect();
            app.printer.result(&table::catalogue(entries), &values);
            return Ok(());
        }
        let rows = list::list(&app.context)?;
        if is_quiet {
            rows.iter().for_each(|row| app.printer.text(row.name.as_str()));
            return Ok(());
        }
        let entries: Vec<_> = rows.iter().map(json::Image::from).collect();
        app.printer.result(&table::images(&rows), &entries);
        Ok(())
    }
}

/// Remove images; the files stay in the trash until `gc`
///
/// Refused while VMs depend on them.
#[derive(Debug, Args)]
pub(super) struct Rm {
    /// The images
    #[arg(required = true)]
    names: Vec<Name>,
    /// Also remove the VMs that depend on them
    #[arg(long)]
    cascade: bool,
    /// With --cascade: also remove running VMs, without shutting them down
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    async fn run(self, app: &App) -> Result<()> {
        let options = Options { force: self.force, cascade: self.cascade };
        each(app, &self.names, async |name| {
            let gone = remove::remove(&app.context, name, Which::Image, options).await?;
            let names: Vec<&str> = gone.iter().map(Name::as_str).collect();
            app.printer.done(&format!("removed {}", names.join(", ")), &json::Removed::new(&gone));
            Ok(())
        })
        .await
    }
}

/// Remove images that no VM uses (they stay in the trash until `gc`), and delete interrupted
/// downloads
#[derive(Debug, Args)]
pub(super) struct Prune {
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
}

impl Prune {
    async fn run(self, app: &App) -> Result<()> {
        let pruned = prune::prune(&app.context, self.dry_run).await?;
        let verb = if self.dry_run { "would remove" } else { "removed" };
        let mut lines: Vec<String> = pruned
            .iter()
            .map(|one| format!("{verb} {} ({})", one.what, human(one.bytes)))
            .collect();
        if lines.is_empty() {
            lines.push("nothing to remove".to_owned());
        } else if !self.dry_run && pruned.iter().any(|one| one.image.is_some()) {
            lines.push(
                "images are in the trash; to free their space: cowhand gc --older-than 0"
                    .to_owned(),
            );
        }
        let entries: Vec<_> = pruned.iter().map(json::PrunedImage::from).collect();
        app.printer.result(&lines.join("\n"), &entries);
        Ok(())
    }
}

/// Show the format, the sizes, the backing file and the internal snapshots of an image file
#[derive(Debug, Args)]
pub(super) struct Info {
    /// The file
    file: PathBuf,
    /// Format of the image [default: detected from the header, if the file name agrees]
    #[arg(short = 'f', long, value_name = "FORMAT")]
    image_format: Option<Format>,
}

impl Info {
    async fn run(self, app: &App) -> Result<()> {
        let about = file::info(&app.context, &self.file, self.image_format).await?;
        app.printer
            .result(&table::image(&self.file, &about), &json::ImageFile::new(&self.file, &about));
        Ok(())
    }
}

/// Check an image file (`qemu-img check`); exit code 8 if data may be lost
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The file
    file: PathBuf,
    /// Format of the image [default: detected from the header, if the file name agrees]
    #[arg(short = 'f', long, value_name = "FORMAT")]
    image_format: Option<Format>,
    /// Repair what can be repaired
    #[arg(long)]
    repair: bool,
}

impl Check {
    async fn run(self, app: &App) -> Result<()> {
        let (format, checked) =
            file::check(&app.context, &self.file, self.image_format, self.repair).await?;
        let shown = self.file.display();
        let Some(checked) = checked else {
            let text = format!("{shown}: {format}: there is nothing to check");
            app.printer.result(&text, &json::Unchecked::new(format));
            return Ok(());
        };
        let text = format!(
            "{shown}: {} corruptions, {} leaked clusters, {} errors; repaired: {}",
            checked.corruptions,
            checked.leaks,
            checked.errors,
            checked.corruptions_fixed + checked.leaks_fixed
        );
        app.printer.result(&text, &json::CheckedImage::from(&checked));
        if checked.corruptions > checked.corruptions_fixed || checked.errors > 0 {
            return Err(Error::damaged(format!("{shown} is damaged"))
                .hint(format!("cowhand image check {shown} --repair")));
        }
        Ok(())
    }
}

/// Convert an image file into a new file
#[derive(Debug, Args)]
pub(super) struct Convert {
    /// The image
    source: PathBuf,
    /// The new file
    target: PathBuf,
    /// Format of the image [default: detected from the header, if the file name agrees]
    #[arg(short = 'f', long, value_name = "FORMAT")]
    image_format: Option<Format>,
    /// Format of the new file [default: by its file name, else qcow2]
    #[arg(short = 'O', long, value_name = "FORMAT")]
    output_format: Option<Format>,
    /// Also read the files that the image names, if they are in its directory or below DIRECTORY;
    /// can be repeated
    ///
    /// An image can name any file of the host as its backing file, its data file or an extent, so
    /// use this only for images that you trust. Each file is inspected and listed before it is
    /// read.
    #[arg(
        long, value_name = "DIRECTORY", num_args = 0..=1, require_equals = true,
        default_missing_value = "",
    )]
    with_backing: Vec<OsString>,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

impl Convert {
    async fn run(self, app: &App) -> Result<()> {
        let target = Target { path: self.target, format: self.output_format, force: self.force };
        let within = within(self.with_backing);
        let written = file::convert(
            &app.context,
            &self.source,
            self.image_format,
            within.as_deref(),
            &target,
        )
        .await?;
        tell(app, &written);
        Ok(())
    }
}

/// Export a disk of a snapshot, template or stopped VM to a single image file
#[derive(Debug, Args)]
pub(super) struct Export {
    /// A snapshot (VM@SNAPSHOT; the VM may run), a template, or a stopped VM
    point: PointRef,
    /// The new file
    file: PathBuf,
    /// The disk, if there are several
    #[arg(long)]
    disk: Option<String>,
    /// Format of the new file [default: by its file name, else qcow2]
    #[arg(short = 'O', long, value_name = "FORMAT")]
    output_format: Option<Format>,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

impl Export {
    async fn run(self, app: &App) -> Result<()> {
        let target = Target { path: self.file, format: self.output_format, force: self.force };
        let written =
            file::export(&app.context, &self.point, self.disk.as_deref(), &target).await?;
        tell(app, &written);
        Ok(())
    }
}

fn tell(app: &App, written: &Written) {
    let text =
        format!("wrote {} ({}, {})", written.path.display(), written.format, human(written.bytes));
    app.printer.done(&text, &json::WrittenImage::from(written));
}
