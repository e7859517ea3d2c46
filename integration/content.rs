//! What the images of a store hold, without having QEMU read the same files twice: a walk over
//! fault points looks at the same few contents again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;

use cowhand::layer::{chain, qcow2, sealed};
use cowhand::model::Layer;
use cowhand::store::Store;
use serde_json::Value;

use crate::lab::{CHUNK, Lab, chunks_with_data};

static ZEROS: [u8; CHUNK as usize] = [0; CHUNK as usize];

/// What was found, by the contents of the files that it depends on.
static READ: Mutex<BTreeMap<Vec<u64>, u64>> = Mutex::new(BTreeMap::new());
static SOUND: Mutex<BTreeSet<Vec<u64>>> = Mutex::new(BTreeSet::new());

/// A number for the bytes that a guest would read at `point` from a disk, which is given as the
/// record has it.
pub fn of(lab: &Lab, point: &str, disk: &Value) -> u64 {
    let layer = format!(
        "{}.{}",
        disk["layer"]["id"].as_str().unwrap(),
        disk["layer"]["format"].as_str().unwrap()
    );
    let files = files(&lab.store().join("layers").join(layer));
    assert_is_what_it_was(lab, disk);
    let known = files.as_ref().and_then(|files| READ.lock().unwrap().get(files).copied());
    known.unwrap_or_else(|| {
        let raw = lab.path().join("x.raw");
        let target = disk["target"].as_str().unwrap();
        lab.ok(&["image", "export", point, raw.to_str().unwrap(), "--force", "--disk", target]);
        let content = hash(&raw);
        READ.lock().unwrap().extend(files.map(|files| (files, content)));
        content
    })
}

/// Whatever was done, no layer that is sealed is taken for one that has lost something.
fn assert_is_what_it_was(lab: &Lab, disk: &Value) {
    let store = Store::at(&lab.store()).unwrap();
    let layer: Layer = serde_json::from_value(disk["layer"].clone()).unwrap();
    for link in chain::read(&store, &layer).unwrap().links() {
        assert_eq!(sealed::change(&store, &link.layer).unwrap(), None, "{}", link.layer);
    }
}

/// Is there nothing wrong with an image and those below it but clusters that nobody uses, which a
/// dead process cannot give back?
pub fn check(image: &Path) -> Result<(), Output> {
    let files = files(image);
    if files.as_ref().is_some_and(|files| SOUND.lock().unwrap().contains(files)) {
        return Ok(());
    }
    let checked = Command::new("qemu-img").arg("check").arg(image).output().unwrap();
    if ![Some(0), Some(3)].contains(&checked.status.code()) {
        return Err(checked);
    }
    SOUND.lock().unwrap().extend(files);
    Ok(())
}

/// Numbers for the contents of an image and of those below it. `None` where one has internal
/// snapshots: a point may be one of these.
fn files(image: &Path) -> Option<Vec<u64>> {
    let mut numbers = Vec::new();
    let mut next = Some(image.to_owned());
    while let Some(path) = next.take() {
        numbers.push(hash(&path));
        if path.extension().is_some_and(|format| format == "qcow2") {
            let start = chunks_with_data(&File::open(&path).unwrap()).next()?.1;
            let header = qcow2::parse(&start[..qcow2::HEADER_BYTES]).ok()??;
            if header.snapshots > 0 {
                return None;
            }
            next = header.backing_file.map(|name| path.with_file_name(name));
        }
    }
    Some(numbers)
}

/// Nearly all of it is zeros, and most of those are holes.
fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let file = File::open(path).unwrap();
    file.metadata().unwrap().len().hash(&mut hasher);
    for (at, chunk) in chunks_with_data(&file).filter(|(_, chunk)| **chunk != ZEROS[..chunk.len()])
    {
        (at, chunk).hash(&mut hasher);
    }
    hasher.finish()
}
