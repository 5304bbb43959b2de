//! `berth pull`: layers come down several at once, and each is unpacked while the next ones are still on their way.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use futures_util::{StreamExt, TryStreamExt, future, stream};
use oci_spec::image::ImageConfiguration;
use tokio::sync::oneshot;

use super::client::Registry;
use super::manifest::{self, Manifest};
use super::{Connection, Progress, blob, run};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::media;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{Image, IndexEntry, Layer, Lease, MAX_DOCUMENT, RESUMABLE, Store, digest_of, layers, sweep_partial};
use crate::wasm;

/// Blobs moved at once.
pub const PARALLEL: usize = 3;

/// How an image is pulled.
#[derive(Debug, Clone, Default)]
pub struct PullOptions {
    /// Which image of an index; this machine's platform by default.
    pub platform: Option<Platform>,
    /// How the registry is reached.
    pub connection: Connection,
}

/// Fetches an image, by tag or digest, and unpacks it.
pub fn pull(store: &Store, reference: &str, options: &PullOptions, progress: &dyn Progress) -> Result<Image> {
    let reference: Reference = reference.parse()?;
    let arrivals = Arrivals::default();
    sweep_partial(store, RESUMABLE)?;
    run(async {
        let registry = Registry::connect(reference.registry(), &options.connection, progress).await?;
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let manifest = manifest::fetch(&registry, &reference, &platform).await?;
        let lease = lease(store, &manifest)?;
        let configuration = configuration(store, &registry, &reference, &manifest).await?;
        if media::is_platform_config(manifest.content.config().media_type().as_ref()) {
            check_platform(&reference, &platform, &configuration)?;
        }
        let layers = layers(&manifest.content, &configuration)?;
        let lease = extend(lease, store, &layers)?;
        fetch_layers(store, &registry, &reference, &layers, &arrivals).await?;
        store.put(&manifest.text)?;
        let name = match reference.digest() {
            Some(digest) => reference.at(digest),
            None => reference.clone(),
        };
        let familiar = name.familiar();
        store.set_entry(IndexEntry {
            reference: Some(name),
            manifest: manifest.digest,
            media_type: manifest.media_type.clone(),
            size: manifest.text.len() as u64,
            index: manifest.index,
        })?;
        drop(lease);
        store.image(manifest.digest, &manifest.media_type, familiar)
    })
}

type Recorded = (Lease, crate::store::Work);

/// Tells garbage collection what is coming, before anything is looked up in the store.
fn lease(store: &Store, manifest: &Manifest) -> Result<Recorded> {
    let mut lease = Lease::default();
    lease.blobs.extend([manifest.digest, digest_of(manifest.content.config())?]);
    for layer in manifest.content.layers() {
        lease.blobs.push(digest_of(layer)?);
    }
    let _guard = store.read_guard()?;
    let work = lease.record(store)?;
    Ok((lease, work))
}

/// Adds the layer directories, which only the configuration tells.
fn extend((mut lease, old): Recorded, store: &Store, layers: &[Layer]) -> Result<Recorded> {
    lease.chain_ids.extend(layers.iter().map(|layer| layer.chain_id));
    let _guard = store.read_guard()?;
    let work = lease.record(store)?;
    drop(old);
    Ok((lease, work))
}

async fn configuration(
    store: &Store,
    registry: &Registry<'_>,
    reference: &Reference,
    manifest: &Manifest,
) -> Result<ImageConfiguration> {
    let descriptor = manifest.content.config();
    let what = format!("the configuration of {}", reference.familiar());
    let media_type = descriptor.media_type().to_string();
    if !media::is_config(&media_type) {
        return Err(Error::MediaType { what, media_type });
    }
    if descriptor.size() > MAX_DOCUMENT {
        return Err(Error::invalid(what, format!("it is longer than {MAX_DOCUMENT} bytes")));
    }
    let digest = digest_of(descriptor)?;
    blob::download(store, registry, reference, digest, descriptor.size()).await?;
    wasm::configuration(&what, &manifest.content, &store.document(digest)?)
}

fn check_platform(reference: &Reference, wanted: &Platform, configuration: &ImageConfiguration) -> Result<()> {
    let (os, architecture) = (configuration.os().to_string(), configuration.architecture().to_string());
    if os == wanted.os && architecture == wanted.architecture {
        return Ok(());
    }
    let offered = vec![format!("{os}/{architecture}")];
    Err(Error::WrongPlatform { what: reference.familiar(), wanted: wanted.clone(), offered })
}

/// Downloads on this runtime and unpacks on a thread; whichever fails first ends both.
async fn fetch_layers(
    store: &Store,
    registry: &Registry<'_>,
    reference: &Reference,
    layers: &[Layer],
    arrivals: &Arrivals,
) -> Result<()> {
    let (unpacked, unpacking) = oneshot::channel();
    let thread = {
        let (store, layers, arrivals) = (store.clone(), layers.to_vec(), arrivals.clone());
        thread::spawn(move || {
            let result = store.unpack_layers(&layers, &|place| arrivals.wait(layers[place].digest));
            // Nobody listens any more when the download failed.
            let _ = unpacked.send(result);
        })
    };
    let downloads = stream::iter(distinct(layers))
        .map(|layer| async move {
            blob::download(store, registry, reference, layer.digest, layer.size).await?;
            arrivals.arrived(layer.digest);
            Ok(())
        })
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>();
    let unpacking = async {
        let lost = |error| Error::io("unpack", reference.familiar())(std::io::Error::other(error));
        unpacking.await.unwrap_or_else(|error| Err(lost(error)))
    };
    let result = future::try_join(downloads, unpacking).await;
    arrivals.close();
    // The layers' locks are released when the thread is gone; it has nothing to wait for now.
    let _ = thread.join();
    result.map(drop)
}

/// Every blob once, lowest first.
pub fn distinct(layers: &[Layer]) -> Vec<Layer> {
    let mut distinct: Vec<Layer> = Vec::new();
    for layer in layers {
        if !distinct.iter().any(|other| other.digest == layer.digest) {
            distinct.push(layer.clone());
        }
    }
    distinct
}

/// Which blobs are here, for the unpacking thread to wait for.
#[derive(Clone, Default)]
struct Arrivals(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    here: HashSet<Digest>,
    closed: bool,
}

impl Arrivals {
    fn arrived(&self, digest: Digest) {
        let (state, changed) = &*self.0;
        state.lock().unwrap_or_else(PoisonError::into_inner).here.insert(digest);
        changed.notify_all();
    }

    /// Nothing more will come.
    fn close(&self) {
        let (state, changed) = &*self.0;
        state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        changed.notify_all();
    }

    fn wait(&self, digest: Digest) -> Result<()> {
        let (state, changed) = &*self.0;
        let state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = changed
            .wait_while(state, |state| !state.closed && !state.here.contains(&digest))
            .unwrap_or_else(PoisonError::into_inner);
        if state.here.contains(&digest) {
            return Ok(());
        }
        let reason = std::io::Error::other("its download failed");
        Err(Error::io("unpack", digest.to_string())(reason))
    }
}
