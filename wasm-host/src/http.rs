//! `wasi:http` for components: types to speak of requests with, and requests of their own denied.

use hyper::Response;
use wasmtime::component::{Linker, ResourceTable};
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView, p2,
};

/// The state of `wasi:http` in one instance.
pub struct Http {
    context: WasiHttpCtx,
    hooks: NoRequests,
}

impl Http {
    pub fn new() -> Self {
        Self { context: WasiHttpCtx::new(), hooks: NoRequests }
    }

    pub fn view<'a>(&'a mut self, table: &'a mut ResourceTable) -> WasiHttpCtxView<'a> {
        WasiHttpCtxView { hooks: &mut self.hooks, table, ctx: &mut self.context }
    }
}

/// Offers `wasi:http` to components.
pub fn add_to_linker<T: WasiHttpView + 'static>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    p2::add_only_http_to_linker_async(linker)
}

struct NoRequests;

type Sending = dyn Future<Output = Result<(), Error>> + Send;

impl WasiHttpHooks for NoRequests {
    fn send_request(
        &mut self,
        _: hyper::Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<Sending>,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Box<Sending>), Error>> + Send> {
        Box::new(std::future::ready(Err(Error::HttpRequestDenied)))
    }
}
