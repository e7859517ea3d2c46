use super::*;

fn of(words: &str) -> String {
    let mut program = Cli::command();
    let matches = program.try_get_matches_from_mut(words.split(' ')).expect(words);
    operation(&program, &matches)
}

#[test]
fn an_operation_names_the_verb_the_vms_and_the_options() {
    for (words, expected) in [
        ("cowhand snapshot create web before --memory", "snapshot create web before --memory"),
        ("cowhand --store /s --wait 3 snapshot revert web@before -q", "snapshot revert web@before"),
        ("cowhand rm one two -f", "rm one two --force"),
        (
            "cowhand template create web --as deb12 --no-seal",
            "template create web --as deb12 --no-seal",
        ),
        ("cowhand clone deb12 a", "clone deb12 a"),
        ("cowhand run --keep=left deb12 -- true", "run deb12 --keep left"),
    ] {
        let mut shown: Vec<String> = of(words).split(' ').map(str::to_owned).collect();
        let mut wanted: Vec<String> = expected.split(' ').map(str::to_owned).collect();
        assert_eq!(shown[..2], wanted[..2], "{words}");
        shown.sort();
        wanted.sort();
        assert_eq!(shown, wanted, "{words}");
    }
}

#[test]
fn no_value_of_the_users_is_in_an_operation() {
    for words in [
        "cowhand run -e TOKEN=sesame deb12 -- sesame",
        "cowhand run --env=TOKEN=sesame --copy-in /sesame:/sesame deb12 sesame sesame",
        "cowhand exec web -- login sesame",
        "cowhand template create web --root-password password:sesame --password \
         ann:password:sesame",
        "cowhand template create web --write /etc/sesame:sesame --run-command sesame --ready \
         sesame",
        "cowhand seal sesame --motd sesame",
        "cowhand set web tag.token=sesame",
        "cowhand create web --size 1G --tag token=sesame --append sesame --kernel sesame",
        "cowhand snapshot create web before --description sesame",
        "cowhand cp web:/sesame sesame",
    ] {
        let shown = of(words);
        assert!(!shown.contains("sesame") && !shown.is_empty(), "{words}: {shown}");
    }
}

#[test]
fn a_long_operation_is_cut() {
    let words = format!("cowhand rm {}", vec!["a-name-of-some-length"; 100].join(" "));
    assert_eq!(of(&words).len(), OPERATION);
}
