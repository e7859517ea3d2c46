//! `import`: a domain becomes a VM, and that a template where it is asked for.
//!
//! Whoever wrote the XML may be a stranger, and can name any file of the host in it. So a file that
//! it names is used only where the user names it, too: beside the XML, below a directory or as a
//! disk on the command line, or in what libvirt itself has answered.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use tempfile::NamedTempFile;
use uuid::Uuid;

use super::domain::{self, Domain};
use super::drives::Files;
use super::machine::machine_of;
use super::request::Request;
use super::xml::Notes;
use super::{Fate, Note, snapshots};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::layer::import as layer_import;
use crate::model::{Name, Record};
use crate::template::freeze::{self, SealMode};
use crate::vm::create;
use crate::vm::disk_request::Mode;
use crate::vm::request as vm_request;

/// A VM as it would be made.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Its name.
    pub name: Name,
    /// What becomes of each part of the domain.
    pub notes: Vec<Note>,
    request: vm_request::Request,
    /// The UEFI variables of the domain.
    variables: Option<Vec<u8>>,
}

/// Reads the domain, and inspects the files that it names. Nothing is made.
pub(crate) async fn plan(context: &Context, request: &Request) -> Result<Plan> {
    if request.mode == Mode::Use && !request.snapshots.is_empty() {
        return Err(Error::usage("snapshots come over with copies of their files")
            .hint("leave out --disk-mode use"));
    }
    let domain = domain::parse(&request.xml, &request.shown)?;
    let name = match &request.name {
        Some(name) => name.clone(),
        None => domain
            .name
            .parse()
            .map_err(|error: Error| error.hint("say what it is to be called: --name NAME"))?,
    };
    if context.store.exists(&name) {
        return Err(Error::exists(format!("the name {name} is taken"))
            .hint("choose another one: --name NAME"));
    }
    let mut notes = Notes(domain.notes.clone());
    let uuid = uuid(context, &domain, request.new_uuid, &mut notes)?;
    let files = Files::of(context, request);
    let (mut machine, variables) =
        machine_of(context, &domain, request, &files, &mut notes).await?;
    machine.uuid = uuid;
    for disk in &machine.disks {
        let ask = layer_import::disk(&disk.path, disk.format);
        match disk.mode {
            Mode::Copy => {
                drop(layer_import::examine_with_backing(context, &ask, &request.within).await?)
            }
            Mode::Use => drop(layer_import::examine(context, &ask).await?),
        }
    }
    if let Some(text) = &domain.description {
        machine.tags.insert("description".to_owned(), text.clone());
        notes.kept("description", "tag.description");
    }
    if !request.snapshots.is_empty() {
        let found = snapshots::plan::plan(context, request, &machine, &mut notes).await?;
        (machine.points, machine.current) = (found.points, found.current);
    }
    Ok(Plan { name, notes: notes.0, request: machine, variables })
}

/// Makes the VM, and a template of it if that is asked for.
pub(crate) async fn import(context: &Context, plan: &Plan, template: bool) -> Result<Record> {
    let mut request = plan.request.clone();
    // As they were when they were looked at.
    let variables = plan.variables.as_deref().map(kept).transpose()?;
    request.nvram = variables.as_ref().map(|file| file.path().to_owned());
    for point in &mut request.points {
        // libvirt's snapshots do not have them.
        point.machine.nvram = request.nvram.clone();
    }
    let record = create::create(context, &plan.name, &request).await?;
    if template {
        let name = &plan.name;
        freeze::freeze(context, name, None, SealMode::AsItIs).await.map_err(|error| {
            error.hint(format!(
                "{name} is a VM; to make a template of it: cowhand template create {name} --no-seal"
            ))
        })?;
    }
    Ok(record)
}

fn kept(bytes: &[u8]) -> Result<NamedTempFile> {
    let failed =
        |error: std::io::Error| Error::failed("cannot keep the UEFI variables").because(error);
    let mut file = NamedTempFile::new().map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    Ok(file)
}

/// The identity of the domain, unless a VM has it, or a removed one that can be had back.
fn uuid(context: &Context, domain: &Domain, new: bool, notes: &mut Notes) -> Result<Option<Uuid>> {
    let Some(uuid) = domain.uuid.filter(|_| !new) else {
        notes.add(if new { Fate::Kept } else { Fate::Changed }, "UUID", "is a new one");
        return Ok(None);
    };
    let of_vm = context
        .store
        .records()?
        .into_iter()
        .find(|(_, record)| record.uuid == uuid)
        .map(|(name, _)| name);
    let of_trash = || -> Result<Option<Name>> {
        let entries = context.store.list_trash()?.into_iter().filter_map(|found| found.entry.ok());
        Ok(entries.into_iter().find(|entry| entry.uuid() == Some(uuid)).map(|entry| entry.vm))
    };
    let other = if of_vm.is_some() { of_vm } else { of_trash()? };
    Ok(match other {
        Some(other) => {
            notes.changed("UUID", format!("is a new one: {other} has {uuid}"));
            None
        }
        None => {
            notes.kept("UUID", uuid.to_string());
            Some(uuid)
        }
    })
}

/// Reads the XML of a domain from a file, or from standard input (`-`).
pub(crate) fn read(path: &Path, input: &mut dyn Read) -> Result<String> {
    let limit = domain::LONGEST as u64 + 1;
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        input.take(limit).read_to_end(&mut bytes).on("read", path)?;
    } else {
        // A pipe will do: the user has named it.
        File::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes))
            .on("read", path)?;
    }
    String::from_utf8(bytes).map_err(|_| Error::refused(format!("{} is no text", path.display())))
}
