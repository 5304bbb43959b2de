//! Who the process is: user and group names looked up in the image's own `/etc/passwd` and `/etc/group`, read
//! inside the sandbox, after the root was changed, since an image controls them (`passwd(5)`, `group(5)`).

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;

use crate::error::{Error, Result};

/// Larger files are read up to here.
const MAX_DATABASE_BYTES: u64 = 4 << 20;

/// Ids and home of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The home directory, where the user has one.
    pub home: Option<String>,
}

/// The home directory of a user id.
pub(super) fn home(uid: u32) -> Option<String> {
    entries(&read("/etc/passwd")).find(|fields| number(fields, 2) == Some(uid)).and_then(|fields| home_of(&fields))
}

/// Looks up `USER[:GROUP]`, each a name or a number, as docker reads it: a number need not be known; the groups a
/// user is a member of are taken along unless a group was given.
pub(super) fn look_up(wanted: &str) -> Result<Identity> {
    look_up_in(wanted, &read("/etc/passwd"), &read("/etc/group"))
}

/// The ids of groups given by name or number, joined by commas.
pub(super) fn look_up_groups(wanted: &str) -> Result<Vec<u32>> {
    let group = read("/etc/group");
    wanted.split(',').filter(|name| !name.is_empty()).map(|name| group_id(name, &group)).collect()
}

fn look_up_in(wanted: &str, passwd: &str, group: &str) -> Result<Identity> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number_given = user.parse::<u32>().ok();
    // A name wins over a number, as in docker: a user may be called `1000`.
    let found = entries(passwd)
        .find(|fields| fields[0] == user)
        .or_else(|| entries(passwd).find(|fields| number_given.is_some() && number(fields, 2) == number_given));
    let mut identity = match (&found, number_given) {
        (Some(fields), _) => Identity {
            uid: number(fields, 2).ok_or_else(|| broken("/etc/passwd", user))?,
            gid: number(fields, 3).ok_or_else(|| broken("/etc/passwd", user))?,
            groups: Vec::new(),
            home: home_of(fields),
        },
        (None, Some(uid)) => Identity { uid, ..Identity::default() },
        (None, None) => {
            return Err(Error::Invalid(format!(
                "user `{user}` is not in the image's /etc/passwd; use a number or another name"
            )));
        }
    };
    match wanted_group {
        Some(wanted) => identity.gid = group_id(wanted, group)?,
        None => {
            if let Some(fields) = &found {
                identity.groups = entries(group)
                    .filter(|group| {
                        group.get(3).is_some_and(|members| members.split(',').any(|name| name == fields[0]))
                    })
                    .filter_map(|group| number(&group, 2))
                    .collect();
            }
        }
    }
    Ok(identity)
}

/// A group's id by name or number.
fn group_id(wanted: &str, group: &str) -> Result<u32> {
    if let Some(fields) = entries(group).find(|fields| fields[0] == wanted) {
        return number(&fields, 2).ok_or_else(|| broken("/etc/group", wanted));
    }
    wanted.parse().map_err(|_| {
        Error::Invalid(format!("group `{wanted}` is not in the image's /etc/group; use a number or another name"))
    })
}

fn read(path: &str) -> String {
    let mut text = Vec::new();
    // An image without users is an image of root. One that has put a fifo there is not waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    if let Some(file) = file.ok().filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file())) {
        let _ = file.take(MAX_DATABASE_BYTES).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(':').collect())
}

fn number(fields: &[&str], index: usize) -> Option<u32> {
    fields.get(index)?.parse().ok()
}

fn home_of(fields: &[&str]) -> Option<String> {
    fields.get(5).filter(|home| home.starts_with('/')).map(|&home| home.to_owned())
}

fn broken(file: &str, name: &str) -> Error {
    Error::Invalid(format!("the entry of `{name}` in the image's {file} has no numeric id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:100:A:/home/alice:/bin/sh\n7:x:70:71::/seven:\nbad:x:no:0::/:\n";
    const GROUP: &str = "root:x:0:\nusers:x:100:\nvideo:x:44:bob,alice\naudio:x:29:alice\n";

    fn look(wanted: &str) -> Result<Identity> {
        look_up_in(wanted, PASSWD, GROUP)
    }

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let alice = look("alice").unwrap();
        assert_eq!((alice.uid, alice.gid), (1000, 100));
        assert_eq!(alice.groups, [44, 29]);
        assert_eq!(alice.home.as_deref(), Some("/home/alice"));
    }

    #[test]
    fn a_group_replaces_the_groups() {
        let alice = look("alice:video").unwrap();
        assert_eq!((alice.uid, alice.gid, alice.groups.len()), (1000, 44, 0));
        assert_eq!(look("alice:4242").unwrap().gid, 4242);
        assert!(look("alice:nobody").is_err());
    }

    #[test]
    fn an_unknown_number_is_itself_and_a_known_one_is_its_user() {
        assert_eq!(look("4242").unwrap(), Identity { uid: 4242, ..Identity::default() });
        assert_eq!(look("1000").unwrap().gid, 100);
        assert_eq!(look("7").unwrap().uid, 70);
        assert_eq!(look("").unwrap().home.as_deref(), Some("/root"));
    }

    #[test]
    fn an_unknown_name_or_a_broken_entry_is_an_error() {
        assert!(look("mallory").unwrap_err().to_string().contains("mallory"));
        assert!(look("bad").is_err());
        assert!(look("4294967296").is_err());
    }
}
