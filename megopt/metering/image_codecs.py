"""Sizes and fidelity of really encoded images: raw RGB, PNG, JPEG, WebP.

The baselines that send a finished image are charged these bits, not a guess.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from megopt.errors import ConfigError
from megopt.units import BITS_PER_BYTE

if TYPE_CHECKING:
    import pandas as pd

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
        options: dict[str, Any] = {"quality": self.codec_quality} if self.codec_quality else {"optimize": True}
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
        yield path.name, np.asarray(PillowImage.open(path).convert("RGB"))


def measure_image_codecs(images: list[Image], source: str) -> pd.DataFrame:
    """Return rows of `schema.PAYLOAD`: every codec on every image, averaged over images.

    Args:
        images: RGB images, each of shape (height, width, 3).
        source: key of the source in provenance.json.
    """
    import pandas as pd

    rows = []
    for codec in CODECS:
        sizes, psnrs, ssims = np.array([_measure_one(codec, image) for image in images]).T
        rows.append(
            {
                "codec": codec.codec,
                "codec_quality": codec.codec_quality,
                "bits_per_pixel": round(float(sizes.mean()), 5),
                "bits_per_pixel_std": round(float(sizes.std()), 5),
                "psnr_db": round(float(psnrs.mean()), 3) if np.isfinite(psnrs).all() else None,
                "ssim": round(float(ssims.mean()), 5),
                "num_images": len(images),
                "kind": "measured",
                "source": source,
            }
        )
    return pd.DataFrame(rows).astype({"codec_quality": "Int64"})


def _measure_one(codec: ImageCodec, image: Image) -> tuple[float, float, float]:
    """Return bits per pixel, PSNR [dB] and SSIM [1] of one encoded image."""
    payload = codec.encode(image)
    bits_per_pixel = len(payload) * BITS_PER_BYTE / (image.shape[0] * image.shape[1])
    decoded = codec.decode(payload, image.shape)
    if np.array_equal(decoded, image):
        return bits_per_pixel, np.inf, 1.0
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    psnr_db = float(peak_signal_noise_ratio(image, decoded, data_range=255))
    ssim = float(structural_similarity(image, decoded, channel_axis=2, data_range=255))
    return bits_per_pixel, psnr_db, ssim
