use clap::Args;

use super::App;
use crate::error::Result;
use crate::model::Name;
use crate::output::{json, table};
use crate::vm::list;

/// Show everything about one VM or template
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The VM or template
    name: Name,
}

impl Show {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let details = list::show(&app.context, &self.name).await?;
        app.printer.result(
            &table::details(self.name.as_str(), &details),
            &json::Details::new(&self.name, &details),
        );
        Ok(())
    }
}
