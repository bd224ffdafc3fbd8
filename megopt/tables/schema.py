"""Columns of the tables in `profiles/`: name, unit, dtype, range and meaning, once for files, checks, help and axis labels."""

from __future__ import annotations

METRIC_SENSES: dict[str, int] = {"ssim": 1, "psnr_db": 1, "fid": -1, "clip": 1, "alignment": 1}
"""Quality metrics: +1 where more is better, -1 where less is better."""
