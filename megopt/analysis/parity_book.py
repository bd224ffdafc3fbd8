"""The working folder of `megopt live`: records and images, request by request, so that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.records import read_records, write_records
from megopt.errors import ConfigError
from megopt.files import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from megopt.diffusion.rendering import Images


class ParityBook:
    """Records of one experiment in a folder.

    Attributes:
        records: of `megopt.analysis.parity.parity_record`; None before the first.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open the book of an experiment, or begin it.

        Args:
            folder: holds records.parquet, settings.json and images.
            settings: what the experiment is, plain data; a folder holds one experiment.

        Raises:
            ConfigError: if `folder` holds another experiment.
        """
        self._folder, text = folder, json.dumps(settings, indent=1, sort_keys=True)
        path = folder / "settings.json"
        if path.is_file() and (before := path.read_text(encoding="utf-8")) != text:
            old = json.loads(before)
            changed = sorted(key for key in {*old, *settings} if old.get(key) != json.loads(text).get(key))
            message = (
                f"folder {folder}: it holds a run of other {', '.join(changed)}; choose another name, or remove it"
            )
            raise ConfigError(message)
        write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))
        self.records: pd.DataFrame | None = read_records(self.path) if self.path.is_file() else None

    @property
    def path(self) -> Path:
        """The file of the records."""
        return self._folder / "records.parquet"

    def done(self) -> set[tuple[str, float, int]]:
        """Return policy, mean SNR [dB] and number of the requests that are recorded."""
        if self.records is None:
            return set()
        columns = (self.records[name] for name in ("policy", "level_db", "request"))
        return {(str(policy), float(level), int(number)) for policy, level, number in zip(*columns, strict=True)}

    def add(self, record: pd.DataFrame, image: Images) -> None:
        """Write one more record, and the image if it is the first of its policy and SNR.

        Args:
            record: of one request.
            image: uint8, shape (height, width, 3).

        Raises:
            ConfigError: if it cannot be written, as on a full disk; what is recorded stays.
        """
        import pandas as pd
        from PIL import Image

        first = record.iloc[0]
        path = self._image_path(str(first["policy"]), float(first["level_db"]))
        records = record if self.records is None else pd.concat([self.records, record], ignore_index=True)
        try:
            if not path.is_file():
                write_atomically(path, lambda target: Image.fromarray(image).save(target))
            write_records(records, self.path)
        except OSError as error:
            message = f"folder {self._folder}: cannot be written ({error}); free some space, and start again to go on"
            raise ConfigError(message) from error
        self.records = records

    def images(self, policies: Sequence[str], levels_db: Sequence[float]) -> dict[str, Images]:
        """Return the first image at every SNR by policy, each uint8, shape (num_levels, height, width, 3)."""
        from PIL import Image

        return {
            name: np.stack([np.asarray(Image.open(self._image_path(name, level))) for level in levels_db])
            for name in policies
        }

    def _image_path(self, policy: str, level_db: float) -> Path:
        return self._folder / "images" / f"{policy}_{level_db:g}_db.png"
