//! Running one command: from what was handed over to an exit code. Everything the module controls happens here, behind the walls.

use std::fs::File;
use std::os::fd::{FromRawFd as _, RawFd};
use std::time::Duration;

use berth_runtime::executor::Handover;
use berth_runtime::span::{self, Phase};
use wasmtime::component::{Component, Linker as ComponentLinker, ResourceTable};
use wasmtime::{Engine, Linker, Module, Store, Trap, UpdateDeadline};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::{I32Exit, WasiCtx, WasiCtxView, WasiView, p2, p3};
use wasmtime_wasi_http::{WasiHttpCtxView, WasiHttpView};

use crate::code::{self, Code};
use crate::confine::{self, Sockets};
use crate::engine;
use crate::error::{Error, Result};
use crate::grants;
use crate::http::{self, Http};
use crate::limits::Budget;
use crate::serve;
use crate::settings::Settings;
use crate::stop;
use crate::world::{self, START, World};

/// What the handover calls the file with the compiled code.
pub const CODE: &str = "code";
/// What a program ends with that was ended by `abort()`, and so a module by a trap.
const TRAPPED: i32 = 128 + libc::SIGABRT;

/// Threads that wait for what blocks, beside the one that reads standard input.
const THREADS: usize = 4;

/// How a module ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What its person should know.
    pub message: Option<String>,
}

/// Runs the module that is handed over as this sandbox's process.
pub fn start(handover: Handover) -> Result<Ended> {
    span::take(handover.files.get(span::FILE).copied());
    span::mark(Phase::Load);
    confine::renounce()?;
    let settings: Settings =
        serde_json::from_value(handover.settings).map_err(|error| Error::Handover(error.to_string()))?;
    let process = handover.spec.process().clone().unwrap_or_default();
    if let Some(serve) = &settings.serve {
        // It runs modules whenever it is asked to.
        span::run();
        return serve::start(&handover.files, &handover.spec, &process, &settings, serve);
    }
    let fuel = settings.fuel.is_some();
    let (engine, code) = match (&settings.code, handover.files.get(CODE).copied().map(take)) {
        (Some(sha256), Some(file)) => {
            let engine = engine::runner(fuel)?;
            let code = code::load(&engine, file, sha256)?;
            (engine, code)
        }
        #[cfg(feature = "compiler")]
        (None, None) => crate::compile::at_once(&process, fuel)?,
        _ => return Err(Error::Handover("what runs is compiled code, with its digest".to_owned())),
    };
    let grants = grants::builder(&handover.spec, &process, &settings)?;
    let signals = stop::watch(&engine, settings.timeout_ms.map(Duration::from_millis))?;
    confine::module(if settings.network { Sockets::Any } else { Sockets::None })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(THREADS).build();
    let runtime = runtime.map_err(Error::io("start the event loop"))?;
    let result = runtime.block_on(async {
        tokio::select! {
            // What the module has done by then is done.
            biased;
            result = run(&engine, &code, grants, &settings) => result.map(Some),
            stopped = stop::stopped(signals) => stopped.map(|()| None),
        }
    });
    // A thread may still be waiting for input.
    runtime.shutdown_background();
    match (stop::exit_code(), result) {
        (Some(code), _) => Ok(Ended { code, message: None }),
        (None, Ok(Some(ended))) => Ok(ended),
        (None, Ok(None)) => Err(Error::Handover("the module was stopped by nobody".to_owned())),
        (None, Err(error)) => Err(error),
    }
}

/// Takes over a descriptor that was handed over.
pub(crate) fn take(number: RawFd) -> File {
    // SAFETY: the descriptor was opened for this process alone to own, see `berth_runtime::executor`.
    unsafe { File::from_raw_fd(number) }
}

/// What belongs to one instance.
struct State<W> {
    wasi: W,
    budget: Budget,
}

/// WASI for components.
struct Preview2 {
    context: WasiCtx,
    http: Http,
    table: ResourceTable,
}

impl WasiView for State<Preview2> {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi.context, table: &mut self.wasi.table }
    }
}

impl WasiHttpView for State<Preview2> {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.wasi.http.view(&mut self.wasi.table)
    }
}

async fn run(
    engine: &Engine,
    code: &Code,
    mut grants: wasmtime_wasi::WasiCtxBuilder,
    settings: &Settings,
) -> Result<Ended> {
    match code {
        Code::Module(module) => module_command(store(engine, grants.build_p1(), settings)?, module).await,
        Code::Component(component) => {
            let world = world::of(component, engine)?;
            let wasi = Preview2 { context: grants.build(), http: Http::new(), table: ResourceTable::new() };
            component_command(store(engine, wasi, settings)?, component, world).await
        }
    }
}

fn store<W: 'static>(engine: &Engine, wasi: W, settings: &Settings) -> Result<Store<State<W>>> {
    let mut store = Store::new(engine, State { wasi, budget: Budget::new(settings.memory) });
    store.limiter(|state| &mut state.budget);
    if let Some(fuel) = settings.fuel {
        store.set_fuel(fuel).map_err(Error::Engine)?;
    }
    // Advanced only to end it.
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|_| Ok(UpdateDeadline::Interrupt));
    Ok(store)
}

async fn module_command(mut store: Store<State<WasiP1Ctx>>, module: &Module) -> Result<Ended> {
    world::check_command(module)?;
    let mut linker = Linker::new(store.engine());
    p1::add_to_linker_async(&mut linker, |state: &mut State<WasiP1Ctx>| &mut state.wasi).map_err(Error::Engine)?;
    let prepared = linker.instantiate_pre(module).map_err(|error| missing(&error))?;
    // Its start function, if it has one, is the module's code already.
    span::run();
    let instance = match prepared.instantiate_async(&mut store).await {
        Ok(instance) => instance,
        Err(error) => return not_instantiated(error),
    };
    let start =
        instance.get_typed_func::<(), ()>(&mut store, START).map_err(|error| Error::World(format!("{error:#}")))?;
    Ok(ended(start.call_async(&mut store, ()).await.map(|()| 0)))
}

async fn component_command(mut store: Store<State<Preview2>>, component: &Component, world: World) -> Result<Ended> {
    let mut linker = ComponentLinker::new(store.engine());
    p2::add_to_linker_async(&mut linker).map_err(Error::Engine)?;
    if world::imports_http(component, store.engine()) {
        http::add_to_linker(&mut linker).map_err(Error::Engine)?;
    }
    match world {
        World::Command => {
            let prepared = linker
                .instantiate_pre(component)
                .and_then(p2::bindings::CommandPre::new)
                .map_err(|error| missing(&error))?;
            span::run();
            let command = match prepared.instantiate_async(&mut store).await {
                Ok(command) => command,
                Err(error) => return not_instantiated(error),
            };
            Ok(ended(command.wasi_cli_run().call_run(&mut store).await.map(exit_code)))
        }
        World::Command3 => {
            p3::add_to_linker(&mut linker).map_err(Error::Engine)?;
            let prepared = linker
                .instantiate_pre(component)
                .and_then(p3::bindings::CommandPre::new)
                .map_err(|error| missing(&error))?;
            span::run();
            let command = match prepared.instantiate_async(&mut store).await {
                Ok(command) => command,
                Err(error) => return not_instantiated(error),
            };
            let result = store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await).await;
            Ok(ended(result.and_then(|result| result).map(exit_code)))
        }
        World::Http => Err(Error::World(
            "it is an HTTP handler, which waits for requests: run it with `berth wasm serve`".to_owned(),
        )),
    }
}

fn exit_code(result: Result<(), ()>) -> i32 {
    i32::from(result.is_err())
}

fn missing(error: &wasmtime::Error) -> Error {
    Error::World(format!("{error:#}"))
}

/// A trap in a start function is the module's end; all else keeps it from beginning.
fn not_instantiated(error: wasmtime::Error) -> Result<Ended> {
    if error.is::<Trap>() || error.is::<I32Exit>() {
        return Ok(ended(Err(error)));
    }
    Err(Error::Instantiate(error))
}

fn ended(result: wasmtime::Result<i32>) -> Ended {
    match result {
        Ok(code) => Ended { code, message: None },
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(code)) => Ended { code: *code, message: None },
            None => Ended { code: TRAPPED, message: Some(explain(&error)) },
        },
    }
}

/// What a module ended of, with where in it that was.
fn explain(error: &wasmtime::Error) -> String {
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => "the module has used up its --fuel".to_owned(),
        _ => format!("{error:?}"),
    }
}
