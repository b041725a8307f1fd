"""What a comparison found, in sentences that can be pasted into a ticket, and as text for a terminal.

Only claims (`schema.CHANGES`) are stated as differences. What may be chance is said to be that, with the numbers; what
is too thin to say anything is said to be too thin.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from bpfpath_nb.analysis.losses import losses
from bpfpath_nb.io.text import WIDTH, loss_lines

if TYPE_CHECKING:
    from bpfpath_nb.analysis.alignment import Alignment
    from bpfpath_nb.comparison import Comparison

_MOST: Final = 3
"""So many of a kind are told one by one."""

_ZERO: Final = pd.Timedelta(0)

_EVERYWHERE: Final = 6
_NEARLY_ALL: Final = 0.7
"""From so many functions on, and such a share of them, it is not a place but the machine that changed."""

_MANY: Final = 20
"""From so many functions on that one side alone traced their cost is said."""

_UNTIL: Final = {
    "delivered": "time to the socket",
    "dropped": "time to the drop",
    "sent": "time until it left",
    "consumed": "time until it was used up",
    "unfinished": "time that is known of the unfinished",
}

_UNITS: Final = ((10**9, "s"), (10**6, "ms"), (10**3, "us"), (1, "ns"))


def span(ns: float, sign: str = "") -> str:
    """A duration with its unit, to three digits; with `sign="+"` also a plus."""
    if np.isnan(ns):
        return "-"
    size, name = next(((size, name) for size, name in _UNITS if abs(ns) >= size), _UNITS[-1])
    value = ns / size
    digits = 0 if size == 1 or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:{sign}.{digits}f} {name}"


def percent(share: float, sign: str = "") -> str:
    """A share in percent, with as many digits as a ticket needs."""
    value = 100 * share
    if 0 < abs(value) < 0.01:
        return f"{'<' if value > 0 else '>-'}0.01 %"
    digits = 0 if abs(value) >= 10 or abs(value - round(value)) < 1e-9 else 1 if abs(value) >= 1 else 2
    return f"{value:{sign}.{digits}f} %"


def findings(comparison: Comparison) -> list[str]:
    """The sentences of a comparison, the most important first."""
    if sum(len(fates.packets) for fates in comparison.tables.fates) == 2:
        said = _two_packets(comparison)
    else:
        said = [_what(comparison), *_thin(comparison), *_drops(comparison), *_verdicts(comparison)]
        said += [*_times(comparison), *_where(comparison), *_ways(comparison), *_nothing(comparison)]
    return said + _reservations(comparison)


def _what(comparison: Comparison) -> str:
    first, second = comparison.names
    count_a, count_b = (len(fates.packets) for fates in comparison.tables.fates)
    inside = [selection.netns for selection in comparison.tables.selections]
    where = "" if inside[0] is None else f" in netns {' and '.join(dict.fromkeys(map(str, inside)))}"
    filters = list(dict.fromkeys(side.start.filter or "every packet" for side in (comparison.a, comparison.b)))
    return (
        f"Compared {_count(count_a, 'packet')} of {first} with {count_b} of {second}{where} ({' and '.join(filters)})."
    )


def _thin(comparison: Comparison) -> list[str]:
    counts = [len(fates.packets) for fates in comparison.tables.fates]
    tables = (comparison.verdicts, comparison.functions, comparison.transitions, comparison.places)
    latency = [bool(table["shift_p"].notna().any()) for table in tables]
    shares = any(table["share_p"].notna().any() for table in (*tables, comparison.paths, comparison.drops))
    if not shares and not any(latency):
        return [
            f"That is too thin to say anything: with {counts[0]} and {counts[1]} packets no difference could be told "
            f"from chance. What follows is only what was seen."
        ]
    if not any(latency):
        return ["There are too few like packets on both sides to compare latencies."]
    if not any(latency[1:]):
        return [
            "There are too few like packets on both sides to compare the latencies of single functions; what is said "
            "of time is of the whole way."
        ]
    return []


def _drops(comparison: Comparison) -> list[str]:
    drops = comparison.drops
    first, second = comparison.names
    totals = [len(fates.packets) for fates in comparison.tables.fates]
    if not len(drops):
        return ["No packet was dropped on either side."]
    claimed = drops[drops["change"].isin(["added", "gone", "shifted"])]
    said = []
    for key, row in claimed.head(_MOST).iterrows():
        reason, func, netns = (None if pd.isna(part) else str(part) for part in _parts(key))
        where = f"After {func} " if func else ""
        why = reason or "a drop without a reason"
        place = f" in netns {netns}" if netns else ""
        now = f"{percent(row['share_b'])} of the packets of {second} ({row['packets_b']} of {totals[1]})"
        then = f"{percent(row['share_a'])} of the packets of {first} ({row['packets_a']} of {totals[0]})"
        change = f"{_points(row)}"
        if row["change"] == "added":
            said.append(f"{where}{now} end in {why}{place}; none of {first} did ({change}).")
        elif row["change"] == "gone":
            said.append(f"{where}{then} ended in {why}{place}; none of {second} does ({change}).")
        else:
            said.append(f"{where}{now} end in {why}{place}, against {then} ({change}).")
    if len(claimed) > _MOST:
        said.append(f"{_count(len(claimed) - _MOST, 'more drop')} changed; `drops` lists them.")
    if not len(claimed):
        dropped = [int(drops[f"packets_{side}"].sum()) for side in "ab"]
        counts = f"{dropped[0]} of {totals[0]} packets of {first}, {dropped[1]} of {totals[1]} of {second}"
        if _differs(comparison, "dropped"):  # too few of each kind, but not of all together
            kinds = _count(len(drops), "kind")
            said.append(
                f"There are {kinds} of drops ({counts}), and none alone differs beyond chance; together they do:"
            )
        else:
            said.append(f"No kind of drop differs beyond chance: {counts}.")
    return said


def _differs(comparison: Comparison, verdict: str) -> bool:
    """Whether the share of packets with a verdict differs beyond chance."""
    return bool(comparison.verdicts["share_p"].get(verdict, np.nan) < 0.05)


def _points(row: Any) -> str:
    difference, low, high = (
        percent(row[name], "+").removesuffix(" %") for name in ("difference", "difference_low", "difference_high")
    )
    return f"{difference} points, 95 % CI {low} to {high}"


def _verdicts(comparison: Comparison) -> list[str]:
    verdicts = comparison.verdicts
    first, second = comparison.names
    told = comparison.drops["change"].isin(["added", "gone", "shifted"]).any()
    said = []
    for verdict, row in verdicts.iterrows():
        if not _differs(comparison, str(verdict)) or (verdict == "dropped" and told):
            continue
        said.append(
            f"{str(verdict).capitalize()}: {percent(row['share_a'])} of {first}, {percent(row['share_b'])} of "
            f"{second} ({_points(row)})."
        )
    return said


def _times(comparison: Comparison) -> list[str]:
    verdicts = comparison.verdicts
    first, second = comparison.names
    compared = verdicts[["compared_a", "compared_b"]].min(axis=1)
    if not compared.any():
        return []
    verdict = "delivered" if compared["delivered"] else str(compared.idxmax())
    row = verdicts.loc[verdict]
    inside = comparison.tables.selections[0].netns is not None
    what = "time there" if inside else _UNTIL[verdict]
    median_a, median_b = span(_ns(row["median_a"])), span(_ns(row["median_b"]))
    shift = f"{span(_ns(row['shift']), '+')}, 95 % CI {span(_ns(row['shift_low']), '+')} to "
    shift += span(_ns(row["shift_high"]), "+")
    if np.isnan(row["shift_p"]):
        return [
            f"Median {what}: {median_a} in {first}, {median_b} in {second}; {row['compared_a']} and "
            f"{row['compared_b']} packets that are alike are too few to tell more."
        ]
    if not row["shift_p"] < 0.05:
        alone = not _ns(row["shift_low"]) <= 0 <= _ns(row["shift_high"])
        how = "which may be chance among all that is compared" if alone else "no difference beyond chance"
        return [f"Median {what}: {median_a} in {first}, {median_b} in {second}, {how} ({shift})."]
    if _ns(row["shift_low"]) <= 0 <= _ns(row["shift_high"]):
        pairs = percent(float(verdicts["longer"].to_numpy()[list(verdicts.index).index(verdict)]))
        return [
            f"The {what} differs: a packet of {second} takes longer than a like one of {first} in "
            f"{pairs} of all pairs. The medians, {median_a} and {median_b}, do not show it ({shift})."
        ]
    verb = "rose" if _ns(row["shift"]) > 0 else "fell"
    return [f"Median {what} {verb} from {median_a} to {median_b} ({shift})."]


def _where(comparison: Comparison) -> list[str]:
    """The places that became slower or faster."""
    said = []
    for change, word in (("slower", "Slower"), ("faster", "Faster")):
        places = comparison.places[comparison.places["change"] == change]
        # The rank test may be sure where the median is not; those are counted, not told.
        resolved = places["shift_low"].gt(_ZERO) if change == "slower" else places["shift_high"].lt(_ZERO)
        told = [
            f"after {_place(key)}{_waiting(row)} {span(_ns(row['shift']), '+')} (95 % CI "
            f"{span(_ns(row['shift_low']), '+')} to {span(_ns(row['shift_high']), '+')})"
            for key, row in places[resolved].head(_MOST).iterrows()
        ]
        rest = len(places) - len(told)
        if told:
            more = f", and {_count(rest, 'more place')}" if rest else ""
            said.append(f"{word} at the median in {comparison.names[1]}: {', '.join(told)}{more}.")
    for change, side, word in (("added", "b", "Only in"), ("gone", "a", "Not in")):
        places = comparison.places[comparison.places["change"] == change]
        places = places[places[f"median_{side}"].notna()].sort_values(f"median_{side}", ascending=False)
        told = [
            f"after {_place(key)}{_waiting(row)} {span(_ns(row[f'median_{side}']))} in "
            f"{_count(row[f'packets_{side}'], 'packet')}"
            for key, row in places.head(_MOST).iterrows()
        ]
        if told:
            more = f", and {_count(len(places) - _MOST, 'more place')}" if len(places) > _MOST else ""
            aside = "" if side == "b" else f", but in {comparison.names[0]}"
            said.append(f"{word} {comparison.names[1]}{aside}: median time {', '.join(told)}{more}.")
    shifts = comparison.functions
    tested = shifts[shifts["shift_p"].notna()]
    slower, faster = (int((tested["change"] == change).sum()) for change in ("slower", "faster"))
    most = max(slower, faster)
    if most >= _EVERYWHERE and most >= _NEARLY_ALL * len(tested):
        said.append(
            f"{most} of {len(tested)} functions became {'slower' if slower > faster else 'faster'}: that is how a "
            f"change of the machine as a whole looks (its load, its clock), beside which a place of its own has to "
            f"stand out."
        )
    return said


def _place(key: Any) -> str:
    netns, dev, func = _parts(key)
    where = [f"in netns {netns}" if pd.notna(netns) else "", f"on {dev}" if pd.notna(dev) else ""]
    return " ".join(part for part in (str(func), *where) if part)


def _waiting(row: Any) -> str:
    return f" (waiting: {row['queue']})" if pd.notna(row["queue"]) else ""


def _ways(comparison: Comparison) -> list[str]:
    """The paths that changed, and where they part."""
    change = comparison.paths["change"]
    told = [
        (int((change == "added").sum()), "new"),
        (int((change == "gone").sum()), "gone"),
        (int((change == "shifted").sum()), "taken by another share of the packets"),
    ]
    parts = [f"{count} {'is' if count == 1 else 'are'} {what}" for count, what in told if count]
    if not parts:
        return []
    said = [f"Of {_count(len(change), 'path')} {', '.join(parts)}."]
    alignment = comparison.align()
    return said + (parting(comparison.names, alignment) if alignment is not None else [])


def parting(names: tuple[str, str], alignment: Alignment) -> list[str]:
    """Where the two paths of an alignment part, as a sentence; nothing where they are the same."""
    return [] if alignment.divergence is None else [alignment.divergence.sentence(*names)]


def _nothing(comparison: Comparison) -> list[str]:
    tables = [comparison.verdicts, comparison.drops, comparison.paths, comparison.functions]
    tables += [comparison.transitions, comparison.places]
    if any((~table["change"].isin(["same", "unclear"])).any() for table in tables):
        return []
    return ["Nothing differs beyond what chance can do."]


def _two_packets(comparison: Comparison) -> list[str]:
    said = []
    for name, fates in zip(comparison.names, comparison.tables.fates, strict=True):
        verdict = str(comparison.verdicts.index[int(fates.verdict[0])])
        reason, func, netns = (_first(part) for part in (fates.reason, fates.func, fates.netns))
        how = f" ({reason})" if verdict == "dropped" and reason else ""
        where = f" by {func}" + (f" in netns {netns}" if netns else "") if verdict == "dropped" else ""
        said.append(f"{name.capitalize()} was {verdict}{how}{where} after {span(float(fates.time[0]))}.")
    alignment = comparison.align()
    if alignment is None:
        return said
    said += parting(comparison.names, alignment) or ["Both passed the same functions in the same places."]
    frame = alignment.frame[alignment.frame["side"] == "both"]
    gap = (frame["gap_b"] - frame["gap_a"]).dropna()
    if len(gap):
        row = frame.loc[gap.index[int(gap.abs().to_numpy().argmax())]]
        where = f" in netns {row['netns_b']}" if pd.notna(row["netns_b"]) else ""
        said.append(
            f"Of the functions that both passed they differ most after {row['func']}{where}: {span(_ns(row['gap_a']))} "
            f"and {span(_ns(row['gap_b']))}."
        )
    return [*said, "Two packets show what happened to them, not what usually happens."]


def _first(named: Any) -> str | None:
    return named.names[named.codes[0]] if named.codes[0] >= 0 else None


def _reservations(comparison: Comparison) -> list[str]:
    """What the reader has to know before trusting the rest."""
    said = []
    sides = list(zip(comparison.names, (comparison.a, comparison.b), comparison.tables.fates, strict=True))
    kernels = list(dict.fromkeys(recording.start.release for _, recording, _ in sides))
    if len(kernels) > 1:
        said.append(f"The kernels differ: {' and '.join(kernels)}.")
    for (name, recording, fates), alone in zip(
        sides, (comparison.tables.sides.only_a, comparison.tables.sides.only_b), strict=True
    ):
        lacking = int((~fates.whole).sum())
        if lacking:
            said.append(
                f"{lacking} of the {len(fates.packets)} packets of {name} may lack hops and are left out of paths and "
                f"latencies."
            )
        if losses(recording.events):
            said += [f"Not everything of {name} was recorded: {line}." for line in loss_lines(recording)]
        if len(alone) > _MANY:
            said.append(
                f"Each function that is traced costs a packet time: that {name} traced more slows it by itself."
            )
        if alone:
            some = ", ".join(alone[:_MOST]) + (", ..." if len(alone) > _MOST else "")
            said.append(f"Left out: {_count(len(alone), 'function')} that only {name} traced ({some}).")
    return said


def _parts(key: Any) -> tuple[Any, ...]:
    """A row's key as a tuple."""
    return key if isinstance(key, tuple) else (key,)


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _ns(value: Any) -> float:
    return float("nan") if pd.isna(value) else float(pd.Timedelta(value).value)


def comparison_text(comparison: Comparison) -> str:
    """A comparison for a terminal: the sentences, and what changed most."""
    first, second = comparison.names
    lines = [f"<Comparison: {first} (a) and {second} (b)>"]
    for told in comparison.findings:
        lines += textwrap.wrap(told, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    alike = comparison.functions
    shown = alike[alike["change"].isin(["slower", "faster"])].head(8)
    if len(shown):
        width = max(len(str(func)) for func in shown.index)
        lines.append(f"{'function':{width}}  {'median a':>9}  {'median b':>9}  {'shift':>10}  95 % CI")
    for func, row in shown.iterrows():
        interval = f"{span(_ns(row['shift_low']), '+')} to {span(_ns(row['shift_high']), '+')}"
        lines.append(
            f"{func!s:{width}}  {span(_ns(row['median_a'])):>9}  {span(_ns(row['median_b'])):>9}  "
            f"{span(_ns(row['shift']), '+'):>10}  {interval}"
        )
    return "\n".join(lines)
