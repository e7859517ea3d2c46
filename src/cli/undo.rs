use clap::Args;

use super::App;
use crate::error::{Error, Result};
use crate::maintenance::undo;
use crate::model::{Name, human};
use crate::output::{json, table, time};

/// Undo the last revert, reset, rm or set
///
/// What these commands remove or replace stays in the trash until `gc`. Several changes can be
/// undone one by one, the most recent first. To undo a revert or a reset, a running guest is ended
/// without a shutdown, and boots again; what the VM has written since the change is moved to the
/// trash.
#[derive(Debug, Args)]
pub(super) struct Undo {
    /// The VM [default: the most recent change of any VM]
    vm: Option<Name>,
    /// Only list what can be undone, the most recent first
    #[arg(long)]
    list: bool,
    /// Undo entry N of `undo --list`; 1 is the most recent
    #[arg(
        long, value_name = "N", default_value_t = 1, conflicts_with = "list",
        value_parser = at_least_one,
    )]
    nth: usize,
}

impl Undo {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        if self.list {
            let rows = undo::list(&app.context, self.vm.as_ref())?;
            if let Some(vm) =
                self.vm.as_ref().filter(|vm| rows.is_empty() && !app.context.store.exists(vm))
            {
                return Err(app.context.store.unknown(vm));
            }
            app.printer.result(
                &table::undoables(&rows),
                &rows.iter().map(json::Undoable::from).collect::<Vec<_>>(),
            );
            return Ok(());
        }
        let done = undo::undo(&app.context, self.vm.as_ref(), self.nth).await?;
        let text = format!(
            "undid `{}` of {} ({})",
            done.entry.command(),
            time::minute(done.entry.when),
            human(done.bytes)
        );
        app.printer.done(&text, &json::Undoable::from(&done));
        Ok(())
    }
}

fn at_least_one(text: &str) -> Result<usize> {
    text.parse()
        .ok()
        .filter(|nth| *nth > 0)
        .ok_or_else(|| Error::usage(format!("{text:?} is not a number of 1 or more")))
}
