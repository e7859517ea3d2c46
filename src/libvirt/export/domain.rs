//! What is written of a domain, with or without snapshots: its XML, its UEFI variables, and what
//! becomes of all but its disks.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::super::write;
use super::super::xml::Notes;
use crate::context::Context;
use crate::error::{IoContext, Result};
use crate::image::file::{self, Of, Target};
use crate::model::{Config, Firmware, Format, Name, Network, Nic, Record};
use crate::qemu::firmware;

/// What is being written.
pub(super) struct Export<'a> {
    pub(super) context: &'a Context,
    pub(super) vm: &'a Name,
    pub(super) record: &'a Record,
    /// What it will be.
    pub(super) directory: &'a Path,
    /// What it is called until then.
    pub(super) scratch: &'a Path,
    /// `kvm` or `qemu`.
    pub(super) kind: &'static str,
    pub(super) notes: Notes,
}

impl Export<'_> {
    /// The XML of the domain with this configuration.
    pub(super) async fn domain(
        &mut self,
        config: &Config,
        tag: Option<&str>,
        file: impl Fn(&str) -> Option<(PathBuf, Format)>,
    ) -> Result<PathBuf> {
        let uefi = self.uefi(config, tag).await?;
        let drives = write::drives(config, file, &mut self.notes);
        self.tell(config);
        let text = self.text(config, &drives, uefi);
        self.put(Path::new(&format!("{}.xml", self.vm)), &text)
    }

    pub(super) fn text(
        &self,
        config: &Config,
        drives: &[write::Drive],
        uefi: Option<(PathBuf, PathBuf)>,
    ) -> String {
        write::domain(
            &write::Parts { name: self.vm, uuid: self.record.uuid, kind: self.kind, drives, uefi },
            config,
        )
    }

    pub(super) fn put(&self, name: &Path, text: &str) -> Result<PathBuf> {
        let path = self.scratch.join(name);
        // A kernel's command line or a description can have secrets in it.
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .on("write", &path)?;
        Ok(self.directory.join(name))
    }

    /// Writes the UEFI variables.
    async fn uefi(
        &mut self,
        config: &Config,
        tag: Option<&str>,
    ) -> Result<Option<(PathBuf, PathBuf)>> {
        let (Firmware::Uefi, Some(nvram)) = (config.firmware, &config.nvram) else {
            return Ok(None);
        };
        let name = format!("{}_VARS.fd", self.vm);
        let to = Target { path: self.scratch.join(&name), format: Some(Format::Raw), force: false };
        file::export_disk(self.context, Of { disk: nvram, tag }, &to).await?;
        let code = firmware::find()?.code;
        self.notes.kept("firmware", format!("UEFI, {}", code.display()));
        Ok(Some((code, self.directory.join(name))))
    }

    /// What becomes of all but the disks.
    fn tell(&mut self, config: &Config) {
        let notes = &mut self.notes;
        for nic in &config.nics {
            let what = format!("network card {}", nic.mac);
            match nic.network {
                Network::User(_) => notes.kept(what.clone(), "user network"),
                Network::Restricted => notes.changed(
                    what.clone(),
                    "restricted becomes a user network, which reaches what the host reaches",
                ),
            }
            if !nic.ports.is_empty() {
                let ports: Vec<String> = nic.ports.iter().map(ToString::to_string).collect();
                notes.left(
                    format!("{what}, ports"),
                    format!("{}: libvirt forwards none here", ports.join(" ")),
                );
            }
        }
        notes.kept("domain type", self.kind);
        notes.kept("machine", format!("{}, which the QEMU of libvirt has to have", config.machine));
        let (_, words) = write::cpu(self.kind, config.cpu.as_deref());
        words
            .into_iter()
            .for_each(|word| notes.left("CPU model", format!("{word}: libvirt has no such word")));
        let moved =
            |nic: &&Nic| nic.place.is_some() && write::place(nic, config.is_q35()).is_none();
        for nic in config.nics.iter().filter(moved) {
            notes
                .changed(format!("network card {}, PCI", nic.mac), "libvirt gives it another slot");
        }
        if self.record.autostart {
            notes.left("autostart", format!("virsh autostart {}", self.vm));
        }
        if !config.limits.are_none() {
            let how = "libvirt limits each disk by itself (virsh blkdeviotune)";
            notes.left("limits", format!("{}: {how}", config.limits));
        }
        if config.kernel.is_some() {
            notes.kept("kernel", "stays where it is");
        }
        if config.seed.is_some() {
            notes.left(
                "cloud-init",
                "its seed is made anew for each start, which libvirt does not do",
            );
        }
        if !config.credentials.is_empty() {
            notes.left("credentials", "would be readable in the XML");
        }
        let tags = config.tags.keys().filter(|key| *key != "description");
        tags.for_each(|key| notes.left(format!("tag.{key}"), "has no counterpart"));
        notes.changed(
            "PCI addresses",
            "of devices other than placed network cards are those that libvirt gives",
        );
    }
}
