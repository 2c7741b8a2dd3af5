#!/bin/sh
# Xen's daemons, then the agent; sourced by nothing, run as process 1, so that it reaps orphans
# while it waits.
mkdir -p /dev/pts /dev/shm /run/lock /run/xen /run/xenstored /run/console
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o size=1500M tmp /tmp
mount -t xenfs xenfs /proc/xen
ip link set lo up
hostname dom0 2>/dev/null || echo dom0 >/proc/sys/kernel/hostname
modprobe -a xen-evtchn xen-gntdev xen-gntalloc xen-privcmd

bin=$(echo /usr/lib/xen-4.*/bin)
export PATH="$bin:$PATH"
export RIG_XEN_BIN="$bin" PYTHONPATH=/run/rig
xenstored --pid-file /run/xenstored.pid
xen-init-dom0
xenconsoled --log=guest --log-dir=/run/console --pid-file=/run/xenconsoled.pid
# One processor for all: what the guests do must not hold up dom0.
xl sched-credit2 -d 0 -w 65535

python3 -m tests.xen.dom0.prepare $(cat /run/rig/guests)
python3 -m tests.xen.dom0.agent
echo "rig: the agent has ended with $?"
echo b >/proc/sysrq-trigger
