use super::*;

fn written(directory: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, text).expect("a file");
    path
}

#[test]
fn flags_become_a_cloud_config() {
    let directory = tempfile::tempdir().expect("a directory");
    let request = Request {
        user: Some("ada".into()),
        ssh_keys: vec![written(&directory, "k.pub", "ssh-ed25519 AAAA ada@home\n")],
        password: Some(written(&directory, "word", "secret\nmore\n")),
        hostname: Some("shop".into()),
        packages: vec!["nginx".into()],
        commands: vec!["echo \"hi\" > /x".into()],
        documents: None,
    };
    let seed = request.seed().expect("a seed").expect("something was asked for");
    let config: Value = serde_json::from_str(
        seed.user_data.strip_prefix("#cloud-config\n").expect("its first line"),
    )
    .expect("JSON");
    let user = &config["users"][0];
    assert_eq!(
        (user["name"].as_str(), user["ssh_authorized_keys"][0].as_str()),
        (Some("ada"), Some("ssh-ed25519 AAAA ada@home"))
    );
    assert!(user["passwd"].as_str().is_some_and(|hash| hash.starts_with("$6$")));
    assert_eq!(config["runcmd"], json!(["echo \"hi\" > /x"]));
    assert!(!seed.user_data.contains("secret"));
    assert_eq!(seed.hostname.as_deref(), Some("shop"));
    assert_eq!(Request::default().seed().expect("nothing"), None);
}

#[test]
fn what_cloud_init_would_not_take_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let of = |name: &str, text: &str| Request {
        documents: Some(written(&directory, name, text)),
        ..Request::default()
    };
    for (request, words) in [
        (of("a", "users: []\n"), "#cloud-config"),
        (of("b", &format!("#!/bin/sh\n{}", "x".repeat(LONGEST))), "16 KiB"),
        (Request { user: Some("Ada".into()), ..Request::default() }, "name of a user"),
        (Request { hostname: Some("-x".into()), ..Request::default() }, "name of a host"),
        (Request { user: Some("ada".into()), ..of("c", "#cloud-config\n") }, "--hostname alone"),
        (
            Request { password: Some(written(&directory, "p", "x")), ..Request::default() },
            "needs --user",
        ),
        (
            Request {
                password: Some(written(&directory, "q", "\n")),
                user: Some("a".into()),
                ..Request::default()
            },
            "is empty",
        ),
        (
            Request {
                ssh_keys: vec![written(&directory, "k", "-----BEGIN OPENSSH PRIVATE KEY-----")],
                ..Request::default()
            },
            "private key",
        ),
        (
            Request { documents: Some(directory.path().join("none")), ..Request::default() },
            "is not there",
        ),
    ] {
        let error = request.seed().expect_err(words);
        let told = format!("{} {:?}", error.full_message(), error.hints());
        assert!(told.contains(words), "{words}: {told}");
    }
}

#[test]
fn a_directory_is_a_seed_but_for_what_belongs_to_each_vm() {
    let directory = tempfile::tempdir().expect("a directory");
    written(&directory, "user-data", "#cloud-config\n{}\n");
    written(
        &directory,
        "meta-data",
        "# mine\ninstance-id: old\nlocal-hostname: \"shop\" # here\ncloud-name: x\n",
    );
    written(&directory, "network-config", "version: 2\n");
    let request = Request { documents: Some(directory.path().into()), ..Request::default() };
    let seed = request.seed().expect("a seed").expect("something was asked for");
    assert_eq!(
        serde_json::from_str::<Value>(&seed.meta_data).expect("JSON"),
        json!({"cloud-name": "x"})
    );
    assert_eq!(
        (seed.hostname.as_deref(), seed.network_config.as_deref()),
        (Some("shop"), Some("version: 2\n"))
    );
    written(
        &directory,
        "meta-data",
        "{\"instance-id\": 7, \"local-hostname\": \"db\", \"keys\": [1]}",
    );
    let seed = request.seed().expect("a seed").expect("something was asked for");
    assert_eq!(
        (seed.hostname.as_deref(), seed.meta_data.contains("instance-id")),
        (Some("db"), false)
    );
    for odd in ["a: [1]\n", " a: b\n", "a b\n", "local-hostname: a: b\n", "{", "a:\n  - b\n"] {
        written(&directory, "meta-data", odd);
        request.seed().expect_err(odd);
    }
    written(&directory, "meta-data", "");
    written(&directory, "userdata", "");
    request.seed().expect_err("a slip of the fingers");
}
