//! The report: one HTML file with everything in it. No scripts, no fonts, no pictures from elsewhere; charts are SVG, colours
//! follow the reader's light or dark setting and turn to ink on paper. Text of others is escaped by [`html::text`] alone.

mod charts;
mod html;
mod page;
mod sections;

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::document::Document;
use crate::error::{Error, Result};

/// The report as text.
pub fn render(document: &Document) -> String {
    page::page(document)
}

/// A place for a report, found writable before anything is measured.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    place: Place,
}

/// How a report gets to its place.
#[derive(Debug)]
enum Place {
    /// A file, which appears whole or not at all.
    Whole(tempfile::NamedTempFile),
    /// What is no file, a pipe or a device, is written through.
    Through(File),
}

impl Destination {
    /// At this path; where that is a link, at what it leads to.
    pub fn new(path: &Path) -> Result<Self> {
        let failed = Error::file("write the report to", path);
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let place = match fs::metadata(&target) {
            Ok(there) if there.is_dir() => {
                let path = path.display();
                return Err(Error::Invalid(format!(
                    "cannot write the report to {path}: it is a directory; name a file in it"
                )));
            }
            Ok(there) if !there.is_file() => Place::Through(File::options().write(true).open(&target).map_err(failed)?),
            there => {
                // As a shell would make it, or as it was.
                let permissions = there.map_or_else(|_| Permissions::from_mode(0o666), |there| there.permissions());
                let directory =
                    target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let temporary =
                    tempfile::Builder::new().prefix(".berth-report-").permissions(permissions).tempfile_in(directory);
                // Its own words name the temporary file.
                Place::Whole(temporary.map_err(|error| failed(error.kind().into()))?)
            }
        };
        Ok(Self { path: target, place })
    }

    /// Whether it is this file.
    pub fn is(&self, other: &Path) -> bool {
        fs::canonicalize(other).is_ok_and(|other| other == self.path)
    }

    /// Writes the report.
    pub fn write(self, document: &Document) -> Result<()> {
        let failed = Error::file("write the report to", &self.path);
        let text = render(document);
        let written = match self.place {
            Place::Through(mut file) => file.write_all(text.as_bytes()),
            Place::Whole(mut temporary) => temporary
                .write_all(text.as_bytes())
                .and_then(|()| temporary.as_file().sync_data())
                .and_then(|()| temporary.persist(&self.path).map(drop).map_err(|error| error.error)),
        };
        written.map_err(failed)
    }
}
