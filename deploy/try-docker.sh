#!/usr/bin/env bash
# Docker and Compose, for real: an engine of its own builds both images, starts what compose.yaml describes, and does
# to it what a day may bring. In the end the run must have the bits of the same run without any of that.
#
#   deploy/try-docker.sh          the binaries come from `cargo build`; the images' other steps are the Dockerfile's
#   deploy/try-docker.sh --full   every step, compiling in the image too, by BuildKit (half an hour on two cores)
#
# Needs root, Debian's docker.io, debootstrap, prometheus and busybox-static, which it installs where they are missing, and
# Compose from PyPI. The engine runs in a network namespace of its own, so that neither this machine's network nor its
# other containers notice; all that it keeps lies in target/deploy/docker. There is no image registry: the base images are
# stand-ins of the same Debian release, made here. A root by debootstrap with gcc and this machine's Rust stands in for
# rust:…-slim-bookworm; packages extracted into an empty root, which is how distroless is made, for its cc-debian12; and
# the same with Debian's Prometheus for prom/prometheus. Grafana has no stand-in and is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/checks/setup.sh
. scripts/checks/try.sh

mode=${1:-quick}
work=$PWD/target/deploy/docker
project=${APART:-}/project

# The base images that the files of deploy/ name.
file=deploy/docker/Dockerfile
rust_image=$(sed -n 's/^ARG RUST_IMAGE=//p' $file)
runtime_image=$(sed -n 's/^ARG RUNTIME_IMAGE=//p' $file)
prometheus_image=$(sed -n 's/^ *image: \(.*prom\/prometheus.*\)/\1/p' deploy/compose.yaml)
suite=bookworm

if [ -z "${APART:-}" ]; then
    require dockerd:docker.io iptables:iptables debootstrap:debootstrap prometheus:prometheus busybox:busybox-static
    if [[ $rust_image != *-slim-$suite || $runtime_image != *-debian12:* ]]; then
        say "FAILED: $file: the stand-ins are Debian 12's, the base images are not" >&2
        exit 1
    fi
    if [ ! -e "$work/debian/.whole" ]; then
        say "making a root of Debian $suite"
        rm -rf "$work/debian" && mkdir -p "$work"
        debootstrap --variant=minbase --include=gcc,libc6-dev $suite "$work/debian" >"$work/debootstrap.log" 2>&1 \
            || skip "there is no Debian to be had; see $work/debootstrap.log"
        touch "$work/debian/.whole"
    fi
    # What the images are made of comes over this machine's network; all else is done without it.
    export STAGE
    STAGE=build
    if [ "$mode" = --full ]; then apart; fi
    STAGE=run
    apart --net
    exit
fi
files=(--file "$project/deploy/compose.yaml")
compose() { docker-compose "${files[@]}" "$@"; }
fail() {
    say "FAILED: $*" >&2
    if [ "$STAGE" = run ] && [ -d "$project" ]; then compose logs --no-color --tail 15 >&2 || true; fi
    exit 1
}

engine=
stop_engine() {
    [ -n "$engine" ] || return 0
    kill -TERM "$engine" 2>/dev/null || true
    wait "$engine" 2>/dev/null || true
    engine=
}
start_engine() {
    # Images are built with the machine's own network, which the engine leaves as it is.
    local network=(--bridge none --iptables=false --ip-forward=false)
    [ "$STAGE" = build ] || network=(--bip 10.63.0.1/24 --default-address-pool "base=10.64.0.0/16,size=24")
    # Its control groups are apart's, which removes them.
    dockerd --data-root "$work/data" --exec-root "$APART/exec" --pidfile "$APART/pid" --host "unix://$APART/socket" --storage-driver overlay2 \
        --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/${APART##*/}" \
        "${network[@]}" >>"$work/engine.log" 2>&1 &
    engine=$!
    for _ in $(seq 300); do
        ! docker version >/dev/null 2>&1 || return 0
        kill -0 "$engine" 2>/dev/null || break
        sleep 0.1
    done
    skip "this machine runs no Docker engine; see $work/engine.log"
}
clean_up() {
    if [ "$STAGE" = run ] && [ -d "$project" ]; then compose down --volumes --timeout 1 >>"$work/compose.log" 2>&1 || true; fi
    stop_engine
}
trap clean_up EXIT
ip link set lo up
export DOCKER_HOST=unix://$APART/socket
# Debian's client before another that may be on the path: it knows how to build without a plugin.
docker() { if [ -x /usr/bin/docker ]; then /usr/bin/docker "$@"; else command docker "$@"; fi; }
have() { [ -n "$(docker images --quiet "$1")" ]; }
: >"$work/compose.log"
start_engine

runtime_root() { # DIRECTORY
    rm -rf "$1" && mkdir -p "$1/home/nonroot" && chown 65532:65532 "$1/home/nonroot"
    local package
    for package in base-files tzdata libc6 libgcc-s1; do dpkg-deb --extract "$work/debian/var/cache/apt/archives/${package}"_*.deb "$1"; done
    echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >"$1/etc/passwd"
    echo 'nonroot:x:65532:' >"$1/etc/group"
}
import() { # NAME DIRECTORY CHANGES…
    local name=$1 directory=$2 changes=() change
    shift 2
    for change; do changes+=(--change "$change"); done
    tar -C "$directory" -c . | docker import "${changes[@]}" - "$name" >/dev/null
    rm -rf "$directory"
}
path='ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
bases() {
    if ! have "$runtime_image"; then
        runtime_root "$work/root"
        import "$runtime_image" "$work/root" 'USER 65532' "$path"
    fi
    if ! have "$prometheus_image"; then
        runtime_root "$work/root"
        mkdir -p "$work/root/prometheus" && chown 65534:65534 "$work/root/prometheus"
        cp "$(command -v prometheus)" "$work/root/bin/prometheus"
        cp "$(command -v busybox)" "$work/root/bin/wget"
        import "$prometheus_image" "$work/root" 'USER 65534' "$path" 'VOLUME /prometheus' 'ENTRYPOINT ["/bin/prometheus"]'
    fi
}

bases

if [ "$STAGE" = build ]; then
    if ! have "$rust_image"; then
        say "making a stand-in for $rust_image"
        rm -rf "$work/rust" && mkdir -p "$work/rust"
        cp --archive "$work/debian/." "$work/rust"
        mkdir -p "$work/rust/usr/local/cargo" "$work/rust/etc/ssl"
        cp --archive "$(rustc --print sysroot)" "$work/rust/usr/local/toolchain"
        # Crates that are here already need not come again, and this machine's certificates are trusted inside.
        cp --archive "${CARGO_HOME:-$HOME/.cargo}/registry" "$work/rust/usr/local/cargo/"
        cp --recursive --dereference /etc/ssl/certs "$work/rust/etc/ssl/"
        import "$rust_image" "$work/rust" 'ENV PATH=/usr/local/toolchain/bin:/usr/local/cargo/bin:/usr/local/bin:/usr/bin:/bin CARGO_HOME=/usr/local/cargo'
    fi
    for target in coordinator worker; do
        say "building $target as the Dockerfile says"
        DOCKER_BUILDKIT=1 docker build --network host --progress plain --file $file --target $target --tag "tally/$target:0.1.0" . \
            >"$work/build-$target.log" 2>&1 || { tail -n 30 "$work/build-$target.log" >&2 && fail "the image $target; see $work/build-$target.log"; }
    done
    exit 0
fi
if [ "$mode" != --full ]; then
    # The stage `build` is replaced by an image with what it would have made.
    rm -rf "$work/made" && mkdir -p "$work/made/out/runs" "$APART/context"
    cp "$binaries/coordinator" "$binaries/worker" LICENSE-MIT LICENSE-APACHE "$work/made/out/"
    strip --strip-debug "$work/made/out/coordinator" "$work/made/out/worker"
    import build "$work/made"
    sed -n '/^ARG RUNTIME_IMAGE/p; /^FROM .* AS runtime/,$p' $file >"$APART/Dockerfile"
    for target in coordinator worker; do
        DOCKER_BUILDKIT=0 docker build --file "$APART/Dockerfile" --target $target --tag "tally/$target:0.1.0" "$APART/context" \
            >"$work/build-$target.log" 2>&1 || { tail -n 20 "$work/build-$target.log" >&2 && fail "the image $target; see $work/build-$target.log"; }
    done
fi
docker image prune --force >/dev/null
size() { docker image inspect --format '{{.Size}}' "tally/$1:0.1.0" | numfmt --to=iec; }
pass "both images are built: coordinator $(size coordinator), worker $(size worker), by Docker $(docker version --format '{{.Server.Version}}')"

# A copy of deploy/, so that a tally.env or secrets that are there are left alone; and no volume of a script that was killed.
mkdir -p "$project/deploy"
for left in $(docker ps --all --quiet); do docker rm --force --volumes "$left" >/dev/null; done
for left in $(docker volume ls --quiet); do docker volume rm "$left" >/dev/null; done
cp -r deploy/compose.yaml deploy/compose.secure.yaml deploy/prometheus deploy/grafana "$project/deploy/"
up() { compose up --detach --no-build --pull never "$@" >>"$work/compose.log" 2>&1 || fail "docker compose up; see $work/compose.log"; }
of() { docker inspect --format "{{$2}}" "$1"; }
journal=$work/data/volumes/tally_runs/_data/run/journal.jsonl
summary=$work/data/volumes/tally_runs/_data/run/summary.json
count() { grep -cs "$1" "$journal" || true; }
steps() { count '"event":"step"'; }
has_steps() { [ "$(steps)" -ge "$1" ]; }
more_steps() { wait_until "$1 more steps" has_steps $(($(steps) + $1)); }
healthy() { [ "$(of "tally-$1-1" .State.Health.Status)" = healthy ]; }
has_rules() { docker exec tally-prometheus-1 /bin/wget -q -O - http://localhost:9090/api/v1/rules | grep -q '"TallyNoWorkers"'; }
answers() { docker exec tally-prometheus-1 /bin/wget -q -O - "http://localhost:9090/api/v1/query?query=$1" | grep -q "\"$2\"\]"; }
# As its own fault or the system's want of memory would end it.
crash() { kill -KILL "$(of "$1" .State.Pid)"; }
started() { [ "$(of "$1" .RestartCount)" -ge "$2" ]; }
worker_is_back() { [ "$(count "\"event\":\"join\"")" -gt "$1" ]; }

# What is trained takes eighty seconds on any machine, since its engine waits: long enough for all of this. The run that
# nothing happens to, which ends in the same bits, need not wait.
what() { # MICROSECONDS
    printf '%s\n' TALLY_WORKERS=2 "TALLY_MODEL=synthetic:parameters=50000,us-per-sample=$1" TALLY_TRAIN_LIMIT=640 TALLY_TEST_LIMIT=10 TALLY_BATCH_SIZE=16 TALLY_EPOCHS=100
}
what 2000 >"$project/deploy/tally.env"
mapfile -t options < <(what 0)
env "${options[@]}" "$binaries/coordinator" --local --threads 1 --listen 127.0.0.1:0 --http-listen 127.0.0.1:0 --run-dir "$APART/alone" \
    >"$work/alone.log" 2>&1 || fail "the run on one machine; see $work/alone.log"
bits() { sed -n 's/.*"parameters_sha256": *"\([0-9a-f]*\)".*/\1/p' "$1"; }
alone=$(bits "$APART/alone/summary.json")

up --scale worker=2 coordinator worker prometheus
wait_until "a healthy coordinator" healthy coordinator
wait_until "twenty steps" has_steps 20
[ "$(docker exec tally-prometheus-1 /bin/wget -q -O /dev/null http://coordinator:9000/readyz && echo ready)" = ready ] || fail "the coordinator is not ready"
"$binaries/coordinator" health --connect 127.0.0.1:9000 >/dev/null || fail "the page's port is not published"
wait_until "metrics in Prometheus" answers 'up%7Bjob%3D%22tally%22%7D' 1
wait_until "a healthy Prometheus" healthy prometheus
has_rules || fail "Prometheus has not read the rules"
for container in tally-coordinator-1 tally-worker-1; do
    [ "$(of $container .Config.User) $(of $container .HostConfig.ReadonlyRootfs) $(of $container .HostConfig.CapDrop)" = "65532:65532 true [ALL]" ] \
        || fail "$container is not as hardened as compose.yaml says"
    # 2: system calls pass a filter, which is the engine's own.
    grep -qx $'Seccomp:\t2' "/proc/$(of $container .State.Pid)/status" || fail "$container has no seccomp profile"
    grep -qx $'NoNewPrivs:\t1' "/proc/$(of $container .State.Pid)/status" || fail "$container may gain privileges"
done
[ "$(stat -c %u "$journal")" = 65532 ] || fail "the run is not written by user 65532"
pass "compose $(docker-compose version --short): two workers, a healthy coordinator, Prometheus has its metrics; read-only roots, no capabilities, user 65532, the default seccomp profile"

joins=$(count '"event":"join"')
crash tally-worker-1
wait_until "the engine to start the killed worker again" started tally-worker-1 1
wait_until "its return to the run" worker_is_back "$joins"
more_steps 20
pass "a worker that is killed is started again and joins"

lost=$(count '"event":"lost"')
joins=$(count '"event":"join"')
docker network disconnect tally_cluster tally-worker-2
is_lost() { [ "$(count '"event":"lost"')" -gt "$lost" ]; }
wait_until "the loss of a worker without a network" is_lost
more_steps 20
docker network connect tally_cluster tally-worker-2
wait_until "its return to the run" worker_is_back "$joins"
more_steps 20
pass "a worker whose network is cut is missed by nobody, and comes back with it"

up --no-recreate --scale worker=3 worker
of_three() { [ "$(count '"event":"step".*"workers":3')" -ge 1 ]; }
wait_until "a step of three workers" of_three
pass "scaled to three workers in mid-run"

at=$(steps)
crash tally-coordinator-1
wait_until "the engine to start the killed coordinator again" started tally-coordinator-1 1
wait_until "steps after it" has_steps $((at + 20))
wait_until "a healthy coordinator" healthy coordinator
pass "a coordinator that is killed goes on from the journal, at step $at"

compose stop coordinator >>"$work/compose.log" 2>&1
[ "$(of tally-coordinator-1 .State.ExitCode)" = 75 ] || fail "stopped in mid-run, the coordinator ended with $(of tally-coordinator-1 .State.ExitCode), not with 75"
at=$(steps)
compose start coordinator >>"$work/compose.log" 2>&1
wait_until "steps after the stop" has_steps $((at + 10))
pass "docker stop in mid-run: a checkpoint, code 75, and the next start goes on at step $at"

at=$(steps)
stop_engine
start_engine
wait_until "steps after the engine's start" has_steps $((at + 10))
wait_until "a healthy coordinator" healthy coordinator
pass "an engine that is started anew, as with the machine, brings all back: from step $at"

done_() { grep -qs '"outcome": *"done"' "$summary"; }
wait_until "the end of the run" done_
[ "$(bits "$summary")" = "$alone" ] || fail "the run has other bits than the same run on one machine"
grep -q '"samples_lost": 0' "$summary" || fail "samples were lost"
wait_until "a healthy coordinator after the run" healthy coordinator
pass "the run is done, in the bits of the same run on one machine; its page stays"

# How much a container may use.
status() { docker exec tally-coordinator-1 /usr/local/bin/coordinator status --json; }
threads() { status | python3 -c 'import json, sys; print(*[w["threads"] for w in json.load(sys.stdin)["workers"] if w["name"] == sys.argv[1]])' "$1"; }
compose down --volumes >>"$work/compose.log" 2>&1
cat >"$project/deploy/tally.env" <<'END'
TALLY_WORKERS=1
TALLY_MODEL=mlp
TALLY_EPOCHS=1000
TALLY_TEST_LIMIT=200
END
up coordinator
limited() { # NAME OPTIONS OF DOCKER
    local network=(--network tally_cluster)
    [[ "$*" != *--network* ]] || network=()
    docker run --detach --name "$1" "${network[@]}" --read-only --cap-drop ALL "${@:2}" tally/worker:0.1.0 --connect coordinator:50051 --stay --name "$1" >/dev/null
}
is_in() { [ -n "$(threads "$1")" ]; }
limited half --cpus 0.5 --memory 512m
wait_until "a worker with half a core" is_in half
[ "$(threads half)" = 1 ] || fail "half a core and $(threads half) threads"
limited all
wait_until "a worker without limits" is_in all
[ "$(threads all)" = "$(nproc)" ] || fail "$(nproc) cores and $(threads all) threads"
more_steps 20
pass "threads follow the container's limit: one for half a core, $(nproc) without one; 512 MiB are enough"
docker rm --force half all >/dev/null
# With the least that the engine allows, which is less than it needs, it is killed and started again, for ever; the others go on.
limited little --memory 6m --memory-swap 6m --restart unless-stopped
limited whole
wait_until "a worker without limits" is_in whole
killed() { [ "$(of little .RestartCount)" -ge 1 ]; }
wait_until "a worker that is killed for want of memory" killed
more_steps 20
pass "a worker with too little memory is killed by the system, and the run goes on"
docker rm --force little whole >/dev/null
# Between containers gradients go through sockets, with the 64 MiB of /dev/shm that a container has and the engine's seccomp profile.
limited apart
limited beside --network container:tally-coordinator-1 --pid container:tally-coordinator-1
wait_until "a worker on its own" is_in apart
wait_until "a worker beside the coordinator" is_in beside
said() { docker logs "$1" 2>&1 | grep '^joined'; }
[ "$(of apart .HostConfig.ShmSize)" = 67108864 ] || fail "/dev/shm has $(of apart .HostConfig.ShmSize) bytes"
! said apart | grep -q 'shared memory' || fail "a worker in a container of its own claims to share memory"
said beside | grep -q 'gradients through shared memory' || fail "a worker in the coordinator's namespaces shares no memory: $(said beside)"
more_steps 20
pass "gradients go through sockets between containers, and through shared memory in the same namespaces; the workers' lines say which"
docker rm --force apart beside >/dev/null

# TLS and tokens, with the commands of docs/deploy.md.
compose down --volumes >>"$work/compose.log" 2>&1
sed -n '/^mkdir -m 700 deploy\/secrets/,/^chmod /p' docs/deploy.md >"$APART/secrets.sh"
(cd "$project" && bash -e "$APART/secrets.sh" 2>>"$work/compose.log") || fail "the commands of docs/deploy.md that make the secrets; see $work/compose.log"
files+=(--file "$project/deploy/compose.secure.yaml")
cat >"$project/deploy/tally.env" <<'END'
TALLY_WORKERS=2
TALLY_MODEL=mlp
TALLY_EPOCHS=1000
TALLY_TEST_LIMIT=200
END
up --scale worker=2 coordinator worker prometheus
wait_until "twenty steps" has_steps 20
wait_until "a healthy coordinator" healthy coordinator
wait_until "metrics in Prometheus" answers 'up%7Bjob%3D%22tally%22%7D' 1
status_as() { (cd "$project/deploy/secrets" && "$binaries/coordinator" status --connect localhost:50051 --tls-ca server.pem --tls-server-name coordinator "$@"); }
status_as --token-file view >/dev/null || fail "the view token does not let look"
! status_as 2>/dev/null || fail "without a token one may look"
[ "$(find "$project/deploy/secrets" -maxdepth 0 -perm 700 | wc -l)" = 1 ] || fail "others may read the secrets"
joins=$(count '"event":"join"')
crash tally-worker-1
wait_until "the killed worker's return" worker_is_back "$joins"
pass "TLS and tokens as docs/deploy.md says: healthy, trains, Prometheus has its metrics, and who has no token sees nothing"
say "$passed passed, 0 failed"
