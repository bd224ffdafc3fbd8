"""Profile and action table of a configuration, which a warm worker keeps for its next run."""

from __future__ import annotations

from functools import lru_cache

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from megopt.schemes.action_table import ActionTable
from megopt.schemes.scheme import compile_all
from megopt.tables.profile import Profile


def compiled(config: DictConfig) -> tuple[Profile, ActionTable, set[str]]:
    """Return profile, table and the schemes left out of a configuration."""
    parts = {key: OmegaConf.to_container(config[key], resolve=True) for key in ("profile", "scheme")}
    return _compiled(OmegaConf.to_yaml(OmegaConf.create(parts)))


@lru_cache(maxsize=8)
def _compiled(text: str) -> tuple[Profile, ActionTable, set[str]]:
    config = OmegaConf.create(text)
    profile: Profile = instantiate(config.profile)
    table, _ = compile_all(schemes := list(instantiate(config.scheme, _convert_="all").values()), profile)
    return profile, table, {scheme.name for scheme in schemes} - set(table.scheme)
