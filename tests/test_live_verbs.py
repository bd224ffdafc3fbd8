"""The verbs serve and generate: what their configuration refuses before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from hydra.utils import instantiate

from megopt.application import run_verb
from megopt.errors import ConfigError
from megopt.experiments.serve import read_token
from megopt.schemes.step_split import StepSplit


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["host=0.0.0.0"], "host=0.0.0.0 is off loopback and there is no token"),
        (["token_file=nowhere"], "token_file=nowhere: cannot be read"),
        (["port=70000"], "port is 70000; expected 1 to 65535"),
        (["max_batch=0"], "max_batch is 0"),
    ],
)
def test_serve_refuses(overrides: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_verb("serve", [*overrides, f"hydra.run.dir={tmp_path}"]) == 2
    assert text in capsys.readouterr().err


def test_generate_composes_schemes_and_one_policy() -> None:
    with hydra.initialize_config_module(version_base="1.3", config_module="megopt.conf"):
        config = hydra.compose("generate", ["policy=fastest"])
    schemes = instantiate(config.scheme, _convert_="all")
    assert isinstance(schemes["step_split"], StepSplit)
    assert list(config.policy) == ["fastest"]


def test_a_token_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef\n")
    assert read_token(str(tmp_path / "token")) == "0123456789abcdef"
    (tmp_path / "token").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="expected a file with one ASCII token"):
        read_token(str(tmp_path / "token"))
