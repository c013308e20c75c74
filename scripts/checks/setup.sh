# Sourced by the scripts that check deploy/: makes a Python environment under target/ with the pinned
# tools, once, and puts it first on the path; and installs Debian's packages that are missing.

tools=$PWD/target/deploy/tools
mkdir -p "$tools"
if ! cmp --silent scripts/checks/requirements.txt "$tools/installed.txt"; then
    python3 -m venv --clear "$tools/venv"
    "$tools/venv/bin/pip" install --quiet --disable-pip-version-check --requirement scripts/checks/requirements.txt
    cp scripts/checks/requirements.txt "$tools/installed.txt"
fi
export PATH=$tools/venv/bin:$PATH

# need PROGRAM PACKAGE: whether the program is there, after an attempt to install Debian's package.
need() {
    command -v "$1" >/dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "$2")
    "${install[@]}" >"$tools/apt.log" 2>&1 || { apt-get update --quiet && "${install[@]}"; } >>"$tools/apt.log" 2>&1 || true
    command -v "$1" >/dev/null
}
