//! A customise option as the user gave it, and how it is shown.

use super::values::program;

/// An option as the user gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawOption {
    /// Its name, without dashes.
    pub name: String,
    /// Its value.
    pub value: String,
    /// The file and line it was read from, if it was.
    pub place: Option<String>,
}

impl RawOption {
    /// As the user would know it again; without what is secret, or may be: texts and commands of
    /// the user's. It is shown, and goes into the appliance.
    pub(super) fn label(&self) -> String {
        let first = |value: &str| {
            value.split_once(':').map_or_else(String::new, |(first, _)| first.to_owned())
        };
        let value = match self.name.as_str() {
            "root-password" | "motd" => String::new(),
            "append-line" | "edit" | "password" | "write" => first(&self.value),
            "run-command" | "firstboot-command" => program(&self.value).to_owned(),
            // Of a key, only whose it is to be.
            "ssh-inject" => self.value.split(':').next().unwrap_or_default().to_owned(),
            _ => self.value.lines().next().unwrap_or_default().to_owned(),
        };
        let value = value.replace(char::is_control, " ");
        let short: String = value.chars().take(60).collect();
        let more = if short.len() < value.len() { "…" } else { "" };
        let label = format!("--{} {short}{more}", self.name);
        match &self.place {
            Some(place) => format!("{} ({place})", label.trim_end()),
            None => label.trim_end().to_owned(),
        }
    }
}
