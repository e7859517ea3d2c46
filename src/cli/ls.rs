use clap::Args;

use super::App;
use super::words::tag_pair;
use crate::error::Result;
use crate::model::State;
use crate::output::{Format, json, table};
use crate::vm::list::{self, Row};

/// List VMs with their state and their disk usage
///
/// Columns of DISK: bytes on disk that belong to the VM alone (current state and snapshots), and
/// the size of the disks as the guest sees them.
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Also list templates and images
    #[arg(short, long)]
    all: bool,
    /// List only VMs where K is V: state, name, from, autostart, or a tag; can be repeated
    #[arg(long, value_name = "K=V")]
    filter: Vec<String>,
}

impl Ls {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        let filters =
            self.filter.iter().map(|filter| tag_pair(filter)).collect::<Result<Vec<_>>>()?;
        let rows = list::list(&app.context).await?;
        let template = |row: &Row| row.about.as_ref().is_ok_and(|about| about.record.is_template());
        let shown: Vec<&Row> = rows
            .iter()
            .filter(|row| self.all || !template(row))
            .filter(|row| filters.iter().all(|(key, value)| matches(row, key, value)))
            .collect();
        for row in &shown {
            if let Some(operation) = &row.cut_short {
                let name = &row.name;
                let is_paused =
                    row.about.as_ref().is_ok_and(|about| about.status.state == State::Paused);
                let until = if is_paused { "; until then its guest is paused" } else { "" };
                app.context.ui.note(&format!(
                    "{name}: `{operation}` was cut short; the next command that changes {name} \
                     undoes or completes it{until}"
                ));
            }
        }
        if let Some(absence) = app.context.store.absence() {
            app.context.ui.note(&absence);
        }
        match (app.printer.format, app.printer.quiet) {
            (Format::Json, _) => {
                let entries: Vec<_> = shown.into_iter().map(json::Vm::from).collect();
                app.printer.result("", &entries);
            }
            (Format::Table, true) => {
                shown.iter().for_each(|row| app.printer.text(row.name.as_str()))
            }
            (Format::Table, false) => app.printer.text(&table::vms(&shown)),
        }
        Ok(())
    }
}

fn matches(row: &Row, key: &str, value: &str) -> bool {
    let Ok(about) = &row.about else {
        return key == "state" && value == "broken";
    };
    match key {
        "name" => row.name.as_str() == value,
        "state" => about.status.state.as_str() == value,
        "from" => about
            .from
            .as_deref()
            .is_some_and(|from| from == value || from.split('@').next() == Some(value)),
        "autostart" => value == if about.record.autostart { "on" } else { "off" },
        _ => about
            .record
            .config
            .tags
            .get(key.strip_prefix("tag.").unwrap_or(key))
            .is_some_and(|tag| tag == value),
    }
}
