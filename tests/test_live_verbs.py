"""The verbs serve and generate: what their configuration refuses before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from hydra.utils import instantiate

from megopt.application import run_verb
from megopt.errors import ConfigError
from megopt.experiments.serve import read_token
from megopt.prompt_override import with_quoted_prompt
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


@pytest.mark.parametrize(
    "edge", ["nowhere", "localhost:7860", "http://", "http://127.0.0.1:0", "http://127.0.0.1:70000", "ftp://127.0.0.1"]
)
def test_generate_refuses_what_is_no_address(edge: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_verb("generate", [f"edge={edge}", f"hydra.run.dir={tmp_path}"]) == 2
    assert f"edge={edge}: no address; expected http://host:port" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a red cube, plain floor"], ["prompt='a red cube, plain floor'"]),
        (["prompt=a cube , plain"], ["prompt='a cube , plain'"]),
        (["prompt='as it is'", "policy=optimal"], ["prompt='as it is'", "policy=optimal"]),
        (["it's ${seed} = 1"], ["prompt='it\\'s \\${seed} = 1'"]),
        (["-m", "prompt=a,b"], ["-m", "prompt=a,b"]),
        (["--cfg", "job"], ["--cfg", "job"]),
        (["problem.sweep.limits=[1, 2]"], ["problem.sweep.limits=[1, 2]"]),
    ],
)
def test_a_prompt_is_typed_as_it_is(arguments: list[str], expected: list[str]) -> None:
    assert with_quoted_prompt("generate", arguments) == expected


def test_quoted_prompts_come_out_as_they_were_typed() -> None:
    for typed in ("a red cube, plain floor", "it's (almost) 5 x 5 = 25: ${seed} {a} [b] #!", 'say "cube"'):
        with hydra.initialize_config_module(version_base="1.3", config_module="megopt.conf"):
            config = hydra.compose("generate", with_quoted_prompt("generate", [typed]))
        assert config.prompt == typed


def test_other_verbs_are_left_alone() -> None:
    assert with_quoted_prompt("serve", ["a cube"]) == ["a cube"]


def test_live_composes_and_every_limit_is_a_number() -> None:
    with hydra.initialize_config_module(version_base="1.3", config_module="megopt.conf"):
        config = hydra.compose("live", ["snr_db=[5]", "policy=[optimal,model_split]"])
    assert list(config.policy) == ["optimal", "model_split"]
    assert instantiate(config.channel, snr_db=5.0).snr_db == 5.0
    assert config.problem.limits.latency_s > 0.0
