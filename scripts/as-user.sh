#!/usr/bin/env bash
# As root: run the tests that use the kernel again as an unprivileged user, made for this and removed after.
# The user gets a copy of the tree, because a clone may lie where only root can look.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
  echo "not root: the tests above already ran as an unprivileged user"
  exit 0
fi
user=cloister-test
home=/var/tmp/$user-home
cleanup() {
  loginctl disable-linger "$user" 2>/dev/null || true
  userdel "$user" 2>/dev/null || true
  rm -rf "$home"
}
cleanup
trap cleanup EXIT
useradd --create-home --home-dir "$home" --shell /bin/bash "$user"
grep -q "^$user:" /etc/subuid || usermod --add-subuids 600000-665535 --add-subgids 600000-665535 "$user"
# The same environment, at its own place: its scripts and its editable install name their folder.
cp -a . "$home/cloister"
find "$home/cloister/.venv/bin" -type f -exec sed -i "1s|^#!$PWD/|#!$home/cloister/|" {} +
find "$home/cloister/.venv/lib" -name '__editable__*' -exec sed -i "s|$PWD/|$home/cloister/|g" {} +
sed -i "s|$PWD|$home/cloister|g" "$home/cloister/.venv/installed" "$home/cloister/.venv/pyvenv.cfg"
chown -R "$user:" "$home"
run() { su - "$user" -c "cd ~/cloister && $1"; }
run ".venv/bin/python -m cloister.kernel.holder --exec .venv/bin/python -m pytest -q -n 2 --dist loadfile tests/fabric"
run ".venv/bin/python -m pytest -q -n 3 --dist loadfile tests/e2e"
