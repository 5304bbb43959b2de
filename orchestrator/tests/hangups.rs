//! Clients that hang up end no master, though it is in a program that a broken pipe ends, as `berth` is.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use berth_orchestrator::process::{self, Contact, State};
use berth_orchestrator::server::Config;
use berth_orchestrator::tls::{self, Client, Role};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::json;

/// Reads the beginning of an answer and resets the connection: the master finds that out when it reads, and then says
/// goodbye.
fn hang_up(master: SocketAddr, config: &Arc<ClientConfig>) {
    let stream = TcpStream::connect(master).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let connection = ClientConnection::new(Arc::clone(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    stream.write_all(b"GET /version HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 8]).unwrap();
    rustix::net::sockopt::set_socket_linger(stream.get_ref(), Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_client_that_hangs_up_ends_no_master() {
    // SAFETY: the default action runs no code of this program.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("tls");
    tls::init(&directory, &[]).unwrap();
    let mut config = Config::new("127.0.0.1:0".parse().unwrap());
    config.tls = Some(tls::Server::load(&directory).unwrap());
    let state = State::Directory(home.path().join("master"));
    let (ready, listens) = mpsc::channel();
    let running = thread::spawn(move || process::run_master(config, state, |address| ready.send(address).unwrap()));
    let master = listens.recv().unwrap();

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem")).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = Arc::new(config.with_no_client_auth());
    for _ in 0..20 {
        hang_up(master, &config);
    }
    let operator = Client::load(&directory, Role::Operator).unwrap();
    let contact = Contact { masters: master.into(), tls: Some(operator) };
    assert_eq!(process::ask(&contact, &json!({ "type": "GET_HEALTH" })).unwrap()["type"], "GET_HEALTH");
    kill(Pid::this(), Signal::SIGTERM).unwrap();
    running.join().unwrap().unwrap();
}
