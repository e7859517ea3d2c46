use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use super::App;
use super::words::within;
use crate::error::{Error, IoContext, Result};
use crate::libvirt::import;
use crate::libvirt::request::Request;
use crate::libvirt::{Fate, snapshots};
use crate::model::Name;
use crate::output::{json, table};
use crate::sys::command;
use crate::vm::disk_request::Mode;

/// Create a VM from a libvirt domain, with its machine, disks and addresses
///
/// The XML is that of `virsh dumpxml --inactive DOMAIN`. The disks are inspected and copied into
/// the store, with their backing files. Everything that is changed or left out is listed with the
/// reason.
#[derive(Debug, Args)]
pub(super) struct Import {
    /// XML file of the domain; - reads standard input
    #[arg(value_name = "XML", required_unless_present = "libvirt")]
    xml: Option<PathBuf>,
    /// Get the XML of this domain from libvirt (`virsh dumpxml`)
    #[arg(long, value_name = "DOMAIN", conflicts_with = "xml")]
    libvirt: Option<String>,
    /// Name of the VM [default: the domain's name]
    #[arg(long = "name", value_name = "NAME")]
    new_name: Option<Name>,
    /// Create a template instead of a VM, without sealing
    #[arg(long)]
    template: bool,
    /// Whether to copy the disk files into the store or use them in place
    #[arg(long, value_name = "MODE", default_value = "copy")]
    disk_mode: DiskMode,
    /// Use FILE for the disk that the domain calls TARGET; can be repeated
    #[arg(long, value_name = "TARGET=FILE")]
    disk: Vec<String>,
    /// Also accept files below DIRECTORY that the XML or an image names; can be repeated
    ///
    /// Without this, the XML can name only files in its own directory, and an image only files
    /// beside it: an XML or image from elsewhere could name any file of the host.
    #[arg(long, value_name = "DIRECTORY", require_equals = true)]
    with_backing: Vec<OsString>,
    /// Also import snapshots, from the .xml files in DIR (`virsh snapshot-dumpxml`, one file per
    /// snapshot) or from libvirt
    ///
    /// The XML in DIR can name the files of the domain, and files in DIR. `libvirt` requires
    /// --libvirt; for a directory of that name, use ./libvirt. The memory of snapshots is not
    /// imported.
    #[arg(long, value_name = "DIR|libvirt", conflicts_with = "template")]
    snapshots: Option<PathBuf>,
    /// Give the VM a new UUID
    #[arg(long)]
    new_uuid: bool,
    /// Refuse the domain if anything would be changed or left out
    #[arg(long)]
    strict: bool,
    /// Only list what would be kept, changed and left out
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DiskMode {
    Copy,
    Use,
}

impl Import {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let (xml, shown, beside) = match (&self.xml, &self.libvirt) {
            (Some(path), _) => {
                let xml = import::read(path, &mut std::io::stdin().lock())?;
                (xml, path.display().to_string(), Some(directory_of(path)?))
            }
            (None, Some(domain)) => (ask_libvirt(app, domain)?, format!("domain {domain}"), None),
            (None, None) => return Err(Error::usage("name the XML of a domain")),
        };
        let files: BTreeMap<String, PathBuf> =
            self.disk.iter().map(|text| file_of(text)).collect::<Result<_>>()?;
        if files.len() < self.disk.len() {
            return Err(Error::usage("--disk names the same disk twice"));
        }
        let mode = match self.disk_mode {
            DiskMode::Copy => Mode::Copy,
            DiskMode::Use => Mode::Use,
        };
        let (snapshots, current) = match (&self.snapshots, &self.libvirt) {
            (None, _) => (Vec::new(), None),
            (Some(word), Some(domain)) if word == Path::new("libvirt") => {
                ask_for_snapshots(app, domain)?
            }
            (Some(word), None) if word == Path::new("libvirt") => {
                return Err(Error::usage("--snapshots libvirt asks for those of a domain")
                    .hint("say which: --libvirt DOMAIN"));
            }
            (Some(directory), _) => (snapshots::read(directory)?, None),
        };
        let snapshots_beside = match &self.snapshots {
            Some(word) if word != Path::new("libvirt") => {
                Some(std::path::absolute(word).on("find", word)?)
            }
            _ => None,
        };
        let request = Request {
            snapshots,
            snapshots_beside,
            current,
            xml,
            shown,
            beside,
            files,
            name: self.new_name,
            mode,
            within: within(self.with_backing).unwrap_or_default(),
            new_uuid: self.new_uuid,
        };
        let plan = import::plan(&app.context, &request).await?;
        let lost = plan.notes.iter().filter(|note| note.fate != Fate::Kept);
        if self.strict && lost.clone().count() > 0 {
            let error = Error::refused(format!("{} cannot be imported unchanged", request.shown));
            let lines =
                lost.map(|note| format!("{} {}: {}", note.fate.as_str(), note.what, note.how));
            return Err(lines.fold(error, Error::hint).hint("to import it anyway, omit --strict"));
        }
        let list = table::domain(&plan.notes);
        if self.dry_run {
            app.printer.result(&list, &json::ImportPlan::new(&plan.name, &plan.notes));
            return Ok(());
        }
        let record = import::import(&app.context, &plan, self.template).await?;
        let name = &plan.name;
        let next = match self.template {
            true => format!(
                "{list}\nimported {name} as a template; make a VM of it: cowhand clone {name} NEW"
            ),
            false => format!("{list}\nimported {name}; start it: cowhand start {name}"),
        };
        app.printer
            .done(&next, &json::Imported::new(name, record.uuid, self.template, &plan.notes));
        Ok(())
    }
}

/// Where the files of an XML lie; of one that is no file (standard input, a link), the working
/// directory.
fn directory_of(xml: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(xml).on("find", xml)?;
    // A pipe lies in no directory of the user's.
    match absolute.symlink_metadata().is_ok_and(|about| about.is_file()) {
        true => Ok(absolute.parent().unwrap_or(Path::new("/")).to_owned()),
        false => std::env::current_dir().on("find", Path::new(".")),
    }
}

/// `TARGET=FILE`.
fn file_of(text: &str) -> Result<(String, PathBuf)> {
    match text.split_once('=') {
        Some((target, file)) if !target.is_empty() && !file.is_empty() => {
            Ok((target.to_owned(), std::path::absolute(file).on("find", Path::new(file))?))
        }
        _ => Err(Error::usage(format!("{text:?} is not TARGET=FILE"))),
    }
}

/// The XML that libvirt has.
fn ask_libvirt(app: &App, domain: &str) -> Result<String> {
    virsh(app, &["dumpxml", "--inactive", "--domain", domain])
}

/// The XML of the snapshots that libvirt has, and the name of the current one.
fn ask_for_snapshots(app: &App, domain: &str) -> Result<(Vec<String>, Option<String>)> {
    let names = virsh(app, &["snapshot-list", "--name", "--domain", domain])?;
    let names: Vec<&str> = names.lines().filter(|name| !name.trim().is_empty()).collect();
    if names.len() > snapshots::MOST {
        return Err(Error::refused(format!(
            "domain {domain} has more than {} snapshots",
            snapshots::MOST
        )));
    }
    if names.is_empty() {
        return Ok((Vec::new(), None));
    }
    let xml =
        |name: &&str| virsh(app, &["snapshot-dumpxml", "--domain", domain, "--snapshotname", name]);
    let all = names.iter().map(xml).collect::<Result<_>>()?;
    // It fails where there is none.
    let current = virsh(app, &["snapshot-current", "--name", "--domain", domain]).ok();
    Ok((
        all,
        current
            .map(|name| name.trim_end_matches(['\r', '\n']).to_owned())
            .filter(|name| !name.is_empty()),
    ))
}

fn virsh(app: &App, args: &[&str]) -> Result<String> {
    let path =
        command::find(Path::new("virsh"), &app.context.settings.search_path).ok_or_else(|| {
            Error::failed("virsh is not installed").hint(
                "where libvirt is: virsh dumpxml --inactive DOMAIN > domain.xml; here: cowhand \
                 import domain.xml",
            )
        })?;
    let answer = command::output(&path, args)?;
    String::from_utf8(answer).map_err(std::io::Error::other).on("read the answer of", &path)
}
