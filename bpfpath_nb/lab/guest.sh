#!/bin/busybox sh
# The inside of `bpfpath vm`: turns a kernel that has just booted into "this machine, with another kernel", runs one
# command and says how it ended. It is the first process, started from the folder of this run (vm.py), which holds
# this file, `settings` (shell variables) and `command` (a shell script).
#
# What the command sees as its root folder is an overlay: below, the host's root file system, read-only; above, a
# tmpfs. So it finds everything that is installed on the host and may change all of it, and nothing of that stays.
# Only the working directory is shared for good. /tmp is empty. Three ways lead to the host's files:
#
#   9p, cache=mmap    the working directory: what one side writes, the other side sees
#   9p, cache=loose   the host's root: cached in the guest, which takes it that nobody changes it meanwhile
#   squashfs disk     Python's folders (pack.py): no round trip to the host for each of thousands of files
#
# Until the new root stands, everything is done by busybox: it is one static file, while each start of a program from
# the folder that virtme-ng mounts (9p without a cache) takes a third of a second when the processor is emulated.
#
# Talk with vm.py goes through four virtio-serial ports and not through the console, which would mix standard output
# with standard error and turn line ends. They are found by name in sysfs: without udev there are no links in /dev.
# A port passes on what is written but not that it was closed, so each stream ends with a random word (`end`).

set -u
run=${0%/*}
here=/run/bpfpath
host=$here/host
root=$here/root
. "$run/settings"

fail() {
	echo "bpfpath: the guest cannot be set up: $*" > /dev/console
	echo o > /proc/sysrq-trigger
	sleep 60
}

"$busybox" mount -t proc -o nosuid,noexec,nodev proc /proc # where busybox finds its own path
"$busybox" mount -t tmpfs -o mode=755 run /run
"$busybox" mkdir -p "$here/bin" "$host" "$root" "$here/write"
"$busybox" --install -s "$here/bin"
export PATH=$here/bin
mount -t sysfs -o nosuid,noexec,nodev sys /sys
mountpoint -q /dev || mount -t devtmpfs -o mode=755,nosuid,noexec dev /dev

release=$(uname -r)
[ -d "$modules" ] || fail "there is no $modules"
for module in $load; do
	insmod "$modules/$module" 2> /dev/null || # fails too where the first steps needed it already
		grep -q "^$(basename "$module" .ko | tr - _) " /proc/modules || fail "$module did not load"
done

for candidate in /sys/class/virtio-ports/*; do
	read -r name < "$candidate/name"
	case $name in
		bpfpath.control) exec 3<> "/dev/${candidate##*/}" ;;
		bpfpath.input) exec 4< "/dev/${candidate##*/}" ;;
		bpfpath.output) exec 5> "/dev/${candidate##*/}" ;;
		bpfpath.errors) exec 6> "/dev/${candidate##*/}" ;;
	esac
done

# The root folder.
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 bpfpath.root "$host" ||
	fail "the host's root folder cannot be mounted"
mount -t tmpfs -o mode=755,size=75% bpfpath "$here/write" || fail "no tmpfs"
overlay() { # folder below, where
	layer=$(mktemp -d "$here/write/XXXXXX")
	mkdir "$layer/upper" "$layer/work"
	chmod 755 "$layer" "$layer/upper"
	mount -t overlay -o "lowerdir=$1,upperdir=$layer/upper,workdir=$layer/work" overlay "$2" || fail "no overlay of $1"
}
each() { # line of a list
	[ -z "$1" ] || echo "$1"
}
overlay "$host" "$root"
for folder in proc sys dev run; do
	mount --rbind "/$folder" "$root/$folder" || fail "no /$folder"
done
mount -t tmpfs -o mode=1777 tmp "$root/tmp" || fail "no /tmp"
mkdir -p "$root/lib/modules/$release"
mount --bind "$host$modules" "$root/lib/modules/$release" || fail "no /lib/modules"
if [ -n "$shared" ]; then
	mkdir -p "$root$shared"
	mount -t 9p -o "rw,trans=virtio,version=9p2000.L,cache=mmap,msize=512000" bpfpath.shared "$root$shared" ||
		fail "no $shared"
fi
if [ -n "$packed" ]; then
	mkdir -p "$here/pack"
	mount -t squashfs -o ro /dev/vda "$here/pack" || fail "the disk with Python's folders cannot be read"
fi
# One path a line. Without the host's folder as a second layer below: that costs what the image saves.
each "$packed" | while read -r path; do
	if [ -f "$here/pack$path" ]; then
		mount --bind "$here/pack$path" "$root$path" || fail "no $path"
	else
		mkdir -p "$root$path"
		overlay "$here/pack$path" "$root$path"
	fi
done
each "$visible" | while read -r path; do
	mkdir -p "$root$path"
	overlay "$host$path" "$root$path"
done
cp "$run/command" "$here/command"

# A real root and no chroot: in a chroot there are no user namespaces, and `ip -n` fails.
mkdir -p "$root/run/bpfpath/old"
cd "$root" || fail "no root"
pivot_root . run/bpfpath/old || fail "no new root"
umount -l /run/bpfpath/old

# What a running system has.
hostname "$hostname"
ip link set lo up
mkdir -p /run/netns /run/lock /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for link in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
	ln -sfn "${link#*:}" "/dev/${link%%:*}"
done

# A port has one reader and one writer at a time; through pipes the command may hand its streams on as it likes.
mkfifo "$here/output" "$here/errors"
cat < "$here/output" >&5 &
output_pid=$!
cat < "$here/errors" >&6 &
errors_pid=$!

# vm.py says INT or TERM. When its end of the port is gone, so is it: then nobody waits for anything here.
(
	while IFS= read -r word <&3; do
		kill -s "$word" -- "-$(cat "$here/pid")"
	done
	echo o > /proc/sysrq-trigger
) > /dev/null 2>&1 &

read -r uptime _ < /proc/uptime
echo "ready $uptime" >&3
# A session of its own, so that a signal reaches all of the command.
setsid sh -c 'echo $$ > "$0"; . "$1"' "$here/pid" "$here/command" \
	<&4 > "$here/output" 2> "$here/errors" 3>&- 4<&- 5>&- 6>&-
status=$?

# Somebody in the background may still hold the pipes: not waited for longer than a moment.
waited=0
while kill -0 "$output_pid" 2> /dev/null || kill -0 "$errors_pid" 2> /dev/null; do
	waited=$((waited + 1))
	[ "$waited" -gt 20 ] && break
	sleep 0.1
done
kill "$output_pid" "$errors_pid" 2> /dev/null
printf %s "$end" >&5
printf %s "$end" >&6
sync
echo "exit $status" >&3
# vm.py pulls the plug now. Without it: off.
sleep 10
echo o > /proc/sysrq-trigger
