"""HIS, ICC 2025: quality against common steps, and what sharing gains over its baselines.

The curves of quality are fitted anew (`megopt.reproductions.hiqm`). Fifty users draw their prompts from the twenty
published personal ones, and each way to share gets its best steps, exactly. Reward has no published scale, so what is
compared is free of scale and offset: which share of the gain of HIS over no sharing a baseline reaches,

    share(b) = (reward(b) - reward(IIS)) / (reward(HIS) - reward(IIS)).

HIS groups by subject under a public prompt written for the group; PPGFIS does so under a random member's prompt; GFIS
makes one group of all under a random member's prompt; IIS shares nothing. The exact optimum chooses groups and prompts.
Source: HIS (ICC 2025), figures 4 and 5, and github.com/iimxinyi/HIS at 6cffa76; see profiles/his_sd3.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.plots import paper_style, save_figure
from megopt.analysis.records import write_tables
from megopt.analysis.report import Report, rich_table, shown_path
from megopt.arrays import FloatArray, IntArray
from megopt.reproductions.hiqm import fit_table
from megopt.reproductions.his_figure import draw
from megopt.schemes.shared_steps_quality import published_curves
from megopt.solvers.grouping import best_plan, bound, solve_exactly
from megopt.solvers.grouping_model import SharingProblem, quality_table, score
from megopt.solvers.grouping_presets import (
    DEVICE_CLOCK_RANGE_HZ,
    MAX_COMMON_STEPS,
    NUM_GROUPS,
    NUM_USERS,
    paper_problem,
)

if TYPE_CHECKING:
    import pandas as pd

NUM_DRAWS = 8
"""Random sets of users; results are means over them."""
WEIGHTS = (0.4, 0.3, 0.3)
"""w_Q, w_T, w_E, one of the four published settings; which one the comparison used was not published."""
DOWNLINK_S_PER_BIT, EDGE_TX_POWER_W = 1e-8, 0.1
"""Stated: neither rate nor power was published; both are the same for every way to share."""
SCHEMES = ("IIS", "GFIS", "PPGFIS", "HIS", "exact")
_CATS, _DOGS = np.arange(2, 12), np.arange(12, 22)
"""Personal prompts in the published matrix; 0 and 1 are the public ones of cats and dogs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HisResult:
    """Published against computed.

    Attributes:
        fits: one row per curve, see `hiqm.fit_table`.
        shares: one row per draw and scheme: reward, its share of the gain of HIS, bound of the exact optimum.
        comparison: one row per scheme: published and computed share, standard deviation over the draws.
        is_ordered: whether HIS > PPGFIS > GFIS > IIS, as published, in the mean over the draws.
        share_ordered: share of the single draws in which it holds [1].
        worst_gap: largest (bound - exact optimum) / |bound| over the draws [1].
        paths: files written.
    """

    fits: pd.DataFrame
    shares: pd.DataFrame
    comparison: pd.DataFrame
    is_ordered: bool
    share_ordered: float
    worst_gap: float
    paths: tuple[Path, ...]

    def summary(self) -> dict[str, Any]:
        """Return the plain numbers by name, and the files."""
        table = self.comparison.set_index("scheme")
        return {
            "is_ordered_as_published": self.is_ordered,
            "share_of_draws_ordered_as_published": self.share_ordered,
            "least_r2": float(self.fits["r2"].min()),
            "worst_coefficient_error": float(self.fits["coefficient_error"].max()),
            "worst_gap_of_exact": self.worst_gap,
            "share_published": table["published"].to_dict(),
            "share_computed": table["computed"].to_dict(),
            "paths": [str(path) for path in self.paths],
        }


def run(output_dir: Path, seed: int = 0) -> Report:
    """Return the report of `reproduce` for `megopt reproduce figure=his`."""
    result = reproduce(output_dir, seed)
    order = "reproduced" if result.is_ordered else "not reproduced"
    shares = result.comparison.set_index("scheme")["computed"]
    return Report(
        summary=result.summary(),
        headline=(
            f"curves refitted, R2 at least {result.fits['r2'].min():.4f}; order HIS > PPGFIS > GFIS > IIS {order} "
            f"in the mean and in {result.share_ordered:.0%} of draws; "
            f"exact optimum at {shares['exact']:.3f} of the gain of HIS"
        ),
        tables=[_share_table(result.comparison)],
        lines=[
            f"rate, power and the scale of the reward were not published: {1e-6 / DOWNLINK_S_PER_BIT:g} Mbit/s, "
            f"{EDGE_TX_POWER_W:g} W, and each total over that of no sharing are stated here, so shares need not agree.",
            "published rewards are those of a learner, read off the axis within 0.1; computed ones are exact optima.",
            *(f"wrote {shown_path(path)}" for path in result.paths),
        ],
    )


def reproduce(output_dir: Path, seed: int = 0) -> HisResult:
    """Fit, compare, and write three tables and the figure (PDF, PNG) to `output_dir`."""
    fits, shares = fit_table(), sharing(seed)
    comparison = compared(shares)
    tables = {"fits": fits, "shares": shares, "comparison": comparison}
    paths = write_tables(tables, output_dir)
    with paper_style():
        paths += save_figure(draw(fits, comparison)[0], output_dir / "his", dpi=300)
    rewards = shares.pivot_table(index="draw", columns="scheme", values="reward")[[*reversed(SCHEMES[:4])]]
    exact = shares[shares["scheme"] == "exact"]
    return HisResult(
        fits=fits,
        shares=shares,
        comparison=comparison,
        is_ordered=bool(np.all(np.diff(rewards.mean().to_numpy()) < 0)),
        share_ordered=float(np.mean(np.all(np.diff(rewards.to_numpy(), axis=1) < 0, axis=1))),
        worst_gap=float(((exact["bound"] - exact["reward"]) / exact["bound"].abs()).max()),
        paths=tuple(paths),
    )


def published_results() -> pd.DataFrame:
    """Return the numbers of the paper's figures 4 and 5, one row each."""
    import pandas as pd

    return pd.read_csv(str(files("megopt.profiles") / "his_sd3" / "icc_results.csv"), comment="#")


def published_shares() -> dict[str, float]:
    """Return the share of the gain of HIS over IIS that each scheme reached, from the final rewards."""
    table = published_results()
    rewards = table[table["figure"] == "5a"].set_index("scheme_or_weights")["value"]
    gain = rewards["HIS"] - rewards["IIS"]
    return {str(name): float((reward - rewards["IIS"]) / gain) for name, reward in rewards.items()}


def users_of(seed: np.random.SeedSequence) -> tuple[SharingProblem, IntArray]:
    """Return the paper's users, each with a personal prompt of the published matrix, and those prompts.

    Quality, latency and energy are divided by their totals without sharing, as the paper's own scale is not printed.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    matrix = pd.read_csv(str(files("megopt.profiles") / "his_sd3" / "prompt_similarity.csv"), comment="#")
    prompts = rng.integers(2, 22, NUM_USERS)
    similarity = matrix.iloc[:, 1:].to_numpy(dtype=float)[prompts]
    quality = quality_table(similarity, published_curves(), MAX_COMMON_STEPS)
    clock_hz = rng.uniform(*DEVICE_CLOCK_RANGE_HZ, NUM_USERS)

    def weighted(weights: FloatArray) -> SharingProblem:
        """Return the problem with these weights."""
        return paper_problem(
            quality,
            clock_hz,
            downlink_s_per_bit=DOWNLINK_S_PER_BIT,
            edge_tx_power_w=EDGE_TX_POWER_W,
            weights=(float(weights[0]), float(weights[1]), float(weights[2])),
        )

    totals = np.abs([unshared(weighted(only)) for only in np.eye(3)])
    return weighted(np.array(WEIGHTS) / totals), prompts


def unshared(problem: SharingProblem) -> float:
    """Return the reward where nobody shares and each user divides its steps as is best for it (IIS)."""
    nothing = np.zeros(len(problem.transfer_s), dtype=np.int64)
    return score(problem, nothing, nothing, problem.edge_steps()[:, 0])


def sharing(seed: int) -> pd.DataFrame:
    """Return reward, share of the gain and bound of every scheme on every draw of users."""
    import pandas as pd
    from tqdm import tqdm

    rows = []
    seeds = np.random.SeedSequence(seed).spawn(NUM_DRAWS)
    for draw_number, child in enumerate(tqdm(seeds, desc="draws of users", leave=False, disable=None)):
        problem, prompts = users_of(child)
        rewards = rewards_of(problem, prompts)
        gain = rewards["HIS"] - rewards["IIS"]
        ceiling = bound(problem, NUM_GROUPS)
        for scheme, reward in rewards.items():
            limit = ceiling if scheme == "exact" else np.nan
            share = (reward - rewards["IIS"]) / gain
            rows.append({"draw": draw_number, "scheme": scheme, "reward": reward, "share": share, "bound": limit})
    return pd.DataFrame(rows)


def rewards_of(problem: SharingProblem, prompts: IntArray) -> dict[str, float]:
    """Return the reward of each scheme; a random member's prompt counts as the mean over all members.

    Args:
        problem: users under the 22 published prompts.
        prompts: personal prompt of each user, shape (num_users,).
    """
    is_dog = prompts >= _DOGS[0]
    cats, dogs = np.intersect1d(_CATS, prompts), np.intersect1d(_DOGS, prompts)

    def mean(groups: list[IntArray]) -> float:
        return float(np.mean([best_plan(problem, group).value for group in groups]))

    return {
        "IIS": unshared(problem),
        "GFIS": mean([np.full(len(prompts), public) for public in np.unique(prompts)]),
        "PPGFIS": mean([np.where(is_dog, dog, cat) for cat, dog in product(cats, dogs)]),
        "HIS": best_plan(problem, is_dog.astype(np.int64)).value,
        "exact": solve_exactly(problem, NUM_GROUPS).value,
    }


def compared(shares: pd.DataFrame) -> pd.DataFrame:
    """Return one row per scheme: published and computed share of the gain of HIS, spread over the draws."""
    import pandas as pd

    groups, published = shares.groupby("scheme")["share"], published_shares()
    return pd.DataFrame(
        {
            "scheme": SCHEMES,
            "published": [published.get(scheme, np.nan) for scheme in SCHEMES],
            "computed": [float(groups.get_group(scheme).mean()) for scheme in SCHEMES],
            "computed_std": [float(groups.get_group(scheme).std()) for scheme in SCHEMES],
        }
    )


def _share_table(comparison: pd.DataFrame) -> Any:
    columns = (comparison[name].to_numpy(float) for name in ("published", "computed", "computed_std"))
    rows = [
        [scheme, "-" if np.isnan(published) else f"{published:.3f}", f"{computed:.3f} ± {spread:.3f}"]
        for scheme, published, computed, spread in zip(comparison["scheme"].astype(str), *columns, strict=True)
    ]
    header = ["scheme", "published", "computed"]
    return rich_table("share of the gain of HIS over no sharing; ± one standard deviation over draws", header, rows)
