"""`megopt evaluate-models`: how right, sharp and close to the many-step result the bundled models' images are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from megopt.analysis.contact_sheet import write_contact_sheet
from megopt.analysis.report import Report, rich_table, shown_path
from megopt.errors import PipelineError

SPLITS = {"seen": "train", "unseen": "unseen"}
"""Captions that training may contain, and captions that it cannot."""
COLUMNS = ("images of", "all right", "alignment", "PSNR [dB]", "SSIM", "sharpness", "Frechet")


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return scores of real scenes, reconstructions and both models by steps; writes a contact sheet per split."""
    from megopt.diffusion.bundled import load_judge
    from megopt.diffusion.evaluation import Sampling, truth
    from megopt.diffusion.pipelines import latent_space, load

    models = {"edge": load(config.edge), "device": load(config.device)}
    apart = latent_space(models["edge"]).differences(latent_space(models["device"]))
    if apart:
        message = f"edge={config.edge}, device={config.device}: {'; '.join(apart)}; expected models of one latent space"
        raise PipelineError(message)
    judge = load_judge()
    sampling = Sampling(
        sampler=config.sampler,
        guidance_scale=config.guidance_scale,
        guidance_rescale=config.guidance_rescale,
        seed=config.seed,
    )
    summary, tables, lines = {}, [], []
    for name, split in SPLITS.items():
        told = truth(config.num_images, seed=config.seed, split=split)
        summary[name], shown = _judged(models, judge, told, sampling, list(config.num_steps))
        tables.append(rich_table(f"{name} captions", COLUMNS, [_cells(k, v) for k, v in summary[name].items()]))
        rows = {label: images[: config.num_shown] for label, images in shown.items()}
        path = output_dir / f"contact_sheet_{name}.png"
        lines.append(f"wrote {shown_path(write_contact_sheet(path, rows, told.captions[: config.num_shown]))}")
    ceiling, best = (summary["unseen"][row]["all_right"]["mean"] for row in ("reconstruction", _best(config)))
    side = "above" if best > ceiling else "below"
    gap = f"{100 * abs(ceiling - best):.1f} points {side} the reconstructions' ceiling on unseen captions"
    return Report(summary=summary, headline=f"edge model {gap}", tables=tables, lines=lines)


def _best(config: DictConfig) -> str:
    return f"edge, {max(config.num_steps)} steps"


def _judged(models: Any, judge: Any, told: Any, sampling: Any, num_steps: list[int]) -> tuple[dict[str, Any], Any]:
    from tqdm import tqdm

    from megopt.diffusion import evaluation

    shown = {"real": told.images, "reconstruction": evaluation.reconstructed(models["edge"], told.images)}
    results = {name: evaluation.scores(judge, images, told) for name, images in shown.items()}
    runs = [(name, steps) for name in models for steps in (*num_steps, evaluation.REFERENCE_STEPS)]
    images = {
        (name, steps): evaluation.generated(models[name], told.captions, steps, sampling)
        for name, steps in tqdm(runs, desc="generate", unit="run")
    }
    for name, steps in runs:
        label = f"{name}, {steps} steps"
        reference = images["edge", evaluation.REFERENCE_STEPS]
        results[label] = evaluation.scores(judge, images[name, steps], told, reference)
        shown[label] = images[name, steps]
    return results, shown


def _cells(name: str, scores: dict[str, Any]) -> list[str]:
    """Return the columns of a row of the table."""

    def share(key: str, digits: int = 3) -> str:
        """Return a mean with its interval, empty where it was not measured."""
        value = scores.get(key)
        return (
            ""
            if value is None
            else f"{value['mean']:.{digits}f} ({value['low']:.{digits}f}-{value['high']:.{digits}f})"
        )

    frechet = scores.get("frechet")
    return [
        name,
        share("all_right"),
        share("alignment"),
        share("psnr_db", 1),
        share("ssim"),
        f"{scores['sharpness']:.3f}",
        "" if frechet is None else f"{frechet:.3f}",
    ]
