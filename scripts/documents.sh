#!/usr/bin/env bash
# Man pages and completions of both binaries, laid out as below /usr/share: documents.sh BINARIES DIRECTORY
set -euo pipefail
binaries=$1 share=$2
mkdir -p "$share/bash-completion/completions" "$share/zsh/site-functions" "$share/fish/vendor_completions.d"
for program in coordinator worker; do
    "$binaries/$program" man "$share/man/man1"
    "$binaries/$program" completions bash >"$share/bash-completion/completions/$program"
    "$binaries/$program" completions zsh >"$share/zsh/site-functions/_$program"
    "$binaries/$program" completions fish >"$share/fish/vendor_completions.d/$program.fish"
done
