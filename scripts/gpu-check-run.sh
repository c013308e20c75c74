#!/usr/bin/env bash
# Checks and measures a GPU, on a machine with neither Rust nor the internet. gpu-check.sh packs it as run.sh.
#
#   ./run.sh first [DIR] [-- OPTIONS]   in less than 4 minutes: golden values, updates, equal bits, compute-sanitizer, and the
#                                       first step times
#   ./run.sh speed [DIR] [-- OPTIONS]   in less than 7 minutes: step times, variants of the kernels, PyTorch, a profile, clusters
#   ./run.sh OPTIONS                    gpu-check itself, once
#
# Each part has a deadline. Findings go to DIR (default: $OUT, or out beside this script) as soon as they are there:
# findings.jsonl has a line of JSON for each, log.txt has the messages, and ncu-*.csv the profiles. OPTIONS go to every gpu-check and
# replace the script's own. Exits with 1 if something is not as it must be, with 3 if there is no GPU.
set -u -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
program=${GPU_CHECK:-$here/gpu-check}
mode=${1:-}
case "$mode" in
first) limit=230 ;;
speed) limit=410 ;;
*) limit=0 ;;
esac
if [ "$limit" -gt 0 ]; then
    shift
    out=${OUT:-$here/out}
    if [ $# -gt 0 ] && [ "$1" != -- ]; then out=$1 && shift; fi
    [ "${1:-}" = -- ] && shift
    mkdir -p "$out" || exit 1
    out=$(cd "$out" && pwd)
fi
options=("$@")

# The run-time compiler may be there only as a part of PyTorch. It is looked for without importing PyTorch, which takes long.
if ! ldconfig -p 2>/dev/null | grep -q 'libnvrtc\.so' && [ -z "${CUDA_ON_CPU:-}" ]; then
    for nvrtc in $(python3 -c 'import glob, site
for place in site.getsitepackages() + [site.getusersitepackages()]:
    print("\n".join(glob.glob(place + "/nvidia/*/lib")))' 2>/dev/null) /usr/local/cuda/lib64; do
        if compgen -G "$nvrtc/libnvrtc.so*" >/dev/null; then
            export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$nvrtc"
        fi
    done
fi
export TALLY_CACHE_DIR="${TALLY_CACHE_DIR:-$here/cache}"
# The driver keeps what it compiles here.
export CUDA_CACHE_PATH="${CUDA_CACHE_PATH:-$TALLY_CACHE_DIR/driver}"
export PYTHONUNBUFFERED=1
if [ "$limit" = 0 ]; then exec "$program" "${options[@]}"; fi

log() { printf '%4d s  %s\n' "$SECONDS" "$*" | tee -a "$out/log.txt" >&2; }
failed=0

# keep NAME END: keeps findings, which are JSON, apart from the other lines that a profiler or sanitizer writes between them. At second
# END it stops, because a process that a profiler has started may outlive the profiler and hold the pipe.
keep() {
    local line
    while [ "$SECONDS" -lt "$2" ] && IFS= read -r -t $(($2 - SECONDS)) line; do
        case "$line" in
        "{"*) printf '%s\n' "$line" | tee -a "$out/findings.jsonl" ;;
        *) log "$1: $line" ;;
        esac
    done
}
# capped SECONDS: so many, or as many as are left.
capped() { echo $(($1 < limit - SECONDS ? $1 : limit - SECONDS)); }
# part SECONDS NAME COMMAND…: keeps the command's findings and messages as they come. The command has so many seconds, or as many
# as are left.
part() {
    local seconds name=$2 rc=0
    seconds=$(capped "$1")
    shift 2
    if [ "$seconds" -lt 5 ]; then
        log "$name: left out, the time is over"
        return 0
    fi
    log "$name: begins, for at most $seconds s"
    { timeout -k 2 "$seconds" "$@" 2>&3 | keep "$name" $((SECONDS + seconds + 4)); } 3> >(while IFS= read -r line; do log "$name: $line"; done) || rc=$?
    case "$rc" in
    0) log "$name: done" ;;
    124 | 137) log "$name: STOPPED, its time was over" ;;
    *) log "$name: ended with $rc" ;;
    esac
    return "$rc"
}
# Puts these options of gpu-check into `given`, except those that are among OPTIONS, and then OPTIONS. Each has a value.
with_options() {
    given=()
    while [ $# -gt 0 ]; do
        case " ${options[*]} " in
        *" $1 "*) ;;
        *) given+=("$1" "$2") ;;
        esac
        shift 2
    done
    given+=("${options[@]}")
}
# check SECONDS NAME OPTIONS…: a part that is gpu-check. It ends its work a little earlier, so that it can say what is missing. A job
# in it has as long, or what `each` says.
check() {
    local seconds name=$2
    seconds=$(capped "$1")
    shift 2
    local within=$((seconds > 10 ? seconds - 5 : 5))
    with_options --deadline "${each:-$within}" --within "$within" --logs "$logs" "$@"
    part "$seconds" "$name" "$program" "${given[@]}"
    local rc=$?
    # What it said last comes through another process.
    [ "$rc" = 3 ] && sleep 0.5 && exit 3
    [ "$rc" = 0 ] && return
    failed=1
    # The logs of clusters, in case one failed.
    find "$logs" -type f -newer "$logs/begin" 2>/dev/null | sort | while IFS= read -r file; do
        tail -n 30 "$file" | while IFS= read -r line; do log "${file#"$logs"/}: $line"; done
    done
    touch "$logs/begin"
}
there() { command -v "$1" >/dev/null || { log "left out: there is no $1" && false; }; }
together() {
    local pid
    for pid in "$@"; do
        wait "$pid" && continue
        [ $? = 3 ] && exit 3
        failed=1
    done
}

# While a file of the driver's is open, the GPU stays initialised from one process to the next.
[ -r /dev/nvidia0 ] && exec 9</dev/nvidia0
logs=$(mktemp -d) && touch "$logs/begin"
trap 'rm -rf "$logs"' EXIT
log "$mode"
there nvidia-smi && part 10 nvidia-smi nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit --format=csv
log "libraries: $(ldconfig -p 2>/dev/null | grep -oE 'lib(cuda|nvrtc)\.so[^ ]*' | sort -u | tr '\n' ' ') LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}"

if [ "$mode" = first ]; then
    pids=()
    for precision in f32 tf32 bf16; do
        (check 90 "right, $precision" --precisions "$precision" --only golden,update,repetition --batches 64,4096 --repeats 4 && exit $failed) &
        pids+=($!)
    done
    together "${pids[@]}"
    if there compute-sanitizer; then
        pids=()
        with_options --only update --precisions tf32 --deadline 75
        # With a second stream, whose order memcheck can watch.
        (TALLY_GPU_VARIANT=ldmatrix,streams part 80 memcheck compute-sanitizer --tool memcheck --track-stream-ordered-races all --error-exitcode 9 \
            "$program" --here "${given[@]}") &
        pids+=($!)
        with_options --only update --precisions bf16 --deadline 75
        (part 80 racecheck compute-sanitizer --tool racecheck --error-exitcode 9 "$program" --here "${given[@]}") &
        pids+=($!)
        together "${pids[@]}"
    fi
    check 45 "steps" --precisions tf32 --only steps --batches 256,1024 --steps 100
else
    check 70 "steps" --precisions tf32,bf16 --only steps --batches 64,256,1024,4096 --steps 200
    # All variants are compiled first, side by side, so that none is compiled while another is measured.
    tf32="default ldmatrix wide ldmatrix,wide streams ldmatrix,streams wgmma wgmma,streams"
    bf16="default half half,wide half,streams half,wgmma half,wgmma,streams"
    # Their golden values are found meanwhile, and only those that have them are measured. PyTorch is read from the disk, too.
    pids=()
    (timeout 60 python3 -c 'import torch' >/dev/null 2>&1) &
    reading=$!
    golden() { # PRECISION VARIANT
        check 40 "golden $1 $2" --precisions "$1" --only golden --variants "$2" >/dev/null
        [ "$failed" = 0 ] && echo "$2" >>"$logs/good-$1"
        exit "$failed"
    }
    for variant in $tf32; do (golden tf32 "$variant") & pids+=($!); done
    for variant in $bf16; do (golden bf16 "$variant") & pids+=($!); done
    together "${pids[@]}"
    wait "$reading"
    # Those that are good, in the order of the words.
    good() { for variant in $2; do grep -qx "$variant" "$logs/good-$1" 2>/dev/null && echo "$variant"; done | tr '\n' ' ' | sed 's/ $//'; }
    for precision in tf32 bf16; do
        variants=$(good "$precision" "${!precision}")
        [ -n "$variants" ] && each=15 check 75 "variants, $precision" --precisions "$precision" --only steps --batches 256,1024 --steps 100 --variants "$variants"
    done
    if there python3 && python3 -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))'; then
        check 70 "PyTorch" --precisions tf32,bf16 --only pytorch --batches 256,1024 --steps 100 --peer "$here/torch_peer.py" --ways eager,graph
    else
        log "left out: python3 has no torch"
    fi
    check 50 "clusters" --precisions tf32 --only cluster --workers 1,2 --cluster-batch 1024
    if there ncu; then
        for batch in 256 1024; do
            with_options --only profile --precisions tf32 --batches "$batch" --deadline 38
            # The kernels of the network; the 98 launches of the update come after them.
            part 40 "ncu, $batch" ncu --profile-from-start off --launch-count 54 --clock-control none --section SpeedOfLight --section Occupancy \
                --section MemoryWorkloadAnalysis --csv --page details --log-file "$out/ncu-$batch.csv" \
                "$program" --here "${given[@]}"
        done
    fi
    check 30 "steps, f32" --precisions f32 --only steps --batches 256,1024 --steps 50
    check 30 "cluster of 4" --precisions tf32 --only cluster --workers 4 --cluster-batch 1024
    if there python3 && python3 -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))'; then
        check 90 "PyTorch, compiled" --precisions tf32,bf16 --only pytorch --batches 256,1024 --steps 100 --peer "$here/torch_peer.py" --ways compile
    fi
fi
# Bits of variants that must be equal, and the quickest of them.
[ "$mode" = speed ] && limit=$((SECONDS + 10)) && { part 10 "all" "$program" --compare "$out/findings.jsonl" || failed=1; }
grep -h '"found":"quickest"' "$out/findings.jsonl" | while IFS= read -r line; do log "$line"; done
log "done in $SECONDS s; $out has what was found"
exit "$failed"
