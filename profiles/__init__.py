"""Data with provenance: one folder per profile."""
