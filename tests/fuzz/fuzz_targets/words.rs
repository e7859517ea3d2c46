//! What users type: names, places, sizes, ages.
#![no_main]

use cowhand::model::{Name, PortForward, parse_age, parse_size};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<Name>() {
        let name = name.to_string();
        assert!(!name.is_empty() && name.len() <= 64);
        assert!(!name.contains(['/', ',', '%', '\n', ':', ' ']) && !name.starts_with(['.', '-']));
    }
    if let Ok(forward) = text.parse::<PortForward>() {
        let read: PortForward = forward.to_string().parse().expect("it reads as it is shown");
        assert_eq!(read, forward);
    }
    let _ = (parse_size(text), parse_age(text));
});
