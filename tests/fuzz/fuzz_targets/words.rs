//! What users type: names, places, sizes, ages.
#![no_main]

use cowhand::model::{Name, PortForward, parse_age, parse_size};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<Name>() {
        let name = name.to_string();
        assert!(!name.is_empty() && name.len() <= 64 && !name.contains(['/', ',', '%', '\n', ':', ' ']) && !name.starts_with(['.', '-']));
    }
    if let Ok(forward) = text.parse::<PortForward>() {
        assert_eq!(forward.to_string().parse::<PortForward>().expect("it reads as it is shown"), forward);
    }
    let _ = (parse_size(text), parse_age(text));
});
