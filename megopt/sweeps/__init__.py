"""Sweeps: grids of runs, launchers, one parquet dataset of records, and questions to it."""
