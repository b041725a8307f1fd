"""A diagnosis: what is wrong in a recording, what that means, what shows it, and what to look at next.

Made by `Recording.diagnose`. The findings are a frame; printed they are a page for a terminal or a ticket, and a
notebook shows them as static HTML. Commands are only ever shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bpfpath_nb.errors import OptionError
from bpfpath_nb.io.diagnosis import diagnosis_text
from bpfpath_nb.schema import FINDINGS, document

if TYPE_CHECKING:
    import pandas as pd

    from bpfpath_nb.analysis.diagnose import Rows
    from bpfpath_nb.recording import Recording


class Diagnosis:
    """Findings on a recording.

    Attributes
    ----------
    recording : Recording
    findings : DataFrame
        One row per finding, the gravest first and of those what most packets show.

        {findings}
    """

    def __init__(self, recording: Recording, findings: pd.DataFrame, rows: list[Rows]) -> None:
        self.recording = recording
        self.findings = findings
        self._rows = rows

    def packets(self, finding: int) -> npt.NDArray[np.uint32]:
        """Numbers of the packets that show a finding, ascending.

        Raises
        ------
        OptionError
            There is no such finding.
        """
        numbers: npt.NDArray[np.uint32] = np.unique(self.recording.events.hops["packet"][self._of(finding)])
        return numbers

    def evidence(self, finding: int) -> pd.DataFrame:
        """The hops that show a finding: rows of the recording's `df`.

        Raises
        ------
        OptionError
            There is no such finding.
        """
        return self.recording.df.iloc[self._of(finding)]

    def _of(self, finding: int) -> Rows:
        if not 0 <= finding < len(self._rows):
            has = f"{len(self._rows)}, numbered from 0" if self._rows else "none"
            raise OptionError(f"There is no finding {finding}; the diagnosis has {has}. `findings` lists them.")
        return self._rows[finding]

    def __len__(self) -> int:
        """How many findings there are."""
        return len(self.findings)

    def __repr__(self) -> str:
        return diagnosis_text(self)

    def _repr_html_(self) -> str:
        from bpfpath_nb.html.diagnosis import diagnosis_html

        return diagnosis_html(self)


if Diagnosis.__doc__:
    Diagnosis.__doc__ = Diagnosis.__doc__.replace("        {findings}", document(FINDINGS, indent=8))
