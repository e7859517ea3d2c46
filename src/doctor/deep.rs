//! `doctor --deep`: what the files hold. Each image is checked (`qemu-img check`), and what the
//! layers of templates hold, which never changes, is compared with what they held when it was first
//! looked at.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use jiff::Timestamp;

use super::Finding;
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::instance::status;
use crate::layer::{blocking, chain, content, opened};
use crate::model::{Layer, Name, Record, printable};
use crate::qemu::img::{Checked, Img, Repair, Source};
use crate::store::sums::Sum;
use crate::sys::flock;

/// Looks into the files of all VMs and templates, or of one. What is wrong with records and chains
/// is said elsewhere.
pub async fn examine(context: &Context, only: Option<&Name>) -> Result<Vec<Finding>> {
    let store = &context.store;
    let mut names = store.names()?;
    names.sort();
    let mut seen = Seen::default();
    let mut findings = Vec::new();
    for name in names.iter().filter(|name| only.is_none_or(|only| only == *name)) {
        let Ok(record) = store.load(name) else { continue };
        findings.extend(seen.images(context, name, &record).await?);
        if record.is_template() {
            findings.extend(seen.content(context, name, &record).await?);
        }
    }
    Ok(findings)
}

/// What was found of each layer, which several VMs may depend on.
#[derive(Default)]
struct Seen {
    checked: BTreeMap<Layer, Result<Option<Checked>, String>>,
    sums: BTreeMap<Layer, Result<String, String>>,
}

impl Seen {
    async fn images(
        &mut self,
        context: &Context,
        name: &Name,
        record: &Record,
    ) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        let (mut sound, mut written) = (0, 0);
        for layer in layers(context, record) {
            let is_head =
                !record.is_template() && record.config.writable().any(|disk| disk.layer == layer);
            if is_head && status::is_running(context, name)? {
                written += 1;
                continue;
            }
            let checked = match self.checked.get(&layer) {
                Some(checked) => checked.clone(),
                None => {
                    let checked = check(context, &layer).await;
                    self.checked.insert(layer.clone(), checked.clone());
                    checked
                }
            };
            // A command that is at work on it merges and removes layers.
            let is_changing = || {
                flock::is_held(&context.store.layout.lock(name)).unwrap_or(true)
                    || !context.store.layout.layer(&layer).exists()
            };
            let wrong = match &checked {
                Ok(Some(checked)) if checked.corruptions + checked.errors > 0 => {
                    format!(
                        "{} corruptions, {} places that could not be read",
                        checked.corruptions, checked.errors
                    )
                }
                Ok(_) => {
                    sound += 1;
                    continue;
                }
                Err(why) => format!("it cannot be checked: {why}"),
            };
            if is_changing() {
                self.checked.remove(&layer);
                written += 1;
                continue;
            }
            let path = context.store.layout.layer(&layer);
            let hint = match is_head {
                true => format!("what can be put right is by: cowhand disk check {name} --repair"),
                false => format!("its file is {}; bring it back from a backup", path.display()),
            };
            findings.push(
                Finding::fail("images", format!("layer {layer}: {wrong}")).of(name).hint(hint),
            );
        }
        if findings.is_empty() {
            let written = match written {
                0 => String::new(),
                written => format!(", {written} are being written to and were not looked at"),
            };
            let are = if sound == 1 { "image is" } else { "images are" };
            findings.push(Finding::ok("images", format!("{sound} {are} sound{written}")).of(name));
        }
        Ok(findings)
    }

    async fn content(
        &mut self,
        context: &Context,
        name: &Name,
        record: &Record,
    ) -> Result<Vec<Finding>> {
        let store = &context.store;
        let mut sums = match store.sums(name) {
            Ok(sums) => sums,
            Err(error) => {
                let path = store.layout.sums(name);
                let hint = error.hints().first().cloned();
                let hint = hint.unwrap_or_else(|| {
                    format!("to have it noted anew: rm {}", printable::shell(&path))
                });
                return Ok(vec![
                    Finding::warn("content", error.full_message()).of(name).hint(hint),
                ]);
            }
        };
        let mut findings = Vec::new();
        let (mut new, mut same, mut since) = (0, 0, Timestamp::now());
        for layer in layers(context, record) {
            let sum = match self.sums.get(&layer) {
                Some(sum) => sum.clone(),
                None => {
                    let sum = sum(context, &layer).await;
                    self.sums.insert(layer.clone(), sum.clone());
                    sum
                }
            };
            let path = store.layout.layer(&layer);
            match (sum, sums.layers.get(&layer.id)) {
                (Err(why), _) => findings.push(
                    Finding::fail("content", format!("layer {layer} cannot be read: {why}"))
                        .of(name)
                        .hint(format!(
                            "its file is {}; bring it back from a backup",
                            path.display()
                        )),
                ),
                (Ok(sum), None) => {
                    sums.layers
                        .insert(layer.id.clone(), Sum { sha256: sum, noted: Timestamp::now() });
                    new += 1;
                }
                (Ok(sum), Some(noted)) if sum == noted.sha256 => {
                    since = since.min(noted.noted);
                    same += 1;
                }
                (Ok(_), Some(noted)) => findings.push(
                    Finding::fail(
                        "content",
                        format!(
                            "layer {layer} does not hold what it held on {}",
                            noted.noted.strftime("%Y-%m-%d")
                        ),
                    )
                    .of(name)
                    .hint(format!(
                        "its file is {}; bring it back from a backup. \
                         Clones of {name} read what is in it now",
                        path.display()
                    )),
                ),
            }
        }
        if new > 0 {
            findings.push(match store.save_sums(name, &sums) {
                Ok(()) => Finding::info(
                    "content",
                    format!(
                        "checksums of its layers ({new}) are noted now; \
                         the next --deep compares them"
                    ),
                )
                .of(name),
                Err(error) => Finding::warn(
                    "content",
                    format!(
                        "the checksums of its layers cannot be noted: {}",
                        error.full_message()
                    ),
                )
                .of(name),
            });
        } else if findings.is_empty() {
            let date = since.strftime("%Y-%m-%d");
            findings.push(
                Finding::ok(
                    "content",
                    format!("what its layers ({same}) hold is what they held on {date}"),
                )
                .of(name),
            );
        }
        Ok(findings)
    }
}

/// Every layer that a record names, and those below, as far as they can be read.
fn layers(context: &Context, record: &Record) -> Vec<Layer> {
    let mut all: Vec<Layer> = Vec::new();
    for named in record.layers() {
        let Ok(chain) = chain::read(&context.store, named) else { continue };
        all.extend(chain.links().iter().map(|link| link.layer.clone()));
    }
    all.sort();
    all.dedup();
    all
}

/// `None`: the format has nothing that could be checked.
async fn check(context: &Context, layer: &Layer) -> Result<Option<Checked>, String> {
    if !layer.format.can_be_checked() {
        return Ok(None);
    }
    let checked = async {
        let task = context.ui.task(&format!("checking {layer}"), 0);
        // Another QEMU may read it, and what it depends on is looked at by itself.
        let checked = match opened::open(&context.store, layer)?.in_place {
            Some(pinned) => {
                let held = pinned.held()?;
                let img = Img::find(context)?.holding([&held]);
                img.check(
                    &held.path(),
                    Source::alone(&held.path(), layer.format),
                    true,
                    Repair::Nothing,
                )
                .await
            }
            None => {
                let path = context.store.layout.layer(layer);
                Img::find(context)?
                    .check(&path, Source::alone(&path, layer.format), true, Repair::Nothing)
                    .await
            }
        };
        drop(task);
        checked.map(Some)
    };
    checked.await.map_err(|error: Error| error.full_message())
}

async fn sum(context: &Context, layer: &Layer) -> Result<String, String> {
    let summed = async {
        let path = context.store.layout.layer(layer);
        let file = opened::open(&context.store, layer)?.file;
        let total = file.metadata().map(|about| about.blocks() * 512).on("read", &path)?;
        let task = context.ui.task(&format!("reading {layer}"), total);
        blocking::run(&*task, total, move |counter, stop| content::sum(&file, counter, stop))
            .await
            .on("read", &path)
    };
    summed.await.map_err(|error: Error| error.full_message())
}
