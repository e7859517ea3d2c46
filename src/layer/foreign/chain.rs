//! An image together with the files it names, for a user who asks for them: each is found,
//! inspected and listed before any is used, and QEMU is told the whole tree, so that no header
//! decides what is opened.
//!
//! The files have to lie in the directory of the image itself, or anywhere below a directory that
//! the user names.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::rule::{Ask, Spelling};
use super::{Foreign, is_alone, look_at, open};
use crate::error::{Error, IoContext, Result};
use crate::layer::inspect::{ExtentKind, Role};
use crate::model::{FileId, Format};
use crate::sys::cage::Held;
use crate::sys::files::Pinned;

/// The longest chain of backing files that is followed.
const DEPTH: usize = 200;
/// The most files that a single image may consist of.
const PARTS: usize = 1024;

/// An image and everything it names.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The image.
    pub image: Foreign,
    /// Its backing file.
    pub backing: Option<Box<Tree>>,
    data_file: Option<Part>,
    /// The extents: sectors, how they hold them, the offset in sectors, the file.
    extents: Vec<(u64, ExtentKind, u64, Part)>,
}

/// A file that belongs to an image, open.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    held: Held,
}

impl Part {
    fn of(file: Pinned) -> Result<Self> {
        Ok(Self { held: file.held()?, path: file.path })
    }
}

/// Where the files that an image names may lie.
struct Allowed {
    /// In this directory, and not in one below it: what a user keeps there is nothing that an image
    /// should name.
    own: PathBuf,
    /// Anywhere below these.
    below: Vec<PathBuf>,
}

impl Allowed {
    fn has(&self, file: &Path) -> bool {
        file.parent() == Some(&self.own)
            || self.below.iter().any(|directory| file.starts_with(directory))
    }
}

/// Finds and inspects everything that `image` names, in its own directory or below one of `within`.
pub(crate) fn resolve(image: Foreign, within: &[PathBuf]) -> Result<Tree> {
    let below = within.iter().map(|directory| directory.canonicalize().on("find", directory));
    let allowed =
        Allowed { own: directory_of(&image.path).to_owned(), below: below.collect::<Result<_>>()? };
    resolve_below(image, &allowed, &mut Vec::new())
}

fn resolve_below(image: Foreign, allowed: &Allowed, above: &mut Vec<FileId>) -> Result<Tree> {
    image.refuse_unusable()?;
    if above.contains(&image.id) || above.len() >= DEPTH {
        return Err(Error::refused(format!(
            "the backing files of {} never end",
            image.path.display()
        )));
    }
    above.push(image.id);
    let mut tree = Tree { backing: None, data_file: None, extents: Vec::new(), image };
    let image = &tree.image;
    if image.inspection.names.len() > PARTS {
        return Err(Error::refused(format!(
            "{} names more than {PARTS} files",
            image.path.display()
        )));
    }
    for reference in &image.inspection.names {
        let file = || find(image, reference.name.as_deref(), allowed);
        match (reference.role, image.format) {
            (Role::Backing, Format::Qcow2) => {
                let format =
                    image.inspection.backing_format.as_deref().map(str::parse).transpose()?;
                let file = file()?;
                let path = file.path.clone();
                let below =
                    look_at(file, &Ask { path: &path, said: format, spelling: Spelling::Option })?;
                tree.backing = Some(Box::new(resolve_below(below, allowed, above)?));
            }
            (Role::DataFile, Format::Qcow2) => tree.data_file = Some(Part::of(file()?)?),
            // All of them are taken below, where their sizes are at hand.
            (Role::Extent, Format::Vmdk) if !image.inspection.extents.is_empty() => {}
            _ => {
                return Err(Error::refused(format!(
                    "{} ({}) names a {}, which is not supported",
                    image.path.display(),
                    image.format,
                    reference.role
                )));
            }
        }
    }
    for extent in &image.inspection.extents {
        let file = find(image, Some(&extent.name), allowed)?;
        match extent.kind {
            ExtentKind::Flat => {}
            ExtentKind::Sparse if is_alone(&file.file, &file.path, Format::Vmdk)? => {}
            _ => {
                let shown = file.path.display();
                return Err(Error::refused(format!(
                    "the extent {shown} has a kind that is not supported"
                )));
            }
        }
        tree.extents.push((extent.sectors, extent.kind, extent.offset, Part::of(file)?));
    }
    Ok(tree)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// The regular file that `image` calls `name`.
fn find(image: &Foreign, name: Option<&str>, allowed: &Allowed) -> Result<Pinned> {
    let shown = image.path.display();
    let name = name
        .ok_or_else(|| Error::refused(format!("{shown} names a file whose name cannot be read")))?;
    let name = name.strip_prefix("file:").unwrap_or(name);
    // As QEMU has it: a colon before the first slash makes it no file name.
    let before_slash = name.split('/').next().unwrap_or_default();
    if before_slash.contains(':') || is_torn(name) {
        return Err(Error::refused(format!(
            "{shown} names {name:?}, which is not the name of a file"
        )));
    }
    let path = directory_of(&image.path).join(name);
    let file = open(&path).map_err(|error| {
        Error::refused(format!("{shown} names {name:?}, which cannot be used"))
            .because(error.full_message())
    })?;
    if !allowed.has(&file.path) {
        return Err(Error::refused(format!(
            "{shown} names {}, which lies in another directory",
            file.path.display()
        ))
        .hint("if you trust every file in that directory, name it: --with-backing=DIRECTORY"));
    }
    // A link may have led to a directory of any name.
    match file.path.to_str() {
        Some(text) if !is_torn(text) => Ok(file),
        _ => Err(Error::refused(format!(
            "the path {} is not one line of text without quotes",
            file.path.display()
        ))),
    }
}

/// Would more than a file's name come of it in a line of a descriptor, or of what we print?
fn is_torn(name: &str) -> bool {
    name.contains(['"', '\n', '\r', '\0'])
}

impl Tree {
    /// The images from the top one down to the base.
    pub(crate) fn images(&self) -> Vec<&Tree> {
        std::iter::successors(Some(self), |tree| tree.backing.as_deref()).collect()
    }

    /// Is every image of it one file, but for its backing file?
    pub(crate) fn is_plain(&self) -> bool {
        self.images().iter().all(|tree| tree.data_file.is_none() && tree.extents.is_empty())
    }

    /// Every file, the image first.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let of = |tree: &&Tree| {
            let parts = tree.parts().map(|file| file.path.clone());
            std::iter::once(tree.image.path.clone()).chain(parts).collect::<Vec<_>>()
        };
        self.images().iter().flat_map(of).collect()
    }

    /// Every file, open, for a program that works on the node.
    pub(crate) fn held(&self) -> Vec<Held> {
        let of = |tree: &&Tree| {
            let parts = tree.parts().map(|file| file.held.clone());
            std::iter::once(tree.image.held.clone()).chain(parts).collect::<Vec<_>>()
        };
        self.images().iter().flat_map(of).collect()
    }

    /// What the image itself consists of, beside its own file.
    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.data_file.iter().chain(self.extents.iter().map(|(.., file)| file))
    }

    /// The block node of the whole tree, of the files that are open ([`Tree::held`]). A descriptor
    /// is not handed on: a new one with these files is written into `scratch`.
    pub(crate) fn node(&self, scratch: &Path) -> Result<Value> {
        let file = |path: &Path| json!({"driver": "file", "filename": path.to_string_lossy()});
        let mut node =
            json!({"driver": self.image.format.as_str(), "file": file(&self.image.held.path())});
        if !self.extents.is_empty() {
            node["file"] = file(&self.descriptor(scratch)?);
        }
        if let Some(data) = &self.data_file {
            node["data-file"] = file(&data.held.path());
        }
        if matches!(self.image.format, Format::Qcow2 | Format::Vmdk) {
            node["backing"] =
                self.backing.as_ref().map_or(Ok(Value::Null), |below| below.node(scratch))?;
        }
        Ok(node)
    }

    fn descriptor(&self, scratch: &Path) -> Result<PathBuf> {
        let flat = self.extents.iter().all(|(_, kind, ..)| *kind == ExtentKind::Flat);
        let kind = if flat { "twoGbMaxExtentFlat" } else { "twoGbMaxExtentSparse" };
        let mut text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
             createType=\"{kind}\"\n"
        );
        for (sectors, kind, offset, file) in &self.extents {
            let file = file.held.path();
            let file = file.display();
            text += &match kind {
                ExtentKind::Flat => format!("RW {sectors} FLAT \"{file}\" {offset}\n"),
                _ => format!("RW {sectors} SPARSE \"{file}\"\n"),
            };
        }
        let mut descriptor = tempfile::Builder::new()
            .suffix(".vmdk")
            .tempfile_in(scratch)
            .on("write in", scratch)?;
        descriptor.write_all(text.as_bytes()).on("write", descriptor.path())?;
        let (_, path) = descriptor
            .keep()
            .map_err(|error| Error::failed("cannot write a descriptor").because(error))?;
        Ok(path)
    }
}
