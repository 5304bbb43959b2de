# shellcheck shell=bash
# Sourced by the other scripts: where the built binaries are, and a room of one's own for images and containers.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# build_release [CRATE…]: builds the binaries of these crates, or of all, in release and puts their folder first on the PATH.
# Of all, `berth-wasm` is built last and without its crate's compiler, which cargo would put into it if it built both at once.
# shellcheck disable=SC2120 # all of them is what no argument asks for
build_release() {
    local host wanted
    host=$(rustc -vV | sed -n 's/^host: //p')
    if [ $# -gt 0 ]; then
        wanted=(--bins "${@/#/--package=}")
    else
        wanted=(--bin={berth,berth-oci,berth-vmm,berth-guest-init,berth-wasm-compile,berth-work})
    fi
    cargo build --release --quiet "${wanted[@]}"
    [ $# -gt 0 ] || cargo build --release --quiet --no-default-features --bin berth-wasm
    PATH="$PWD/${CARGO_TARGET_DIR:-target}/$host/release:$PATH"
    export PATH
}

# own_roots: images and containers of this script live in temporary folders that go away with it: $scratch for what
# lasts, and $volatile, in memory as /run is on a booted system.
own_roots() {
    scratch=$(mktemp -d)
    volatile=$(mktemp -d -p /dev/shm berth.XXXXXX 2> /dev/null || mktemp -d)
    export BERTH_DATA_ROOT="$scratch/data" BERTH_STATE_ROOT="$volatile/state"
    trap 'remove_roots' EXIT
    trap 'exit 130' INT TERM
}

remove_roots() {
    local ids
    ids=$(berth ps -aq 2> /dev/null || true)
    # shellcheck disable=SC2086 # one word for each container
    [ -z "$ids" ] || berth rm -f $ids > /dev/null || true
    rm -rf "$scratch" "$volatile"
}

# import_busybox: the image `busybox`, made of the distribution's static busybox.
import_busybox() {
    scripts/busybox-rootfs "$scratch/busybox.tar"
    berth import "$scratch/busybox.tar" busybox > /dev/null
    rm "$scratch/busybox.tar"
}

# The state of the machine that a measurement was taken on.
print_machine() {
    printf 'kernel %s, %s CPUs, load average %s\n' "$(uname -r)" "$(nproc)" "$(cut -d' ' -f1-3 /proc/loadavg)"
}
