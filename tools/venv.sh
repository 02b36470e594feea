#!/bin/sh
# Make the virtual environment $1 with the Python $2, or find that it is there already.
# $3 is not empty when somebody asked for that Python: then one of another version is replaced.
#
# Prints nothing when there is nothing to do. $1/.made holds the checkout's path.
set -eu
venv=$1 python=$2 asked=$3

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

fits() {  # its interpreter works, is the one asked for, and the checkout has not moved
    has=$(version_of "$venv/bin/python")
    [ -n "$has" ] || return 1
    [ -z "$asked" ] || [ "$has" = "$(version_of "$python")" ] || return 1
    # An editable install holds absolute paths. No file: somebody made the environment by hand.
    [ "$(cat "$venv/.made" 2>/dev/null || pwd)" = "$(pwd)" ]
}

case $(pwd) in
*' '*)
    echo "The path of this checkout has a space in it: $(pwd)" >&2
    echo "Programs that pip installs, Parsl's among them, cannot start from there: move it." >&2
    exit 1
    ;;
esac

if fits; then
    [ ! -e "$venv/.made" ] || exit 0
    "$venv/bin/python" -m ensurepip >/dev/null 2>&1 || true  # uv makes environments without pip
else
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        found=$(command -v "$python" >/dev/null && "$python" --version 2>&1 | head -n 1 || echo "not there")
        echo "proxystore needs Python 3.10 or later; $python is: $found" >&2
        echo "Name another one: make PYTHON=python3.12 ..." >&2
        exit 1
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$python cannot make virtual environments: its venv module is not installed." >&2
        echo "On Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    fi
    echo "Making $venv with $("$python" --version) ..."
    "$python" -m venv --clear "$venv"
fi

# Dependency groups need pip 25.1.
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --upgrade 'pip>=25.1'
pwd > "$venv/.made"
