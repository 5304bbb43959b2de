//! Pull and push with a real registry: Debian's `docker-registry` on loopback, with TLS and htpasswd.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_images::{
    Connection, Credentials, Digest, Error, Event, LoadOptions, Progress, PullOptions, PushOptions, Quiet, pull, push,
};
use tempfile::TempDir;

use crate::support::{Tar, TestStore, gzip, missing_program, write_layout, zstd_frame};

/// A registry that ends with the test.
struct Server {
    process: Child,
    host: String,
    dir: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    /// Starts a registry; with `secure`, it has TLS and the user `ann` with the password `secret`.
    fn start(secure: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let port = free_port();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            path("data")
        );
        if secure {
            run(
                "openssl",
                &[
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-nodes",
                    "-days",
                    "2",
                    "-subj",
                    "/CN=test authority",
                    "-addext",
                    "subjectAltName=DNS:localhost,IP:127.0.0.1",
                    "-addext",
                    "basicConstraints=critical,CA:FALSE",
                    "-keyout",
                    &path("key.pem"),
                    "-out",
                    &path("cert.pem"),
                ],
            );
            let passwords = run("htpasswd", &["-Bbn", "ann", "secret"]);
            fs::write(dir.path().join("htpasswd"), passwords).unwrap();
            let _ = write!(
                config,
                "  tls: {{certificate: {}, key: {}}}\nauth:\n  htpasswd: {{realm: test, path: {}}}\n",
                path("cert.pem"),
                path("key.pem"),
                path("htpasswd")
            );
        }
        fs::File::create(path("config.yml")).unwrap().write_all(config.as_bytes()).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", &path("config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "docker-registry does not start");
            std::thread::yield_now();
        }
        Self { process, host: format!("localhost:{port}"), dir }
    }

    fn connection(&self) -> Connection {
        Connection {
            credentials: Some(ann("secret")),
            tls_ca: Some(self.dir.path().join("cert.pem")),
            attempts: 2,
            delay: Duration::from_millis(10),
            ..Connection::default()
        }
    }

    fn name(&self, path: &str) -> String {
        format!("{}/{path}", self.host)
    }
}

fn ann(secret: &str) -> Credentials {
    Credentials { username: "ann".to_owned(), secret: secret.to_owned(), is_identity_token: false }
}

fn can_run() -> bool {
    !missing_program(&["docker-registry", "htpasswd", "openssl"])
}

fn quiet() -> Arc<dyn Progress> {
    Arc::new(Quiet)
}

#[derive(Default)]
struct Events(Mutex<Vec<Event>>);

impl Progress for Events {
    fn report(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

/// An image of three layers in each compression, under the name.
fn load(test: &TestStore, name: &str) -> Vec<Vec<u8>> {
    let layers = vec![
        gzip(&Tar::new().dir("a").file("a/one", vec![1; 300_000]).done()),
        zstd_frame(&Tar::new().file("two", "2").hard_link("linked", "a/one").done()),
        Tar::new().file(".wh.two", "").done(),
    ];
    let folder = tempfile::tempdir().unwrap();
    write_layout(folder.path(), name, &layers);
    test.store.load(folder.path(), &LoadOptions::default()).unwrap();
    layers
}

#[test]
fn push_and_pull_over_tls_with_a_password() {
    if !can_run() {
        return;
    }
    let server = Server::start(true);
    let name = server.name("team/app:1");
    let options = PushOptions { connection: server.connection() };
    let from = TestStore::new();
    load(&from, &name);
    let digest = push(&from.store, &name, &options, &quiet()).unwrap();
    assert_eq!(digest, from.store.resolve(&name).unwrap().manifest_digest);

    let to = TestStore::new();
    let options = PullOptions { connection: server.connection(), platform: None };
    let image = pull(&to.store, &name, &options, &Quiet).unwrap();
    assert_eq!(image.manifest_digest, digest);
    let dirs = to.store.lower_dirs(&image).unwrap();
    assert_eq!(fs::read(dirs[2].join("a/one")).unwrap().len(), 300_000);
    assert_eq!(fs::read(dirs[1].join("linked")).unwrap().len(), 300_000);
    // By digest, into a store that has all of it.
    let events = Events::default();
    let by_digest = format!("{}@{digest}", server.name("team/app"));
    let again = pull(&to.store, &by_digest, &options, &events).unwrap();
    assert_eq!(again.manifest_digest, digest);
    assert_eq!(again.reference, by_digest);
    assert!(events.0.lock().unwrap().iter().all(|event| matches!(event, Event::Exists { .. })));
    assert_eq!(to.store.resolve(&by_digest).unwrap().manifest_digest, digest);
    assert_eq!(fs::read_dir(to.images().join("ingest")).unwrap().count(), 0);
}

#[test]
fn a_second_push_sends_nothing_and_another_repository_borrows() {
    if !can_run() {
        return;
    }
    let server = Server::start(false);
    let options = PushOptions::default();
    let test = TestStore::new();
    let first = server.name("one:1");
    load(&test, &first);
    push(&test.store, &first, &options, &quiet()).unwrap();
    let second = server.name("two:1");
    test.store.tag(&first, &second).unwrap();
    for name in [&first, &second] {
        let events = Arc::new(Events::default());
        let progress: Arc<dyn Progress> = Arc::clone(&events) as _;
        push(&test.store, name, &options, &progress).unwrap();
        let events = events.0.lock().unwrap();
        assert!(!events.is_empty());
        assert!(events.iter().all(|event| matches!(event, Event::Exists { .. })), "{name}: {events:?}");
    }
}

#[test]
fn who_may_not_and_what_is_not_there() {
    if !can_run() {
        return;
    }
    let server = Server::start(true);
    let test = TestStore::new();
    let try_pull = |name: &str, connection: Connection| {
        let options = PullOptions { connection, platform: None };
        pull(&test.store, &server.name(name), &options, &Quiet).unwrap_err()
    };
    let error = try_pull("none:1", server.connection());
    assert!(matches!(error, Error::NotOnRegistry { .. }), "{error}");
    let error = try_pull("none:1", Connection { credentials: Some(ann("wrong")), ..server.connection() });
    assert!(matches!(error, Error::Unauthorized { known: true, .. }), "{error}");
    // An authority nobody knows: no word over plain HTTP instead.
    let error = try_pull("none:1", Connection { tls_ca: None, ..server.connection() });
    assert!(error.to_string().contains("certificate"), "{error}");
    let error = try_pull("none:1", Connection { insecure: true, tls_ca: None, ..server.connection() });
    assert!(matches!(error, Error::NotOnRegistry { .. }), "{error}");
    test.assert_untouched();
}

#[test]
fn other_tools_read_what_was_pushed_and_write_what_is_pulled() {
    if !can_run() || missing_program(&["skopeo"]) {
        return;
    }
    let server = Server::start(false);
    let test = TestStore::new();
    let name = server.name("app:1");
    let folder = tempfile::tempdir().unwrap();
    // Docker's own format knows no zstd.
    let layers = ["one", "two", "three"].map(|name| gzip(&Tar::new().file(name, name).done()));
    write_layout(folder.path(), &name, &layers);
    test.store.load(folder.path(), &LoadOptions::default()).unwrap();
    push(&test.store, &name, &PushOptions::default(), &quiet()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = format!("oci:{}:copied", folder.path().display());
    run("skopeo", &["copy", "--src-tls-verify=false", &format!("docker://{name}"), &target]);
    // Back, as docker's own format.
    let docker = server.name("docker:1");
    let source = format!("oci:{}:copied", folder.path().display());
    let destination = format!("docker://{docker}");
    run("skopeo", &["copy", "--dest-tls-verify=false", "--format", "v2s2", &source, &destination]);
    let image = pull(&test.store, &docker, &PullOptions::default(), &Quiet).unwrap();
    assert_eq!(image.layers.len(), 3);
    assert!(image.layers[0].media_type.contains("docker"), "{}", image.layers[0].media_type);
}

#[test]
fn login_and_logout() {
    if !can_run() {
        return;
    }
    let server = Server::start(true);
    let program = std::env::current_exe().unwrap();
    // The file's place comes from the environment: a process of its own.
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .args(["registry::login_child", "--exact", "--ignored", "--nocapture"])
        .env("DOCKER_CONFIG", home.path().join("docker"))
        .env("BERTH_TEST_REGISTRY", &server.host)
        .env("BERTH_TEST_CA", server.dir.path().join("cert.pem"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "started by login_and_logout with an environment of its own"]
fn login_child() {
    use std::os::unix::fs::PermissionsExt;
    let registry = std::env::var("BERTH_TEST_REGISTRY").unwrap();
    let folder = PathBuf::from(std::env::var("DOCKER_CONFIG").unwrap());
    let file = folder.join("config.json");
    fs::create_dir_all(&folder).unwrap();
    fs::write(&file, r#"{"auths":{"other":{"auth":"eDp5"}},"psFormat":"kept"}"#).unwrap();
    let connection = Connection {
        tls_ca: Some(std::env::var("BERTH_TEST_CA").unwrap().into()),
        attempts: 1,
        ..Connection::default()
    };
    let error = berth_images::login(&registry, &ann("wrong"), &connection).unwrap_err();
    assert!(matches!(error, Error::LoginRefused { .. }), "{error}");
    assert!(!fs::read_to_string(&file).unwrap().contains(&registry));
    let kept = berth_images::login(&registry, &ann("secret"), &connection).unwrap();
    assert_eq!(kept, file.display().to_string());
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(&registry) && text.contains("psFormat") && text.contains("\"other\""), "{text}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // The stored password opens the registry now.
    let test = TestStore::new();
    let options = PullOptions { connection: connection.clone(), platform: None };
    let name = format!("{registry}/none:1");
    assert!(matches!(pull(&test.store, &name, &options, &Quiet), Err(Error::NotOnRegistry { .. })));
    assert!(berth_images::logout(&registry).unwrap());
    assert!(!berth_images::logout(&registry).unwrap());
    assert!(matches!(pull(&test.store, &name, &options, &Quiet), Err(Error::Unauthorized { known: false, .. })));
    // A helper keeps them elsewhere.
    let helper = folder.join("docker-credential-test");
    let script = "#!/bin/sh\ndir=$(dirname \"$0\")\ncase $1 in\nstore) cat >\"$dir/kept\";;\n\
                  get) [ -e \"$dir/kept\" ] && cat \"$dir/kept\" || { echo 'credentials not found in native keychain'; exit 1; };;\n\
                  erase) rm \"$dir/kept\";;\nesac\n";
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&file, r#"{"credsStore":"test"}"#).unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    // SAFETY: this process runs this one test, and no other thread reads the environment now.
    unsafe { std::env::set_var("PATH", path) };
    assert_eq!(berth_images::login(&registry, &ann("secret"), &connection).unwrap(), "docker-credential-test");
    assert!(!fs::read_to_string(&file).unwrap().contains(&registry));
    assert!(matches!(pull(&test.store, &name, &options, &Quiet), Err(Error::NotOnRegistry { .. })));
    assert!(berth_images::logout(&registry).unwrap());
    assert!(matches!(pull(&test.store, &name, &options, &Quiet), Err(Error::Unauthorized { known: false, .. })));
}

#[test]
fn an_index_offers_platforms() {
    if !can_run() {
        return;
    }
    let server = Server::start(false);
    let test = TestStore::new();
    let name = server.name("multi:1");
    load(&test, &name);
    push(&test.store, &name, &PushOptions::default(), &quiet()).unwrap();
    let image = test.store.resolve(&name).unwrap();
    let manifest = fs::read(test.images().join("blobs/sha256").join(image.manifest_digest.hex())).unwrap();
    let entry = |architecture: &str, digest: Digest| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": manifest.len(),
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let put_index = |tag: &str, entries: serde_json::Value| {
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": entries }).to_string();
        let url = format!("http://{}/v2/multi/manifests/{tag}", server.host);
        let header = "Content-Type: application/vnd.oci.image.index.v1+json";
        run("curl", &["-sfX", "PUT", "-H", header, "--data-binary", &index, &url]);
        Digest::of(index.as_bytes())
    };
    if missing_program(&["curl"]) {
        return;
    }
    let index = put_index(
        "both",
        serde_json::json!([entry("arm64", image.manifest_digest), entry("amd64", image.manifest_digest)]),
    );
    let both = pull(&test.store, &server.name("multi:both"), &PullOptions::default(), &Quiet).unwrap();
    assert_eq!(both.manifest_digest, image.manifest_digest);
    // The index's digest names the image, too.
    let by_index = format!("{}@{index}", server.name("multi"));
    assert_eq!(test.store.resolve(&by_index).unwrap().manifest_digest, image.manifest_digest);
    put_index("arm", serde_json::json!([entry("arm64", image.manifest_digest)]));
    let error = pull(&test.store, &server.name("multi:arm"), &PullOptions::default(), &Quiet).unwrap_err().to_string();
    assert!(error.contains("offers no image for linux/amd64; it offers linux/arm64"), "{error}");
}
