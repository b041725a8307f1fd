"""What the doctor makes of a machine: of this one as it is, and of variants of it that lack one thing each."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bpfpath_nb import machine
from bpfpath_nb.doctor import Check, Diagnosis, doctor, judge
from bpfpath_nb.machine import Machine

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def here() -> Machine:
    return machine.look()


@pytest.fixture(scope="module")
def whole(here: Machine) -> Machine:
    """This machine, with everything that it lacks or that this user may not see added."""
    return replace(
        here,
        python_version=(3, 11),
        missing_packages=(),
        notebook="jupyterlab",
        root=True,
        capabilities=frozenset(machine.CAPABILITIES.values()),
        release="6.12.0-test",
        btf_bytes=5_000_000,
        symbols="addresses",
        features=frozenset({*machine._SYMBOLS, "clsact"}),
        kprobes=True,
        lockdown="none",
        tracefs="/sys/kernel/tracing",
        bcc=Path("/usr/lib/python3/dist-packages/bcc"),
        other_bcc=None,
        libbcc="libbcc.so.0",
        libpcap="libpcap.so.0.8",
        uapi_headers=True,
        missing_tools=(),
        distribution=("debian",),
    )


def the(diagnosis: Diagnosis, requirement: str) -> Check:
    (check,) = [check for check in diagnosis if check.requirement == requirement]
    return check


def test_nothing_to_mend_on_a_whole_machine(whole: Machine) -> None:
    diagnosis = judge(whole)

    assert [check for check in diagnosis if (check.state, check.costs, check.mend) != ("ok", "", "")] == []
    assert diagnosis.able
    assert diagnosis.verdict == "Packets can be captured here."


LACKS: list[tuple[dict[str, Any], str, str, bool, str]] = [
    # what differs, the requirement it shows at, its state, whether captures still work, a part of what mends it
    ({"python_version": (3, 10)}, "Python", "missing", False, "newer"),
    ({"missing_packages": ("pandas", "IPython")}, "Python packages", "missing", False, "pip install pandas ipython"),
    ({"notebook": None}, "notebook", "limited", True, "bpfpath_nb[notebook]"),
    ({"root": False, "sudo": False, "capabilities": None}, "privilege", "missing", False, "on='ssh://root@HOST'"),
    ({"capabilities": frozenset({"CAP_SYS_ADMIN"})}, "capabilities", "missing", False, "--cap-add=NET_ADMIN"),
    ({"capabilities": frozenset({"CAP_NET_ADMIN", "CAP_BPF"})}, "capabilities", "missing", False, "--cap-add=PERFMON"),
    ({"release": "5.4.0-1"}, "kernel", "missing", False, "newer kernel"),
    ({"release": "5.8.1"}, "kernel", "limited", True, "newer kernel"),
    ({"btf_bytes": 0}, "BTF", "missing", False, "CONFIG_DEBUG_INFO_BTF"),
    ({"symbols": "names"}, "kernel symbols", "limited", True, "sysctl -w kernel.kptr_restrict=0"),
    ({"lockdown": "confidentiality"}, "lockdown", "missing", False, "lockdown"),
    ({"tracefs": None}, "tracefs", "limited", True, "mount -t tracefs nodev /sys/kernel/tracing"),
    ({"features": None}, "probes", "limited", True, ""),
    ({"features": frozenset()}, "ring buffer", "missing", False, "5.8"),
    ({"features": frozenset()}, "raw tracepoints", "missing", False, "CONFIG_BPF_EVENTS"),
    ({"features": frozenset()}, "traffic control", "missing", False, "CONFIG_NET_CLS_BPF"),
    ({"features": frozenset({"ring_buffer", "raw_tracepoints", "clsact"})}, "traffic control", "limited", True, "6.6"),
    ({"features": frozenset({"ring_buffer", "raw_tracepoints", "tcx"})}, "netfilter hooks", "limited", True, "6.4"),
    ({"features": frozenset({"ring_buffer", "raw_tracepoints", "tcx"})}, "kprobe.multi", "limited", True, "5.18"),
    ({"kprobes": False}, "kprobes", "limited", True, "CONFIG_KPROBES"),
    ({"bcc": None}, "bcc", "missing", False, "apt-get install python3-bpfcc"),
    ({"bcc": None, "distribution": ("fedora",)}, "bcc", "missing", False, "dnf install python3-bcc"),
    ({"bcc": None, "distribution": ("nixos",)}, "bcc", "missing", False, "Debian: python3-bpfcc; Fedora: python3-bcc"),
    ({"other_bcc": Path("/x/bcc")}, "bcc of PyPI", "limited", True, "pip uninstall bcc"),
    ({"libbcc": None}, "libbcc", "missing", False, "libbpfcc"),
    ({"libpcap": None}, "libpcap", "missing", False, "libpcap0.8"),
    ({"uapi_headers": False}, "kernel headers", "missing", False, "linux-libc-dev"),
    ({"missing_tools": ("nft", "dig")}, "practice network", "missing", True, "nftables bind9-dnsutils"),
]


@pytest.mark.parametrize("case", LACKS, ids=lambda case: f"{case[1]}: {case[0]}")
def test_what_is_lacking_is_named_with_its_cost_and_its_cure(
    whole: Machine, case: tuple[dict[str, Any], str, str, bool, str]
) -> None:
    change, requirement, state, able, mend = case
    diagnosis = judge(replace(whole, **change))
    check = the(diagnosis, requirement)

    assert (check.state, diagnosis.able) == (state, able)
    assert check.costs
    assert mend in check.mend
    assert requirement in diagnosis.verdict


def test_conda_users_are_told_where_bcc_comes_from(whole: Machine) -> None:
    assert "conda has none" in the(judge(replace(whole, bcc=None, conda=True)), "bcc").found


def test_names_of_others_cannot_move_the_cursor(whole: Machine) -> None:
    assert "\x1b" not in repr(judge(replace(whole, python="/tmp/\x1b[2J/python", release="6.12\x1b[2J")))


def test_html_is_escaped(whole: Machine) -> None:
    shown = judge(replace(whole, python="<script>alert(1)</script>"))._repr_html_()

    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_frame_has_the_columns_of_the_table(here: Machine) -> None:
    frame = judge(here).frame

    assert list(frame.columns) == ["requirement", "found", "state", "costs", "mend"]
    assert set(frame["state"]) <= {"ok", "limited", "missing"}
    assert frame["requirement"].is_unique


def test_this_machine_is_told_right() -> None:
    diagnosis = doctor()

    assert os.uname().release in the(diagnosis, "kernel").found
    assert (the(diagnosis, "privilege").found == "root") == (os.geteuid() == 0)
    assert (the(diagnosis, "bcc").state == "ok") == Path("/usr/lib/python3/dist-packages/bcc/libbcc.py").exists()


def test_commands_survive_being_copied(whole: Machine) -> None:
    lines = repr(judge(replace(whole, uapi_headers=False))).splitlines()
    assert any(line.endswith("apt-get install linux-libc-dev") for line in lines)


def test_looking_imports_nothing_heavy() -> None:
    code = (
        "import sys; from bpfpath_nb.doctor import doctor; repr(doctor()); doctor()._repr_html_(); "
        "print(sorted({'bcc', 'pyroute2', 'matplotlib', 'ipywidgets', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_bcc_that_is_another_project_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text("lattice = 'body-centred cubic'\n")
    code = "from bpfpath_nb import machine; found = machine.look(); print(found.other_bcc, found.bcc, sep='\\n')"

    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip

    other, right = done.stdout.splitlines()
    assert other == str(tmp_path / "bcc")
    assert right != other
