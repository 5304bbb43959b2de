//! `berth-work`: small work that measures itself, for `berth bench syscall|cpu|io|net`. One line for each figure, its fields
//! separated by tabs: name, unit, whether more or less is better, value.

#![expect(clippy::cast_precision_loss, reason = "times become figures for people")]

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// Turns of the loop; as many as the module `cpu.wat` makes.
const TURNS: u32 = 50_000_000;
/// How long calls are made again and again.
const LONG: Duration = Duration::from_millis(200);
/// Bytes of the file.
const FILE_SIZE: usize = 64 << 20;
/// Bytes written and read at once, in order and at random.
const CHUNK: usize = 1 << 20;
const PAGE: usize = 4096;
/// Pages read and written at random.
const PAGES: u32 = 4000;
/// Bytes sent over TCP.
const SENT: usize = 256 << 20;
/// Bytes that go there and back.
const PINGS: u32 = 2000;

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    let done = match argument.as_str() {
        "syscall" => syscall(),
        "cpu" => cpu(),
        "io" => file(),
        "net" => network(),
        _ => Err(io::Error::other("usage: berth-work syscall|cpu|io|net")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-work: {error}");
            ExitCode::FAILURE
        }
    }
}

fn say(name: &str, unit: &str, better: &str, value: f64) -> io::Result<()> {
    writeln!(io::stdout(), "{name}\t{unit}\t{better}\t{value}")
}

/// A system call that does nothing.
fn syscall() -> io::Result<()> {
    let (begin, mut calls) = (Instant::now(), 0_u32);
    while begin.elapsed() < LONG {
        for _ in 0..100 {
            // SAFETY: it takes nothing and cannot fail.
            black_box(unsafe { libc::syscall(libc::SYS_getppid) });
        }
        calls += 100;
    }
    say("null call", "ns", "less", begin.elapsed().as_nanos() as f64 / f64::from(calls))
}

/// xorshift, one step a turn.
fn cpu() -> io::Result<()> {
    let mut state = black_box(88_172_645_463_325_252_u64);
    let begin = Instant::now();
    for _ in 0..TURNS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
    }
    black_box(state);
    say("loop", "ns/turn", "less", begin.elapsed().as_nanos() as f64 / f64::from(TURNS))
}

/// A file in the working directory.
fn file() -> io::Result<()> {
    let path = "berth-work.data";
    let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
    let done = in_file(&mut file);
    fs::remove_file(path)?;
    done
}

fn in_file(file: &mut File) -> io::Result<()> {
    let mebibytes = |begin: Instant| FILE_SIZE as f64 / f64::from(1 << 20) / begin.elapsed().as_secs_f64();
    let per_second = |begin: Instant| f64::from(PAGES) / begin.elapsed().as_secs_f64();
    let mut chunk = vec![7; CHUNK];
    let begin = Instant::now();
    for _ in 0..FILE_SIZE / CHUNK {
        file.write_all(&chunk)?;
    }
    say("write in order", "MiB/s", "more", mebibytes(begin))?;
    file.seek(SeekFrom::Start(0))?;
    let begin = Instant::now();
    for _ in 0..FILE_SIZE / CHUNK {
        file.read_exact(&mut chunk)?;
    }
    say("read in order", "MiB/s", "more", mebibytes(begin))?;
    let mut state = 1_u64;
    let mut offset = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % (FILE_SIZE / PAGE) as u64 * PAGE as u64
    };
    let page = &mut chunk[..PAGE];
    let begin = Instant::now();
    for _ in 0..PAGES {
        file.read_exact_at(page, offset())?;
    }
    say("read 4 KiB at random", "1/s", "more", per_second(begin))?;
    let begin = Instant::now();
    for _ in 0..PAGES {
        file.write_all_at(page, offset())?;
    }
    say("write 4 KiB at random", "1/s", "more", per_second(begin))
}

/// A connection to itself.
fn network() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let other = thread::spawn(move || -> io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut byte = [0];
        for _ in 0..PINGS {
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        }
        let (mut chunk, mut left) = (vec![0; CHUNK], SENT);
        while left > 0 {
            left -= stream.read(&mut chunk)?.min(left);
        }
        stream.write_all(&byte)
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut byte = [1];
    let begin = Instant::now();
    for _ in 0..PINGS {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    say("TCP there and back", "µs", "less", begin.elapsed().as_micros() as f64 / f64::from(PINGS))?;
    let chunk = vec![7; CHUNK];
    let begin = Instant::now();
    for _ in 0..SENT / CHUNK {
        stream.write_all(&chunk)?;
    }
    stream.read_exact(&mut byte)?;
    let seconds = begin.elapsed().as_secs_f64();
    say("TCP", "MiB/s", "more", SENT as f64 / f64::from(1 << 20) / seconds)?;
    other.join().unwrap_or_else(|_| Err(io::Error::other("the other end panicked")))
}
