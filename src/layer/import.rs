//! Looking at a file the user wants as a disk, before anything is touched.
//!
//! The format is decided only here, when a person names the file ([`super::foreign`]); from then on
//! it is recorded and told to QEMU, because a guest could write a header of its own choice into a
//! raw disk.

use std::path::{Path, PathBuf};

use super::foreign::chain::{self, Tree};
use super::foreign::rule::{Ask, Spelling};
use super::foreign::{self, Foreign};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::model::{FileId, Format, printable};
use crate::qemu::img::{Img, Source};
use crate::sys::image_lock;

impl Candidate {
    /// The file and its backing files, the lowest last.
    pub(crate) fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |file| file.backing.as_deref())
    }
}

/// A file that can become a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its absolute path, links resolved.
    pub path: PathBuf,
    /// Which file it was when it was examined.
    pub id: FileId,
    /// What it is.
    pub format: Format,
    /// The size the guest will see, in bytes.
    pub virtual_bytes: u64,
    /// Its backing file, where the user has asked for it.
    pub backing: Option<Box<Candidate>>,
}

/// Examines the file of `ask`, which has to be complete in itself.
pub(crate) async fn examine(context: &Context, ask: &Ask<'_>) -> Result<Candidate> {
    let file = look(ask)?;
    file.refuse_references()?;
    candidate(context, file, ask).await
}

/// Examines the file of `ask` with its backing files, which lie beside it or below one of `within`.
/// They are listed.
pub(crate) async fn examine_with_backing(
    context: &Context,
    ask: &Ask<'_>,
    within: &[PathBuf],
) -> Result<Candidate> {
    let tree = tree(ask, within)?;
    tell(context, &tree);
    from_tree(context, tree, ask).await
}

/// The same, for files that were listed before.
pub(crate) async fn examine_again(
    context: &Context,
    ask: &Ask<'_>,
    within: &[PathBuf],
) -> Result<Candidate> {
    from_tree(context, tree(ask, within)?, ask).await
}

fn tree(ask: &Ask<'_>, within: &[PathBuf]) -> Result<Tree> {
    let tree = chain::resolve(look(ask)?, within)?;
    if !tree.is_plain() {
        let shown = ask.path.display();
        return Err(Error::refused(format!("{shown} is in several parts")).hint(format!(
            "make one file of them: cowhand image convert --with-backing {} whole.qcow2",
            printable::shell(ask.path)
        )));
    }
    for below in tree.images().iter().skip(1) {
        refuse_in_use(&below.image)?;
    }
    Ok(tree)
}

/// Says which files are used.
pub(crate) fn tell(context: &Context, tree: &Tree) {
    for file in tree.files().iter().skip(1) {
        context.ui.note(&format!(
            "{} names {}, which is used, too",
            tree.image.path.display(),
            file.display()
        ));
    }
}

async fn from_tree(context: &Context, tree: Tree, ask: &Ask<'_>) -> Result<Candidate> {
    let mut backing = None;
    let mut images = Vec::new();
    let mut next = Some(Box::new(tree));
    while let Some(tree) = next {
        images.push(tree.image);
        next = tree.backing;
    }
    for image in images.into_iter().rev() {
        let mut made = candidate(context, image, ask).await?;
        made.backing = backing;
        backing = Some(Box::new(made));
    }
    backing.map(|top| *top).ok_or_else(|| Error::failed("an image without files"))
}

fn look(ask: &Ask<'_>) -> Result<Foreign> {
    let file = foreign::look(ask)?;
    refuse_in_use(&file)?;
    Ok(file)
}

fn refuse_in_use(file: &Foreign) -> Result<()> {
    if image_lock::is_written_to(&file.held.path()).on("look at the locks of", &file.path)? {
        let shown = file.path.display();
        return Err(Error::refused(format!("{shown} is in use: a running QEMU writes to it"))
            .hint("stop that VM first"));
    }
    Ok(())
}

async fn candidate(context: &Context, file: Foreign, ask: &Ask<'_>) -> Result<Candidate> {
    let shown = ask.path.display();
    let virtual_bytes = match file.format {
        Format::Raw | Format::Qcow2 => file.inspection.virtual_bytes,
        // It has more to say about these than their headers; and what it cannot open, no VM can
        // start from.
        format => {
            let path = file.held.path();
            Img::find(context)?
                .holding([&file.held])
                .info(&path, Source::alone(&path, format))
                .await?
                .virtual_bytes
        }
    };
    if virtual_bytes == 0 {
        return Err(Error::refused(format!("{shown} is an empty disk of 0 bytes"))
            .hint("for a blank disk, say --size 20G"));
    }
    if !virtual_bytes.is_multiple_of(512) {
        return Err(Error::refused(format!(
            "{shown} has {virtual_bytes} bytes, which is not a whole number of 512-byte sectors"
        ))
        .hint(format!("fill it up first: truncate -s %512 {}", printable::shell(ask.path))));
    }
    Ok(Candidate {
        path: file.path,
        id: file.id,
        format: file.format,
        virtual_bytes,
        backing: None,
    })
}

/// How a format is said for `--disk`.
pub(crate) fn disk<'a>(path: &'a Path, said: Option<Format>) -> Ask<'a> {
    Ask { path, said, spelling: Spelling::Disk }
}
