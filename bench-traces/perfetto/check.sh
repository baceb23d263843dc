#!/usr/bin/env bash
# check.sh TRACE ['SQL' ...]: loads a trace in Perfetto's trace processor and asks it whether all is well (README.md).
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
need 'command -v "${NODE:-node}"' nodejs
fetch_perfetto
exec "${NODE:-node}" "$here/check.mjs" "$perfetto" "$@"
