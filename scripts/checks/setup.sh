# Sourced by the scripts that check deploy/: makes a Python environment under target/ with the pinned
# tools, once, and puts it first on the path; and brings `need` with it.

. scripts/checks/need.sh
if ! cmp --silent scripts/checks/requirements.txt "$tools/installed.txt"; then
    python3 -m venv --clear "$tools/venv"
    "$tools/venv/bin/pip" install --quiet --disable-pip-version-check --requirement scripts/checks/requirements.txt
    cp scripts/checks/requirements.txt "$tools/installed.txt"
fi
export PATH=$tools/venv/bin:$PATH
