"""The tests behind a comparison: as scipy and the literature have them, and how often they err."""

from __future__ import annotations

import numpy as np
import pytest
import streams
from scipy import stats

from bpfpath_nb.analysis.shifts import Observations, shifts
from bpfpath_nb.analysis.significance import Tally, compare_shares, difference_interval, holm, in_reach, share_test


def test_holm_and_tarone_by_hand() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(holm(p), [0.03, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(holm(p, tables=2), [0.06, np.nan, 0.12, 0.12])
    # Two can come under 0.05 / 2; the rest cannot at any number.
    assert in_reach(np.array([0.001, 0.02, 0.2, 1.0]), 0.05).tolist() == [True, True, False, False]
    assert not in_reach(np.array([0.2]), 0.05).any()


def test_shares_against_scipy_and_the_published_interval() -> None:
    random = np.random.default_rng(2)
    of_a, of_b = 40, 70
    count_a, count_b = random.integers(0, of_a + 1, 200), random.integers(0, of_b + 1, 200)

    p, least = share_test(count_a, of_a, count_b, of_b)

    for at in range(0, 200, 10):
        table = [[count_a[at], of_a - count_a[at]], [count_b[at], of_b - count_b[at]]]
        tails = [stats.fisher_exact(table, alternative=side).pvalue for side in ("less", "greater")]
        assert p[at] == pytest.approx(min(1, 2 * min(tails)))
    assert (p >= least - 1e-12).all()
    # Newcombe 1998, table II, method 10: 56/70 and 48/80, 9/10 and 3/10, 10/10 and 0/10.
    for (x, m), (y, n), bounds in [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 10), (0.6075, 1.0000)),
    ]:
        low, high = difference_interval(np.array([y]), n, np.array([x]), m)
        assert (low[0], high[0]) == (pytest.approx(bounds[0], abs=5e-5), pytest.approx(bounds[1], abs=5e-5))


def test_the_rank_test_is_scipys_where_there_is_one_stratum() -> None:
    random = np.random.default_rng(4)
    a, b = random.lognormal(8, 1, 200).astype(np.int64), random.lognormal(8.4, 1, 150).astype(np.int64)
    seen = Observations(np.zeros(350, np.int64), np.zeros(350, np.int64), np.arange(350) >= 200, np.append(a, b))

    found = shifts(seen, 1)

    expected = stats.mannwhitneyu(b, a, method="asymptotic", use_continuity=False)
    assert found.longer[0] == pytest.approx(expected.statistic / (200 * 150))
    # The larger of two variances counts, so p may be larger but is near.
    assert expected.pvalue <= found.p[0] < 10 * expected.pvalue
    assert (found.median_a[0], found.median_b[0]) == (round(np.median(a)), round(np.median(b)))


@pytest.mark.parametrize("run", [1, 5])
def test_the_test_of_shares_allows_for_runs_and_still_finds(run: int) -> None:
    random = np.random.default_rng(9)
    things, packets, shares = 400, 600, (0.1, 0.1, 0.4)
    a, same, more = (
        np.repeat(random.random((things, packets // run)) < share, run, axis=1).nonzero() for share in shares
    )

    def tested(b):
        tallies = [Tally.of(packet, thing, things, packets) for thing, packet in (a, b)]
        p, _, effect = compare_shares(*tallies)
        low, high = difference_interval(tallies[0].total, packets, tallies[1].total, packets, effect)
        return p, low, high

    p, low, high = tested(same)
    assert (p < 0.05).mean() < 0.06
    assert ((low <= 0) & (high >= 0)).mean() > 0.92
    p, low, high = tested(more)
    assert (p < 0.001).mean() > 0.9
    assert ((low <= 0.3) & (high >= 0.3)).mean() > 0.92


@pytest.mark.parametrize("spread", streams.SPREADS)
def test_the_interval_of_a_shift_holds_the_truth(spread: str) -> None:
    random = np.random.default_rng(11)
    for size_a, size_b, strata in ((8, 8, 1), (30, 30, 1), (30, 300, 3), (400, 400, 1)):
        # Each place is a comparison of its own.
        places, truth = 400, 2500
        packet = np.arange(places * (size_a + size_b))
        place = np.concatenate([np.repeat(np.arange(places), size_a), np.repeat(np.arange(places), size_b)])
        side = np.repeat([False, True], [places * size_a, places * size_b])
        value = np.asarray(streams.SPREADS[spread](random, packet, len(packet))).astype(np.int64)
        stratum = random.integers(0, strata, len(packet))

        found = shifts(Observations(place, stratum, side, value + truth * side), places)

        covered = (found.low <= truth) & (truth <= found.high)
        # A share that is truly 95 % comes out below 92 % of 400 in one of 500 cases.
        assert covered.mean() > 0.92, (size_a, size_b, strata)
        assert (found.p[~np.isnan(found.p)] < 0.01).mean() > (0 if size_a == 8 else 0.5)


@pytest.mark.parametrize(("size", "run"), [(60, 5), (200, 10), (400, 10), (1000, 30)])
def test_bursts_are_not_taken_for_a_difference(size: int, run: int) -> None:
    """Packets in runs that are slow together: the plain rank test finds differences in most of such captures."""
    random = np.random.default_rng(5)
    places = 300
    value = np.repeat(random.lognormal(8, 1, 2 * places * size // run), run).astype(np.int64)
    place = np.tile(np.repeat(np.arange(places), size), 2)
    side = np.repeat([False, True], places * size)

    found = shifts(Observations(place, np.zeros_like(place), side, value), places)

    assert (found.p < 0.05).mean() < 0.1
    assert ((found.low <= 0) & (found.high >= 0)).mean() > 0.9
