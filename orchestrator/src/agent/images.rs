//! The images that an agent has. It tells of them as attributes, so that tasks can go where theirs is; and it pulls them
//! ahead of tasks when somebody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use berth_engine::Roots;
use berth_images::{Reference, Store};
use tokio::process::Command;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::spawn_blocking;

use super::Happening;
use crate::api::agent::Answer;
use crate::attributes::Attributes;
use crate::descriptors;

/// Of how many images an agent tells: offers carry their names.
const MOST: usize = 50;
/// How many are pulled at once.
const PULLS: usize = 4;
/// How many pulls that are over are remembered until somebody asks.
const RESULTS: usize = 100;
/// What the attributes are called that tell of images, before the image's name.
const PREFIX: &str = "image.";

/// The attribute that an agent has which tells of this image; none for what is no name of one.
pub fn attribute(image: &str) -> Option<String> {
    image.parse().ok().map(|reference: Reference| format!("{PREFIX}{}", reference.familiar()))
}

/// What the agent with these roots tells of its images.
fn attributes(roots: &Roots) -> Result<Attributes, berth_images::Error> {
    let names = Store::open(roots.data())?.names()?;
    // Those that came last are at the end.
    let names = names.into_iter().rev().take(MOST);
    Ok(names.map(|name| (format!("{PREFIX}{}", name.familiar()), true.to_string())).collect())
}

/// Looks what there is to tell of the images, and lets it happen.
pub(super) async fn look(roots: &Roots, happenings: &UnboundedSender<Happening>) {
    let own = roots.clone();
    match spawn_blocking(move || attributes(&own)).await {
        // The agent has ended if nobody listens.
        Ok(Ok(images)) => drop(happenings.send(Happening::Images(images))),
        Ok(Err(error)) => tracing::warn!(%error, "the agent's images cannot be listed"),
        Err(error) => tracing::warn!(%error, "the agent's images cannot be looked at"),
    }
}

/// Pulls an image: why not, if it cannot be had.
pub async fn pull(berth: &Path, roots: &Roots, image: &str) -> Result<(), String> {
    let mut command = Command::new(berth);
    command.args(["pull", "--quiet", "--", image]);
    command.env("BERTH_DATA_ROOT", roots.data()).env("BERTH_STATE_ROOT", roots.state());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    match descriptors::as_given(&mut command).output().await {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("berth: ").to_owned()),
        Err(error) => Err(format!("cannot execute {}: {error}", berth.display())),
    }
}

/// The images that somebody wants to be there.
#[derive(Debug, Default)]
pub struct Pulls {
    under_way: BTreeSet<String>,
    /// What became of those that nobody has asked for since.
    over: BTreeMap<String, Result<(), String>>,
}

impl Pulls {
    /// Somebody wants an image: what to say, and whether it is to be pulled now. Whoever asks again hears how far it is.
    pub fn want(&mut self, image: &str, is_there: bool) -> (Answer, bool) {
        match self.over.remove(image) {
            Some(Err(why)) => return (Answer::Refused(format!("prefetch_image.image: {why}")), false),
            Some(Ok(())) => return (Answer::Present, false),
            None if is_there => return (Answer::Present, false),
            None => {}
        }
        let begins = self.under_way.len() < PULLS && self.under_way.insert(image.to_owned());
        (Answer::Pulling, begins)
    }

    /// A pull is over.
    pub fn done(&mut self, image: &str, result: Result<(), String>) {
        self.under_way.remove(image);
        if self.over.len() == RESULTS {
            self.over.pop_first();
        }
        self.over.insert(image.to_owned(), result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_image_are_one_attribute() {
        for name in ["busybox", "busybox:latest", "docker.io/library/busybox"] {
            assert_eq!(attribute(name).as_deref(), Some("image.busybox:latest"), "{name}");
        }
        assert_eq!(attribute("h:5/a/b:1").as_deref(), Some("image.h:5/a/b:1"));
        assert_eq!(attribute("Not a name"), None);
    }

    #[test]
    fn a_few_images_are_pulled_at_once_and_results_are_told_once() {
        let mut pulls = Pulls::default();
        assert_eq!(pulls.want("there", true), (Answer::Present, false));
        for image in ["a", "b", "c", "d"] {
            assert_eq!(pulls.want(image, false), (Answer::Pulling, true));
            assert_eq!(pulls.want(image, false), (Answer::Pulling, false), "it is under way");
        }
        assert_eq!(pulls.want("e", false), (Answer::Pulling, false), "later");
        pulls.done("a", Ok(()));
        pulls.done("b", Err("no".to_owned()));
        assert_eq!(pulls.want("e", false), (Answer::Pulling, true));
        assert_eq!(pulls.want("a", false), (Answer::Present, false));
        assert_eq!(pulls.want("b", false), (Answer::Refused("prefetch_image.image: no".to_owned()), false));
        assert_eq!(pulls.want("b", false), (Answer::Pulling, true), "it is tried again");
    }
}
