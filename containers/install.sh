#!/bin/sh
# What both images run: the packages of one lock, the package itself, and git for the commit in provenance.json.
# usage: install.sh LOCK          (LOCK: cpu, vllm-cpu or vllm-cuda)
set -eu
lock=/build/requirements/${1:?usage: install.sh LOCK}.lock.txt
[ -f "$lock" ] || { echo "There is no $lock." >&2; exit 2; }

apt-get update
apt-get install --no-install-recommends -y bubblewrap gcc git libc6-dev
# The locks with vLLM are complete, and leave out packages that vLLM requires but that would break it.
case $1 in cpu) dependencies= ;; *) dependencies=--no-deps ;; esac
python -m pip install --no-cache-dir $dependencies -r "$lock"
python -m pip install --no-cache-dir --no-deps /build
# The project is mounted and belongs to the user of the host.
git config --system --add safe.directory '*'
apt-get purge -y gcc libc6-dev
apt-get autoremove -y
rm -rf /var/lib/apt/lists/*
