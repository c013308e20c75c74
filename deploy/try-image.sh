#!/usr/bin/env bash
# Builds deploy/docker/Dockerfile and runs what comes out, where there is no image registry and no
# container engine, so that the file can't rot: Debian's buildah carries out the file's own steps, and a
# short run is trained with both images as compose.yaml starts them.
#
#   deploy/try-image.sh          the binaries come from `cargo build`; every other step is the file's
#   deploy/try-image.sh --full   every step, compiling in the image too (a quarter of an hour on two cores)
#
# The base images are stand-ins of the same Debian release, made here: a root by debootstrap with gcc
# and this machine's Rust for `rust:…-slim-bookworm`, and the runtime packages of Debian extracted
# into an empty root, which is how distroless is made, for `gcr.io/distroless/cc-debian12`.
# Needs root; installs Debian's debootstrap and buildah where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-quick}
work=$PWD/target/deploy/image
binaries=${CARGO_TARGET_DIR:-target}/debug
passed=0
mkdir -p "$work"

say() { echo "image: $*"; }
pass() { passed=$((passed + 1)) && say "ok: $*"; }
fail() { say "FAILED: $*" >&2 && exit 1; }

if [ "$(id -u)" != 0 ]; then
    say "skipped, for it needs root (chroot, mounts)"
    exit 0
fi
missing=()
for tool in debootstrap buildah; do command -v "$tool" >/dev/null || missing+=("$tool"); done
if [ ${#missing[@]} != 0 ]; then
    apt-get install --yes --quiet --no-install-recommends "${missing[@]}" >"$work/apt.log" 2>&1 \
        || { apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends "${missing[@]}"; } >>"$work/apt.log" 2>&1 \
        || { say "skipped, for Debian's ${missing[*]} cannot be installed; see $work/apt.log" && exit 0; }
fi

# All that it makes lies under target/, apart from the machine's own images.
store=(--root "$work/store" --runroot "$work/run" --storage-driver "${STORAGE_DRIVER:-overlay}")
bud() { buildah "${store[@]}" build --isolation chroot --network host --pull=never --layers "$@"; }
have() { buildah "${store[@]}" images --quiet "$1" >/dev/null 2>&1; }

# The base images that the Dockerfile names.
file=deploy/docker/Dockerfile
rust_image=$(sed -n 's/^ARG RUST_IMAGE=//p' $file)
runtime_image=$(sed -n 's/^ARG RUNTIME_IMAGE=//p' $file)
suite=bookworm
[[ $rust_image == *-slim-$suite && $runtime_image == *-debian12:* ]] || fail "$file: the stand-ins are Debian 12's, the base images are not"

if [ ! -e "$work/debian/.whole" ]; then
    rm -rf "$work/debian"
    packages=
    if [ "$mode" = --full ]; then packages=--include=gcc,libc6-dev; fi
    say "making a root of Debian $suite"
    debootstrap --variant=minbase $packages $suite "$work/debian" >"$work/debootstrap.log" 2>&1 \
        || fail "debootstrap; see $work/debootstrap.log"
    touch "$work/debian/.whole"
fi

if ! have "$runtime_image"; then
    root=$work/runtime
    rm -rf "$root" && mkdir -p "$root"
    for package in base-files netbase tzdata libc6 libgcc-s1; do
        dpkg-deb --extract "$(ls "$work"/debian/var/cache/apt/archives/${package}_*.deb 2>/dev/null | head -n 1 || true)" "$root" 2>/dev/null \
            || [ $package = netbase ] || fail "the root of Debian has no package $package"
    done
    mkdir -p "$root/home/nonroot" && chown 65532:65532 "$root/home/nonroot"
    echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >"$root/etc/passwd"
    echo 'nonroot:x:65532:' >"$root/etc/group"
    printf 'FROM scratch\nCOPY . /\nUSER 65532\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n' \
        | bud --quiet --tag "$runtime_image" --file - "$root" >/dev/null
fi

options=()
if [ "$mode" = --full ]; then
    if ! have "$rust_image"; then
        [ -e "$work/debian/usr/bin/gcc" ] || fail "the root was made without gcc; remove $work/debian and try again"
        say "making a stand-in for $rust_image"
        rust=$work/rust
        rm -rf "$rust" && mkdir -p "$rust"
        cp --archive "$(rustc --print sysroot)" "$rust/toolchain"
        rm -rf "$rust/toolchain/share/doc"
        mkdir "$rust/root" && cp --archive --link "$work/debian/." "$rust/root"
        printf '%s\n' 'FROM scratch' 'COPY root /' 'COPY toolchain /usr/local/toolchain' \
            'ENV PATH=/usr/local/toolchain/bin:/usr/local/cargo/bin:/usr/local/bin:/usr/bin:/bin CARGO_HOME=/usr/local/cargo' \
            | bud --quiet --tag "$rust_image" --file - "$rust" >/dev/null
        rm -rf "$rust"
    fi
    # Crates that are here already need not come again, and this machine's certificates are trusted inside.
    options+=(--volume "${CARGO_HOME:-$HOME/.cargo}/registry:/usr/local/cargo/registry" --volume /etc/ssl/certs:/etc/ssl/certs:ro)
else
    # The stage `build` is replaced by a folder with what it would have made.
    cargo build --quiet --workspace --bin coordinator --bin worker
    out=$work/build/out
    rm -rf "$out" && mkdir -p "$out/runs"
    cp "$binaries/coordinator" "$binaries/worker" LICENSE-MIT LICENSE-APACHE "$out/"
    strip --strip-debug "$out/coordinator" "$out/worker"
    options+=(--build-context "build=$work/build")
fi

for target in coordinator worker; do
    bud "${options[@]}" --target $target --tag "tally/$target" --file $file . >"$work/build-$target.log" 2>&1 \
        || { tail -n 20 "$work/build-$target.log" >&2 && fail "the image $target; see $work/build-$target.log"; }
    pass "$target is built, $(buildah "${store[@]}" images --format '{{.Size}}' "tally/$target")"
done

# Each as a container engine would start it: the image's user and entry point, no capabilities, a root that
# cannot be written to, and for the coordinator a volume.
containers=()
inspect() { buildah "${store[@]}" inspect --type image --format "{{$2}}" "tally/$1"; }
volume=$(mktemp -d)
unmount() {
    for container in "${containers[@]}"; do buildah "${store[@]}" rm "$container" >/dev/null || true; done
    rm -rf "$volume"
}
trap unmount EXIT
declare -A roots entries
for image in coordinator worker; do
    container=$(buildah "${store[@]}" from --pull=never "tally/$image")
    containers+=("$container")
    roots[$image]=$(buildah "${store[@]}" mount "$container")
    [ "$(inspect $image .OCIv1.Config.User)" = 65532:65532 ] || fail "the image $image runs as $(inspect $image .OCIv1.Config.User)"
    entries[$image]=$(inspect $image 'index .OCIv1.Config.Entrypoint 0')
done
chown 65532:65532 "$volume"
start() { # IMAGE ARGUMENTS: to be called in a subshell, which becomes the process
    exec unshare --mount --propagation private bash -ec '
        root=$1 volume=$2; shift 2
        mount --bind "$root" "$root"
        if [ -d "$root/runs" ]; then mount --bind "$volume" "$root/runs"; fi
        mount --bind /proc "$root/proc"
        mount -o remount,bind,ro "$root"
        exec chroot --userspec=65532:65532 "$root" "$@"
    ' start "${roots[$1]}" "$volume" "${entries[$1]}" "${@:2}"
}
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
(start worker --connect "127.0.0.1:$port" --backend cpu --threads 1) >"$work/worker.log" 2>&1 &
worker=$!
(start coordinator --supervised --run-dir /runs/run --workers 1 --listen "127.0.0.1:$port" --http-listen 127.0.0.1:0 \
    --model mlp --epochs 1 --train-limit 1280 --test-limit 100) >"$work/coordinator.log" 2>&1 \
    || { tail -n 20 "$work/coordinator.log" >&2 && fail "the coordinator's image; see $work/coordinator.log"; }
wait $worker || { tail -n 20 "$work/worker.log" >&2 && fail "the worker's image; see $work/worker.log"; }
grep -q '^test: loss' "$work/coordinator.log" || fail "the run in the images had no test; see $work/coordinator.log"
[ "$(stat -c %u "$volume/run/summary.json")" = 65532 ] || fail "the run was not written by user 65532"
if (start coordinator --run-dir /run-elsewhere --local --model mlp --epochs 1 \
    --listen 127.0.0.1:0 --http-listen 127.0.0.1:0) >"$work/elsewhere.log" 2>&1; then
    fail "the coordinator's root can be written to"
fi
grep -q 'run-elsewhere' "$work/elsewhere.log" || fail "no word of where nothing can be written; see $work/elsewhere.log"
pass "a run in both, as user 65532, with a root that cannot be written to"
