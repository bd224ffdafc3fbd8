"""A prompt as people type it, turned into an override that Hydra reads as one text.

megopt generate "a red cube, plain floor"   ->   prompt='a red cube, plain floor'
"""

from __future__ import annotations

from megopt.configuration import CONF_DIR, root_name

_KEY = "prompt="


def with_quoted_prompt(verb: str, overrides: list[str]) -> list[str]:
    """Return `overrides` with the prompt of `verb`, if it has that key, as one quoted text.

    An argument with a space and without "=" is the prompt; so is the value of an unquoted `prompt=`. A multirun's
    prompt= keeps its commas, which separate the runs.
    """
    text = (CONF_DIR / f"{root_name(verb)}.yaml").read_text(encoding="utf-8")
    if not any(line.startswith("prompt:") for line in text.splitlines()):
        return overrides
    is_multirun = bool({"-m", "--multirun"} & set(overrides))
    return [_quoted(argument, is_multirun) for argument in overrides]


def _quoted(argument: str, is_multirun: bool) -> str:
    key = argument.split("=", 1)[0]
    if argument.startswith(_KEY):
        value = argument.removeprefix(_KEY)
        return argument if is_multirun or value[:1] in ("'", '"') else _KEY + _as_text(value)
    if argument.startswith("-") or " " not in argument.strip() or ("=" in argument and " " not in key):
        return argument
    return _KEY + _as_text(argument)


def _as_text(value: str) -> str:
    """Return `value` in the quotes of Hydra's grammar, which knows two escapes; nothing in it is interpolated."""
    return "'" + value.replace("\\'", "'").replace("'", "\\'").replace("${", "\\${") + "'"
