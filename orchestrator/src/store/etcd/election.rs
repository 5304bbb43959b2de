//! Who of several masters leads, by the recipe of etcd's own package `concurrency`
//! (<https://pkg.go.dev/go.etcd.io/etcd/clientv3/concurrency>): each writes a key under a common prefix with a lease of
//! its own, and whose was made first leads, for as long as it is there.
//!
//! ```text
//! stand: lease, key ──▶ wait until no key is older ──▶ lead ──▶ the lease was not renewed in time: end
//!   ▲                          │
//!   └── the key has gone ──────┘
//! ```
//!
//! Unlike there, all of the prefix is watched and not only the key before one's own: a standby has to know who
//! leads, and masters are few.
//!
//! A leader stops by its own clock some time before etcd lets another one lead. Even if it did not, etcd would refuse what
//! it writes: each transaction compares the key by which it leads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Location;
use super::client::{Client, Error, Row, put, read, was_created};

/// How long to wait when etcd does not answer.
const PAUSE: Duration = Duration::from_millis(250);
/// How often a standby looks who leads, even if it was not told of a change.
const LOOK: Duration = Duration::from_secs(5);
/// How long the end of a lease may take: whoever waits for it waits no longer than the lease lasts anyway.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a key says of its master.
#[derive(Debug, Serialize, Deserialize)]
struct Standing {
    address: SocketAddr,
}

/// A master that wants to lead.
#[derive(Debug)]
pub struct Candidate {
    client: Arc<Client>,
    location: Location,
    ttl: Duration,
    /// The latest lease; 0 before the first.
    lease: AtomicI64,
}

impl Candidate {
    /// A master that leads without a sign of life for `ttl` at most, of which etcd takes whole seconds.
    pub fn new(location: Location, ttl: Duration) -> Candidate {
        // Whatever it takes to find an endpoint that answers, there has to be time for another one.
        let client = Arc::new(Client::new(location.endpoints.clone(), location.credentials.clone(), ttl / 4));
        Candidate { client, location, ttl, lease: AtomicI64::new(0) }
    }

    /// Returns when this master, which listens at `address`, leads. Until then `leader` is told who does.
    pub async fn win(&self, address: SocketAddr, leader: &watch::Sender<Option<SocketAddr>>) -> Leadership {
        let mut troubles = Troubles::default();
        loop {
            match self.stand(address, leader, &mut troubles).await {
                Ok(Some(leadership)) => return leadership,
                Ok(None) => tracing::warn!("this master was not heard of by etcd for too long: it stands again"),
                Err(error) => {
                    leader.send_replace(None);
                    troubles.warn(&error);
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Stands for election once. None: its key has gone.
    async fn stand(
        &self,
        address: SocketAddr,
        leader: &watch::Sender<Option<SocketAddr>>,
        troubles: &mut Troubles,
    ) -> Result<Option<Leadership>, Error> {
        let begin = now();
        let (lease, ttl) = self.client.grant(self.ttl.as_secs()).await?;
        self.lease.store(lease, Ordering::Relaxed);
        let prefix = self.location.key("election/");
        let key = format!("{prefix}{lease:016x}");
        let standing = serde_json::to_string(&Standing { address }).expect("addresses are texts");
        let write = vec![put(&key, &standing, Some(lease))];
        let done = self.client.transact(vec![was_created(&key, 0)], write, vec![read(&key)]).await?;
        // If it is there, an earlier try has made it: the lease is nobody else's.
        let created = if done.succeeded { done.revision } else { done.rows.first().map_or(0, |row| row.created) };
        let term = Arc::new(Term { client: self.client.clone(), key, created, lease, end: AtomicU64::new(0) });
        term.lasts(begin, ttl);
        let mut renewals = JoinSet::new();
        renewals.spawn(Arc::clone(&term).renew(ttl));
        loop {
            let range = match self.client.list(&prefix).await {
                Ok(range) => range,
                Err(error) => {
                    leader.send_replace(None);
                    troubles.warn(&error);
                    sleep(PAUSE).await;
                    continue;
                }
            };
            troubles.are_over();
            let is_own = |row: &Row| row.key == term.key && row.created == created;
            let Some(oldest) = range.rows.first().filter(|_| range.rows.iter().any(is_own)) else { return Ok(None) };
            if is_own(oldest) {
                leader.send_replace(None);
                if term.lasts_still() {
                    return Ok(Some(Leadership { term, location: self.location.clone(), _renewals: renewals }));
                }
                // The renewals will find out whether it does.
                sleep(PAUSE).await;
                continue;
            }
            let oldest: Option<Standing> = serde_json::from_str(&oldest.value).ok();
            // At its own address there was an earlier master, whose lease has not ended yet.
            let known = oldest.map(|standing| standing.address).filter(|other| *other != address);
            leader.send_replace(known);
            self.client.wait_for_change(&prefix, range.revision, LOOK).await;
        }
    }

    /// Lets others lead at once.
    pub async fn resign(&self) {
        let lease = self.lease.load(Ordering::Relaxed);
        if lease != 0 {
            // If it cannot be ended, it ends by itself.
            let _ = timeout(FAREWELL, self.client.revoke(lease)).await;
        }
    }
}

/// That etcd does not answer is said once, and not every time.
#[derive(Debug, Default)]
struct Troubles(bool);

impl Troubles {
    fn warn(&mut self, error: &Error) {
        if !std::mem::replace(&mut self.0, true) {
            tracing::warn!("this master waits for etcd: {error}");
        }
    }

    fn are_over(&mut self) {
        self.0 = false;
    }
}

/// The time for which a key of this master is there.
#[derive(Debug)]
pub(super) struct Term {
    pub(super) client: Arc<Client>,
    /// The key.
    pub(super) key: String,
    /// When it was made.
    pub(super) created: i64,
    lease: i64,
    /// When it has to be over, on the clock of [`now`], in milliseconds.
    end: AtomicU64,
}

impl Term {
    /// Renews the lease until it has ended.
    async fn renew(self: Arc<Self>, ttl: Duration) {
        let mut pause = ttl / 4;
        loop {
            sleep(pause).await;
            let begin = now();
            match self.renew_once().await {
                Ok(Some(ttl)) => {
                    self.lasts(begin, ttl);
                    pause = ttl / 4;
                }
                Ok(None) => return self.end.store(0, Ordering::Relaxed),
                Err(error) => {
                    tracing::debug!(%error, "the lease is not renewed");
                    pause = PAUSE;
                }
            }
        }
    }

    /// For how long it lasts from now on; none if it is over.
    async fn renew_once(&self) -> Result<Option<Duration>, Error> {
        let ttl = self.client.renew(self.lease).await?;
        // Somebody may have removed the key by hand.
        let row = self.client.get(&self.key).await?;
        Ok(ttl.filter(|_| row.is_some_and(|row| row.created == self.created)))
    }

    /// It was asked for at `begin` for so long, so it lasts until then at least. The last quarter is left, for clocks that
    /// do not run alike and for what is under way.
    fn lasts(&self, begin: Duration, ttl: Duration) {
        let end = begin + ttl / 4 * 3;
        self.end.store(end.as_millis() as u64, Ordering::Relaxed);
    }

    pub(super) fn lasts_still(&self) -> bool {
        now() < Duration::from_millis(self.end.load(Ordering::Relaxed))
    }
}

/// That this master leads.
#[derive(Debug)]
pub struct Leadership {
    pub(super) term: Arc<Term>,
    pub(super) location: Location,
    _renewals: JoinSet<()>,
}

/// The time since the machine started, which goes on while it or the process sleeps (`clock_gettime(2)`).
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock since 2.6.39").into()
}
