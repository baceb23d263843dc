#!/usr/bin/env bash
# screenshot.sh TRACE OUT.png [FROM_NS TO_NS]: a trace as Perfetto's UI shows it (README.md).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
need 'command -v chromium' chromium
need 'command -v npm' npm
fetch_perfetto
playwright=$cache/playwright-core-1.65.1
if [ ! -d "$playwright" ]; then
    new=$(mktemp -d "$cache/new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    npm install --silent --no-audit --no-fund --prefix "$new" playwright-core@1.65.1 >&2
    mv "$new" "$playwright"
fi
exec node "$here/screenshot.mjs" "$perfetto" "$playwright" "$@"
