use std::time::Duration;

use clap::{Args, Subcommand};

use super::seal::{self, SealOptions};
use super::{App, each};
use crate::appliance::boot::Payload;
use crate::appliance::kernel::Kernel;
use crate::error::{Error, Result};
use crate::maintenance::remove::{self, Options, Which};
use crate::model::{Name, bus, human};
use crate::output::{Format, json, table, time};
use crate::template::freeze::SealMode;
use crate::template::{freeze, list, windows};
use crate::warm::cool;
use crate::warm::make::{self, Warming};

/// How long a Windows guest's agent may take to answer, and how long its sysprep.exe may take.
const AGENT: Duration = Duration::from_secs(120);
const SYSPREP: Duration = Duration::from_secs(3600);

/// Create, list, warm and remove templates
#[derive(Debug, Subcommand)]
pub(super) enum Template {
    Create(Create),
    Ls(Ls),
    Show(Show),
    Rm(Rm),
    Warm(Warm),
    Cool(Cool),
}

impl Template {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        match self {
            Self::Create(verb) => verb.run(app).await,
            Self::Ls(verb) => verb.run(app),
            Self::Show(verb) => verb.run(app),
            Self::Rm(verb) => verb.run(app).await,
            Self::Warm(verb) => verb.run(app).await,
            Self::Cool(verb) => verb.run(app).await,
        }
    }
}

/// Seal a stopped VM and turn it into a template, permanently
///
/// What clones must not share is removed from its disks (see `seal`). Then its files become
/// read-only. A template cannot be started or changed. It cannot be removed while clones depend on
/// it.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// The VM
    vm: Name,
    /// Do not seal: clones will share machine-id, host keys and logs
    #[arg(long)]
    no_seal: bool,
    /// For Windows: instead of sealing, run sysprep.exe in the running guest through its agent, and
    /// wait until the guest has shut down
    #[arg(long, conflicts_with_all = ["no_seal", "dry_run", "operations", "enable"])]
    windows: bool,
    /// Name of the template [default: the VM's name]
    #[arg(long = "as", value_name = "NAME")]
    new_name: Option<Name>,
    /// Also make the template warm, as by `template warm`
    #[arg(long, conflicts_with_all = ["windows", "dry_run"])]
    warm: bool,
    #[command(flatten)]
    warming: WarmOptions,
    #[command(flatten)]
    seal: SealOptions,
}

/// How to make a template warm.
#[derive(Debug, Args)]
pub(super) struct WarmOptions {
    /// For a warm template: a shell command that must succeed in the guest before its memory is
    /// saved
    #[arg(long, value_name = "CMD")]
    ready: Option<String>,
    /// For a warm template: seconds to wait for the guest to boot and its agent to answer, and
    /// again for --ready
    #[arg(long, value_name = "SECS", default_value_t = 600)]
    ready_timeout: u64,
}

impl WarmOptions {
    fn warming(&self) -> Warming {
        Warming { ready: self.ready.clone(), limit: Duration::from_secs(self.ready_timeout) }
    }
}

impl Create {
    async fn run(self, app: &App) -> Result<()> {
        if self.seal.list_operations {
            seal::list(app);
            return Ok(());
        }
        if self.no_seal && self.seal.is_anything() {
            return Err(Error::usage(
                "--no-seal leaves the disks as they are, and the other options do not",
            )
            .hint("leave out one or the other"));
        }
        let mut payload = Payload::new()?;
        let (sealing, passwords) = self.seal.sealing(&mut payload)?;
        let dry_run = self.seal.dry_run;
        let name = self.new_name.as_ref();
        if self.windows {
            if self.seal.is_anything() {
                return Err(Error::usage(
                    "Windows generalises itself: \
                     the other options are for systems sealed from the outside",
                ));
            }
            windows::generalise(&app.context, &self.vm, AGENT, SYSPREP).await?;
        }
        if !self.no_seal && !self.windows {
            let unsealed = format!(
                "or leave its disks as they are: cowhand template create {} --no-seal",
                self.vm
            );
            Kernel::find(&sealing.kernel).map_err(|error| error.hint(unsealed))?;
        }
        let how = match (self.no_seal, self.windows) {
            (true, _) => SealMode::AsItIs,
            (_, true) => SealMode::SealedItself,
            _ => SealMode::Seal(&sealing, dry_run),
        };
        if self.warm {
            let record = app.context.store.load(&self.vm)?;
            bus::refuse_memory(self.vm.as_str(), &record.config)?;
        }
        let frozen = freeze::freeze(&app.context, &self.vm, name, how)
            .await
            .map_err(|error| seal::not_lost(error, &passwords))?;
        let name = name.unwrap_or(&self.vm);
        let mut value = json::FrozenTemplate::new(name, !self.no_seal);
        let mut text = String::new();
        if let Some(report) = &frozen.sealed {
            value = value.with_report(report, dry_run);
            text = seal::text(self.vm.as_str(), report, dry_run) + "\n";
        }
        if !dry_run {
            text.push_str(&format!(
                "{name} is a template now; make a VM of it: cowhand clone {name} NEW"
            ));
        }
        if self.warm {
            let warmed =
                make::warm(&app.context, name, &self.warming.warming()).await.map_err(|error| {
                    error.hint(format!(
                        "{name} is a template now, but not warm; try again: cowhand \
                         template warm {name}"
                    ))
                })?;
            value = value.made_warm();
            text.push_str(&format!(
                "\nit is warm ({}); run something in it: cowhand run {name} -- true",
                human(warmed.bytes)
            ));
        }
        seal::tell(app, &text, &value, dry_run && frozen.sealed.is_some(), &passwords);
        Ok(())
    }
}

/// List templates and the VMs that depend on them
#[derive(Debug, Args)]
pub(super) struct Ls {}

impl Ls {
    fn run(self, app: &App) -> Result<()> {
        let rows = list::list(&app.context)?;
        match (app.printer.format, app.printer.quiet) {
            (Format::Table, true) => {
                rows.iter().for_each(|row| app.printer.text(row.name.as_str()))
            }
            _ => {
                let entries: Vec<_> = rows.iter().map(json::Template::from).collect();
                app.printer.result(&table::templates(&rows), &entries);
            }
        }
        Ok(())
    }
}

/// Show one template
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The template
    name: Name,
}

impl Show {
    fn run(self, app: &App) -> Result<()> {
        let row = list::show(&app.context, &self.name)?;
        app.printer
            .result(&table::templates(std::slice::from_ref(&row)), &json::Template::from(&row));
        Ok(())
    }
}

/// Make a template warm: boot it once, and save its memory, from which clones resume
///
/// A temporary clone boots. Once its agent answers, systemd reports the end of the boot, --ready
/// succeeds and the guest is idle, its SSH host keys are removed and its memory is saved.
#[derive(Debug, Args)]
pub(super) struct Warm {
    /// The template
    name: Name,
    #[command(flatten)]
    warming: WarmOptions,
}

impl Warm {
    async fn run(self, app: &App) -> Result<()> {
        let warmed = make::warm(&app.context, &self.name, &self.warming.warming()).await?;
        let text = format!(
            "{} is warm ({}, {}); run something in it: cowhand run {} -- true",
            self.name,
            human(warmed.bytes),
            time::short(warmed.took),
            self.name
        );
        app.printer.done(&text, &json::Warmth::warm(&self.name, &warmed));
        Ok(())
    }
}

/// Remove the memory of warm templates; refused while running clones use it
#[derive(Debug, Args)]
pub(super) struct Cool {
    /// The templates
    #[arg(required = true)]
    names: Vec<Name>,
}

impl Cool {
    async fn run(self, app: &App) -> Result<()> {
        each(app, &self.names, async |name| {
            let bytes = cool::cool(&app.context, name).await?;
            let text = format!("{name} is not warm any more ({} freed)", human(bytes));
            app.printer.done(&text, &json::Warmth::cool(name, bytes));
            Ok(())
        })
        .await
    }
}

/// Remove templates; refused while clones depend on them
#[derive(Debug, Args)]
pub(super) struct Rm {
    /// The templates
    #[arg(required = true)]
    names: Vec<Name>,
    /// Also remove the clones that depend on them
    #[arg(long)]
    cascade: bool,
    /// With --cascade: also remove running clones, without shutting them down
    #[arg(short, long)]
    force: bool,
}

impl Rm {
    async fn run(self, app: &App) -> Result<()> {
        let options = Options { force: self.force, cascade: self.cascade };
        each(app, &self.names, async |name| {
            let gone = remove::remove(&app.context, name, Which::Template, options).await?;
            let names: Vec<&str> = gone.iter().map(Name::as_str).collect();
            app.printer.done(&format!("removed {}", names.join(", ")), &json::Removed::new(&gone));
            Ok(())
        })
        .await
    }
}
