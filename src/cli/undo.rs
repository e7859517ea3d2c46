use clap::Args;

use super::App;
use crate::error::{Error, Result};
use crate::maintenance::undo;
use crate::model::{Name, human};
use crate::output::{json, table, time};

/// Take back the last revert, rm or set
///
/// What they put out of use lies in the trash until `gc`. Several can be taken back, one after
/// another, the last one first. A VM that runs is ended for it and boots again. What the VM wrote
/// since the change goes into the trash in its turn.
#[derive(Debug, Args)]
pub struct Undo {
    /// Whose [default: the last one of all VMs]
    vm: Option<Name>,
    /// Only show what can be taken back, the last one first
    #[arg(long)]
    list: bool,
    /// The one at this place of the list
    #[arg(
        long, value_name = "N", default_value_t = 1, conflicts_with = "list",
        value_parser = at_least_one,
    )]
    nth: usize,
}

impl Undo {
    pub async fn run(self, app: &App) -> Result<()> {
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
            "took back `{}` of {} ({})",
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
        .ok_or_else(|| Error::usage(format!("{text:?} is no place in the list")))
}
