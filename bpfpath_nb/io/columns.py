"""Text and bytes put together by whole columns, for exports of millions of rows.

Arrow joins strings row by row in compiled code, so a line of a file is a join of columns and constants, and what it
gives lies in memory end to end, ready to be written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import pandas as pd


def texts(column: pd.Series[Any]) -> Any:
    """A categorical column as Arrow strings, null where it is missing."""
    codes = column.cat.codes.to_numpy()
    values = pa.array(column.cat.categories.tolist(), pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), values).cast(pa.string())


def join(*parts: Any) -> Any:
    """Columns and constants, put together row by row; null where one of them is."""
    return pc.binary_join_element_wise(*parts, "")


def microseconds(ns: npt.NDArray[np.int64]) -> Any:
    """Times in ns as Arrow strings of microseconds with three decimals; none is negative."""
    whole, rest = (pc.cast(pa.array(values), pa.string()) for values in np.divmod(np.maximum(ns, 0), 1000))
    return join(whole, ".", pc.utf8_lpad(rest, 3, "0"))


def fixed_bytes(rows: npt.NDArray[Any]) -> Any:
    """Rows of the same size (a structured array, or a matrix of bytes) as an Arrow column of bytes."""
    width = rows.nbytes // max(len(rows), 1)
    fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(rows)])
    return fixed.cast(pa.binary())


def content(column: Any) -> memoryview:
    """The bytes of a column of text or bytes without nulls, end to end."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    offsets = np.frombuffer(array.buffers()[1], np.int32)
    return memoryview(array.buffers()[2])[offsets[array.offset] : offsets[array.offset + len(array)]]
