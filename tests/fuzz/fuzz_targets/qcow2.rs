//! The header of an image, which a guest or a stranger may have written.
#![no_main]

use cowhand::layer::qcow2;
use cowhand::model::Layer;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = qcow2::problem(bytes, bytes.len() as u64);
    if let Ok(Some(header)) = qcow2::parse(bytes)
        && let Some(backing) = header.backing_file
        && let Some(layer) = Layer::from_file_name(&backing)
    {
        assert!(
            !layer.file_name().contains('/'),
            "a backing file outside of the pool was taken for a layer"
        );
    }
});
