//! cloud-init: what a guest is told at its first boot, as a NoCloud seed.
//!
//! The seed is a small disk that is made anew for each start ([`image`]). Its instance id is the
//! VM's UUID, so each clone is an instance of its own, on which cloud-init runs anew; a snapshot or
//! a revert does not change it. Sources: cloud-init's documentation, "NoCloud", "User-Data
//! Formats", "Cloud config examples".

pub(crate) mod image;
pub(crate) mod request;

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::model::{Name, Seed};

/// The files of the seed of the VM `name`.
pub(crate) fn files(seed: &Seed, name: &Name, uuid: Uuid) -> Vec<(&'static str, String)> {
    let hostname = seed.hostname.clone().unwrap_or_else(|| hostname_of(name));
    let mut meta_data: Map<String, Value> =
        serde_json::from_str(&seed.meta_data).unwrap_or_default();
    meta_data.insert("instance-id".into(), format!("iid-{uuid}").into());
    meta_data.insert("local-hostname".into(), hostname.into());
    let mut files =
        vec![("user-data", seed.user_data.clone()), ("meta-data", yaml(&Value::Object(meta_data)))];
    files.extend(seed.network_config.iter().map(|text| ("network-config", text.clone())));
    files.extend(seed.vendor_data.iter().map(|text| ("vendor-data", text.clone())));
    files
}

/// JSON is YAML, too, as long as all that YAML treats in a way of its own is escaped.
fn yaml(value: &Value) -> String {
    let mut text = String::new();
    for c in format!("{value:#}\n").chars() {
        match c.is_ascii() && c != '\x7f' {
            true => text.push(c),
            false => c
                .encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| text.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    text
}

/// What a host may be called that is nearest to the name of the VM: letters, digits and dashes, at
/// most 63 (`hostname(7)`). A dot would begin the domain.
fn hostname_of(name: &Name) -> String {
    let words: Vec<&str> =
        name.as_str().split(['.', '_', '-']).filter(|word| !word.is_empty()).collect();
    let text: String = words.join("-").chars().take(63).collect();
    text.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vm_is_an_instance_of_its_own_and_is_called_what_the_user_said() {
        let mut seed = Seed {
            user_data: "#cloud-config\n{}\n".into(),
            meta_data: "{\"cloud-name\": \"mine\"}".into(),
            network_config: None,
            vendor_data: None,
            hostname: None,
        };
        let name: Name = "web_1".parse().expect("a name");
        let meta = |seed: &Seed, uuid| -> Value {
            serde_json::from_str(&files(seed, &name, uuid)[1].1).expect("JSON")
        };
        let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
        let expected = serde_json::json!({
            "instance-id": format!("iid-{one}"), "local-hostname": "web-1", "cloud-name": "mine",
        });
        assert_eq!(meta(&seed, one), expected);
        assert_ne!(meta(&seed, one), meta(&seed, other));
        seed.hostname = Some("shop.example".into());
        seed.network_config = Some("version: 2\n".into());
        assert_eq!(meta(&seed, one)["local-hostname"], "shop.example");
        assert_eq!(files(&seed, &name, one)[2].0, "network-config");
        // Not a number, a date or nothing.
        let name: Name = "12".parse().expect("a name");
        seed.hostname = None;
        assert!(files(&seed, &name, one)[1].1.contains("\"local-hostname\": \"12\""));
    }

    proptest::proptest! {
        #[test]
        fn each_name_of_a_vm_makes_one_of_a_host(text in "[A-Za-z0-9][A-Za-z0-9._-]{0,63}") {
            if let Ok(name) = text.parse::<Name>() {
                request::check_hostname(&hostname_of(&name)).expect("a name of a host");
            }
        }
    }

    #[test]
    fn what_yaml_reads_in_a_way_of_its_own_is_escaped() {
        let text = yaml(&serde_json::json!(["a\u{85}b\u{2028}c\u{1f600}\u{7f}"]));
        assert!(text.is_ascii() && text.contains(r"\u0085b\u2028c\ud83d\ude00\u007f"), "{text}");
    }
}
