"""What conf/ offers, read as text, so that help and `megopt info` need no Hydra."""

from __future__ import annotations

from pathlib import Path

CONF_DIR = Path(__file__).resolve().parent / "conf"
VERBS = {
    "tradeoff": "energy-delay trade-off: sweep a limit, solve, roll out the baselines, draw the curve",
    "surface": "latency, energy and quality at once: a Pareto surface with a proved distance to the best",
    "sweep": "a grid of trade-off runs on this machine or a cluster; goes on where it stopped",
    "search": "settings chosen by Optuna for several objectives at once; the study lies in SQLite and can be resumed",
    "results": "ask the records of all sweeps: filter, aggregate, SQL",
    "figures": "all figures of the records of sweeps and searches, and of trained agents, drawn anew in one command",
    "train": "train an agent in a scenario, with checkpoints and resume",
    "compare": "agents over seeds against analytic policies and the certified optimum, on the same fading",
    "reproduce": "a published figure, published numbers beside computed ones",
    "info": "what there is: profiles, schemes, channels, links, policies, one line each",
    "benchmark": "speed against a floor or a peer measured in the same run",
    "profile": "measure latency, energy and quality of split generation on this machine: a profile folder",
    "train-models": "train the bundled diffusion models part by part, and export them",
    "evaluate-models": "judge the bundled models on fresh scenes, with contact sheets",
    "serve": "the edge's side of live split inference, until the process is told to stop",
    "generate": "make one image together with a running edge: predicted against measured",
    "live": "both sides on this machine under several policies: predictions held against measurements",
    "codecs": "measure the bits of really encoded images and write payload.csv",
}


def root_name(verb: str) -> str:
    """Return the name of a verb's script and root yaml: the verb with underscores."""
    return verb.replace("-", "_")


def group_names() -> list[str]:
    """Return the configuration groups: the folders of conf/."""
    return sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir() and any(path.glob("*.yaml")))


def group_choices(group: str) -> dict[str, str]:
    """Return the choices of a group with the sentence that opens their yaml."""
    choices = {}
    for path in sorted((CONF_DIR / group).glob("*.yaml")):
        comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        sentences = [line[2:].strip() for line in comments if not line.startswith("# @")]
        choices[path.stem] = sentences[0] if sentences else ""
    return choices
