//! Who is at the other end of a connection over loopback: the kernel's tables of sockets name their owners (`proc_net(5)`).

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};

/// `TCP_ESTABLISHED`. Of a socket that its process has closed the tables name no owner, which reads as root.
const ESTABLISHED: &str = "01";

/// The user whose socket `client` talks from to `server`; none where there is no such socket here, or it is being closed.
pub fn owner(client: SocketAddr, server: SocketAddr) -> Option<u32> {
    let both = |of: fn(SocketAddr) -> String| (of(client), of(server));
    look_up("/proc/net/tcp", &both(as_ipv4)).or_else(|| look_up("/proc/net/tcp6", &both(as_ipv6)))
}

fn look_up(table: &str, (client, server): &(String, String)) -> Option<u32> {
    let lines = BufReader::new(File::open(table).ok()?).lines();
    lines.map_while(Result::ok).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let is_it =
            fields.next() == Some(client) && fields.next() == Some(server) && fields.next() == Some(ESTABLISHED);
        // Queues, timer and retransmissions stand in between.
        if is_it { fields.nth(3)?.parse().ok() } else { None }
    })
}

/// An address as the table of IPv4 has it; one of IPv6 is not in there.
fn as_ipv4(address: SocketAddr) -> String {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()),
        IpAddr::V6(_) => String::new(),
    }
}

/// An address as the table of IPv6 has it; those of IPv4 stand there mapped.
fn as_ipv6(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let octets = ip.octets();
    let words = octets.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_ne_bytes));
    let words: Vec<String> = words.map(|word| format!("{word:08X}")).collect();
    format!("{}:{:04X}", words.concat(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_owner_of_a_socket_is_found_while_it_is_open() {
        let me = rustix::process::geteuid().as_raw();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                assert_eq!(address, "[::1]:0", "a host without IPv6 has no such address");
                continue;
            };
            let server = listener.local_addr().unwrap();
            let stream = TcpStream::connect(server).unwrap();
            let client = stream.local_addr().unwrap();
            assert_eq!(owner(client, server), Some(me), "{address}");
            assert_eq!(owner(server, server), None);
            drop(stream);
            assert_eq!(owner(client, server), None, "closed");
        }
    }
}
