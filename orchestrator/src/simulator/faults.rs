//! What goes wrong.

use std::time::Duration;

use super::{Happening, SECOND, Simulation};
use crate::master::Connection;

impl Simulation {
    /// One thing goes wrong.
    pub(super) fn fault(&mut self) {
        let agent = self.chance.usize(..self.agents.len());
        let pause = self.chance.u32(1..50) * SECOND;
        match self.chance.u32(..100) {
            0..25 => self.break_some_link(),
            25..45 => self.cut_off(agent, pause),
            45..60 => self.restart_agent(agent, pause),
            60..70 => self.reboot_agent(agent, pause),
            70..73 => self.lose_agent(agent),
            73..85 => self.master_dies(),
            85..90 => self.skew += 2 * pause,
            90..95 => self.drain_or_not(agent),
            _ => self.mark_gone(agent),
        }
    }

    fn break_some_link(&mut self) {
        let links = self.links.iter().filter(|(_, link)| link.carries()).map(|(connection, _)| *connection);
        let links: Vec<Connection> = links.collect();
        if let Some(connection) = self.chance.choice(links) {
            self.break_link(connection);
        }
    }

    /// A network partition.
    fn cut_off(&mut self, agent: usize, pause: Duration) {
        self.agents[agent].cut = true;
        if let Some(connection) = self.agents[agent].connection
            && let Some(link) = self.links.get_mut(&connection)
        {
            link.cut = true;
        }
        self.schedule(pause, Happening::Heals(agent));
    }

    pub(super) fn heal(&mut self, agent: usize) {
        self.agents[agent].cut = false;
        if let Some(connection) = self.agents[agent].connection {
            self.break_link(connection);
        }
    }

    /// The agent's program dies and is started again; its tasks live on.
    fn restart_agent(&mut self, agent: usize, pause: Duration) {
        self.agents[agent].down_until = self.now + pause;
        if let Some(connection) = self.agents[agent].connection {
            self.break_link(connection);
        }
    }

    /// The machine dies with all its tasks, of which it remembers nothing but its id.
    fn reboot_agent(&mut self, agent: usize, pause: Duration) {
        self.agents[agent].tasks.clear();
        self.agents[agent].executors.clear();
        self.restart_agent(agent, pause);
    }

    fn lose_agent(&mut self, agent: usize) {
        self.reboot_agent(agent, Duration::ZERO);
        self.agents[agent].dead = true;
    }

    pub(super) fn master_dies(&mut self) {
        if self.master.take().is_none() {
            return;
        }
        let links = self.links.iter().filter(|(_, link)| link.carries()).map(|(connection, _)| *connection);
        for connection in links.collect::<Vec<_>>() {
            self.close_link(connection);
            let notices = Duration::from_millis(self.chance.u64(1..10_000));
            self.schedule(notices, Happening::ClientMisses(connection));
        }
        let election = Duration::from_millis(self.chance.u64(1..20_000));
        self.schedule(election, Happening::MasterStarts);
    }

    fn drain_or_not(&mut self, agent: usize) {
        let Some(id) = self.agents[agent].id.clone() else { return };
        let draining = self.chance.bool();
        self.master_does(|master, _| {
            // It may not be known, if it was marked as gone.
            let _ = master.drain(&id, draining);
        });
    }

    /// A person marks an agent as gone: one that really is, most often.
    fn mark_gone(&mut self, agent: usize) {
        let Some(id) = self.agents[agent].id.clone() else { return };
        if self.agents[agent].dead {
            self.master_does(|master, _| {
                let _ = master.mark_gone(&id);
            });
        }
    }
}
