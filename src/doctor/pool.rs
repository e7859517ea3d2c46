//! The pool: layers and memory that are damaged, that nobody uses, or that were never finished.

use std::path::PathBuf;

use super::{Finding, Remedy};
use crate::change::lost;
use crate::context::Context;
use crate::error::{IoContext, Result};
use crate::layer::garbage::{Certainty, Needs};
use crate::layer::graph::LayerGraph;
use crate::layer::{info, opened};
use crate::maintenance::gc;
use crate::model::Layer;
use crate::store::Store;
use crate::sys::image_lock;

/// Looks at the layers and at memory: damaged ones, and those nobody uses.
pub(super) fn examine(context: &Context, needs: &Needs) -> Result<Vec<Finding>> {
    let (store, graph) = (&context.store, &needs.graph);
    let mut findings = Vec::new();
    let why = |layer| {
        info::inspect(store, layer).err().map(|error| error.full_message()).unwrap_or_default()
    };
    for layer in &graph.unusable {
        findings
            .push(Finding::warn("layers", why(layer)).hint("the VMs that use it are named below"));
    }
    for layer in &graph.damaged {
        let why = why(layer);
        let kept = "while that is so, layers that seem unused are kept; the VMs that use it are \
                    named below";
        let hint = match opened::about_link(store, layer) {
            Some(about) => format!("{about}; {kept}"),
            None => kept.to_owned(),
        };
        let about = format!("the header of layer {layer} cannot be trusted: {why}");
        findings.push(Finding::warn("layers", about).hint(hint));
    }
    if let Some(aside) = &graph.set_aside {
        let about = format!("{aside} is no VM by its name, and has a record in it");
        findings.push(Finding::warn("layers", about).hint(
            "while that is so, layers that seem unused are kept, and none is merged; give it a \
             name that a VM can have, or move it out of the store",
        ));
    }
    // What a QEMU has open is in use, whatever the records say; of that the VM's own findings tell.
    let open = |layer: &Layer| image_lock::is_open(&store.layout.layer(layer)).unwrap_or(true);
    let certain = needs.certainty() == Certainty::Sure && lost::directories(store)?.is_empty();
    let claimed = if certain { Vec::new() } else { claimed(store, graph)? };
    let unused = needs.orphans(|info| {
        claimed.contains(&info.layer)
            || open(&info.layer)
            || graph.head_below(&info.layer.id).is_some()
    });
    let unused: Vec<&Layer> = unused.iter().map(|info| &info.layer).collect();
    if !unused.is_empty() {
        findings.push(match certain {
            true => nobody_uses(unused.into_iter().cloned().collect()),
            false => Finding::info(
                "leftovers",
                format!("layers that seem to be unused: {}", names(unused)),
            )
            .hint(
                "they stay while some record, header or entry of the trash cannot be read: \
                 it might name them",
            ),
        });
    }
    for path in partial(store, graph)? {
        findings.push(
            Finding::warn("leftovers", format!("{} was never finished", path.display()))
                .hint("cowhand doctor --repair    moves it into the trash")
                .remedy(certain.then_some(Remedy::TrashFile(path))),
        );
    }
    let memory = gc::unneeded_memory(store)?;
    if !memory.is_empty() {
        findings.push(
            Finding::info(
                "leftovers",
                format!("{} files of guests' memory belong to no snapshot", memory.len()),
            )
            .hint("cowhand gc    moves them into the trash"),
        );
    }
    if !findings.iter().any(|finding| finding.check == "layers") {
        findings.push(Finding::ok(
            "layers",
            format!("{} in the pool, all headers readable", graph.layers.len()),
        ));
    }
    Ok(findings)
}

/// The layers in the spare copies of records that cannot be read, and those of removed VMs that
/// stay in the pool until all records can be.
fn claimed(store: &Store, graph: &LayerGraph) -> Result<Vec<Layer>> {
    let spares = graph.unreadable.iter().filter_map(|name| store.load_spare(name)?.ok());
    let mut claimed: Vec<Layer> =
        spares.flat_map(|spare| spare.layers().cloned().collect::<Vec<_>>()).collect();
    claimed.extend(
        store
            .list_trash()?
            .into_iter()
            .filter_map(|found| found.entry.ok())
            .flat_map(|entry| entry.layers),
    );
    Ok(claimed)
}

/// What is said of layers that nobody uses.
pub(super) fn nobody_uses(layers: Vec<Layer>) -> Finding {
    Finding::info("leftovers", format!("unused layers: {}", names(&layers)))
        .hint("cowhand doctor --repair    moves them into the trash, as gc does")
        .remedy(Some(Remedy::TrashUnused { layers }))
}

fn names<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> String {
    let names: Vec<String> = layers.into_iter().map(Layer::to_string).collect();
    names.join(", ")
}

/// Half-written layers of which no change knows.
fn partial(store: &Store, graph: &LayerGraph) -> Result<Vec<PathBuf>> {
    let directory = store.layout.layers();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory).into_iter().flatten() {
        let path = entry.on("list", &directory)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let known = name
            .strip_suffix(".part")
            .and_then(Layer::from_file_name)
            .is_some_and(|layer| !graph.uses(&layer.id).is_empty());
        if name.ends_with(".part") && !known {
            found.push(path);
        }
    }
    Ok(found)
}
