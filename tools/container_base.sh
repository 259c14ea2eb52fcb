#!/usr/bin/env bash
# A stand-in for the base image of containers/, made of Debian's packages where no registry can be reached (as root, in Docker's
# place: buildah). Debian's minimal system, and in /usr/local, as in the official image, the Python that PYTHON was built as.
# usage: tools/container_base.sh PYTHON [NAME]      (PYTHON: a 3.11 that was built from source, as pyenv or uv install it)
set -euo pipefail

python=${1:?usage: tools/container_base.sh PYTHON [NAME]}
name=${2:-docker.io/library/python:3.11-slim-bookworm}
read -r prefix version < <("$python" -c 'import sys; print(sys.base_prefix, "%d.%d" % sys.version_info[:2])')
if [ "$version" != 3.11 ] || [ "$prefix" = /usr ]; then
    echo "$python is Python $version of $prefix. A 3.11 with a folder of its own is needed." >&2
    exit 2
fi
root=$(mktemp -d /var/tmp/container-base-XXXXXX)
trap 'rm -rf "$root"' EXIT

libraries=libbz2-1.0,libexpat1,libffi8,liblzma5,libncursesw6,libnsl2,libreadline8,libsqlite3-0,libssl3,libuuid1,zlib1g
debootstrap --variant=minbase --include="ca-certificates,netbase,tzdata,$libraries" bookworm "$root"
# Without its packages and its tests, as in the official image.
tar -C "$prefix" --exclude=site-packages --exclude=test --exclude=__pycache__ -c \
    bin/python3.11 include lib/python3.11 $(cd "$prefix" && ls -d lib/libpython3* 2>/dev/null) | tar -C "$root/usr/local" -x
mkdir -p "$root/usr/local/lib/python3.11/site-packages"
ln -s python3.11 "$root/usr/local/bin/python3"
ln -s python3.11 "$root/usr/local/bin/python"
chroot "$root" ldconfig
chroot "$root" python -m ensurepip --default-pip
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb

container=$(buildah from scratch)
buildah copy --quiet "$container" "$root" / >/dev/null
buildah config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin --env LANG=C.UTF-8 --cmd python3 "$container"
buildah commit --rm --quiet "$container" "$name"
