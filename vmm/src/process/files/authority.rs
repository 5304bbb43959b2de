//! Calls on files with the rights of a guest's process rather than the VMM's.

use std::sync::Arc;

use nix::errno::Errno;

use super::broker::{Broker, CAPABILITIES};
use super::credentials::Credentials;
use crate::process::Result;
use crate::process::syscalls::host::{self, Arg};

/// Who makes calls on files.
#[derive(Debug)]
pub struct Authority {
    own: Credentials,
}

impl Authority {
    /// From who this process is. A process without capabilities is refused what needs any; others get a broker.
    /// There must be no other thread yet.
    pub fn new() -> Result<Self> {
        let mut own = Credentials::own()?;
        if own.has_any(CAPABILITIES) {
            own.broker = Some(Arc::new(Broker::start(&own)?));
        }
        Ok(Self { own })
    }

    /// Of this process without a broker: nothing is done that takes more rights than it has.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn alone() -> Result<Self> {
        Ok(Self { own: Credentials::own()? })
    }

    /// Who the first process of the guest is.
    pub fn own(&self) -> &Credentials {
        &self.own
    }

    /// Makes a call with the rights of `who`: the VMM itself where these are its own and suffice.
    ///
    /// # Errors
    /// What the call gives.
    pub fn call<const N: usize>(&self, who: &Credentials, number: i64, mut arguments: [Arg; N]) -> Result {
        let is_own = who.user.effective == self.own.user.effective
            && who.group.effective == self.own.group.effective
            && who.groups == self.own.groups;
        let Some(broker) = &who.broker else { return host::borrowed(number, &mut arguments) };
        if is_own {
            match host::borrowed(number, &mut arguments) {
                Err(Errno::EPERM | Errno::EACCES) if who.has_any(CAPABILITIES) => {}
                done => return done,
            }
        }
        broker.call(who, number, &arguments)
    }
}
