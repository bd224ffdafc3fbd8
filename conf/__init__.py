"""The Hydra tree: one folder per group, one root yaml per verb."""
