use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde::Serialize;

use super::App;
use crate::appliance::boot::{LIMIT, Payload};
use crate::appliance::kernel::Wanted;
use crate::error::{Error, IoContext, Kind, Result};
use crate::image::file::Target;
use crate::model::{Format as ImageFormat, parse_time};
use crate::output::{Format, json};
use crate::seal::customise::{self, Customisation};
use crate::seal::operations::{self, OPERATIONS};
use crate::seal::options::{CustomiseOptions, GeneratedPassword, RawOption};
use crate::seal::run::Sealing;
use crate::seal::selection;
use crate::seal::{PathChange, Performed, Plan, Report, image};

/// Remove from a guest's disks what clones must not share, and customise the guest
///
/// Name all disk images of one guest, which must not belong to a VM (for a VM, use `template
/// create`). A small Linux, made of this host's kernel and cowhand itself, is booted in QEMU with
/// the disks attached; nothing of them is mounted on the host. The images change only if everything
/// has succeeded.
#[derive(Debug, Args)]
pub(super) struct Seal {
    /// The image files
    #[arg(required_unless_present = "list_operations", value_name = "DISK")]
    disks: Vec<PathBuf>,
    /// Format of the images [default: detected from the header, if the file name agrees]
    #[arg(short = 'f', long = "from-format", value_name = "FORMAT")]
    from: Option<ImageFormat>,
    /// Write the sealed image to this new file, and leave the original unchanged
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the file of --out if it exists
    #[arg(long, requires = "out")]
    force: bool,
    #[command(flatten)]
    options: SealOptions,
}

impl Seal {
    pub(super) async fn run(self, app: &App) -> Result<()> {
        if self.options.list_operations {
            list(app);
            return Ok(());
        }
        let mut payload = Payload::new()?;
        let (sealing, passwords) = self.options.sealing(&mut payload)?;
        let out = self.out.map(|path| Target { path, format: None, force: self.force });
        let dry_run = self.options.dry_run;
        let (report, written) =
            image::seal(&app.context, &self.disks, self.from, out.as_ref(), dry_run, &sealing)
                .await
                .map_err(|error| not_lost(error, &passwords))?;
        let what: Vec<String> = self.disks.iter().map(|path| path.display().to_string()).collect();
        let what = match &written {
            Some(written) => format!("{} (from {})", written.path.display(), what.join(", ")),
            None => what.join(", "),
        };
        tell(
            app,
            &text(&what, &report, dry_run),
            &json::Sealed::new(&report, dry_run),
            dry_run,
            &passwords,
        );
        Ok(())
    }
}

/// What is done to a guest; `seal` and `template create` share it.
#[derive(Debug, Args)]
pub(super) struct SealOptions {
    /// Perform these operations: names, `defaults` or `all`, separated by commas; `-NAME` leaves
    /// one out [default: defaults]
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, help_heading = "Sealing")]
    operations: Option<String>,
    /// Perform only these operations
    #[arg(long, value_name = "LIST", conflicts_with = "operations", help_heading = "Sealing")]
    enable: Option<String>,
    /// List the operations; * marks the default ones
    #[arg(long, help_heading = "Sealing")]
    pub list_operations: bool,
    /// Show every path that would change, and change nothing
    #[arg(long, help_heading = "Sealing")]
    pub dry_run: bool,
    /// Allow network access for the programs of --run, --install and similar options
    #[arg(long, help_heading = "Sealing")]
    network: bool,
    /// Kernel to boot [default: one of this host's]
    #[arg(
        long,
        value_name = "FILE",
        env = "COWHAND_APPLIANCE_KERNEL",
        hide_env_values = true,
        help_heading = "Sealing"
    )]
    appliance_kernel: Option<PathBuf>,
    /// Directory of the kernel's modules
    #[arg(
        long,
        value_name = "DIR",
        env = "COWHAND_APPLIANCE_MODULES",
        hide_env_values = true,
        help_heading = "Sealing"
    )]
    appliance_modules: Option<PathBuf>,
    /// Time limit for the whole operation, including scripts: seconds, or 90s, 45m, 2h. At the
    /// limit nothing is changed [default: 30m]
    #[arg(long, value_name = "DURATION", value_parser = parse_time, help_heading = "Sealing")]
    appliance_timeout: Option<Duration>,
    #[command(flatten)]
    customise: Customise,
}

impl SealOptions {
    /// What was asked for, and passwords that were made up on the way.
    pub(super) fn sealing(
        &self,
        payload: &mut Payload,
    ) -> Result<(Sealing, Vec<GeneratedPassword>)> {
        let mut operations = selection::select(self.operations.as_deref(), self.enable.as_deref())?;
        let options = self.customise.all()?;
        let home = etcetera::home_dir().ok();
        let customise = CustomiseOptions::read(
            &options,
            payload,
            home.as_deref(),
            &mut std::io::stdin().lock(),
        )?;
        // What was asked for is done, whatever operations were picked; a first-boot script needs
        // what runs it.
        let scripts = customise
            .wishes
            .iter()
            .any(|wish| matches!(wish.what, Customisation::Firstboot { .. }));
        if !customise.wishes.is_empty() {
            let needed = |name: &str| name == "customize" || (name == "first-boot" && scripts);
            let wanted = |name: &&str| needed(name) || operations.iter().any(|other| other == name);
            operations = OPERATIONS
                .iter()
                .map(|operation| operation.name)
                .filter(wanted)
                .map(str::to_owned)
                .collect();
        }
        let kernel = Wanted {
            image: self.appliance_kernel.clone(),
            modules: self.appliance_modules.clone(),
        };
        let plan = Plan { operations, wishes: customise.wishes };
        let limit = self.appliance_timeout.unwrap_or(LIMIT);
        let sealing =
            Sealing { plan, payload: payload.finish()?, network: self.network, kernel, limit };
        Ok((sealing, customise.passwords))
    }

    /// Is anything asked for at all?
    pub(super) fn is_anything(&self) -> bool {
        self.operations.is_some()
            || self.enable.is_some()
            || self.dry_run
            || self.network
            || self.appliance_timeout.is_some()
            || !self.customise.0.is_empty()
    }
}

/// The customise options, in the order in which they were typed.
#[derive(Debug, Clone, Default)]
pub(super) struct Customise(Vec<(String, String)>);

/// The option that reads others from a file.
const FROM_FILE: &str = "commands-from-file";

impl Customise {
    /// All of them; those in files in the place of the option that names the file.
    fn all(&self) -> Result<Vec<RawOption>> {
        let mut all = Vec::new();
        for (name, value) in &self.0 {
            if name != FROM_FILE {
                all.push(RawOption { name: name.clone(), value: value.clone(), place: None });
                continue;
            }
            let path = PathBuf::from(value);
            let text = std::fs::read_to_string(&path).on("read", &path)?;
            for (number, line) in
                text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()))
            {
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
                let name = name.trim_start_matches("--");
                if !customise::OPTIONS.iter().any(|option| option.name == name) {
                    return Err(Error::usage(format!(
                        "{}, line {number}: there is no option {name:?}",
                        path.display()
                    ))
                    .hint(
                        "an option is a name, a blank and a value, without dashes; see them: \
                         cowhand seal --help",
                    ));
                }
                let place = Some(format!("{}, line {number}", path.display()));
                all.push(RawOption {
                    name: name.to_owned(),
                    value: value.trim().to_owned(),
                    place,
                });
            }
        }
        Ok(all)
    }
}

impl Args for Customise {
    fn augment_args(command: Command) -> Command {
        let heading = "Customising, in the order given";
        let file = Arg::new(FROM_FILE)
            .long(FROM_FILE)
            .value_name("FILE")
            .help("Read customise options from a file, one per line, without leading dashes")
            .action(ArgAction::Append)
            .help_heading(heading);
        customise::OPTIONS
            .iter()
            .fold(command, |command, option| {
                let arg =
                    Arg::new(option.name).long(option.name).help(option.help).help_heading(heading);
                command.arg(match option.value {
                    Some(value) => {
                        arg.value_name(value).action(ArgAction::Append).allow_hyphen_values(true)
                    }
                    // Counted by their places: a flag that is given twice is done twice.
                    None => arg.num_args(0).default_missing_value("").action(ArgAction::Append),
                })
            })
            .arg(file)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Customise {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let mut found: Vec<(usize, String, String)> = Vec::new();
        for name in customise::OPTIONS.iter().map(|option| option.name).chain([FROM_FILE]) {
            let values = matches.get_many::<String>(name).into_iter().flatten();
            let places = matches.indices_of(name).into_iter().flatten();
            found.extend(
                places.zip(values).map(|(place, value)| (place, name.to_owned(), value.clone())),
            );
        }
        found.sort();
        Ok(Self(found.into_iter().map(|(_, name, value)| (name, value)).collect()))
    }

    fn update_from_arg_matches(
        &mut self,
        matches: &ArgMatches,
    ) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Lists the operations.
pub(super) fn list(app: &App) {
    let line = |operation: &operations::Operation| {
        format!(
            "{} {:<24} {}\n",
            if operation.default { '*' } else { ' ' },
            operation.name,
            operation.about
        )
    };
    let rows: Vec<_> = OPERATIONS.iter().map(json::SealOperation::from).collect();
    app.printer.result(&OPERATIONS.iter().map(line).collect::<String>(), &rows);
}

/// What was done, for people: every path after a dry run, else only how many.
pub(super) fn text(what: &str, report: &Report, dry_run: bool) -> String {
    let of = |performed: &Performed| performed.touched.len() as u64 + performed.more;
    let count: u64 = report.operations.iter().map(of).sum();
    let verb = if dry_run { "would seal" } else { "sealed" };
    let paths = if count == 1 { "path" } else { "paths" };
    let mut text =
        format!("{verb} {what}: {}; {}; {count} {paths}", report.system, report.mounts.join(", "));
    for performed in &report.operations {
        if !dry_run {
            text.push_str(&format!("\n  {:<24} {}", performed.name, of(performed)));
            continue;
        }
        text.push_str(&format!("\n{}", performed.name));
        for touched in &performed.touched {
            text.push_str(&format!("\n  {:<8} {}", word(touched.how), touched.path));
        }
        if performed.more > 0 {
            text.push_str(&format!("\n  … and {} more", performed.more));
        }
    }
    text
}

fn word(how: PathChange) -> &'static str {
    match how {
        PathChange::Removed => "remove",
        PathChange::Emptied => "empty",
        PathChange::Changed => "change",
        PathChange::Created => "create",
        PathChange::Ran => "run",
    }
}

/// Should it be carried on later, the passwords that were made up for it hold then.
pub(super) fn not_lost(error: Error, passwords: &[GeneratedPassword]) -> Error {
    match passwords {
        [] => error,
        _ if error.kind() == Kind::Usage || error.kind() == Kind::NotFound => error,
        some => {
            let words: Vec<String> =
                some.iter().map(|one| format!("{}: {}", one.user, one.password)).collect();
            error.hint(format!(
                "if the operation is completed later, the passwords are {}",
                words.join(", ")
            ))
        }
    }
}

/// Prints a result, and passwords that nobody would know otherwise. Whoever wants no words still
/// wants them where he has asked for them (`asked`).
pub(super) fn tell(
    app: &App,
    text: &str,
    value: &impl Serialize,
    asked: bool,
    passwords: &[GeneratedPassword],
) {
    let value = json::WithPasswords::new(value, passwords);
    let words: Vec<String> =
        passwords.iter().map(|one| format!("{}: {}", one.user, one.password)).collect();
    match (app.printer.format, app.printer.quiet && !asked) {
        (Format::Table, true) => app.printer.text(&words.join("\n")),
        (Format::Table, false) if words.is_empty() => app.printer.result(text, &value),
        (Format::Table, false) => {
            app.printer.result(
                &format!("{text}\npasswords (shown only once):\n  {}", words.join("\n  ")),
                &value,
            );
        }
        (Format::Json, _) => app.printer.result(text, &value),
    }
}
