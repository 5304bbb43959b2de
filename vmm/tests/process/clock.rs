//! The time a program reads without a system call.

use std::time::Duration;

use crate::{in_guest, inside};

fn nanoseconds(time: libc::timespec) -> i64 {
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[test]
fn the_time_is_the_hosts_and_needs_no_system_call() {
    in_guest("clock::guest_the_time_is_the_hosts_and_needs_no_system_call");
}

#[test]
#[ignore = "runs in a guest"]
fn guest_the_time_is_the_hosts_and_needs_no_system_call() {
    if !inside() {
        return;
    }
    let library = |clock| {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the structure is filled by the call.
        assert_eq!(unsafe { libc::clock_gettime(clock, &raw mut time) }, 0);
        nanoseconds(time)
    };
    // By the system call, so that the VMM asks the host.
    let host = |clock: i32| {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: as above.
        assert_eq!(unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut time) }, 0);
        nanoseconds(time)
    };
    // Threads on every processor, across many renewals of what they read.
    let threads: Vec<_> = (0..3)
        .map(|_| {
            std::thread::spawn(move || {
                for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME, libc::CLOCK_BOOTTIME] {
                    let (mut last, start) = (host(clock), std::time::Instant::now());
                    while start.elapsed() < Duration::from_millis(400) {
                        for _ in 0..1000 {
                            let now = library(clock);
                            assert!(now >= last, "clock {clock} went back by {} ns", last - now);
                            last = now;
                        }
                        let now = host(clock);
                        assert!(now >= last, "clock {clock} is ahead by {} ns", last - now);
                        last = now;
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    // Close to the host's: between two questions to it, but for what the rate is taken low.
    for _ in 0..1000 {
        let (before, own, after) =
            (host(libc::CLOCK_REALTIME), library(libc::CLOCK_REALTIME), host(libc::CLOCK_REALTIME));
        assert!(before <= own + 100_000 && own <= after, "{before} {own} {after}");
    }
    // SAFETY: asks for seconds only; and a structure that is filled.
    let (seconds, day) = unsafe {
        let mut day = libc::timeval { tv_sec: 0, tv_usec: 0 };
        libc::gettimeofday(&raw mut day, std::ptr::null_mut());
        (libc::time(std::ptr::null_mut()), day)
    };
    assert!((0..2).contains(&(seconds - day.tv_sec)) && (0..1_000_000).contains(&day.tv_usec));

    // A system call takes some microseconds at best, and most of these take none.
    let start = std::time::Instant::now();
    let calls = 100_000;
    for _ in 0..calls {
        std::hint::black_box(library(libc::CLOCK_MONOTONIC));
    }
    let own = start.elapsed();
    let start = std::time::Instant::now();
    for _ in 0..calls / 100 {
        std::hint::black_box(host(libc::CLOCK_MONOTONIC));
    }
    let asked = start.elapsed() * 100;
    println!("{} ns a call in the library, {} ns by the host", own.as_nanos() / 100_000, asked.as_nanos() / 100_000);
    assert!(own * 5 < asked, "{own:?} {asked:?}");
}
