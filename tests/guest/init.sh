#!/bin/busybox sh
# First process of the guest: modules, the host's files (read-only, changes go to memory), then the jobs of the share.
export PATH=/bin
/bin/busybox mkdir -p /bin /proc /sys /dev /lower /upper /machine
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for name in $(cat /modules/order); do insmod "/modules/$name.ko" || echo "guest: insmod $name failed"; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro host /lower || echo "guest: no 9p root"
mount -t tmpfs none /upper
mkdir /upper/new /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/new,workdir=/upper/work none /machine || echo "guest: no overlay"
cd /machine
mkdir -p proc sys dev tmp guest
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs dev dev
mkdir -p dev/shm
mount -t tmpfs none dev/shm
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,access=any share guest || echo "guest: no share"
ip link set lo up 2>/dev/null
echo "guest: up after $(cut -d' ' -f1 /proc/uptime) s"
for job in guest/*.job; do
    name=${job%.job}
    limit=$(cat "$name.limit")
    timeout -s KILL "$limit" chroot /machine /bin/sh "/$job" >"$name.out" 2>"$name.err"
    echo $? >"$name.status"
done
sync
echo "guest: done after $(cut -d' ' -f1 /proc/uptime) s"
poweroff -f
