"""The knobs of the rows that were chosen, as columns of the records in a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megopt.schemes.action_table import ActionTable
from megopt.tables.schema import Column

if TYPE_CHECKING:
    import pandas as pd

CHOSEN = (
    Column(name="num_steps", unit="1", dtype="float", meaning="denoising steps of the chosen row"),
    Column(name="split_step", unit="1", dtype="float", meaning="steps that it runs at the edge"),
    Column(name="merge_ratio", unit="1", dtype="float", meaning="share of latent tokens that it merges away"),
    Column(name="codec_bits", unit="bit", dtype="float", meaning="bits per latent value that it sends"),
    Column(name="sr_scale", unit="1", dtype="float", meaning="upscaling factor on the device"),
)
"""Columns beside those of `RECORD`; NaN where a row has no such knob, or a call does not say."""


def with_knobs(records: pd.DataFrame, table: ActionTable) -> pd.DataFrame:
    """Return records with the columns of `CHOSEN`.

    Args:
        records: records whose column `row` is of `table`.
        table: the rows.
    """
    rows, names = records["row"].to_numpy(), [knob.name for knob in table.knobs]
    columns = {
        column.name: table.settings[rows, names.index(column.name)] if column.name in names else np.nan
        for column in CHOSEN
    }
    return records.assign(**columns)
