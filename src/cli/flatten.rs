use clap::Args;

use super::App;
use super::disk::tell;
use crate::change::open;
use crate::disk::merge;
use crate::error::Result;
use crate::model::Name;

/// Make VMs independent of their backing files, running or stopped
///
/// All data of the backing files is copied into the disks of the VMs. Afterwards the template or VM
/// that they were cloned from can be removed, unless snapshots of these VMs still depend on it.
#[derive(Debug, Args)]
pub(super) struct Flatten {
    /// VMs; after a VM, name a disk (vda, nvram) to flatten only that disk
    #[arg(required = true, value_name = "VM [DISK]")]
    words: Vec<Name>,
    /// Only show what would be copied
    #[arg(long)]
    dry_run: bool,
}

impl Flatten {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        // All of them are looked at before the first is touched.
        let mut wanted: Vec<(&Name, Option<&Name>)> = Vec::new();
        let mut words = self.words.iter().peekable();
        while let Some(vm) = words.next() {
            let record = app.context.store.load(vm)?;
            open::refuse_template(vm, &record, "flatten")?;
            open::refuse_unclaimed(vm, &record)?;
            let is_disk =
                |word: &&Name| record.config.volumes().any(|disk| disk.target == word.as_str());
            let disk = words.next_if(|word| is_disk(word) && !app.context.store.exists(word));
            wanted.push((vm, disk));
        }
        for (vm, disk) in wanted {
            let merged =
                merge::flatten(&app.context, vm, disk.map(Name::as_str), self.dry_run).await?;
            tell(app, vm, &merged, self.dry_run);
        }
        Ok(())
    }
}
