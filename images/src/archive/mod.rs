//! Images in files: a root file system as tar, `docker save` archives, and OCI image layouts as folder or tar.

mod change;
mod docker;
mod import;
mod layout;
mod load;
mod module;
mod save;
mod source;

pub use change::Change;
pub use import::ImportOptions;
pub use load::LoadOptions;
pub use module::WasmOptions;
pub use save::Format;
