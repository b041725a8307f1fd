"""A saved recording without us: DuckDB and polars read names, times and flows from the file alone."""

from __future__ import annotations

import duckdb
import polars
import pytest
from streams import capture


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    recording = capture(150, seed=29).recording()
    return recording, recording.save(tmp_path_factory.mktemp("read") / "x.parquet")


def test_duckdb_counts_drops_by_reason(saved):
    recording, path = saved
    rows = duckdb.sql(
        f"select reason, count(*) from '{path}' where func = 'kfree_skb' and reason is not null group by 1"
    )
    found = {reason: count for reason, count in rows.fetchall() if reason != "CONSUMED"}
    assert found == recording.drops["reason"].astype("str").value_counts().to_dict()


def test_duckdb_computes_the_time_between_hops(saved):
    recording, path = saved
    gap = "lead(epoch_ns(time)) over (partition by packet order by hop) - epoch_ns(time)"
    rows = duckdb.sql(f"select func, max(gap) from (select func, {gap} as gap from '{path}') group by 1").fetchall()
    longest = recording.functions["gap_max"].dropna().astype("int64").to_dict()
    assert {func: gap for func, gap in rows if gap is not None} == longest


def test_polars_reads_two_columns_lazily(saved):
    recording, path = saved
    frame = polars.scan_parquet(path).group_by("netns").agg(polars.col("packet").n_unique()).collect()
    found = dict(frame.iter_rows())
    assert found == recording.namespaces["packets"].to_dict()
    times = polars.read_parquet(path, columns=["time", "flow"])
    assert times["time"].dtype == polars.Datetime("ns", "UTC")
    assert times["flow"].cast(polars.String).to_list() == recording.df["flow"].astype("str").tolist()
