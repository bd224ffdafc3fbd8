"""`megopt info`: what there is to choose from."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from megopt.analysis.report import Report, rich_table
from megopt.configuration import VERBS, group_choices, group_names
from megopt.tables.profile import load_profile, profile_names


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return every configuration group with one line per choice, and what each profile holds."""
    groups = {group: group_choices(group) for group in group_names()}
    profiles = {name: _describe(name) for name in profile_names()}
    tables = [
        rich_table(f"{group}=", ["choice", "what it is"], list(choices.items())) for group, choices in groups.items()
    ]
    header = ["profile", "rows from", "compute rows", "quality metrics", "steps", "created"]
    tables.insert(
        0, rich_table("profiles", header, [[name, *map(str, facts.values())] for name, facts in profiles.items()])
    )
    return Report(
        summary={"profiles": profiles, "groups": groups},
        headline=f"{len(profiles)} profiles, {len(groups)} groups, {len(VERBS)} verbs",
        tables=tables,
        lines=["Choose with `megopt tradeoff profile=... channel=...`; caveats of each profile: profiles/README.md"],
    )


def _describe(name: str) -> dict[str, object]:
    profile = load_profile(name)
    has_steps = bool(profile.compute["num_steps"].notna().any() or profile.quality["num_steps"].notna().any())
    low, high = profile.num_steps_range() if has_steps else (0, 0)
    return {
        "kinds": profile.kinds(),
        "num_compute_rows": len(profile.compute),
        "metrics": ", ".join(dict.fromkeys(profile.quality["metric"])) or "not measured",
        "num_steps": f"{low} to {high}" if has_steps else "-",
        "created": profile.provenance.created,
    }
