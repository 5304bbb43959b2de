//! Debian's `docker-registry` on loopback, with TLS and a password.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::command::Cmd;
use crate::wait;

/// Who may use the registry.
pub const USER: &str = "sailor";
/// The password of [`USER`].
pub const PASSWORD: &str = "ahoy-ahoy";

/// A registry that runs until it is dropped.
pub struct Registry {
    dir: PathBuf,
    port: u16,
    server: Child,
}

impl Registry {
    /// Starts one that keeps everything in the folder `dir`.
    pub fn start(dir: &Path) -> Self {
        let certificates = dir.join("certificates");
        fs::create_dir_all(&certificates).expect("a folder for the certificates");
        make_certificates(&certificates);
        let users = Cmd::new("htpasswd", "-Bbn").args([USER, PASSWORD]).ok().stdout;
        fs::write(dir.join("users"), users).expect("the password file");

        // Another process may take the free port before the registry does: then try the next.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
            let mut server = serve(dir, port);
            let up = wait::within(wait::DEADLINE, || {
                TcpStream::connect(("127.0.0.1", port)).is_ok()
                    || server.try_wait().is_ok_and(|status| status.is_some())
            });
            if up && server.try_wait().expect("it is our child").is_none() {
                return Self { dir: dir.to_owned(), port, server };
            }
            let _ = server.kill();
            let _ = server.wait();
        }
        panic!("docker-registry does not start: {}", fs::read_to_string(dir.join("log")).unwrap_or_default());
    }

    /// `localhost:PORT`
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// A reference to an image on it.
    pub fn reference(&self, name_and_tag: &str) -> String {
        format!("{}/{name_and_tag}", self.host())
    }

    /// The certificate authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("certificates/ca.crt")
    }

    /// A folder with nothing but the authority's certificate, as `skopeo --src-cert-dir` wants it.
    pub fn certificate_dir(&self) -> PathBuf {
        let dir = self.dir.join("trusted");
        fs::create_dir_all(&dir).expect("a folder");
        fs::copy(self.authority(), dir.join("ca.crt")).expect("a copy of the certificate");
        dir
    }
}

/// That everybody on this machine trusts a registry's authority, as long as it is not dropped.
pub struct Trust {
    dir: PathBuf,
}

impl Registry {
    /// Puts the authority's certificate where docker and its kin look for it.
    pub fn trust(&self) -> Trust {
        let dir = Path::new("/etc/docker/certs.d").join(self.host());
        fs::create_dir_all(&dir).expect("the folder of certificates can be made");
        fs::copy(self.authority(), dir.join("ca.crt")).expect("a copy of the certificate");
        Trust { dir }
    }
}

impl Drop for Trust {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        // These go only if the test has made them: they are empty then.
        for parent in self.dir.ancestors().skip(1).take(2) {
            let _ = fs::remove_dir(parent);
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn serve(dir: &Path, port: u16) -> Child {
    let path = |name: &str| dir.join(name).display().to_string();
    let config = serde_json::json!({
        "version": "0.1",
        "log": { "level": "warn" },
        "storage": { "filesystem": { "rootdirectory": path("storage") }, "delete": { "enabled": true } },
        "http": {
            "addr": format!("127.0.0.1:{port}"),
            "secret": "not one",
            "tls": { "certificate": path("certificates/server.crt"), "key": path("certificates/server.key") },
        },
        "auth": { "htpasswd": { "realm": "test", "path": path("users") } },
    });
    // JSON is YAML.
    fs::write(dir.join("config.yml"), config.to_string()).expect("the registry's configuration");
    let log = fs::File::create(dir.join("log")).expect("a log file");
    Command::new("docker-registry")
        .arg("serve")
        .arg(dir.join("config.yml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a copy of a descriptor"))
        .stderr(log)
        .spawn()
        .expect("docker-registry can be started: scripts/setup test installs it")
}

/// An authority and a certificate for `localhost` that it has signed.
fn make_certificates(dir: &Path) {
    let mut extensions = fs::File::create(dir.join("extensions")).expect("a file");
    writeln!(extensions, "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE").expect("a short file");
    let openssl = |words: &str| {
        let mut command = Cmd::new("openssl", words);
        command.inner.current_dir(dir);
        command.ok();
    };
    let new_key = "-newkey rsa:2048 -nodes";
    openssl(&format!("req -x509 {new_key} -keyout ca.key -out ca.crt -days 2 -subj /CN=berth-test-authority"));
    openssl(&format!("req {new_key} -keyout server.key -out server.csr -subj /CN=localhost"));
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out server.crt",
    );
}
