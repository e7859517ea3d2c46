//! `qemu-img`, for what block jobs cannot do while no VM runs: internal snapshots, checking,
//! converting, mapping. Formats are always named.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::probe;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::model::{Format, Layer};
use crate::sys::cage::{Cage, Held, Limits};
use crate::sys::command;

/// The program, and what it may read.
///
/// It always runs in a cage (`sys/cage`): it can open the files it is told to work on, the layers
/// of the store, the files that [`Img::reading`] adds, and nothing else.
pub struct Img {
    program: PathBuf,
    layers: PathBuf,
    readable: Vec<PathBuf>,
    held: Vec<Held>,
}

/// An image as it is opened.
#[derive(Debug, Clone)]
pub enum Source<'a> {
    /// A file in this format; what its header names is opened, too.
    File(&'a Path, Format),
    /// A block node with everything below it spelled out (`BlockdevOptions` in QEMU's QAPI).
    Node(Value),
}

impl Source<'_> {
    /// A file that names no other file, opened so that none is followed even if its bytes change
    /// meanwhile.
    pub fn alone(path: &Path, format: Format) -> Source<'_> {
        match (path.to_str(), format) {
            (Some(name), Format::Qcow2 | Format::Vmdk) => {
                let file = json!({"driver": "file", "filename": name});
                Source::Node(json!({"driver": format.as_str(), "file": file, "backing": null}))
            }
            _ => Source::File(path, format),
        }
    }

    fn format(&self) -> Option<Format> {
        match self {
            Self::File(_, format) => Some(*format),
            Self::Node(_) => None,
        }
    }

    fn name(&self) -> OsString {
        match self {
            Self::File(path, _) => path.as_os_str().to_owned(),
            Self::Node(node) => format!("json:{node}").into(),
        }
    }
}

/// What `qemu-img info` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Info {
    /// QEMU's name for the format.
    pub format: String,
    /// The size the guest sees, in bytes.
    #[serde(rename = "virtual-size")]
    pub virtual_bytes: u64,
    /// Bytes on disk.
    #[serde(rename = "actual-size", default)]
    pub allocated_bytes: u64,
    /// The backing file, as the image spells it.
    #[serde(rename = "backing-filename", default)]
    pub backing: Option<String>,
    /// The backing file's format, where the image says.
    #[serde(rename = "backing-filename-format", default)]
    pub backing_format: Option<String>,
    /// The internal snapshots.
    #[serde(default)]
    pub snapshots: Vec<Inner>,
    /// It is encrypted.
    #[serde(default)]
    pub encrypted: bool,
}

/// An internal snapshot, as the image has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Inner {
    /// QEMU's number for it.
    pub id: String,
    /// Its tag.
    pub name: String,
    /// Bytes of memory and device state; 0: disk only.
    #[serde(rename = "vm-state-size", default)]
    pub vm_state_bytes: u64,
    /// Seconds since 1970.
    #[serde(rename = "date-sec", default)]
    pub created: i64,
}

/// Where something lies inside an image.
#[derive(Debug, Clone, Copy)]
pub struct Inside<'a> {
    /// The internal snapshot.
    pub tag: &'a str,
    /// The size the disk had then, in bytes.
    pub virtual_bytes: u64,
}

/// What `qemu-img check` is to put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: the image is not written to.
    Nothing,
    /// Clusters that are counted as used, and that nothing leads to.
    Leaks,
    /// Whatever it can.
    All,
}

/// What `qemu-img check` found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Checked {
    /// Clusters that are wrong: data may be lost.
    #[serde(default)]
    pub corruptions: u64,
    /// Clusters nobody uses: space, not data.
    #[serde(default)]
    pub leaks: u64,
    /// What could not be looked at.
    #[serde(rename = "check-errors", default)]
    pub errors: u64,
    /// What was put right.
    #[serde(rename = "corruptions-fixed", default)]
    pub corruptions_fixed: u64,
    /// What was put right.
    #[serde(rename = "leaks-fixed", default)]
    pub leaks_fixed: u64,
}

#[derive(Deserialize)]
struct Extent {
    start: u64,
    length: u64,
    data: bool,
    #[serde(default)]
    zero: bool,
}

impl Img {
    /// The one that belongs to the system emulator of the settings, or the one in the search path.
    pub fn find(context: &Context) -> Result<Self> {
        let beside = probe::Probe::get(context).ok().and_then(|probe| {
            let path = probe.path.parent()?.join("qemu-img");
            command::find(&path, &context.settings.search_path)
        });
        let program = beside
            .or_else(|| command::find(Path::new("qemu-img"), &context.settings.search_path))
            .ok_or_else(|| {
                Error::failed("qemu-img is not in PATH")
                    .hint("install it (apt-get install qemu-utils)")
            })?;
        Ok(Self {
            program,
            layers: context.store.layout.layers(),
            readable: Vec::new(),
            held: Vec::new(),
        })
    }

    /// The same, which may also read `files`.
    #[must_use]
    pub fn reading(mut self, files: impl IntoIterator<Item = PathBuf>) -> Self {
        self.readable.extend(files);
        self
    }

    /// The same, which may also read these open files.
    #[must_use]
    pub fn holding<'a>(mut self, held: impl IntoIterator<Item = &'a Held>) -> Self {
        self.held.extend(held.into_iter().cloned());
        self
    }

    /// A cage around the layers of the store and what may be read.
    fn cage(&self, limits: Limits) -> Cage {
        let cage = Cage::new(limits).reading(&self.layers);
        let cage = self.readable.iter().fold(cage, |cage, file| cage.reading(file));
        self.held.iter().fold(cage, Cage::holding)
    }

    /// `qemu-img info`, also of an image in use.
    pub async fn info(&self, path: &Path, source: Source<'_>) -> Result<Info> {
        let mut args = vec!["info", "-U", "--output=json"];
        args.extend(source.format().into_iter().flat_map(|format| ["-f", format.as_str()]));
        let cage = self.cage(Limits::LOOK).reading(path);
        decode(&self.run(args, &[&source.name()], &cage).await?)
    }

    /// Writes another backing file, or none, into the header of an image that nobody has open. The
    /// data stays (`rebase -u`).
    pub async fn set_backing(&self, path: &Path, backing: Option<&Layer>) -> Result<()> {
        let name = backing.map(Layer::file_name).unwrap_or_default();
        let mut args = vec!["rebase", "-u", "-f", "qcow2", "-b", &name];
        args.extend(backing.into_iter().flat_map(|backing| ["-F", backing.format.as_str()]));
        let cage = self.cage(Limits::EDIT).writing(path);
        self.run(args, &[path.as_os_str()], &cage).await.map(drop)
    }

    /// Makes an internal snapshot.
    pub async fn snapshot(&self, path: &Path, tag: &str) -> Result<()> {
        self.inner("-c", path, tag).await
    }

    /// Makes an image what it was at an internal snapshot.
    pub async fn apply(&self, path: &Path, tag: &str) -> Result<()> {
        let id = self.number(path, tag).await?;
        self.inner("-a", path, id.as_deref().unwrap_or(tag)).await
    }

    /// Removes an internal snapshot.
    pub async fn delete(&self, path: &Path, tag: &str) -> Result<()> {
        // This looks for names alone.
        self.inner("-d", path, tag).await
    }

    /// The number of an internal snapshot whose tag could be taken for one: `qemu-img` looks at
    /// numbers first.
    async fn number(&self, path: &Path, tag: &str) -> Result<Option<String>> {
        if !tag.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(None);
        }
        let inside = self.info(path, Source::File(path, Format::Qcow2)).await?.snapshots;
        let found = inside.into_iter().find(|inner| inner.name == tag);
        found
            .map(|inner| Some(inner.id))
            .ok_or_else(|| Error::damaged(format!("{} has no snapshot {tag}", path.display())))
    }

    /// `qemu-img check`.
    pub async fn check(
        &self,
        path: &Path,
        source: Source<'_>,
        in_use: bool,
        repair: Repair,
    ) -> Result<Checked> {
        let mut args = vec!["check", "--output=json"];
        args.extend(source.format().into_iter().flat_map(|format| ["-f", format.as_str()]));
        args.extend(in_use.then_some("-U"));
        let cage = self.cage(Limits::READ);
        let cage = match repair {
            Repair::Nothing => cage.reading(path),
            Repair::Leaks | Repair::All => cage.writing(path),
        };
        args.extend(match repair {
            Repair::Nothing => &[][..],
            Repair::Leaks => &["-r", "leaks"],
            Repair::All => &["-r", "all"],
        });
        // 2: corruptions, 3: leaks; both are told in words.
        let text = command::run(&self.program, &args, &[&source.name()], &[0, 2, 3], &cage).await?;
        decode(&text)
    }

    /// Copies the content of an image into a new one, which may have at most `virtual_bytes` and
    /// what its format adds to them.
    pub async fn convert(
        &self,
        from: (&Path, Source<'_>),
        to: (&Path, Format),
        virtual_bytes: u64,
    ) -> Result<()> {
        let mut args = vec!["convert", "-U", "-O", to.1.as_str()];
        args.extend(from.1.format().into_iter().flat_map(|format| ["-f", format.as_str()]));
        let cage = self.writing_at_most(virtual_bytes).reading(from.0).writing(to.0);
        self.run(args, &[&from.1.name(), to.0.as_os_str()], &cage).await.map(drop)
    }

    /// Copies what an internal snapshot holds into a new qcow2 image of the size it had then:
    /// `qemu-img convert -l` gives it the size the image has now.
    pub async fn convert_inner(
        &self,
        from: (&Path, Format),
        inner: &Inside<'_>,
        to: &Path,
    ) -> Result<()> {
        let tag = format!("snapshot.name={}", inner.tag.replace(',', ",,"));
        let args = ["convert", "-U", "-f", from.1.as_str(), "-O", "qcow2", "-l", &tag];
        let now = self.info(from.0, Source::File(from.0, from.1)).await?.virtual_bytes;
        let cage = self.writing_at_most(now.max(inner.virtual_bytes)).reading(from.0).writing(to);
        self.run(args, &[from.0.as_os_str(), to.as_os_str()], &cage).await?;
        if self.info(to, Source::File(to, Format::Qcow2)).await?.virtual_bytes
            != inner.virtual_bytes
        {
            let size = inner.virtual_bytes.to_string();
            let cage = self.cage(Limits::EDIT).writing(to);
            self.run(
                ["resize", "-q", "-f", "qcow2", "--shrink"],
                &[to.as_os_str(), size.as_ref()],
                &cage,
            )
            .await?;
        }
        Ok(())
    }

    /// The end of the last data of an image, in bytes: what lies behind it reads as zeros
    /// (`qemu-img map`).
    pub async fn end_of_data(&self, path: &Path, format: Format) -> Result<u64> {
        let cage = self.cage(Limits::READ).reading(path);
        let args = ["map", "-U", "--output=json", "-f", format.as_str()];
        let extents: Vec<Extent> = decode(&self.run(args, &[path.as_os_str()], &cage).await?)?;
        let data = extents.iter().filter(|extent| extent.data && !extent.zero);
        Ok(data.map(|extent| extent.start + extent.length).max().unwrap_or(0))
    }

    /// `qemu-img snapshot` knows no `-f`: the format is named in image options, where a comma is
    /// doubled.
    async fn inner(&self, flag: &str, path: &Path, tag: &str) -> Result<()> {
        let file = path.to_string_lossy().replace(',', ",,");
        let options = format!("driver=qcow2,file.driver=file,file.filename={file}");
        let cage = self.cage(Limits::EDIT).writing(path);
        self.run(["snapshot", "--image-opts", flag, tag], &[options.as_ref()], &cage)
            .await
            .map(drop)
    }

    /// For a conversion: tables and a rounding of clusters come on top of the data.
    fn writing_at_most(&self, virtual_bytes: u64) -> Cage {
        let bytes = virtual_bytes.saturating_add(virtual_bytes / 8).saturating_add(64 << 20);
        self.cage(Limits { file_bytes: Some(bytes), ..Limits::READ })
    }

    async fn run<'a>(
        &self,
        args: impl IntoIterator<Item = &'a str>,
        paths: &[&OsStr],
        cage: &Cage,
    ) -> Result<Vec<u8>> {
        let args: Vec<&str> = args.into_iter().collect();
        command::run(&self.program, &args, paths, &[0], cage).await
    }
}

fn decode<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T> {
    serde_json::from_slice(text)
        .map_err(|error| Error::qemu("cannot read what qemu-img says").because(error))
}
