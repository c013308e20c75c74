# Sourced: installs Debian's packages that are missing.

tools=$PWD/target/deploy/tools
mkdir -p "$tools"

# need PROGRAM PACKAGE: whether the program is there, after an attempt to install Debian's package.
need() {
    command -v "$1" >/dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "$2")
    "${install[@]}" >"$tools/apt.log" 2>&1 || { apt-get update --quiet && "${install[@]}"; } >>"$tools/apt.log" 2>&1 || true
    command -v "$1" >/dev/null
}
