"""Profiles: measured tables on disk, their schema, checks and interpolation."""
