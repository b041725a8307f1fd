"""Names of containers out of the cgroup paths that their runtimes make."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfpath_nb.tracer.containers import container_of

ID = "4f6c" * 16
OTHER = "0123" * 16


@pytest.mark.parametrize(
    ("cgroup", "name"),
    [
        (f"0::/system.slice/docker-{ID}.scope", f"docker:{ID[:12]}"),
        (f"0::/docker/{ID}", f"docker:{ID[:12]}"),
        (f"12:memory:/docker/{ID}\n0::/system.slice/containerd.service", f"docker:{ID[:12]}"),
        (f"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope",
         f"containerd:{ID[:12]}"),
        (f"0::/kubepods/burstable/pod7d1e/{ID}", f"container:{ID[:12]}"),
        (f"0::/machine.slice/libpod-{ID}.scope/container", f"podman:{ID[:12]}"),
        (f"0::/docker/{OTHER}/docker/{ID}", f"docker:{ID[:12]}"),
        ("0::/lxc.payload.web-1/init.scope", "lxc:web-1"),
        ("0::/machine.slice/machine-deb.scope", "machine:deb"),
        ("0::/machine.slice/systemd-nspawn@deb.service/payload", "machine:deb"),
        ("0::/user.slice/user-0.slice/session-3.scope", None),
        ("0::/", None),
        ("", None),
        (f"0::/{ID}0", None),
        ("\xff\xfe:::/docker/x", None),
    ],
)  # fmt: skip
def test_names(cgroup: str, name: str | None, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(cgroup + "\n")
    assert container_of(tmp_path) == name


def test_a_process_that_is_gone_has_none(tmp_path: Path) -> None:
    assert container_of(tmp_path / "4711") is None
