"""The command line: `megopt VERB [hydra overrides]`. Help needs nothing but the standard library."""

from __future__ import annotations

import difflib
import sys

from megopt import __version__
from megopt.configuration import CONF_DIR, VERBS, group_choices, group_names, root_name

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
RESUMED = ("sweep", "search", "train", "compare", "reproduce", "train-models", "profile", "live")
"""Verbs that go on with what an earlier command has done."""
HIDDEN = ("  - _self_", "  - override hydra")
"""Lines of a root yaml that mean nothing to a user."""
HELP = """megopt {version}: how should an edge server and a phone share a diffusion run?

usage: megopt VERB [key=value ...]      run a verb with Hydra overrides
       megopt VERB --help               its keys, their meaning and choices
       megopt VERB -m key=a,b,c         one run per value (multirun)
       megopt --version

verbs:
{verbs}

start here:
  megopt tradeoff                                     real numbers and a figure in seconds
  megopt tradeoff experiment=published profile=h100__snapdragon8gen3__sdxl channel.snr_db=20
  megopt tradeoff -m channel.snr_db=0,10,20           one run per SNR
  megopt tradeoff output=json                         one JSON object as the last line, for scripts
  megopt reproduce figure=megsplitting                published against computed
  megopt info"""


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 1 our fault, 2 the input's fault, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        verbs = "\n".join(f"  {verb:<12} {meaning}" for verb, meaning in VERBS.items())
        _print(HELP.format(version=__version__, verbs=verbs))
        return 0
    if arguments[0] in {"-V", "--version"}:
        _print(f"megopt {__version__}")
        return 0
    verb, overrides = arguments[0], arguments[1:]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        sys.stderr.write(f"megopt: error: no verb {verb!r}: expected one of {', '.join(VERBS)}{guess}\n")
        return 2
    if {"-h", "--help"} & set(overrides):
        _print(verb_help(verb))
        return 0
    try:
        from megopt.application import run_verb

        return run_verb(verb, overrides)
    except KeyboardInterrupt:
        kept = "; what is done is kept, the same command goes on from there" if verb in RESUMED else ""
        sys.stderr.write(f"megopt: error: interrupted{kept}\n")
        return INTERRUPTED


def verb_help(verb: str) -> str:
    """Return the help of one verb: its root yaml, which carries a comment per key, and the choices of each group."""
    text = (CONF_DIR / f"{root_name(verb)}.yaml").read_text(encoding="utf-8")
    shown = "\n".join(line for line in text.split("\nhydra:")[0].splitlines() if not line.startswith(HIDDEN)).rstrip()
    groups = [name for name in group_names() if f"- {name}:" in text or f"/{name}:" in text]
    lines = [f"megopt {verb}: {VERBS[verb]}", "", shown, ""]
    for name in groups:
        lines.append(f"{name}=")
        lines += [f"  {choice:<32} {meaning}" for choice, meaning in group_choices(name).items()]
    lines += [
        "",
        f"Every key can be overridden: megopt {verb} key=value. Several values: add -m and separate by commas.",
    ]
    return "\n".join(lines)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
