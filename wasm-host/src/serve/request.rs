//! One request: a slot, an instance, the component's answer, all within a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use oci_spec::runtime::{Process, Spec};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView, p2};
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::{WasiHttpCtxView, WasiHttpView};

use super::metrics::{Metrics, Outcome};
use crate::error::{Error, Result};
use crate::grants;
use crate::http::{self, Http};
use crate::limits::Budget;
use crate::settings::Settings;
use crate::world::{self, World};

/// What each instance gets.
pub struct Given {
    pub spec: Spec,
    pub process: Process,
    pub settings: Settings,
    /// Bytes of its memories and tables.
    pub memory: Option<u64>,
    /// Requests it answers.
    pub requests: u32,
    /// Time of each request.
    pub time: Duration,
}

/// What answers requests.
pub struct Handler {
    prepared: ProxyPre<State>,
    slots: Arc<Semaphore>,
    /// Instances that have requests left, the last used last. Never more than there are free slots.
    idle: Mutex<Vec<Instance>>,
    given: Given,
    pub metrics: Arc<Metrics>,
}

struct Instance {
    store: Store<State>,
    proxy: Proxy,
    /// Requests it may still answer.
    left: u32,
}

/// What belongs to one instance.
struct State {
    wasi: WasiCtx,
    http: Http,
    table: ResourceTable,
    budget: Budget,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.http.view(&mut self.table)
    }
}

impl Handler {
    /// Links the component, and refuses one that is no handler.
    pub fn new(engine: &Engine, component: &Component, slots: u32, given: Given) -> Result<Self> {
        if world::of(component, engine)? != World::Http {
            let text = "it is a command, which answers no requests: run it with `berth run`";
            return Err(Error::World(text.to_owned()));
        }
        let mut linker = Linker::new(engine);
        p2::add_to_linker_async(&mut linker).map_err(Error::Engine)?;
        http::add_to_linker(&mut linker).map_err(Error::Engine)?;
        let prepared = linker.instantiate_pre(component).and_then(ProxyPre::new);
        Ok(Self {
            prepared: prepared.map_err(|error| Error::World(format!("{error:#}")))?,
            slots: Arc::new(Semaphore::new(slots as usize)),
            idle: Mutex::default(),
            given,
            metrics: Arc::default(),
        })
    }

    /// Answers, whatever happens to the component.
    pub async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<HyperOutgoingBody> {
        let _in_flight = self.metrics.begin();
        let slot = tokio::time::timeout(self.given.time, Arc::clone(&self.slots).acquire_owned()).await;
        let Ok(Ok(slot)) = slot else {
            self.metrics.end(Outcome::Refused);
            return plain(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once\n");
        };
        let (sender, mut answer) = oneshot::channel();
        let handler = Arc::clone(self);
        // It may go on when the head of its answer is on its way.
        let mut component = tokio::spawn(async move {
            let handled = tokio::time::timeout(handler.given.time, handler.handle(request, sender, slot)).await;
            match handled {
                Ok(Ok(())) => handler.metrics.end(Outcome::Answered),
                Ok(Err(error)) => {
                    handler.metrics.end(Outcome::Failed);
                    eprintln!("berth-wasm: a request failed: {error:?}");
                    return Some(plain(StatusCode::INTERNAL_SERVER_ERROR, "the component failed\n"));
                }
                Err(_) => {
                    handler.metrics.end(Outcome::TimedOut);
                    return Some(plain(StatusCode::GATEWAY_TIMEOUT, "the component took too long\n"));
                }
            }
            None
        });
        // An instance that is kept may hold on to what it should have answered with: its end counts, too.
        let (answered, ended) = tokio::select! {
            biased;
            answered = &mut answer => (answered.ok(), None),
            ended = &mut component => (answer.try_recv().ok(), Some(ended)),
        };
        match answered {
            Some(Ok(response)) => response,
            Some(Err(_)) => plain(StatusCode::BAD_GATEWAY, "the component gave an error for an answer\n"),
            None => {
                let ended = match ended {
                    Some(ended) => ended,
                    None => component.await,
                };
                let failure = ended.ok().flatten();
                failure.unwrap_or_else(|| plain(StatusCode::BAD_GATEWAY, "the component gave no answer\n"))
            }
        }
    }

    async fn handle(
        &self,
        request: Request<Incoming>,
        sender: oneshot::Sender<
            Result<Response<HyperOutgoingBody>, wasmtime_wasi_http::p2::bindings::http::types::ErrorCode>,
        >,
        _slot: OwnedSemaphorePermit,
    ) -> wasmtime::Result<()> {
        let idle = self.idle().pop();
        let mut instance = match idle {
            Some(instance) => instance,
            None => self.instantiate().await?,
        };
        let Instance { store, proxy, left } = &mut instance;
        store.set_epoch_deadline(1);
        let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
        let out = store.data_mut().http().new_response_outparam(sender)?;
        // Whatever ends here, or is dropped because its time is over, ends its instance.
        proxy.wasi_http_incoming_handler().call_handle(store, request, out).await?;
        *left = left.saturating_sub(1);
        if *left > 0 {
            self.idle().push(instance);
        }
        Ok(())
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Instance>> {
        // Nothing that is done while it is held leaves it half done.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn instantiate(&self) -> wasmtime::Result<Instance> {
        let begin = Instant::now();
        let wasi = grants::builder(&self.given.spec, &self.given.process, &self.given.settings)
            .map_err(wasmtime::Error::new)?
            .build();
        let state =
            State { wasi, http: Http::new(), table: ResourceTable::new(), budget: Budget::new(self.given.memory) };
        let mut store = Store::new(self.prepared.engine(), state);
        store.limiter(|state| &mut state.budget);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        let proxy = self.prepared.instantiate_async(&mut store).await?;
        self.metrics.made(begin.elapsed());
        Ok(Instance { store, proxy, left: self.given.requests })
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<HyperOutgoingBody> {
    let body = Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}
