//! Removing what nobody uses any more.

use berth_images::Store;
use jiff::Timestamp;
use serde::Serialize;

use crate::container::{self, Container};
use crate::error::{Error, Result};
use crate::paths::Roots;
use crate::ps::has_label;
use crate::{remove, sweep, time, volumes};

/// What may go.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    until: Option<Timestamp>,
    labels: Vec<String>,
}

impl Filter {
    /// Takes in one `KEY=VALUE` of `--filter`.
    pub fn add(&mut self, text: &str) -> Result<()> {
        match text.split_once('=') {
            Some(("until", value)) => self.until = Some(time::parse(value, Timestamp::now())?),
            Some(("label", value)) => self.labels.push(value.to_owned()),
            _ => {
                let message = format!("`{text}` is no filter here; use until=TIME or label=KEY[=VALUE]");
                return Err(Error::Invalid(message));
            }
        }
        Ok(())
    }

    fn matches(&self, container: &Container) -> bool {
        let record = &container.record;
        self.until.is_none_or(|until| record.created_at < until)
            && self.labels.iter().all(|wanted| has_label(&record.options.labels, wanted))
    }
}

/// What went.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Pruned {
    /// Ids of containers.
    pub containers: Vec<String>,
    /// Names of volumes.
    pub volumes: Vec<String>,
    /// Names and digests of images.
    pub images: Vec<String>,
    /// Bytes that images gave back.
    pub reclaimed: u64,
}

/// Removes the containers that do not run; returns their ids.
pub fn containers(roots: &Roots, filter: &Filter) -> Result<Vec<String>> {
    let (containers, _) = Container::all(roots)?;
    let mut gone = Vec::new();
    for container in containers.into_iter().filter(|container| filter.matches(container)) {
        if container.status().is_ok_and(|status| container.state(&status).is_alive()) {
            continue;
        }
        match remove::remove(roots, container.id(), false, false) {
            Ok(id) => gone.push(id),
            // Started or removed by somebody else in this moment.
            Err(Error::WrongState { .. } | Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(gone)
}

/// Removes containers that do not run, images without a name (`all`: that no container uses), and with `volumes` the
/// anonymous volumes that no container has; and what crashes have left anywhere. Returns also what could not be cleaned.
pub fn system(roots: &Roots, store: &Store, filter: &Filter, all: bool, volumes: bool) -> Result<(Pruned, Vec<Error>)> {
    let errors = sweep::sweep_data(roots);
    let mut pruned = Pruned { containers: containers(roots, filter)?, ..Pruned::default() };
    if volumes {
        let users = |volume: &str| container::users_of_volume(roots, volume);
        let gone = volumes::Store::new(roots.data()).prune(false, users)?;
        pruned.volumes = gone.into_iter().map(|volume| volume.name).collect();
    }
    let images = store.prune(all, || Ok(container::image_uses(roots)?))?;
    pruned.images = images.untagged;
    pruned.images.extend(images.deleted.iter().map(ToString::to_string));
    pruned.reclaimed = images.reclaimed;
    Ok((pruned, errors))
}
