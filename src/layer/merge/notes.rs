//! What is noted of the layers whose headers a merge changes (`layer/backing_xattr.rs`): what was
//! planned, and never what the header says. A guest's QEMU that somebody has taken over can write
//! another layer there.

use super::super::backing_xattr::{self, RecordedBacking};
use super::Failure;
use crate::error::{Error, Result};
use crate::model::{Layer, Merge};
use crate::store::Store;

/// Before the first of `merges` begins, or is carried on: their headers may say both things now.
pub(super) fn begin(store: &Store, merges: &[Merge]) -> Result<(), Failure> {
    let (begun, rest): (Vec<&Merge>, Vec<&Merge>) =
        merges.iter().filter(|merge| merge.relinked().is_some()).partition(has_begun(store));
    let Err(error) = rest.iter().try_for_each(|merge| note(store, merge)) else { return Ok(()) };
    // Where an earlier attempt has noted some of them, it may have come further.
    if !begun.is_empty() {
        return Err(Failure::Halfway(error));
    }
    call_off(store, merges);
    Err(Failure::Untouched(error))
}

/// Has an earlier attempt noted a merge, and what has become of it perhaps?
fn has_begun(store: &Store) -> impl Fn(&&Merge) -> bool {
    |merge| {
        let after = merge.backing_after();
        match merge.relinked().map(|layer| backing_xattr::read(store, layer)) {
            Some(RecordedBacking::Between(from, to)) => {
                from == *merge.backing_before() && to.as_ref() == after
            }
            Some(RecordedBacking::On(on)) => on.as_ref() == after,
            Some(RecordedBacking::Nothing) | None => false,
        }
    }
}

fn note(store: &Store, merge: &Merge) -> Result<()> {
    let Some(layer) = merge.relinked() else { return Ok(()) };
    match backing_xattr::begin(store, layer, merge.backing_before(), merge.backing_after()) {
        Err(error) if backing_xattr::read(store, layer) != RecordedBacking::Nothing => {
            let what = format!("cannot note that {layer} is about to be on another layer");
            Err(Error::failed(what).because(error))
        }
        _ => Ok(()),
    }
}

/// All have happened.
pub(super) fn end(store: &Store, merges: &[Merge]) {
    write(store, merges, Merge::backing_after);
}

/// None has happened. What is noted as done stays that: its header was changed since then.
pub(super) fn call_off(store: &Store, merges: &[Merge]) {
    let is_open = |merge: &&Merge| {
        let noted = merge.relinked().map(|layer| backing_xattr::read(store, layer));
        matches!(noted, Some(RecordedBacking::Between(..)))
    };
    write(store, merges.iter().filter(is_open), |merge| Some(merge.backing_before()));
}

fn write<'a>(
    store: &Store,
    merges: impl IntoIterator<Item = &'a Merge>,
    backing: impl Fn(&'a Merge) -> Option<&'a Layer>,
) {
    for merge in merges {
        // Where it cannot be written, the header may go on to say both.
        if let Some(layer) = merge.relinked()
            && let Err(error) = backing_xattr::write(store, layer, backing(merge))
        {
            tracing::debug!("the backing file of {layer} is not recorded: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{chain, create, info};
    use crate::model::{Format, MergeKind};
    use crate::sys::skipped::skipped;

    fn layer(store: &Store, backing: Option<&Layer>) -> Layer {
        let layer = Layer::new(Format::Qcow2);
        create::empty(store, &layer, backing, 1 << 20).expect("a layer");
        layer
    }

    /// Writes `backing` into its header, as QEMU does, and one that was taken over.
    fn put(store: &Store, layer: &Layer, backing: &Layer) {
        let path = store.layout.layer(layer);
        let name = backing.file_name();
        let image = path.with_extension("new");
        create::empty_at(&image, Some((&name, backing.format)), 1 << 20).expect("an image");
        std::fs::write(&path, std::fs::read(image).expect("an image")).expect("a layer");
    }

    #[test]
    fn a_layer_depends_on_what_was_planned_whatever_its_header_says() {
        let room = tempfile::tempdir().expect("a directory");
        let store = Store::at(room.path()).expect("a store");
        store.prepare().expect("a store");
        let (below, foreign) = (layer(&store, None), layer(&store, None));
        let base = layer(&store, Some(&below));
        let top = layer(&store, Some(&base));
        let overlay = layer(&store, Some(&top));
        if backing_xattr::read(&store, &top) == RecordedBacking::Nothing {
            return skipped("no extended attributes");
        }
        let commit = Merge {
            overlay: Some(overlay.clone()),
            below: Some(below.clone()),
            ..Merge::pair("vda", MergeKind::Commit, &top, &base, 0)
        };
        let stream = Merge { kind: MergeKind::Stream, ..commit.clone() };
        let cases = [(&commit, &overlay, &top, &base), (&stream, &top, &base, &below)];
        for (merge, relinked, before, after) in cases {
            let merges = std::slice::from_ref(merge);
            let disputed = || {
                let is_disputed = |on: &&Layer| {
                    put(&store, relinked, on);
                    let info = info::inspect(&store, relinked).expect("a layer");
                    assert_eq!(chain::undisputed(&store, relinked).is_err(), info.disputed);
                    info.disputed
                };
                [before, after, &foreign].map(|on| is_disputed(&on))
            };
            assert_eq!(disputed(), [false, true, true]);
            assert!(begin(&store, merges).is_ok());
            assert_eq!(disputed(), [false, false, true]);
            // A recovery that carries on, and one that does not.
            assert!(begin(&store, merges).is_ok());
            assert_eq!(disputed(), [false, false, true]);
            call_off(&store, merges);
            assert_eq!(disputed(), [false, true, true]);
            assert!(begin(&store, merges).is_ok());
            end(&store, merges);
            assert_eq!(disputed(), [true, false, true]);
            // Only the record was left to be written.
            assert!(begin(&store, merges).is_ok());
            assert_eq!(disputed(), [true, false, true]);
            call_off(&store, merges);
            assert_eq!(disputed(), [true, false, true]);
            // As it was, for the next case.
            put(&store, relinked, before);
            backing_xattr::write(&store, relinked, Some(before)).expect("it is noted");
        }
    }

    #[test]
    fn what_is_noted_of_a_layer_stays() {
        let room = tempfile::tempdir().expect("a directory");
        let store = Store::at(room.path()).expect("a store");
        store.prepare().expect("a store");
        let (base, foreign) = (layer(&store, None), layer(&store, None));
        let top = layer(&store, Some(&base));
        let noted = backing_xattr::read(&store, &top);
        put(&store, &top, &foreign);
        info::note_backing(&store, &top);
        assert_eq!(backing_xattr::read(&store, &top), noted);
    }
}
