//! Connections to the master. What is sent over one arrives in order or not at all, and nothing after what did not.

use std::time::Duration;

use super::{Happening, Simulation};
use crate::master::{Call, Connection, Event, FrameworkId, FrameworkInfo, FromAgent, Registration, ToAgent};

/// Who is connected to the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Party {
    Agent(usize),
    Framework(usize),
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) client: Party,
    open: bool,
    /// Nothing passes, and nobody is told.
    pub(super) cut: bool,
    /// When the last message so far arrives, at the master and at the client.
    last_at_master: Duration,
    last_at_client: Duration,
}

impl Link {
    pub(super) fn carries(&self) -> bool {
        self.open && !self.cut
    }
}

/// What clients say to the master.
#[derive(Debug)]
pub(super) enum ToMaster {
    Register(Registration),
    Agent(FromAgent),
    Subscribe(Option<FrameworkId>, FrameworkInfo),
    Call(FrameworkId, Call),
}

/// What the master says to clients.
#[derive(Debug)]
pub(super) enum ToClient {
    Agent(ToAgent),
    Framework(Event),
    Closed,
}

impl Simulation {
    /// A new connection, if there is a master to connect to.
    pub(super) fn connect(&mut self, client: Party) -> Option<Connection> {
        self.master.as_ref()?;
        self.connections += 1;
        let connection = Connection(self.connections);
        let link =
            Link { client, open: true, cut: false, last_at_master: Duration::ZERO, last_at_client: Duration::ZERO };
        self.links.insert(connection, link);
        Some(connection)
    }

    pub(super) fn send_to_master(&mut self, connection: Connection, message: ToMaster) {
        let arrival = self.now + self.delay();
        let Some(link) = self.links.get_mut(&connection).filter(|link| link.carries()) else { return };
        link.last_at_master = link.last_at_master.max(arrival);
        let at = link.last_at_master;
        self.schedule_at(at, Happening::ArrivesAtMaster(connection, message));
    }

    pub(super) fn send_to_client(&mut self, connection: Connection, message: ToClient) {
        let arrival = self.now + self.delay();
        let Some(link) = self.links.get_mut(&connection).filter(|link| link.carries()) else { return };
        link.last_at_client = link.last_at_client.max(arrival);
        let at = link.last_at_client;
        self.schedule_at(at, Happening::ArrivesAtClient(connection, message));
    }

    /// A connection breaks: what is under way is lost, and both ends notice, each in its time.
    pub(super) fn break_link(&mut self, connection: Connection) {
        if self.links[&connection].open {
            self.close_link(connection);
            let (at_master, at_client) = (self.delay(), self.delay());
            self.schedule(at_master, Happening::MasterMisses(connection));
            self.schedule(at_client, Happening::ClientMisses(connection));
        }
    }

    pub(super) fn close_link(&mut self, connection: Connection) {
        if let Some(link) = self.links.get_mut(&connection) {
            link.open = false;
        }
    }

    /// Most messages take milliseconds, some seconds.
    fn delay(&mut self) -> Duration {
        let most = if self.in_trouble() && self.chance.u32(..20) == 0 { 5000 } else { 20 };
        Duration::from_millis(self.chance.u64(1..=most))
    }
}
