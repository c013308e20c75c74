#!/usr/bin/env bash
# A proxy in front of the coordinator, for real: Debian's nginx with the configuration of docs/deploy.md, word by word, and
# the page behind one that was told nothing. Some seconds.
#
# Needs root and Debian's nginx-light, which it installs where it is missing. Everything is in namespaces of its own (network,
# processes, mounts), and nothing is left when it ends.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/checks/try.sh

if [ -z "${APART:-}" ]; then
    require nginx:nginx-light
    apart --net
    exit
fi

work=$APART
fail() {
    say "FAILED: $*" >&2
    tail -n 15 "$work"/*.log >&2
    exit 1
}
ip link set lo up
{
    echo "error_log $work/nginx.log; pid $work/nginx.pid; events {} http { access_log off;"
    sed -n '/^```nginx$/,/^```$/{/^```/!p}' docs/deploy.md
    echo "server { listen 8080; location / { proxy_pass http://127.0.0.1:9000; } } }"
} >"$work/nginx.conf"
nginx -c "$work/nginx.conf" 2>>"$work/nginx.log" || fail "nginx does not take the configuration of docs/deploy.md"

# Before there is a coordinator, the proxy answers in its place.
"$binaries/worker" --connect 127.0.0.1:50051 --stay --name one --backend cpu --threads 1 >"$work/one.log" 2>&1 &
one=$!
"$binaries/worker" --connect 127.0.0.1:50051 --stay --name two --backend cpu --threads 1 >"$work/two.log" 2>&1 &
wait_until "a worker that was answered by the proxy" grep -q "trying again" "$work/one.log"
sleep 1
kill -0 $one || fail "the worker gave up for what the proxy said"
"$binaries/coordinator" --workers 2 --listen 127.0.0.1:50052 --http-listen 127.0.0.1:9000 --linger --run-dir "$work/run" \
    --model mlp --epochs 1 --test-limit 100 --checkpoint-every 20 >"$work/coordinator.log" 2>&1 &
done_() { grep -q '"outcome": *"done"' "$work/run/summary.json"; }
has_checkpoint() { compgen -G "$work/run/checkpoints/step-*/model.safetensors"; }
wait_until "a checkpoint" has_checkpoint

ask() { curl --silent --output "$work/answer" --write-out '%{http_code}' --max-time 20 "$@"; }
post=(--request POST --header 'Content-Type: image/png' --data-binary @"$work/digit.png")
# What is refused is so small that nginx sends it in one piece with its headers. The coordinator refuses without reading on, and
# of a larger one nginx may say 502.
refused=(--request POST --header 'Content-Type: image/png' --data-binary @"$work/nothing.png")
head -c 1000 /dev/zero >"$work/nothing.png"
"$binaries/coordinator" samples --columns 1 --rows 1 --out "$work/digit.png" >"$work/samples.log" 2>&1 || fail "no picture of a digit"
[ "$(ask http://127.0.0.1/)" = 200 ] || fail "no page behind the proxy"
[ "$(ask "${post[@]}" --header 'Origin: http://127.0.0.1' 'http://127.0.0.1/api/predict?number=1')" = 200 ] || fail "a picture by the page behind the proxy: $(cat "$work/answer")"
[ "$(ask "${refused[@]}" --header 'Origin: http://other.example' 'http://127.0.0.1/api/predict?number=1')" = 403 ] || fail "another site's page may ask for answers"
events=$(curl --silent --max-time 3 http://127.0.0.1/api/events | grep -c '^data:' || true)
[ "$events" -ge 2 ] || fail "only $events events in three seconds: the proxy keeps them back"
pass "the page behind nginx as docs/deploy.md says: it is fed as things happen, and answers pictures that it sends"

[ "$(ask "${refused[@]}" --header 'Origin: http://127.0.0.1:8080' 'http://127.0.0.1:8080/api/predict?number=1')" = 403 ] || fail "by plain HTTP, who could tell the page from another site's?"
grep -q 'proxy_set_header Host' "$work/answer" || fail "403 without a word of what to do: $(cat "$work/answer")"
[ "$(ask "${post[@]}" --header 'Origin: https://tally.example' --header 'Sec-Fetch-Site: same-origin' 'http://127.0.0.1:8080/api/predict?number=1')" = 200 ] \
    || fail "over HTTPS the browser vouches for the page: $(cat "$work/answer")"
pass "behind nginx that was told nothing: over HTTPS pictures are answered, else the refusal says what to do"

wait_until "the end of the run" done_
grep -q '"samples_lost": 0' "$work/run/summary.json" || fail "samples were lost"
[ "$(grep -c '"event":"join"' "$work/run/journal.jsonl")" = 2 ] || fail "a worker was lost on the way: $(grep -E '"event":"(lost|join)"' "$work/run/journal.jsonl")"
pass "two workers through nginx's grpc_pass, to the end of a run: $(grep -c '"event":"step"' "$work/run/journal.jsonl") steps, nobody lost"
say "$passed passed, 0 failed"
