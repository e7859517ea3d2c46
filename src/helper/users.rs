//! Users of the guest, as its files have them (`passwd(5)`, `group(5)`). A static program has no
//! name service.

use crate::sys::inside::Who;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    /// The name.
    pub name: String,
    /// Numbers.
    pub who: Who,
    /// The home directory.
    pub home: String,
    /// The login shell.
    pub shell: String,
}

/// The user of this name or number.
pub(super) fn find(user: &str) -> Option<User> {
    let read = |path| {
        std::fs::read(path)
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .unwrap_or_default()
    };
    parse(user, &read("/etc/passwd"), &read("/etc/group"))
}

/// What a guest without files has.
pub(super) fn root() -> User {
    User {
        name: "root".into(),
        who: Who { uid: 0, gid: 0, groups: vec![0] },
        home: "/root".into(),
        shell: "/bin/sh".into(),
    }
}

fn parse(user: &str, passwd: &str, group: &str) -> Option<User> {
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let known = fields
        .into_iter()
        .find(|fields| matches!(fields[..], [name, _, uid, ..] if name == user || uid == user));
    let Some(fields) = known else {
        // A number needs no entry.
        let uid = user.parse().ok()?;
        let who = Who { uid, gid: uid, groups: vec![uid] };
        return Some(User {
            name: user.to_owned(),
            who,
            home: "/".into(),
            shell: "/bin/sh".into(),
        });
    };
    let [name, _, uid, gid, rest @ ..] = &fields[..] else { return None };
    let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
    let mut groups = vec![gid];
    for line in group.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [_, _, number, members, ..] = fields[..]
            && members.split(',').any(|member| member == *name)
            && let Ok(number) = number.parse()
        {
            groups.push(number);
        }
    }
    let or = |index: usize, other: &str| {
        rest.get(index)
            .filter(|text| !text.is_empty())
            .map_or_else(|| other.to_owned(), |text| (*text).to_owned())
    };
    Some(User {
        name: (*name).to_owned(),
        who: Who { uid, gid, groups },
        home: or(1, "/"),
        shell: or(2, "/bin/sh"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number_with_their_groups() {
        let passwd =
            "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000:Ann,,,:/home/ann:\nbad line\n";
        let group = "root:x:0:\nann:x:1000:\nsudo:x:27:bob,ann\nkvm:x:106:annette\n";
        let ann = parse("ann", passwd, group).expect("ann");
        assert_eq!(ann.who, Who { uid: 1000, gid: 1000, groups: vec![1000, 27] });
        assert_eq!((ann.home.as_str(), ann.shell.as_str()), ("/home/ann", "/bin/sh"));
        assert_eq!(parse("1000", passwd, group).expect("1000"), ann);
        assert_eq!(parse("0", passwd, group).expect("0").shell, "/bin/bash");
        assert_eq!(parse("4242", passwd, group).expect("a number").who.gid, 4242);
        assert_eq!(parse("nobody-such", passwd, group), None);
    }
}
