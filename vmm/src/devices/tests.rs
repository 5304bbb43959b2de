//! Every device against a driver that follows no rule: what its fuzz target does, for a moment.

use proptest::prelude::*;

use super::{balloon, block, console, net, rng, vsock};

/// What decides what the driver does.
fn decisions() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..1024)
}

proptest! {
    #[test]
    fn a_balloon_survives_any_driver(data in decisions()) {
        balloon::tests::fuzz(&data);
    }

    #[test]
    fn a_disk_survives_any_driver(data in decisions()) {
        block::tests::fuzz(&data);
    }

    #[test]
    fn a_console_survives_any_driver(data in decisions()) {
        console::tests::fuzz(&data);
    }

    #[test]
    fn a_network_card_survives_any_driver(data in decisions()) {
        net::tests::fuzz(&data);
    }

    #[test]
    fn a_source_of_entropy_survives_any_driver(data in decisions()) {
        rng::tests::fuzz(&data);
    }

    #[test]
    fn sockets_survive_any_driver(data in decisions()) {
        vsock::tests::fuzz(&data);
    }
}
