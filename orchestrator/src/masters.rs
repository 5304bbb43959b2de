//! Where the masters of a cluster are, as those see it who look for the one that leads: agents, frameworks, people.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use hyper::header::LOCATION;
use hyper::{Response, StatusCode};

/// After so long without a word from it a master counts as dead, though its connection is there. Masters answer agents
/// every 5 s and say something to frameworks every second.
pub const SILENCE: Duration = Duration::from_secs(15);

/// How long a master may take to let somebody in before another one is tried.
pub const OPENING: Duration = Duration::from_secs(10);

/// Where masters listen: one at least. Written `ADDRESS:PORT[,ADDRESS:PORT…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masters(Vec<SocketAddr>);

impl Masters {
    /// In the order in which they were given.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.0
    }
}

impl From<SocketAddr> for Masters {
    fn from(master: SocketAddr) -> Masters {
        Masters(vec![master])
    }
}

impl FromStr for Masters {
    type Err = String;

    fn from_str(text: &str) -> Result<Masters, String> {
        let masters: Result<Vec<SocketAddr>, _> = text.split(',').map(str::parse).collect();
        masters.map(Masters).map_err(|_| "give ADDRESS:PORT, or several with commas between them".to_owned())
    }
}

impl fmt::Display for Masters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

/// A master that does not lead says which one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the master at {0} leads")]
pub struct Elsewhere(pub SocketAddr);

impl Elsewhere {
    /// What an answer says of it, if it does.
    pub fn of<T>(answer: &Response<T>) -> Option<Elsewhere> {
        let location = answer.headers().get(LOCATION).filter(|_| answer.status() == StatusCode::TEMPORARY_REDIRECT)?;
        let authority = location.to_str().ok()?.split_once("//")?.1.split('/').next()?;
        authority.parse().ok().map(Elsewhere)
    }

    /// What an attempt to connect that went wrong says of it, if it does.
    pub fn sent_by(error: &io::Error) -> Option<Elsewhere> {
        error.get_ref().and_then(|error| error.downcast_ref()).copied()
    }
}

/// Looks for the master that leads: goes round, and where it is sent.
#[derive(Debug)]
pub struct Search {
    masters: Masters,
    /// Whose turn it is.
    turn: usize,
    /// Where it was sent.
    sent: Option<SocketAddr>,
    /// The latest try, and whether it was at where it was sent.
    latest: Option<SocketAddr>,
    followed: bool,
}

impl Search {
    /// Begins with the first.
    pub fn new(masters: Masters) -> Search {
        Search { masters, turn: 0, sent: None, latest: None, followed: false }
    }

    /// Where to try.
    pub fn master(&mut self) -> SocketAddr {
        let sent = self.sent.take();
        self.followed = sent.is_some();
        let master = sent.unwrap_or_else(|| {
            let others = self.masters.0.iter().any(|master| Some(*master) != self.latest);
            loop {
                let next = self.masters.0[self.turn % self.masters.0.len()];
                self.turn += 1;
                // One that has just fallen silent need not be waited for again if there is another.
                if !others || Some(next) != self.latest {
                    return next;
                }
            }
        });
        self.latest = Some(master);
        master
    }

    /// That went wrong. Whether to go where this sends at once; who was sent there too waits, so that nobody is sent in
    /// circles.
    pub fn failed(&mut self, error: &io::Error) -> bool {
        self.sent = Elsewhere::sent_by(error).map(|elsewhere| elsewhere.0);
        self.sent.is_some() && !self.followed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn masters_are_read_as_they_are_written() {
        let text = "127.0.0.1:1,[::1]:2";
        assert_eq!(text.parse::<Masters>().unwrap().to_string(), text);
        for wrong in ["", "127.0.0.1", "127.0.0.1:1,", "a:1"] {
            assert!(wrong.parse::<Masters>().unwrap_err().contains("ADDRESS:PORT"), "{wrong}");
        }
    }

    #[test]
    fn the_search_goes_round_and_where_it_is_sent() {
        let mut search = Search::new(Masters(vec![address(1), address(2)]));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let elsewhere = |port| io::Error::other(Elsewhere(address(port)));
        assert_eq!(search.master(), address(1));
        assert!(!search.failed(&refused));
        assert_eq!(search.master(), address(2));
        assert!(search.failed(&elsewhere(3)), "at once");
        assert_eq!(search.master(), address(3));
        assert!(!search.failed(&elsewhere(1)), "not in circles");
        assert_eq!(search.master(), address(1));
        assert!(!search.failed(&refused));
        assert_eq!(search.master(), address(2), "not where it was just now");
        assert_eq!(search.master(), address(1));
        let mut only = Search::new(address(1).into());
        assert_eq!((only.master(), only.master()), (address(1), address(1)));
    }

    #[test]
    fn an_answer_says_who_leads() {
        let answer =
            |status: u16, location: &str| Response::builder().status(status).header(LOCATION, location).body(());
        let of = |status, location| Elsewhere::of(&answer(status, location).unwrap());
        assert_eq!(of(307, "//127.0.0.1:7/api/v1"), Some(Elsewhere(address(7))));
        assert_eq!(of(307, "http://127.0.0.1:7"), Some(Elsewhere(address(7))));
        assert_eq!(of(200, "//127.0.0.1:7/api/v1"), None);
        assert_eq!(of(307, "/api/v1"), None);
        assert_eq!(of(307, "//somewhere/api/v1"), None);
    }
}
