# shellcheck shell=bash
# Sourced by the other scripts: where the built binaries are, and a room of one's own for images and containers.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# Builds both binaries in release and puts their folder first on the PATH.
build_release() {
    local host
    host=$(rustc -vV | sed -n 's/^host: //p')
    cargo build --release --quiet -p berth -p berth-runtime --bins
    PATH="$PWD/${CARGO_TARGET_DIR:-target}/$host/release:$PATH"
    export PATH
}

# own_roots: images and containers of this script live in a temporary folder that goes away with it.
own_roots() {
    scratch=$(mktemp -d)
    export BERTH_DATA_ROOT="$scratch/data" BERTH_STATE_ROOT="$scratch/state"
    trap 'remove_roots' EXIT
    trap 'exit 130' INT TERM
}

remove_roots() {
    local ids
    ids=$(berth ps -aq 2> /dev/null || true)
    # shellcheck disable=SC2086 # one word for each container
    [ -z "$ids" ] || berth rm -f $ids > /dev/null || true
    rm -rf "$scratch"
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
