//! Checking the images below a VM: every layer of every chain (`qemu-img check`), which shows at
//! the same time that the chain is whole.

use crate::change::OpenVm;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::instance::status;
use crate::layer::{chain, sealed};
use crate::model::{Layer, Name};
use crate::qemu::img::{Checked, Img, Repair, Source};
use crate::vm::list;

/// What was found in one layer.
#[derive(Debug, Clone)]
pub struct Found {
    /// The disk.
    pub target: String,
    /// The layer.
    pub layer: Layer,
    /// What `qemu-img check` says; `None`: the format has nothing to check.
    pub checked: Option<Checked>,
    /// It is written to while it is looked at: clusters may seem to leak.
    pub in_use: bool,
}

/// Checks the disks of `vm`, or the one called `target`. With `repair`, puts right the active layer
/// of a stopped VM.
pub async fn check(
    context: &Context,
    vm: &Name,
    target: Option<&str>,
    repair: bool,
) -> Result<Vec<Found>> {
    let (_opened, record) = match repair {
        true => {
            let opened = OpenVm::for_change(context, vm, "repair").await?;
            let record = opened.record.clone();
            (Some(opened), record)
        }
        // Only looks.
        false => (None, context.store.load(vm)?),
    };
    if let Some(target) = target {
        list::disk(vm, &record, target)?;
    }
    let running = status::is_running(context, vm)?;
    if repair && running {
        return Err(Error::refused(format!("{vm} is running: its images cannot be repaired"))
            .hint(format!("stop it first: cowhand stop {vm}")));
    }
    let mut found = Vec::new();
    for disk in
        record.config.volumes().filter(|disk| target.is_none_or(|target| disk.target == target))
    {
        let chain = chain::of_disk(&context.store, disk)?;
        let img = Img::find(context)?.reading(chain.links().iter().map(|link| link.path.clone()));
        for (depth, link) in chain.links().iter().enumerate() {
            let in_use = running && depth == 0 && !disk.read_only;
            let checked = match link.layer.format {
                format if !format.can_be_checked() => None,
                format => {
                    let source = Source::File(&link.path, format);
                    let repair = if repair && depth == 0 { Repair::All } else { Repair::Nothing };
                    if repair == Repair::All {
                        sealed::forget(&context.store, &link.layer);
                    }
                    Some(img.check(&link.path, source, repair == Repair::Nothing, repair).await?)
                }
            };
            found.push(Found {
                target: disk.target.clone(),
                layer: link.layer.clone(),
                checked,
                in_use,
            });
        }
    }
    Ok(found)
}

impl Found {
    /// Is data lost, or may it be?
    pub fn is_damaged(&self) -> bool {
        self.checked.as_ref().is_some_and(|checked| {
            !self.in_use && (checked.corruptions > checked.corruptions_fixed || checked.errors > 0)
        })
    }

    /// In words.
    pub fn words(&self) -> String {
        let Some(checked) = &self.checked else {
            return format!("nothing to check ({})", self.layer.format);
        };
        let mut words = Vec::new();
        if checked.corruptions > 0 {
            words.push(format!("{} corruptions", checked.corruptions));
        }
        if checked.leaks > 0 {
            words.push(format!("{} leaked clusters (space, not data)", checked.leaks));
        }
        if checked.errors > 0 {
            words.push(format!("{} places that could not be read", checked.errors));
        }
        let fixed = checked.corruptions_fixed + checked.leaks_fixed;
        if fixed > 0 {
            words.push(format!("{fixed} put right"));
        }
        match (words.is_empty(), self.in_use) {
            (true, _) => "sound".to_owned(),
            (false, true) => format!("{}, seen while it is written to", words.join(", ")),
            (false, false) => words.join(", "),
        }
    }
}
