"""Contact sheets: rows of images with what they are on the left and captions on top."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megopt.analysis.plots import paper_style
from megopt.files import write_atomically

if TYPE_CHECKING:
    from megopt.diffusion.rendering import Images

_IMAGE_IN = 0.9
_LABEL_IN = 1.25
_CAPTION_IN = 0.86
_CAPTION_WIDTH = 19
_LABEL_WIDTH = 20


def write_contact_sheet(path: Path, rows: Mapping[str, Images], captions: Sequence[str] = ()) -> Path:
    """Write a PNG or PDF with one row of images per label; nothing is chosen, the images are shown in their order.

    Args:
        path: of the file, whose suffix says which of the two.
        rows: images by label, uint8, shape (num_images, height, width, 3), the same number in all rows.
        captions: over the columns; none where empty.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num = min(len(images) for images in rows.values())
    top_in = _CAPTION_IN if captions else 0.03
    width_in, height_in = _LABEL_IN + num * _IMAGE_IN, top_in + len(rows) * _IMAGE_IN
    with paper_style():
        figure = Figure(figsize=(width_in, height_in))
        FigureCanvasAgg(figure)
        panels = figure.subplots(
            len(rows),
            num,
            squeeze=False,
            gridspec_kw={
                "left": _LABEL_IN / width_in,
                "right": 1.0,
                "bottom": 0.0,
                "top": 1.0 - top_in / height_in,
                "wspace": 0.03,
                "hspace": 0.03,
            },
        )
        for (label, images), line in zip(rows.items(), panels, strict=True):
            for image, panel in zip(images, line, strict=False):
                panel.imshow(image, interpolation="nearest")
                panel.axis("off")
            wrapped = "\n".join(textwrap.fill(part, _LABEL_WIDTH) for part in label.splitlines())
            line[0].text(-0.06, 0.5, wrapped, transform=line[0].transAxes, ha="right", va="center", fontsize=7)
        for text, panel in zip(captions, panels[0], strict=False):
            panel.set_title(textwrap.fill(text.replace(" ,", ","), _CAPTION_WIDTH), fontsize=5.8, pad=2)
        undated: dict[str, Any] = {"metadata": {"CreationDate": None}} if path.suffix == ".pdf" else {}
        return write_atomically(path, lambda target: figure.savefig(target, format=path.suffix[1:], **undated))
