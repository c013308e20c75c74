#!/usr/bin/env bash
# The systemd units: verified as they would be where they are installed, and no more exposed than stated.
# units.sh BINARIES
set -euo pipefail
cd "$(dirname "$0")/../.."
most=15 # Tenths: 1.5 of 10. docs/deploy.md states what it is.
work=target/deploy/units
rm -rf $work && mkdir -p $work
for role in coordinator worker; do
    # The one thing that differs from an installation is where the binary lies.
    sed "s#/usr/local/bin/$role#$1/$role#" deploy/systemd/tally-$role.service >$work/tally-$role.service
    told=$(systemd-analyze verify --man=no "$PWD/$work/tally-$role.service" 2>&1 | grep "tally-$role" || true)
    if [ -n "$told" ]; then
        echo "units: FAILED: $told" >&2
        exit 1
    fi
    systemd-analyze security --offline=yes --no-pager --threshold=$most "$PWD/$work/tally-$role.service" | tail -n 1 | sed 's/^[^A-Za-z]*/units: /'
done
