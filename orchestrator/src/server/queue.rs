//! What waits to be sent over a stream, of which no more piles up than may.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Where records come in.
#[derive(Debug)]
pub struct Feed {
    sender: UnboundedSender<Bytes>,
    queued: Arc<AtomicUsize>,
}

/// Where they come out.
#[derive(Debug)]
pub struct Queue {
    receiver: UnboundedReceiver<Bytes>,
    queued: Arc<AtomicUsize>,
}

/// Why a record was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Too much waits to be read.
    Slow,
    /// Nobody reads any more.
    Closed,
}

/// A queue with its two ends.
pub fn queue() -> (Feed, Queue) {
    let (sender, receiver) = unbounded_channel();
    let queued = Arc::new(AtomicUsize::new(0));
    (Feed { sender, queued: Arc::clone(&queued) }, Queue { receiver, queued })
}

impl Feed {
    /// Takes in a record. However long it is, it is taken if no more than `most` bytes wait.
    pub fn push(&self, record: Bytes, most: usize) -> Result<(), Refused> {
        if self.queued.fetch_add(record.len(), Ordering::Relaxed) > most {
            return Err(Refused::Slow);
        }
        self.sender.send(record).map_err(|_| Refused::Closed)
    }
}

impl Feed {
    /// How many bytes wait.
    pub fn waiting(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }
}

impl Queue {
    /// The next record; none when the connection is to be closed.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let next = self.receiver.poll_recv(context);
        if let Poll::Ready(Some(record)) = &next {
            self.queued.fetch_sub(record.len(), Ordering::Relaxed);
        }
        next
    }

    /// The same, to be waited for.
    pub async fn next(&mut self) -> Option<Bytes> {
        poll_fn(|context| self.poll_next(context)).await
    }
}
