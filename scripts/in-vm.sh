#!/usr/bin/env bash
# Runs a command under another kernel: Debian's own, in an emulated machine whose root is this host's (written to
# on a disk that goes with it). For what the host's kernel lacks, as ESP. As root, because of the packages and
# virtiofsd; in the machine as root, or with VM_USER=1 as an unprivileged user made there.
#
#     scripts/in-vm.sh .venv/bin/python -m pytest …
#
# Emulated, and so some ten times slower; VM_ACCEL=kvm where there is KVM. Its exit code is the command's.
# It is ended after VM_SECONDS (an hour). VM_CGROUPS=1 or hybrid: cgroups as hosts before version 2 have them.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || { sed -n '2,10s/^# \?//p' "$0" >&2; exit 2; }

virtiofsd=$(command -v virtiofsd /usr/lib/qemu/virtiofsd /usr/libexec/virtiofsd | head -1 || true)
kernel=$(ls -v /boot/vmlinuz-*-cloud-amd64 2>/dev/null | tail -1 || true)
if [ -z "$virtiofsd" ] || [ -z "$kernel" ] || ! command -v qemu-system-x86_64 cpio busybox >/dev/null; then
  packages=(qemu-system-x86 qemu-system-common linux-image-cloud-amd64 cpio busybox-static kmod)
  apt-cache show virtiofsd >/dev/null 2>&1 && packages+=(virtiofsd)
  echo "installing ${packages[*]}" >&2
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}" >/dev/null
  exec "$0" "$@"
fi
release=${kernel##*/vmlinuz-}

work=$(mktemp -d)
daemon=
trap '[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true; rm -rf "$work"' EXIT

# The first root: the modules that mount the real one.
root=$work/root
mkdir -p "$root"/{bin,modules,dev,proc,sys,host,disk,new}
cp "$(command -v busybox)" "$root/bin/busybox"
order=()
for module in virtio_pci virtio_blk ext4 virtiofs overlay; do
  while read -r verb path _; do
    [ "$verb" = insmod ] || continue
    name=$(basename "$path")
    cp "$path" "$root/modules/$name"
    order+=("$name")
  done < <(/sbin/modprobe --show-depends -S "$release" "$module")
done
printf '%q ' "$@" >"$root/command"
# A real file system for what is written: a layer of an overlay cannot be on another overlay.
truncate -s 16G "$work/disk"
/sbin/mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=1 "$work/disk"
cat >"$root/init" <<INIT
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for each in ${order[*]}; do [ -e /sys/module/\${each%.ko} ] || insmod /modules/\$each; done
mount -t virtiofs -o ro host /host
mount -t ext4 /dev/vda /disk
for each in upper work tmp var-tmp var-lib; do mkdir -m 1777 /disk/\$each; done
chmod 755 /disk/upper /disk/var-lib
mount -t overlay -o lowerdir=/host,upperdir=/disk/upper,workdir=/disk/work overlay /new
mount --bind /disk/tmp /new/tmp
mount --bind /disk/var-tmp /new/var/tmp
mkdir -p /new/var/lib/cloister /new/var/lib/containers /new/home
for each in lib/cloister lib/containers; do
  mkdir -p /disk/var-\$each
  mount --bind /disk/var-\$each /new/var/\$each
done
mount -t tmpfs memory /new/run
cp /command /new/run/command
for each in proc sys dev; do mount --move /\$each /new/\$each; done
exec switch_root /new /bin/bash -c '
  mkdir -p /dev/shm /dev/pts
  mount -t tmpfs memory /dev/shm
  mount -t devpts pts /dev/pts
  modprobe tun && chmod 666 /dev/net/tun  # as udev does
  if [ "${VM_CGROUPS:-2}" = 2 ]; then
    mount -t cgroup2 cgroup /sys/fs/cgroup
  else  # as systemd does
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    for each in cpu,cpuacct cpuset memory pids devices freezer blkio none,name=systemd; do
      mkdir /sys/fs/cgroup/\${each#none,name=}
      mount -t cgroup -o \$each cgroup /sys/fs/cgroup/\${each#none,name=}
    done
    if [ "${VM_CGROUPS:-}" = hybrid ]; then
      mkdir /sys/fs/cgroup/unified
      mount -t cgroup2 cgroup /sys/fs/cgroup/unified
    fi
    mount -o remount,ro /sys/fs/cgroup
  fi
  ip link set lo up
  export CLOISTER_TEST_PATIENCE=5 PYTEST_TIMEOUT=1200  # tests wait for what has to come
  export HOME=/root TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  cd "$PWD"
  if [ -n "${VM_USER:-}" ]; then
    useradd --create-home --home-dir /var/tmp/user --shell /bin/bash cloister-test
    grep -q ^cloister-test: /etc/subuid ||
      usermod --add-subuids 600000-665535 --add-subgids 600000-665535 cloister-test
    each=$PWD
    while [ "\$each" != / ]; do chmod o+x "\$each"; each=\$(dirname "\$each"); done
    find "$PWD" \\( -name .venv -o -name .git \\) -prune -o -type d -exec chown cloister-test: {} +
    su - -w CLOISTER_TEST_PATIENCE,PYTEST_TIMEOUT cloister-test -c "cd $PWD && bash /run/command" </dev/null
  else
    bash /run/command </dev/null
  fi
  echo \$? >/dev/ttyS1
  echo o >/proc/sysrq-trigger
  while :; do :; done
'
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initramfs"

"$virtiofsd" --socket-path="$work/fs" -o source=/ -o sandbox=chroot -o cache=always >"$work/virtiofsd.log" 2>&1 &
daemon=$!
for _ in $(seq 100); do [ -S "$work/fs" ] && break; sleep 0.05; done
timeout --foreground "${VM_SECONDS:-3600}" \
  qemu-system-x86_64 -nodefaults -no-reboot -display none -accel "${VM_ACCEL:-tcg,thread=multi}" -cpu max \
  -smp 2 -m 3G \
  -object memory-backend-memfd,id=memory,size=3G,share=on -numa node,memdev=memory \
  -chardev socket,id=fs,path="$work/fs" -device vhost-user-fs-pci,chardev=fs,tag=host \
  -drive if=virtio,format=raw,cache=unsafe,file="$work/disk" \
  -serial stdio -serial file:"$work/status" \
  -kernel "$kernel" -initrd "$work/initramfs" -append "console=ttyS0 loglevel=2 panic=-1" </dev/null ||
  echo "the emulated machine did not come to its end" >&2
status=$(tr -dc 0-9 <"$work/status")
exit "${status:-125}"
