# Sourced by run and test: missing Debian packages are noted by `need` and installed in one go by `install_needed`.

needed=()

# need TEST PACKAGE...: the packages are needed unless the shell command TEST succeeds.
need() {
    local test=$1
    shift
    if ! eval "$test" >/dev/null 2>&1; then
        needed+=("$@")
    fi
}

install_needed() {
    [ ${#needed[@]} -gt 0 ] || return 0
    local as_root=()
    if ! command -v apt-get >/dev/null; then
        echo "missing here, named as Debian's packages: ${needed[*]}" >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "missing, and neither root nor sudo to install it: apt-get install ${needed[*]}" >&2
            exit 1
        fi
        as_root=(sudo)
    fi
    echo "installing: ${needed[*]}"
    "${as_root[@]}" apt-get -q update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y -o Dpkg::Use-Pty=0 install --no-install-recommends "${needed[@]}"
}

# What building anything takes: a Rust toolchain, a linker with the C library, and certificates to fetch crates with.
need_rust() {
    if ! command -v cargo >/dev/null; then
        [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH="$HOME/.cargo/bin:$PATH"
    fi
    if ! command -v cargo >/dev/null; then
        echo "no Rust toolchain: install one from https://rustup.rs (or Debian's rustup) and come back" >&2
        exit 1
    fi
    need 'command -v cc && test -e /usr/include/stdlib.h' gcc libc6-dev
    need 'test -e "${SSL_CERT_FILE:-${CARGO_HTTP_CAINFO:-/etc/ssl/certs/ca-certificates.crt}}"' ca-certificates
}
