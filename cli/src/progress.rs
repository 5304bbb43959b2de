//! Progress of a pull or push: a bar for each blob on a terminal, nothing in a pipe.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_images::{Digest, Event, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Bars on standard error, which draw nothing where that is no terminal.
#[derive(Debug, Default)]
pub struct Bars {
    all: MultiProgress,
    bars: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Bars {
    fn bars(&self) -> MutexGuard<'_, HashMap<Digest, ProgressBar>> {
        self.bars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, digest: Digest, size: u64, done: u64) {
        let style = "{prefix} [{bar:30}] {bytes:>10}/{total_bytes:10} {bytes_per_sec} {msg}";
        let style =
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
        let bar = self.all.add(ProgressBar::new(size)).with_style(style);
        bar.set_prefix(short(digest));
        bar.set_position(done);
        self.bars().insert(digest, bar);
    }

    fn say(&self, line: String) {
        // What cannot be drawn is not worth an error.
        let _ = self.all.println(line);
    }
}

impl Progress for Bars {
    fn report(&self, event: Event) {
        match event {
            Event::Started { digest, size, done } => self.start(digest, size, done),
            Event::Moved { digest, bytes } => {
                if let Some(bar) = self.bars().get(&digest) {
                    bar.inc(bytes);
                }
            }
            Event::Restarted { digest } => {
                if let Some(bar) = self.bars().get(&digest) {
                    bar.set_position(0);
                }
            }
            Event::Finished { digest } => {
                if let Some(bar) = self.bars().remove(&digest) {
                    bar.finish_with_message("done");
                }
            }
            Event::Exists { digest } => self.say(format!("{} is there already", short(digest))),
            Event::Retrying { reason } => self.say(format!("trying again: {reason}")),
        }
    }
}

fn short(digest: Digest) -> String {
    digest.hex()[..12].to_owned()
}
