#!/usr/bin/env bash
# Installs what is missing: Debian packages (with apt, as root or with passwordless sudo; otherwise prints the
# one command and stops) and the virtual environment. Quick when nothing is missing. Arguments: more packages.
# CLOISTER_PYTHON is the Python of the environment, where it shall not be the distribution's.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(podman conmon runc nftables libnftables1 uidmap iproute2 slirp4netns ca-certificates busybox-static
  dnf createrepo-c rpm procps postgresql "$@")
# Some releases have no such package; the tests use it where it is.
if [ ! -x /usr/bin/aws ] && apt-cache show awscli >/dev/null 2>&1; then
  packages+=(awscli)
fi

python=
for candidate in ${CLOISTER_PYTHON:-/usr/bin/python3.11 /usr/bin/python3.12 /usr/bin/python3.13 /usr/bin/python3}; do
  if [ -x "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  # Ubuntu 22.04 has 3.11 beside its 3.10; later releases have no 3.11, and need none.
  version=3
  if apt-cache show python3.11 >/dev/null 2>&1; then version=3.11; fi
  packages+=("python$version" "python$version-venv")
elif ! "$python" -c 'import ensurepip' 2>/dev/null; then
  packages+=("python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv")
fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  command="apt-get install -y --no-install-recommends ${missing[*]}"
  if [ "$(id -u)" = 0 ]; then
    as_root=()
  elif sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
  else
    echo "Cloister needs Debian packages that are not installed. Run this, then again what you ran:" >&2
    echo "    sudo $command" >&2
    exit 1
  fi
  echo "installing ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" $command >/dev/null
  exec "$0" "$@"
fi

want=$(cat requirements.lock pyproject.toml | sha256sum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$want $PWD" ]; then
  echo "making the virtual environment (.venv)"
  rm -rf .venv
  "$python" -m venv .venv
  .venv/bin/python -m pip install -q --use-pep517 -r requirements.lock
  .venv/bin/python -m pip install -q --no-deps --no-build-isolation -e .
  echo "$want $PWD" >.venv/installed
fi
