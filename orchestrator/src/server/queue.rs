//! What waits to be sent over a stream, of which no more piles up than may.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

/// Where records come in.
#[derive(Debug)]
pub struct Feed(Arc<Mutex<Waiting>>);

/// Where they come out.
#[derive(Debug)]
pub struct Queue(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    records: VecDeque<Bytes>,
    /// How long they are.
    bytes: usize,
    /// Whether no more come in.
    ended: bool,
    /// Whether nobody reads any more.
    closed: bool,
    /// Who waits for the next.
    reader: Option<Waker>,
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
    let waiting = Arc::<Mutex<Waiting>>::default();
    (Feed(Arc::clone(&waiting)), Queue(waiting))
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes who waits, who may lock it at once.
fn wake(mut waiting: MutexGuard<'_, Waiting>) {
    let reader = waiting.reader.take();
    drop(waiting);
    if let Some(reader) = reader {
        reader.wake();
    }
}

impl Feed {
    /// Takes in a record. However long it is, it is taken if no more than `most` bytes wait.
    pub fn push(&self, record: Bytes, most: usize) -> Result<(), Refused> {
        let mut waiting = lock(&self.0);
        if waiting.bytes > most {
            return Err(Refused::Slow);
        }
        if waiting.closed {
            return Err(Refused::Closed);
        }
        waiting.bytes += record.len();
        waiting.records.push_back(record);
        wake(waiting);
        Ok(())
    }

    /// Ends the queue with a last record. What waits is forgotten: who did not read it yet may never do.
    pub fn end_with(self, record: Bytes) {
        let mut waiting = lock(&self.0);
        waiting.bytes = record.len();
        waiting.records = [record].into();
    }

    /// How many bytes wait.
    pub fn waiting(&self) -> usize {
        lock(&self.0).bytes
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let mut waiting = lock(&self.0);
        waiting.ended = true;
        wake(waiting);
    }
}

impl Queue {
    /// The next record; none when the connection is to be closed.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut waiting = lock(&self.0);
        if let Some(record) = waiting.records.pop_front() {
            waiting.bytes -= record.len();
            return Poll::Ready(Some(record));
        }
        if waiting.ended {
            return Poll::Ready(None);
        }
        waiting.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// The same, to be waited for.
    pub async fn next(&mut self) -> Option<Bytes> {
        poll_fn(|context| self.poll_next(context)).await
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut waiting = lock(&self.0);
        *waiting = Waiting { closed: true, ended: waiting.ended, ..Waiting::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(queue: &mut Queue) -> Poll<Option<Bytes>> {
        queue.poll_next(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn records_come_out_in_order_and_no_more_pile_up_than_may() {
        let (feed, mut queue) = queue();
        let push = |record: &'static str| feed.push(Bytes::from_static(record.as_bytes()), 3);
        assert_eq!((push("a"), push("bcd"), push("e")), (Ok(()), Ok(()), Err(Refused::Slow)));
        assert_eq!(feed.waiting(), 4);
        assert_eq!(next(&mut queue), Poll::Ready(Some("a".into())));
        assert_eq!(push("f"), Ok(()));
        assert_eq!([next(&mut queue), next(&mut queue)], ["bcd", "f"].map(|record| Poll::Ready(Some(record.into()))));
        assert_eq!((next(&mut queue), feed.waiting()), (Poll::Pending, 0));
        drop(queue);
        assert_eq!(push("g"), Err(Refused::Closed));
    }

    #[test]
    fn a_queue_that_is_ended_keeps_nothing_but_the_last_record() {
        let (feed, mut queue) = queue();
        let (many, last) = (Bytes::from(vec![0; 1000]), Bytes::from_static(b"last"));
        (0..9).for_each(|_| feed.push(many.clone(), usize::MAX).unwrap());
        feed.end_with(last.clone());
        assert_eq!(lock(&queue.0).bytes, 4);
        assert_eq!([next(&mut queue), next(&mut queue)], [Poll::Ready(Some(last)), Poll::Ready(None)]);
    }
}
