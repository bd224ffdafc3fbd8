"""The study of a search in its database: opened, begun, and refused where it is of another search."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from megopt.errors import ConfigError
from megopt.sweeps.launchers import require_engine
from megopt.sweeps.run import json_text
from megopt.sweeps.search_plan import Search

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

PLAN = "megopt"
"""Attribute of a study that says what is searched."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's log and its remarks on experimental samplers off the screen."""
    with require_engine("search", "optuna"):
        import optuna
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def open_database(storage: str) -> RDBStorage:
    """Return the database at an address.

    Raises:
        ConfigError: if it cannot be opened.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, OperationalError

    try:
        return RDBStorage(storage)
    except (ArgumentError, OperationalError, ImportError) as error:
        text = " ".join(str(error).split())
        message = f"storage = {storage!r}: {text[:200]}; expected an address such as sqlite:///studies.sqlite3"
        raise ConfigError(message) from None


def open_study(plan: Search, database: RDBStorage) -> Study:
    """Return the study, made where there was none.

    Raises:
        ConfigError: if its plan is another one.
    """
    import optuna

    wanted, names = json.loads(json_text(plan.plan())), [study.study_name for study in database.get_all_studies()]
    if plan.planner.name in names:
        study = optuna.load_study(study_name=plan.planner.name, storage=database)
    else:
        directions: Any = list(plan.objectives.values())  # words of DIRECTIONS
        study = optuna.create_study(storage=database, study_name=plan.planner.name, directions=directions)
    kept = study.user_attrs.get(PLAN)
    if kept is None:
        study.set_user_attr(PLAN, wanted)
        study.set_metric_names(list(plan.objectives))
    elif changed := [name for name in plan.plan() if kept.get(name) != wanted[name]]:
        raise ConfigError(_another(plan.planner.name, changed[0], kept.get(changed[0]), wanted[changed[0]]))
    return study


def _another(name: str, part: str, kept: Any, wanted: Any) -> str:
    if isinstance(kept, dict) and isinstance(wanted, dict):
        keys = [key for key in {**kept, **wanted} if kept.get(key) != wanted.get(key)]
        part, kept, wanted = (
            (keys[0] if part == "configuration" else f"{part}.{keys[0]}"),
            *(json_text(side.get(keys[0]))[:80] for side in (kept, wanted)),
        )
    return f"search {name} was begun with {part} = {kept}, now it is {wanted}; set it back, or begin another, name=..."
