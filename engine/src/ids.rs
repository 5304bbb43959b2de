//! `--userns auto`: a range of the host's ids that no other container has.
//!
//! The ranges to choose from are those that `/etc/subuid` and `/etc/subgid` give to the user `berth`, or else to `containers`
//! (`subuid(5)`); where there are none, [`DEFAULT_IDS`]. What a container has is in its record, so nothing has to be given back.

use std::fs::{self, File};
use std::ops::Range;

use rustix::fs::{FlockOperation, flock};

use crate::container::Container;
use crate::error::{Attempt as _, Error, Result};
use crate::options::IdRange;
use crate::paths::Roots;

/// How many ids a container gets: as many as distributions use.
const COUNT: u32 = 1 << 16;
/// The upper part of what systemd sets apart for containers (`UIDS-GIDS`, 524288 to 1879048191): below it `useradd` hands out
/// ids too.
const DEFAULT_IDS: Range<u64> = 0x4000_0000..0x7000_0000;
/// Whose lines in `/etc/subuid` count, the first that has any.
const USERS: [&str; 2] = ["berth", "containers"];

/// Chooses a range. The lock keeps others from choosing the same: hold it until the container's record is written.
pub(crate) fn choose(roots: &Roots) -> Result<(IdRange, File)> {
    let dir = roots.containers();
    let attempt = || format!("lock {}", dir.display());
    let lock = File::open(&dir).attempt(attempt)?;
    flock(&lock, FlockOperation::LockExclusive).attempt(attempt)?;
    let (containers, _) = Container::all(roots)?;
    let taken: Vec<IdRange> = containers.iter().filter_map(|other| other.record.options.userns.range()).collect();
    // Without the files nobody has any ids.
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let available = available(&read("/etc/subuid"), &read("/etc/subgid"));
    let range = first_free(&available, &taken).ok_or_else(|| {
        Error::Invalid(format!(
            "--userns auto: no {COUNT} ids are left for one more container; remove containers, give the user `{}` more ids in \
             /etc/subuid and /etc/subgid, or name a range",
            USERS[0]
        ))
    })?;
    Ok((range, lock))
}

/// The ids that both files give to one of the users.
fn available(subuid: &str, subgid: &str) -> Vec<Range<u64>> {
    for user in USERS {
        let (uids, gids) = (ranges_of(user, subuid), ranges_of(user, subgid));
        let both = uids.iter().flat_map(|uids| gids.iter().map(move |gids| both(uids, gids)));
        let both: Vec<_> = both.filter(|range| !range.is_empty()).collect();
        if !both.is_empty() {
            return both;
        }
    }
    vec![DEFAULT_IDS]
}

fn both(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    one.start.max(other.start)..one.end.min(other.end)
}

/// The ranges of a user: lines `USER:FIRST:COUNT`.
fn ranges_of(user: &str, text: &str) -> Vec<Range<u64>> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        if fields.next()? != user {
            return None;
        }
        let (first, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        // Id 0 is the host's root; the last id stands for none.
        Some(u64::from(first.max(1))..(u64::from(first) + u64::from(count)).min(u64::from(u32::MAX)))
    };
    text.lines().filter_map(range).collect()
}

/// The first range of [`COUNT`] ids that overlaps none of those taken.
fn first_free(available: &[Range<u64>], taken: &[IdRange]) -> Option<IdRange> {
    let mut taken: Vec<Range<u64>> =
        taken.iter().map(|range| u64::from(range.first)..u64::from(range.first) + u64::from(range.count)).collect();
    taken.sort_by_key(|range| range.start);
    available.iter().find_map(|range| {
        let mut first = range.start;
        for other in &taken {
            if !both(other, &(first..first + u64::from(COUNT))).is_empty() {
                first = other.end;
            }
        }
        let fits = first + u64::from(COUNT) <= range.end;
        fits.then_some(IdRange { first: u32::try_from(first).ok()?, count: COUNT })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(first: u32) -> IdRange {
        IdRange { first, count: COUNT }
    }

    #[test]
    fn ids_are_those_of_both_files_for_the_first_user_that_has_any() {
        let subuid = "me:1:9\ncontainers:100000:65536\nberth:200000:200000\nberth:x:1\nberth:9\n";
        let only = |subuid: &str, subgid: &str| match available(subuid, subgid).as_slice() {
            [only] => only.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(only(subuid, "berth:250000:1000000\n"), 250_000..400_000);
        assert_eq!(only(subuid, "containers:100000:70000\n"), 100_000..165_536);
        assert_eq!(only(subuid, ""), DEFAULT_IDS);
        assert_eq!(only("berth:0:10\n", "berth:0:4294967295\n"), 1..10);
    }

    #[test]
    fn a_range_is_free_of_all_others() {
        let some = [1000..1100, 200_000..400_000];
        assert_eq!(first_free(&some, &[]), Some(taken(200_000)));
        assert_eq!(first_free(&some, &[taken(265_536), taken(200_000)]), Some(taken(331_072)));
        assert_eq!(first_free(&some, &[taken(200_000 - 65_535)]), Some(taken(200_001)));
        assert_eq!(first_free(&some, &[IdRange { first: 300_000, count: 1 }, taken(200_000)]), Some(taken(300_001)));
        assert_eq!(first_free(&some, &[taken(200_000), taken(265_536), taken(331_072)]), None);
    }
}
