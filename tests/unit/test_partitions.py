"""A recording in parts, on two processes of a Dask cluster: what it says is what the recording says."""

from __future__ import annotations

import sys

import distributed
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import EMPTY, capture

from bpfpath_nb.analysis import parts
from bpfpath_nb.analysis.hops import NAT
from bpfpath_nb.analysis.quantiles import quantiles
from bpfpath_nb.errors import OptionError, RequirementError
from bpfpath_nb.recording import Recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bpfpath_nb.io.parquet.GROUP", 1000)
        path = capture(400, seed=23, lost=0.002).recording().save(tmp_path_factory.mktemp("parts") / "x.parquet")
    return Recording.load(path)


@pytest.fixture(scope="module")
def cluster():
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        yield client


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Categories as text: parts know their own only, so that they come in another order."""
    return frame.astype({name: "str" for name, dtype in frame.dtypes.items() if dtype == "category"})


def test_two_processes_say_what_the_recording_says(recording, cluster):
    whole = recording.to_dask()
    assert whole.packets.npartitions == whole.df.npartitions >= 4
    assert len(cluster.scheduler_info()["workers"]) == 2
    for name in ("packets", "paths", "functions"):
        found = getattr(whole, name).compute()
        pd.testing.assert_frame_equal(plain(found), plain(getattr(recording, name)))
    assert not recording.packets["complete"].all()
    hops = whole.df.compute()
    pd.testing.assert_frame_equal(plain(hops), plain(recording.df.reset_index("hop")))


def test_a_packet_is_in_one_partition(recording):
    packets = recording.to_dask().packets
    assert packets.divisions[0] == 1
    assert packets.divisions[-1] == recording.packets.index[-1]
    assert packets.loc[200].compute().index.tolist() == [200]
    assert packets["hops"].sum().compute() == len(recording)


def test_of_nothing_there_are_empty_frames(tmp_path):
    recording = Recording.load(EMPTY.recording().save(tmp_path / "x.parquet"))
    whole = recording.to_dask()
    for name in ("packets", "paths", "functions"):
        found = getattr(whole, name).compute()
        assert len(found) == 0
        pd.testing.assert_frame_equal(found, getattr(recording, name))


def test_what_is_in_no_file_has_to_be_saved_first(recording):
    for there_is_no_file in (capture(9).recording(), recording.where("port 53 and src port 40001")):
        with pytest.raises(OptionError, match="Save it"):
            there_is_no_file.to_dask()


def test_without_dask_it_is_said_how_to_get_it(recording, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(RequirementError, match=r"pip install 'bpfpath_nb\[dask\]'"):
        recording.to_dask()


values = st.one_of(
    st.just(NAT), st.integers(0, 300), st.integers(0, 2**62), st.integers(0, 62).map(lambda bit: (1 << bit) - 1)
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(-1, 3), values), max_size=20), max_size=4))
def test_quantiles_of_parts_are_those_of_the_whole(lists):
    of_parts = [[np.array([row[at] for row in rows], np.int64) for at in (0, 1)] for rows in lists]
    counts = parts.merge(parts.count(*part) for part in of_parts)
    wanted = parts.wanted(counts)
    found = parts.quantiles(counts, [parts.pick(*part, wanted) for part in of_parts], 4)
    group, of_group = (np.concatenate([np.empty(0, np.int64), *(part[at] for part in of_parts)]) for at in (0, 1))
    expected = quantiles(group, 4, of_group)
    for name in ("p50", "p90", "p99", "max", "total"):
        np.testing.assert_array_equal(found[name], expected[name])
