//! The report: one HTML file with everything in it. No scripts, no fonts, no pictures from elsewhere; charts are SVG, colours
//! follow the reader's light or dark setting and turn to ink on paper. Text of others is escaped by [`html::text`] alone.

mod charts;
mod html;
mod page;
mod sections;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::document::Document;
use crate::error::{Error, Result};

/// The report as text.
pub fn render(document: &Document) -> String {
    page::page(document)
}

/// A place for a report, found writable before anything is measured. The file appears there whole or not at all.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    temporary: tempfile::NamedTempFile,
}

impl Destination {
    /// At this path.
    pub fn new(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::Invalid(format!(
                "cannot write the report to {}: it is a directory; name a file in it",
                path.display()
            )));
        }
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new().prefix(".berth-report-").tempfile_in(directory);
        let temporary = temporary.map_err(Error::file("write the report to", path))?;
        Ok(Self { path: path.to_owned(), temporary })
    }

    /// Writes the report.
    pub fn write(mut self, document: &Document) -> Result<()> {
        let path = self.path;
        let written = self.temporary.write_all(render(document).as_bytes()).and_then(|()| {
            let file = self.temporary.as_file();
            file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
            file.sync_data()
        });
        written.map_err(Error::file("write the report to", &path))?;
        let kept = self.temporary.persist(&path).map_err(|error| error.error);
        kept.map(drop).map_err(Error::file("write the report to", &path))
    }
}
