#!/usr/bin/env bash
# Creates .venv from requirements/LOCK.lock.txt and installs this package into it, unless it is up to date.
# usage: tools/environment.sh LOCK          (LOCK: cpu, vllm-cpu or vllm-cuda; docs/development.md)
set -euo pipefail
cd "$(dirname "$0")/.."

lock_name=${1:?usage: tools/environment.sh LOCK}
lock_file=requirements/$lock_name.lock.txt
venv=.venv
stamp=$venv/selfdistill-environment
log=$venv/selfdistill-install.log

stop() {
    echo "$1" >&2
    exit 2
}

# Print a Python that is new enough and has venv; otherwise say what to install and stop.
find_python() {
    local candidate version newest=""
    for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        newest=$candidate
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    if [ -n "$newest" ]; then
        version=$("$newest" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        stop "Python's venv module is missing. Install it: sudo apt-get install python3-venv   (or python$version-venv)"
    fi
    stop "Python 3.11 or newer is missing. Install it: sudo apt-get install python3 python3-venv"
}

# Shorten pip's output to a counter and warnings. The log keeps all of it.
show_progress() {
    awk -v log_file="$log" -v total="$1" '
        /Location .* is ignored/ { next }
        { print >> log_file; fflush(log_file) }
        /^(Collecting|Processing|Requirement already satisfied:) / {
            if (++count % 20 == 0) { printf "  looked up %d of about %d packages\n", count, total; fflush() }
        }
        /^Installing collected packages/ { print "  unpacking them (a minute or two)"; fflush() }
    '
}

run_pip() {
    local total=$1
    shift
    if ! "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@" 2>&1 | show_progress "$total"; then
        echo "pip could not install the packages of $lock_file (all of its output: $log):" >&2
        { grep -A 15 -m 1 -i '^ *error' "$log" || tail -n 15 "$log"; } >&2
        exit 1
    fi
}

# One dependency of reasoning-gym is published as C source only. Only that source of problems needs it.
can_compile() {
    command -v gcc >/dev/null && "$1" -c '
import os, sys, sysconfig
sys.exit(not os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h")))'
}

# vLLM would download or compile these at its first start, on a node that may have neither network nor compiler.
fetch_kernels() {
    echo "Fetching the precompiled kernels of vLLM's attention"
    "$venv/bin/vllm" download-kernels >>"$log" 2>&1 ||
        echo "warning: these kernels could not be fetched ($log): the first start of vLLM does it, or try again: $venv/bin/vllm download-kernels" >&2
}

[ -f "$lock_file" ] ||
    stop "There is no $lock_file. LOCK can be: $(cd requirements && ls -- *.lock.txt | sed 's/\.lock\.txt$//' | paste -sd' ')"
command -v git >/dev/null || stop "git is missing. Install it: sudo apt-get install git"

# Two installations at once would write into the same folder, so the second waits.
exec 9<"$lock_file"
flock 9

if [ -x "$venv/bin/python" ]; then python=$venv/bin/python; else python=$(find_python); fi
needs_compiler='^(pycosat|reasoning-gym)=='
if can_compile "$python"; then needs_compiler='^$'; fi
{ read -r _ _ made_in <"$stamp"; } 2>/dev/null || made_in=$PWD
wanted="$lock_name $({ cat "$lock_file" pyproject.toml; echo "$needs_compiler"; } | sha256sum | cut -c1-16) $PWD"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

# A virtual environment works only in the folder where it was made, and only while its Python exists.
if [ "$made_in" != "$PWD" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    python=$(find_python)
    echo "Creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
rm -f "$stamp" "$log"

packages=$venv/selfdistill-packages.txt
grep -vE "$needs_compiler" "$lock_file" >"$packages"
count=$(grep -c == "$packages")
options=()
# The locks with vLLM are complete. They leave out packages that vLLM requires but that would break it.
[ "$lock_name" = cpu ] || options=(--no-deps)
echo "Installing $count packages from $lock_file (3 to 5 minutes the first time)"
started=$SECONDS
run_pip "$count" install --progress-bar off "${options[@]}" -r "$packages"
run_pip "$count" install --progress-bar off --quiet --no-deps --no-build-isolation --editable .
[ "$lock_name" != vllm-cuda ] || fetch_kernels
echo "$wanted" >"$stamp"
echo "The environment is ready in $venv ($((SECONDS - started)) s)"
if [ "$needs_compiler" != '^$' ]; then
    echo "Left out: reasoning-gym, which needs a C compiler. To have it: sudo apt-get install gcc python3-dev; make env"
fi
