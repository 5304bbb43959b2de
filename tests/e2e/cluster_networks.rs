//! Agents of one machine in networks of their own, and what they reach.

use std::fs;
use std::io::{Read as _, Write as _, stderr};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use berth_tests::home::Home;
use berth_tests::wait;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use serde_json::Value;

use crate::cluster::Cluster;
use crate::jobs::tasks;

const SERVICE: &str = "
name: web
tasks:
  server:
    service: {replicas: 2}
    image: busybox
    shell: mkdir /www; echo from $BERTH_TASK_INDEX > /www/index.html; exec httpd -f -p $BERTH_PORT_HTTP -h /www
    ports: [http]
    spread: {over: agent, most: 1}
    resources: {cpus: 0.1, memory: 32m}
    health: {http: {port: http, path: /index.html}, interval: 200ms}
    grace: 100ms
";

impl Cluster {
    /// Where the tasks of each replica are reached.
    fn addresses(&self) -> Vec<SocketAddr> {
        let nodes = self.home.berth("nodes --format json").ok().json();
        let nodes: Vec<&Value> = nodes.as_array().unwrap().iter().map(|node| &node["agent_info"]).collect();
        let host = |task: &Value| {
            let node = nodes.iter().find(|node| node["id"]["value"] == task["agent"]).unwrap();
            node["hostname"].as_str().unwrap().to_owned()
        };
        let job = self.job("web");
        tasks(&job).iter().map(|task| format!("{}:{}", host(task), task["ports"]["http"]).parse().unwrap()).collect()
    }

    fn inside(&self, index: usize, script: &str) -> String {
        self.home.berth(&format!("job exec web.server.{index} sh -c")).arg(script).run().trimmed()
    }
}

/// What a server answers.
fn get(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn agents_have_networks_of_their_own_which_go_with_the_cluster() {
    let cluster = Cluster::up(2);
    cluster.home.berth("submit --wait healthy").arg(cluster.manifest(SERVICE)).ok();
    let addresses = cluster.addresses();
    assert_eq!(addresses[0].port(), addresses[1].port(), "each has all ports");
    assert_ne!(addresses[0].ip(), addresses[1].ip());
    let host = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    let own = [0, 1].map(|index| cluster.inside(index, "readlink /proc/self/ns/net"));
    assert!(own[0] != own[1] && !own.contains(&host), "{own:?}");
    for (index, address) in addresses.iter().enumerate() {
        assert_eq!(get(*address), format!("from {index}"));
        let other = addresses[1 - index];
        let script = format!("wget -q -O - http://{other}/index.html");
        assert_eq!(cluster.inside(index, &script), format!("from {}", 1 - index), "they reach each other");
        // A task that is root is not root to the master, which it cannot reach.
        let script = format!("wget -q -O - http://{}/version || echo none", cluster.master);
        assert_eq!(cluster.inside(index, &script), "none");
    }
    for (flags, said) in [("--network host", "networks of the agents' own"), ("--agents 3", "2 agents")] {
        cluster.home.berth(&format!("cluster up {flags}")).run().fails_with(said);
    }

    // What dies finds its network again, and another cluster takes another one.
    cluster.kill(&["agent-1", "agent-2", "master", "jobs"]);
    cluster.mend(2);
    cluster.home.berth("submit --wait healthy").arg(cluster.manifest(SERVICE)).run().fails_with("is there already");
    wait::until("both are well", || {
        tasks(&cluster.job("web")).iter().filter(|task| task["healthy"] == true).count() == 2
    });
    assert_eq!(cluster.addresses(), addresses);
    let second = Cluster::up_with(1, "--network own");
    second.home.berth("submit").arg(second.manifest(&SERVICE.replace("replicas: 2", "replicas: 1"))).ok();
    second.expect("web", "running", 1);
    let second_address = second.addresses()[0];
    assert!(!addresses.contains(&second_address), "{second_address} of {addresses:?}");
    drop(second);
    wait::until("nothing of it answers", || !link_of(second_address).exists());
    assert_eq!(get(addresses[1]), "from 1");

    // A cluster that cannot begin leaves nothing.
    let busy = Home::empty();
    let taken = format!("cluster up --network own --listen {}", cluster.master);
    busy.berth(&taken).run().fails_with("master did not start");
    assert!(!busy.state().join("cluster/network").exists());

    // Even what dies while it makes them leaves nothing: the next `up` or `down` removes it.
    let files = cluster.home.state().join("cluster/network");
    assert!(files.join("agent-2").exists());
    cluster.home.berth("cluster down").ok();
    assert!(!files.exists());
    wait::until("the host has no link to them", || !link_of(addresses[0]).exists());
    cluster.home.berth("cluster up --listen 127.0.0.1:0 --network own --agents 1").ok();
    cluster.kill(&["master", "agent-1", "jobs"]);
    fs::remove_file(cluster.home.state().join("cluster/cluster.json")).unwrap();
    cluster.home.berth("cluster down").run().fails_with("there is no cluster");
    assert!(!files.exists());
    cluster.home.berth("cluster up --listen 127.0.0.1:0").ok();
}

/// The host's end of a network with this address.
fn link_of(address: SocketAddr) -> std::path::PathBuf {
    let SocketAddr::V4(address) = address else { panic!("{address}") };
    Path::new("/sys/class/net").join(format!("berth{}", address.ip().octets()[2]))
}

/// Has `ip` do something in the network of this thread, whose loopback is set up.
fn in_a_network_of_its_own(commands: &str) {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for command in ["link set lo up"].into_iter().chain(commands.lines()) {
        let status = Command::new("ip").args(command.split_whitespace()).status().unwrap();
        assert!(status.success(), "ip {command}");
    }
}

/// A host with a network of its own, and a server in another one that only it is led to.
#[test]
fn tasks_reach_what_is_beyond_the_host() {
    if Command::new("slirp4netns").arg("--version").output().is_err() {
        let _ = writeln!(stderr(), "NOT TESTED that tasks reach what is beyond the host: there is no slirp4netns");
        return;
    }
    let (ready, tid) = mpsc::channel();
    let (done, end) = mpsc::channel::<()>();
    let world = thread::spawn(move || {
        in_a_network_of_its_own("");
        ready.send((gettid(), None)).unwrap();
        // The host makes the link, and this end of it is set up when the host says so.
        end.recv().unwrap();
        for command in ["addr add 198.51.100.1/24 dev world", "link set world up"] {
            assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success(), "{command}");
        }
        let listener = TcpListener::bind("198.51.100.1:0").unwrap();
        ready.send((gettid(), Some(listener.local_addr().unwrap()))).unwrap();
        let (mut stream, from) = listener.accept().unwrap();
        stream.write_all(b"from beyond\n").unwrap();
        drop(stream);
        // The network goes with its last thread.
        end.recv().unwrap();
        from
    });
    let host = thread::spawn(move || {
        let (other, _) = tid.recv().unwrap();
        in_a_network_of_its_own(&format!(
            "link add eth0 type veth peer name world netns {other}\n\
             addr add 198.51.100.2/24 dev eth0\n\
             link set eth0 up\n\
             route add default via 198.51.100.1"
        ));
        done.send(()).unwrap();
        let server = tid.recv().unwrap().1.unwrap();
        let cluster = Cluster::up(1);
        let fetch = format!("nc {} {}", server.ip(), server.port());
        let manifest = format!("name: out\ntasks: {{t: {{image: busybox, shell: '{fetch}'}}}}\n");
        cluster.home.berth("submit --wait ended").arg(cluster.manifest(&manifest)).ok();
        assert_eq!(cluster.home.berth("job logs out.t").ok().text(), "from beyond\n");
        done.send(()).unwrap();

        // Without what leads there nothing else is missing.
        cluster.home.berth("cluster down").ok();
        let programs = tempfile::tempdir().unwrap();
        let ip = ["/sbin/ip", "/usr/sbin/ip", "/bin/ip"].into_iter().find(|ip| Path::new(ip).exists()).unwrap();
        symlink(ip, programs.path().join("ip")).unwrap();
        let up = cluster.home.berth("cluster up --listen 127.0.0.1:0").env("PATH", programs.path().to_str().unwrap());
        let said = up.ok().stderr_text();
        assert!(said.contains("nothing beyond") && said.contains("`slirp4netns`"), "{said}");
    });
    host.join().unwrap();
    assert_eq!(world.join().unwrap().ip().to_string(), "198.51.100.2", "it is the host that comes");
}

#[test]
fn a_container_joins_a_network_that_is_there() {
    let home = Home::new();
    let first = home.detached("", "httpd -f -p 127.0.0.1:8080 -h /etc");
    let flags = format!("--network ns:/proc/{}/ns/net", home.pid(&first));
    let fetch = "until wget -q -O - http://127.0.0.1:8080/group; do sleep 0.1; done | head -n 1";
    assert!(home.prints(&flags, fetch).starts_with("root:"), "it is the same loopback");
    let joined = home.detached(&flags, "sleep 1000");
    assert_eq!(home.inspect(&joined)["HostConfig"]["NetworkMode"], flags["--network ".len()..]);
    home.berth("run --rm --network ns:/no/such busybox true").run().fails_with("/no/such");
    home.berth("run --rm --network ns:/etc/passwd busybox true").run().fails_with("enter the net namespace");
}
