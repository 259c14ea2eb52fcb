#!/usr/bin/env bash
# Check this project on one GPU in a few minutes; see benchmarks/gpu_check.py. Takes the project's environment where there
# is one, else the python on the path, which needs torch >= 2.11 and transformers >= 5.17; with pydantic all of training is
# checked.
#
#   tools/gpu_check.sh [--out FILE] [--device cpu --small]
#   tools/gpu_check.sh --prepare      put pydantic into .gpu-check/, for a machine that has neither it nor a network
set -euo pipefail
cd "$(dirname "$0")/.."
python=python3
[ -x .venv/bin/python ] && python=.venv/bin/python
if [ "${1:-}" = --prepare ]; then
    exec "$python" -m pip install --quiet --upgrade --target .gpu-check pydantic
fi
"$python" -c 'import pydantic' 2>/dev/null || export PYTHONPATH="$PWD/.gpu-check${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" benchmarks/gpu_check.py "$@"
