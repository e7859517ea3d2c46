//! Carries out the operations, in the order of their table, and the customise options with them.

use std::path::Path;

use super::Host;
use super::put;
use super::special::{self, Place};
use super::system::{Surroundings, System};
use super::tree::Tree;
use super::uuids::{self, Changes};
use crate::appliance::protocol::{Event, Job};
use crate::error::Result;
use crate::seal::Performed;
use crate::seal::customise::Wish;
use crate::seal::operations::{Special, Work};
use crate::seal::selection;

/// All of it, inside the guest's tree.
pub(super) fn all(
    host: &mut Host,
    job: &Job,
    system: &System,
) -> Result<(Vec<Performed>, Changes)> {
    let mut tree = Tree::new(job.dry_run);
    let (late, early): (Vec<&Wish>, Vec<&Wish>) =
        job.plan.wishes.iter().partition(|wish| wish.what.is_late());
    // What programs leave behind is taken out with the rest.
    let surroundings = match job.plan.runs_programs() && !job.dry_run {
        true => Some(Surroundings::make(host, job.network)?),
        false => None,
    };
    let put = early.into_iter().try_for_each(|wish| put::one(host, &mut tree, wish));
    if let Some(surroundings) = surroundings {
        surroundings.remove()?;
    }
    put?;
    let place = Place { system, plan: &job.plan };
    let mut changes = Changes::default();
    for name in &job.plan.operations {
        host.tell(&Event::Operation { name: name.clone() })?;
        tree.begin(name);
        for work in selection::find(name)?.work {
            if *work == Work::Special(Special::Customise) {
                tree.remove_doomed()?;
                late.iter().try_for_each(|wish| put::one(host, &mut tree, wish))?;
                tree.begin(name);
            } else if *work == Work::Special(Special::FilesystemUuids) {
                changes = uuids::prepare(host, &mut tree, system)?;
            } else {
                one(host, &mut tree, work, &place)?;
            }
        }
    }
    Ok((tree.finish()?, changes))
}

fn one(host: &mut Host, tree: &mut Tree, work: &Work, place: &Place<'_>) -> Result<()> {
    match work {
        Work::Remove(pattern) => tree.glob(pattern)?.iter().try_for_each(|path| tree.remove(path)),
        Work::RemoveBut(pattern, names) => {
            let is_kept = |path: &Path| {
                path.file_name()
                    .is_some_and(|name| names.contains(&name.to_string_lossy().as_ref()))
            };
            tree.glob(pattern)?
                .iter()
                .filter(|path| !is_kept(path))
                .try_for_each(|path| tree.remove(path))
        }
        Work::RemoveFiles(directory) => tree.remove_files(Path::new(directory), &[".SEQ"]),
        Work::Empty(pattern) => tree.glob(pattern)?.iter().try_for_each(|path| tree.empty(path)),
        Work::Rewrite(path, content) => tree.rewrite(Path::new(path), content.as_bytes()),
        Work::DropLines(pattern, words) => tree.glob(pattern)?.iter().try_for_each(|path| {
            let is_dropped =
                |line: &str| words.iter().any(|word| line.trim_start().starts_with(word));
            tree.edit_lines(path, |line| (!is_dropped(line)).then(|| line.to_owned()))
        }),
        Work::Special(special) => special::one(host, tree, *special, place),
    }
}
