//! How a command goes on with what an earlier one has left for its disks, or refuses to.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::left::directories;
use super::order::{GivenDisk, ORDER, names, read};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};

/// Carries on what earlier commands have left for these disks; with `completes` false, says what
/// has to be done first. An order that names other disks, too, is for a command that names all of
/// them.
pub(crate) async fn carry_on(
    context: &Context,
    disks: &[GivenDisk<'_>],
    completes: bool,
) -> Result<()> {
    for directory in directories(&context.store)? {
        let concerns = match read(&directory.join(ORDER)) {
            Ok(None) => false,
            Ok(Some(order)) => order.concerns(disks)?,
            Err(_) => {
                let shown = directory.display();
                context.ui.warn(&format!(
                    "what an earlier `seal` has left in {shown} cannot be read; see cowhand doctor"
                ));
                false
            }
        };
        if !concerns {
            continue;
        }
        // Whoever has it now may be another `seal` of this disk, or `doctor` who only looks: an
        // order must not be passed over.
        let what = format!("an earlier `seal` of {}", disks[0].file.path.display());
        let Some(_lock) = context.lock_directory(&directory, &what).await? else { continue };
        let Some(order) = read(&directory.join(ORDER)).on("read", &directory)? else { continue };
        if let Some(mine) = order.matched(disks, &directory)? {
            if !completes {
                return Err(Error::refused(format!(
                    "an earlier `seal` of {} was cut short and has to be completed first",
                    order.disks[0].path.display()
                ))
                .hint(format!(
                    "seal it: cowhand seal {}",
                    names(order.disks.iter().map(|disk| disk.path.as_path()))
                )));
            }
            let name = order.disks[0].path.display().to_string();
            order.carry_out(context, &directory, &mine).await?;
            context
                .ui
                .note(&format!("{name}: an earlier `seal` was cut short and has been completed"));
        }
    }
    Ok(())
}

/// What versions before this one have left beside a disk. It is never read. Where nobody but us can
/// have put it there, the disk may be half written, and is refused; else a note says how to remove
/// it.
pub(crate) fn refuse_old(context: &Context, disk: &Path) -> Result<()> {
    let name = disk.file_name().unwrap_or_default().to_string_lossy();
    let old: Vec<PathBuf> = ["seal.json", "sealing"]
        .map(|ending| disk.with_file_name(format!(".{name}.cowhand-{ending}")))
        .into_iter()
        .filter(|path| path.symlink_metadata().is_ok())
        .collect();
    let words = names(old.iter().map(PathBuf::as_path));
    if old.len() == 2 && old.iter().all(|path| is_ours_alone(path)) {
        return Err(Error::refused(format!(
            "a `seal` of {} by an older version was cut short, and may have written half of it",
            disk.display()
        ))
        .hint("complete it with that version; this one does not read what lies beside a disk")
        .hint(format!("or, if the disk has been replaced since: rm {words}")));
    }
    if !old.is_empty() {
        context.ui.note(&format!(
            "{words}: left by a `seal` of an older version, or by another user; it is not used. To \
             remove it: rm {words}"
        ));
    }
    Ok(())
}

/// A regular file of ours, in a directory that is ours and that nobody else can write to.
fn is_ours_alone(path: &Path) -> bool {
    let us = nix::unistd::geteuid().as_raw();
    let directory = path.parent().and_then(|directory| directory.symlink_metadata().ok());
    let is_private = |about: std::fs::Metadata| about.uid() == us && about.mode() & 0o022 == 0;
    path.symlink_metadata()
        .is_ok_and(|about| about.is_file() && about.nlink() == 1 && about.uid() == us)
        && directory.is_some_and(is_private)
}
