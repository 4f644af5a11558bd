#!/bin/sh
# Finds a suitable Python and hands over to environment.py: `setup.sh` sets up, `setup.sh lock` writes the lock.
# PYTHON=... chooses the interpreter; otherwise the checkout's own .venv or the first suitable one on PATH.
set -eu
cd "$(dirname -- "$0")/.."

suitable() {
    "$1" -I -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    suitable "$PYTHON" || {
        echo "setup: PYTHON=$PYTHON is no Python of version 3.11 or newer with the modules venv and ensurepip." >&2
        exit 1
    }
    exec "$PYTHON" -I -S scripts/environment.py "$@"
fi
if .venv/bin/python -I -S -c '' 2>/dev/null; then
    exec .venv/bin/python -I -S scripts/environment.py "$@"
fi
for candidate in python3 python3.13 python3.12 python3.11; do
    if suitable "$candidate"; then
        exec "$candidate" -I -S scripts/environment.py "$@"
    fi
done
cat >&2 <<'MESSAGE'
setup: no suitable Python found. FastComposer needs Python 3.11 or newer with the modules venv and ensurepip
(on Debian and Ubuntu: the packages python3 and python3-venv). Tried python3, python3.13, python3.12, python3.11.
Install one, or name one: make setup PYTHON=/path/to/python3
MESSAGE
exit 1
