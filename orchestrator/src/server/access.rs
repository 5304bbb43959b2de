//! Who is at the other end of a connection, what that allows, and how many strangers there may be.
//!
//! | who | how the master knows | what they may use |
//! | --- | --- | --- |
//! | the user who runs the master | the kernel says so, without TLS and over loopback | everything |
//! | an operator | a certificate | everything but the agents' protocol |
//! | an agent | a certificate | the agents' protocol |
//! | a framework | a principal and its secret, where the master asks for them | the scheduler API |
//! | a machine with a join token | the token | one certificate |
//! | anybody | | `/version` and `/health` |

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::{HeaderMap, StatusCode};
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::answer::Problem;
use super::authentication::{Credentials, Principal};
use super::door::{Door, Place};
use super::limits::{self, Bucket, Rate};
use super::{AGENT_PATH, JOIN_PATH, peer};
use crate::tls::{Fingerprint, Role, Server, Stream};

/// Where frameworks call.
const SCHEDULER: &str = "/api/v1/scheduler";

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    /// A process of the user who runs the master.
    Owner,
    /// Whoever has this certificate.
    Certified(Role, Fingerprint),
    /// Anybody.
    Stranger,
}

/// What decides who is let in.
pub struct Gate {
    /// What the master is known by, if it speaks TLS.
    tls: Option<Server>,
    handshake_timeout: Duration,
    credentials: Option<Credentials>,
    start: Instant,
    door: Door<IpAddr>,
    /// What bounds the requests of each certificate, and of each address without.
    peers: Limiter<Fingerprint>,
    strangers: Limiter<IpAddr>,
}

impl Gate {
    pub fn new(tls: Option<Server>, handshake_timeout: Duration, credentials: Option<Credentials>) -> Gate {
        Gate {
            tls,
            handshake_timeout,
            credentials,
            start: Instant::now(),
            door: Door::new(limits::STRANGERS, limits::STRANGERS_OF_ONE),
            peers: Limiter::new(limits::PEER_CALLS),
            strangers: Limiter::new(limits::STRANGER_CALLS),
        }
    }
}

/// One connection's other end.
pub struct Client {
    peer: Peer,
    origin: IpAddr,
    /// Held for as long as nobody knows who it is.
    place: Mutex<Option<Place<IpAddr>>>,
}

impl Client {
    /// Finds out who has connected, and what to talk to them by. None if they are not let in, or left.
    pub async fn meet(gate: &Gate, stream: TcpStream, address: SocketAddr) -> Option<(Client, Stream)> {
        // Events are small and wanted at once; a peer that vanished is noticed, even where nothing is to be sent.
        let _ = stream.set_nodelay(true);
        let _ = sockopt::set_tcp_user_timeout(&stream, limits::SILENCE.as_millis() as u32);
        let _ = sockopt::set_tcp_keepidle(&stream, limits::SILENCE / 3);
        let _ = sockopt::set_tcp_keepintvl(&stream, limits::SILENCE / 3);
        let _ = sockopt::set_socket_keepalive(&stream, true);
        let origin = origin(address.ip());
        let Some(tls) = &gate.tls else {
            let owner = stream.local_addr().ok().and_then(|server| peer::owner(address, server));
            let is_owner = owner == Some(rustix::process::geteuid().as_raw());
            let (peer, place) =
                if is_owner { (Peer::Owner, None) } else { (Peer::Stranger, Some(gate.door.enter(origin)?)) };
            return Some((Client { peer, origin, place: Mutex::new(place) }, Box::new(stream)));
        };
        let place = gate.door.enter(origin)?;
        let shaken = timeout(gate.handshake_timeout, tls.accept(stream)).await;
        let (stream, certificate) =
            shaken.ok()?.inspect_err(|error| tracing::debug!(%address, %error, "no TLS")).ok()?;
        let (peer, place) = match certificate {
            Some((Some(role), fingerprint)) => (Peer::Certified(role, fingerprint), None),
            Some((None, _)) | None => (Peer::Stranger, Some(place)),
        };
        Some((Client { peer, origin, place: Mutex::new(place) }, Box::new(stream)))
    }

    /// Whether they may ask for something, and do not too often; and as which principal a framework does.
    pub fn check(&self, gate: &Gate, path: &str, headers: &HeaderMap) -> Result<Option<Arc<Principal>>, Problem> {
        let now = gate.start.elapsed();
        let allowed = match (path, self.peer) {
            ("/version" | "/health" | JOIN_PATH, _) => true,
            (SCHEDULER, Peer::Certified(Role::Agent | Role::Master, _)) => false,
            (SCHEDULER, peer) => match &gate.credentials {
                Some(credentials) => {
                    let guesses = peer != Peer::Owner;
                    if guesses && !gate.strangers.has(self.origin, now) {
                        return Err(Problem::too_often());
                    }
                    let principal = credentials.authenticate(headers).inspect_err(|_| {
                        let _ = guesses && gate.strangers.take(self.origin, now);
                    })?;
                    self.is_known();
                    return if principal.may_call(now) { Ok(Some(principal)) } else { Err(Problem::too_often()) };
                }
                None => peer != Peer::Stranger,
            },
            (AGENT_PATH, peer) => matches!(peer, Peer::Owner | Peer::Certified(Role::Agent, _)),
            (_, peer) => matches!(peer, Peer::Owner | Peer::Certified(Role::Operator, _)),
        };
        let in_time = match self.peer {
            Peer::Owner => true,
            Peer::Certified(_, fingerprint) => path == SCHEDULER || gate.peers.take(fingerprint, now),
            Peer::Stranger => gate.strangers.take(self.origin, now),
        };
        match (in_time, allowed) {
            (false, _) => Err(Problem::too_often()),
            (true, true) => Ok(None),
            (true, false) => Err(Problem::new(StatusCode::FORBIDDEN, self.refusal(gate, path))),
        }
    }

    fn refusal(&self, gate: &Gate, path: &str) -> String {
        let wanted = match path {
            AGENT_PATH => "an agent's certificate, which `berth cluster join` gets",
            SCHEDULER => "an operator's certificate, or a master with --credentials, and a secret of it",
            _ => "an operator's certificate, which `berth cluster init` makes",
        };
        match self.peer {
            Peer::Certified(role, _) => {
                format!("a certificate for {} may not use {path}: that takes {wanted}", role.name())
            }
            _ if gate.tls.is_some() => format!("{path} takes {wanted}"),
            _ => "only the user who runs the master may use it, since tasks run as that user; connect as that user"
                .to_owned(),
        }
    }

    /// It is no stranger any more.
    fn is_known(&self) {
        if let Ok(mut place) = self.place.lock() {
            drop(place.take());
        }
    }
}

/// Whom an address may belong to: one of IPv6 stands for its network, of which everybody has all addresses.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// How often each of many may do something. So many are kept apart; those beyond share what one has.
#[derive(Debug)]
struct Limiter<K> {
    rate: Rate,
    buckets: Mutex<(HashMap<K, Bucket>, Bucket)>,
}

impl<K: Eq + Hash> Limiter<K> {
    fn new(rate: Rate) -> Limiter<K> {
        Limiter { rate, buckets: Mutex::new((HashMap::new(), Bucket::new(rate, Duration::ZERO))) }
    }

    /// Whether it may do it now, which counts.
    fn take(&self, who: K, now: Duration) -> bool {
        self.with(who, now, |bucket| bucket.take(now))
    }

    /// Whether it might.
    fn has(&self, who: K, now: Duration) -> bool {
        self.with(who, now, |bucket| bucket.has(now))
    }

    fn with(&self, who: K, now: Duration, act: impl FnOnce(&mut Bucket) -> bool) -> bool {
        let Ok(mut buckets) = self.buckets.lock() else { return false };
        let (each, shared) = &mut *buckets;
        if each.len() >= limits::KEPT_APART && !each.contains_key(&who) {
            // Of those that are full nothing has to be known.
            each.retain(|_, bucket| !bucket.is_full(now));
            if each.len() >= limits::KEPT_APART {
                return act(shared);
            }
        }
        act(each.entry(who).or_insert_with(|| Bucket::new(self.rate, now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_one_origin_and_a_mapped_address_is_itself() {
        let origin = |text: &str| origin(text.parse().unwrap());
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:0:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_eq!(origin("::ffff:10.0.0.1"), IpAddr::from([10, 0, 0, 1]));
    }

    #[test]
    fn each_has_a_limit_of_its_own_and_the_crowd_beyond_has_one() {
        let limiter = Limiter::new(Rate { each_second: 1, at_once: 2 });
        let second = Duration::from_secs;
        let count = |who: usize, now| (0..9).filter(|_| limiter.take(who, now)).count();
        assert_eq!((count(0, second(0)), count(1, second(0)), count(0, second(1))), (2, 2, 1));
        assert!(!limiter.has(0, second(1)) && limiter.has(0, second(2)) && limiter.has(0, second(2)));
        for who in 1..limits::KEPT_APART {
            assert_eq!(count(who, second(2)), 2);
        }
        let late: usize = (0..5).map(|number| count(limits::KEPT_APART + number, second(2))).sum();
        assert_eq!(late, 2, "they share");
        assert_eq!(limiter.buckets.lock().unwrap().0.len(), limits::KEPT_APART);
        assert_eq!(count(usize::MAX, second(9)), 2, "what is full again makes room");
        assert_eq!(limiter.buckets.lock().unwrap().0.len(), 1);
    }
}
