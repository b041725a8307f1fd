"""Run one command on another kernel: `bpfpath vm 6.12 -- COMMAND`.

The virtual machine has no disk of its own. Its root folder is this machine's, so what is installed here is there too,
and only the kernel differs; `guest.sh` tells how that looks from inside. virtme-ng knows how to boot a kernel over a
folder: which modules the first steps need, the initial file system with them, the options for QEMU. It is asked for
QEMU's command line only (``--dry-run``). QEMU is then started from here, for the sake of three things:

- **what comes out is what the command wrote.** Standard output, standard error and input are virtio-serial ports, each
  with a socket pair to this process: no console between, which would turn line ends and mix the two. The sockets have
  no names, so no files stay.
- **nothing stays.** QEMU is the direct child of this process and dies with it (PR_SET_PDEATHSIG), whatever kills it.
  When QEMU is gone, so is all of the machine; the folder of a run goes with its ``with`` block.
- **the end is quick.** The guest flushes what it wrote to shared files before it reports the exit status. After that
  there is nothing worth a shutdown in it, and the plug is pulled.

QEMU emulates the processor where the host has no virtualisation to offer (a machine in the cloud, say): everything
then takes 10 to 30 times as long, and what helps is to read little (`pack`).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bpfpath_nb.errors import LabError
from bpfpath_nb.lab import kernels, pack
from bpfpath_nb.lab.conversation import Conversation, ending, unwinding

PORTS = ("control", "input", "output", "errors")
BOOT_LIMIT = 300.0  # seconds; it takes 10 on two idle cores, and tests share theirs with others
_MODULES = ("virtio_console", "virtio_blk", "overlay", "squashfs")
_KEPT = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TZ|TERM|CI|VIRTUAL_ENV|CONDA_\w+|PYTHON\w*|PYTEST_\w+|BPFPATH_\w+|BCC_\w+"
    r"|JUPYTER\w*|IPYTHON\w*|MPL\w+|XDG_CACHE_HOME|NO_COLOR|FORCE_COLOR"
)
"""Variables of the environment that are the same in the guest."""


def run(
    kernel: str,
    command: Sequence[str],
    *,
    memory: str = "2G",
    cpus: int = 2,
    counted: bool = False,
    boot_limit: float = BOOT_LIMIT,
) -> int:
    """Boot a kernel, run a command there with this process's standard streams, and power down.

    Parameters
    ----------
    kernel : str
        A name that `kernels.find` knows. It is fetched first where it is not here.
    command : sequence of str
        The program and its arguments. It runs as root in the working directory of this process, which is shared: what
        it writes there stays, whatever else it changes is gone with the machine.
    memory : str, default "2G"
        As QEMU takes it.
    cpus : int, default 2
    counted : bool, default False
        Let the machine's clock count the instructions of its processors, as 1 ns each, and not the time that emulating
        them takes. What is measured there is the same each time, whatever else this machine does; it takes longer, and
        while nothing is to be done the clock jumps (QEMU's ``-icount shift=0,sleep=off``).
    boot_limit : float
        Seconds until the command must have started.

    Returns
    -------
    int
        The command's exit status, as a shell tells it (127: not found, 128 + n: ended by signal n).

    Raises
    ------
    LabError
        Something is missing on this machine, the kernel cannot be had, did not boot in time, or died.
    """
    source = kernels.find(kernel)
    require()
    with (
        unwinding(),
        kernels.held(source) as found,
        pack.packed() as packed,
        tempfile.TemporaryDirectory(prefix="bpfpath-vm-") as folder,
        contextlib.ExitStack() as opened,
    ):
        pairs = {name: [opened.enter_context(end) for end in socket.socketpair()] for name in PORTS}
        theirs = {name: pair[1].fileno() for name, pair in pairs.items()}
        machine = Machine(found, Path(folder), memory=memory, cpus=cpus, counted=counted, packed=packed)
        machine.write(command, os.environ)
        inherited = [*theirs.values(), *([packed.descriptor] if packed else [])]
        started = time.monotonic()
        # `setpriv` sets the signal and becomes QEMU: nothing of ours runs between fork and exec.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *machine.command_line(theirs)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            pass_fds=inherited, start_new_session=True, cwd=folder,
        )  # fmt: skip
        for pair in pairs.values():
            pair[1].close()
        with ending(process):
            ours = {name: pair[0] for name, pair in pairs.items()}
            return Conversation(process, ours, machine.end.encode(), started + boot_limit).hold()


def require() -> None:
    """Fail where a program is missing, naming the command that installs it."""
    path = kernels.search_path()
    debian = {
        "qemu-system-x86_64": "qemu-system-x86",
        "busybox": "busybox-static",
        "file": "file",
        "modprobe": "kmod",
        "setpriv": "util-linux",
        "ip": "iproute2",
    }
    missing = [package for tool, package in debian.items() if not shutil.which(tool, path=path)]
    ways = [f"apt-get install {' '.join(missing)}"] if missing else []
    if not _virtme():
        ways.append("pip install 'bpfpath_nb[vm]'")
    if ways:
        raise LabError(f"a virtual machine needs programs that this machine has not. Install them: {' && '.join(ways)}")


def _virtme() -> str | None:
    """virtme-ng's `virtme-run`: of this Python's environment, else of the machine."""
    here = Path(sys.executable).parent / "virtme-run"
    return str(here) if here.exists() else shutil.which("virtme-run")


@dataclass(frozen=True)
class Machine:
    """What is asked of virtme-ng and QEMU for one run; `folder` is this run's own and goes with it."""

    kernel: kernels.Kernel
    folder: Path
    memory: str
    cpus: int
    counted: bool
    packed: pack.Pack | None

    end: str = field(default_factory=lambda: secrets.token_hex(32))
    """With which a stream ends; random, so that no command can write it by chance."""
    shared: str = field(default_factory=lambda: str(Path.cwd()).removesuffix("/"))
    """The folder that the guest writes for good; empty where the command runs in the root folder itself."""

    def write(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Put what the guest reads into the folder."""
        busybox = shutil.which("busybox", path=kernels.search_path())
        script = Path(__file__).with_name("guest.sh").read_text()
        guest = self.folder / "guest.sh"
        guest.write_text(f"#!{busybox} sh\n{script.partition(chr(10))[2]}")
        guest.chmod(0o755)
        dependencies = (self.kernel.modules / "modules.dep").read_text()
        settings = {
            "busybox": str(busybox),
            "modules": str(self.kernel.modules),
            "load": "\n".join(kernels.load_order(dependencies, _MODULES)),
            "shared": self.shared,
            "packed": "\n".join(self.packed.paths) if self.packed else "",
            "visible": "\n".join(self._visible()),
            "hostname": os.uname().nodename,
            "end": self.end,
        }
        text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
        (self.folder / "settings").write_text(text, errors="surrogateescape")
        script = guest_command(command, environment, str(Path.cwd()))
        (self.folder / "command").write_text(script, errors="surrogateescape")

    def _visible(self) -> tuple[str, ...]:
        """Folders that are the host's although something of ours lies over the place where they are."""
        if self.packed:
            return self.packed.left_out
        return (sys.prefix,) if sys.prefix.startswith("/tmp/") else ()

    def command_line(self, ports: Mapping[str, int]) -> list[str]:
        """QEMU's command line, as virtme-ng makes it, with our ports (name, file descriptor) and folders."""
        # virtme-ng gets ignorant of the user's settings for it, and keeps its own temporary files in our folder.
        environment = {
            **os.environ,
            "PATH": kernels.search_path(),
            "TMPDIR": str(self.folder),
            "HOME": str(self.folder),
            "XDG_CACHE_HOME": str(self.folder),
        }
        virtme = _virtme()
        assert virtme is not None
        asked = [
            virtme, "--kimg", str(self.kernel.image), "--mods", "auto", "--force-9p", "--disable-kvm",
            "--memory", self.memory, "--cpus", str(self.cpus), "--show-boot-console",
            "--script-sh", "true", "--dry-run", "--show-command",
            "--save-initramfs", str(self.folder / "initramfs"), "--qemu-opts", *self._devices(ports),
        ]  # fmt: skip
        done = subprocess.run(
            asked, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode or "qemu-system" not in done.stdout:
            raise LabError(f"virtme-ng could not prepare the machine: {(done.stderr or done.stdout).strip()[-500:]}")
        words = shlex.split(done.stdout)
        at = words.index("-append") + 1
        words[at], found = re.subn(r"\binit=\S+", f"init={self.folder}/guest.sh", words[at])
        if not found:
            raise LabError("virtme-ng starts machines in a way that this version of bpfpath_nb does not know.")
        return words

    def _devices(self, ports: Mapping[str, int]) -> list[str]:
        words = []
        for name, path, access in (("root", "/", ",readonly=on"), ("shared", self.shared, "")):
            if path:
                # `remap`: several file systems below one folder stay apart by their inode numbers.
                share = f"local,id=bpfpath-{name},path={_comma(path)},security_model=none,multidevs=remap{access}"
                words += ["-fsdev", share]
                words += ["-device", f"virtio-9p-pci,fsdev=bpfpath-{name},mount_tag=bpfpath.{name}"]
        if self.packed:
            disk = f"file={_comma(self.packed.image)},format=raw,if=none,id=bpfpath-pack,readonly=on"
            words += ["-drive", disk, "-device", "virtio-blk-pci,drive=bpfpath-pack"]
        words += ["-device", "virtio-serial-pci,id=bpfpath"]
        for name, descriptor in ports.items():
            words += ["-chardev", f"socket,id=bpfpath-{name},fd={descriptor}"]
            words += ["-device", f"virtserialport,bus=bpfpath.0,name=bpfpath.{name},chardev=bpfpath-{name}"]
        if _virtualises() and not self.counted:
            words += ["-accel", "kvm"]  # the first that works is taken
        else:
            # QEMU 7.2 emulates AVX2 wrongly: numpy's argsort then returns indices twice, and leaves others out.
            words += ["-cpu", "max,avx2=off"]
        if self.counted:
            return [*words, "-icount", "shift=0,sleep=off", "-accel", "tcg,thread=single,tb-size=2048"]
        return [*words, "-accel", "tcg,thread=multi,tb-size=2048"]


def guest_command(command: Sequence[str], environment: Mapping[str, str], folder: str) -> str:
    """The script that becomes the command in the guest: same folder, and the chosen part of the environment."""
    kept = {name: value for name, value in environment.items() if _KEPT.fullmatch(name)}
    kept["PATH"] = kernels.search_path()
    words = ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in sorted(kept.items())), *command]
    return f"cd -- {shlex.quote(folder)} || exit 126\nexec {shlex.join(words)}\n"


def _comma(value: str) -> str:
    """A value inside an option of QEMU's, where commas part the options."""
    return value.replace(",", ",,")


def _virtualises() -> bool:
    """Whether KVM is worth trying. A device alone says little: some clouds have one without a processor behind."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        return False
    able = flags is not None and {"vmx", "svm"} & set(flags[1].split())
    return bool(able) and os.access("/dev/kvm", os.R_OK | os.W_OK)
