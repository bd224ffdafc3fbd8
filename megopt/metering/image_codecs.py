"""Sizes and fidelity of really encoded images: raw RGB, PNG, JPEG, WebP.

The baselines that send a finished image are charged these bits, not a guess.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from megopt.errors import ConfigError
from megopt.units import BITS_PER_BYTE

if TYPE_CHECKING:
    import pandas as pd

Result = TypeVar("Result")
Image = NDArray[np.uint8]
"""RGB image, shape (height, width, 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCodec:
    """One image format with its setting.

    Attributes:
        codec: "raw", "png", "jpeg" or "webp".
        codec_quality: quality setting of the lossy formats; None for lossless ones.
    """

    codec: str
    codec_quality: int | None = None

    def encode(self, image: Image) -> bytes:
        """Return the encoded bytes of `image` (height, width, 3)."""
        if self.codec == "raw":
            return image.tobytes()
        from PIL import Image as PillowImage

        buffer = io.BytesIO()
        options: dict[str, Any] = {"quality": self.codec_quality} if self.codec_quality else {}
        PillowImage.fromarray(image).save(buffer, format=self.codec.upper(), **options)
        return buffer.getvalue()

    def decode(self, payload: bytes, shape: tuple[int, ...]) -> Image:
        """Return the image of `payload`, shape `shape`."""
        if self.codec == "raw":
            return np.frombuffer(payload, dtype=np.uint8).reshape(shape)
        from PIL import Image as PillowImage

        return np.asarray(PillowImage.open(io.BytesIO(payload)).convert("RGB"))


CODECS = (
    ImageCodec(codec="raw"),
    ImageCodec(codec="png"),
    *(ImageCodec(codec=codec, codec_quality=quality) for codec in ("jpeg", "webp") for quality in (50, 75, 90, 95)),
)


def bundled_photographs() -> Iterator[tuple[str, Image]]:
    """Yield name and pixels of the colour photographs that come with scikit-image (no download)."""
    from skimage import data

    for name in ("astronaut", "chelsea", "coffee"):  # those stored without loss
        yield name, np.asarray(getattr(data, name)(), dtype=np.uint8)


def photographs_in(folder: Path) -> Iterator[tuple[str, Image]]:
    """Yield name and pixels of every PNG, WebP, JPEG, BMP or TIFF image in `folder`.

    Raises:
        ConfigError: if the folder holds none.
    """
    from PIL import Image as PillowImage

    paths = sorted(
        p for p in folder.glob("*") if p.suffix.lower() in {".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tiff"}
    )
    if not paths:
        message = (
            f"images={folder.name}: no image file in it; expected a folder with PNG, WebP, JPEG, BMP or TIFF files"
        )
        raise ConfigError(message)
    for path in paths:
        try:
            yield path.name, np.asarray(PillowImage.open(path).convert("RGB"))
        except OSError as error:
            message = f"images={folder.name}: {path.name} is no readable image ({error}); mend or remove it"
            raise ConfigError(message) from error


def measure_image_codecs(images: list[Image], source: str) -> pd.DataFrame:
    """Return rows of `schema.PAYLOAD`: every codec on every image, averaged over images.

    Args:
        images: RGB images, each of shape (height, width, 3).
        source: key of the source in provenance.json.
    """
    import pandas as pd

    rows = []
    for codec in CODECS:
        measured = [_measure_one(codec, image) for image in images]
        means = {name: np.array([values[name] for values in measured]) for name in _MEASURED}
        psnr_db = means["psnr_db"].mean()
        rows.append(
            {
                "codec": codec.codec,
                "codec_quality": codec.codec_quality,
                "bits_per_pixel": round(float(means["bits_per_pixel"].mean()), 5),
                "bits_per_pixel_std": round(float(means["bits_per_pixel"].std()), 5),
                "psnr_db": round(float(psnr_db), 3) if np.isfinite(psnr_db) else None,
                "ssim": round(float(means["ssim"].mean()), 5),
                "encode_s_per_px": float(f"{means['encode_s_per_px'].mean():.3g}"),
                "decode_s_per_px": float(f"{means['decode_s_per_px'].mean():.3g}"),
                "num_images": len(images),
                "kind": "measured",
                "source": source,
            }
        )
    return pd.DataFrame(rows).astype({"codec_quality": "Int64"})


_MEASURED = ("bits_per_pixel", "psnr_db", "ssim", "encode_s_per_px", "decode_s_per_px")
_NUM_TIMED = 5
"""Runs of which the median time counts."""


def _measure_one(codec: ImageCodec, image: Image) -> dict[str, float]:
    """Return the values of `_MEASURED` for one encoded image; nothing is timed for raw pixels."""
    num_pixels = image.shape[0] * image.shape[1]
    payload, encode_s = _timed(lambda: codec.encode(image))
    decoded, decode_s = _timed(lambda: codec.decode(payload, image.shape))
    is_raw, is_lossless = codec.codec == "raw", np.array_equal(decoded, image)
    return {
        "bits_per_pixel": len(payload) * BITS_PER_BYTE / num_pixels,
        "psnr_db": np.inf if is_lossless else _psnr_db(image, decoded),
        "ssim": 1.0 if is_lossless else _ssim(image, decoded),
        "encode_s_per_px": 0.0 if is_raw else encode_s / num_pixels,
        "decode_s_per_px": 0.0 if is_raw else decode_s / num_pixels,
    }


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of `work` and the median wall time of `_NUM_TIMED` runs [s]."""
    times = []
    for _ in range(_NUM_TIMED):
        start = perf_counter()
        result = work()
        times.append(perf_counter() - start)
    return result, float(np.median(times))


def _psnr_db(image: Image, decoded: Image) -> float:
    from skimage.metrics import peak_signal_noise_ratio

    return float(peak_signal_noise_ratio(image, decoded, data_range=255))


def _ssim(image: Image, decoded: Image) -> float:
    from skimage.metrics import structural_similarity

    return float(structural_similarity(image, decoded, channel_axis=2, data_range=255))
