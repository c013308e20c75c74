# Hosts on one machine: network namespaces joined by a bridge, each with a link of its own. For other scripts to source;
# needs root and iproute2.
#
#   make_hosts RATE NAME…   makes them. The n-th has the address 10.62.0.n, and its link carries RATE each way (tbf on both
#                           ends; `none`: as fast as the machine). Its device is `wire`, and NAME at the bridge.
#   ip netns exec "$hosts-NAME" COMMAND…    runs a command there
#   in_bridge ARGUMENTS…    runs ip(8) where the bridge is
#   remove_hosts            kills whatever runs there, and removes them

hosts=tallyhosts-$$

make_hosts() {
    local rate=$1 number=0 host
    shift
    # The bridge lies in a namespace of its own, so that nothing of it is in this machine's.
    ip netns add "$hosts-bridge" || return
    in_bridge link add bridge type bridge || return
    in_bridge link set bridge up || return
    for host; do
        number=$((number + 1))
        ip netns add "$hosts-$host" || return
        ip -n "$hosts-$host" link add wire type veth peer name "$host" netns "$hosts-bridge" || return
        in_bridge link set "$host" master bridge up || return
        ip -n "$hosts-$host" addr add "10.62.0.$number/24" dev wire || return
        ip -n "$hosts-$host" link set lo up || return
        ip -n "$hosts-$host" link set wire up || return
        [ "$rate" != none ] || continue
        tc -n "$hosts-$host" qdisc add dev wire root tbf rate "$rate" burst 256kb latency 50ms || return
        tc -n "$hosts-bridge" qdisc add dev "$host" root tbf rate "$rate" burst 256kb latency 50ms || return
    done
}

in_bridge() { ip -n "$hosts-bridge" "$@"; }

remove_hosts() {
    local name
    for name in $(ip netns list | awk -v prefix="$hosts-" 'index($1, prefix) == 1 { print $1 }'); do
        ip netns pids "$name" | xargs -r kill -9 2>/dev/null || true
        ip netns del "$name" 2>/dev/null || true
    done
}
