"""TLS between device and edge: who is trusted, and what is said where nobody is."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megopt.application import run_verb
from megopt.errors import ConfigError
from megopt.live.connection import Connection, LinkError
from megopt.live.messages import Capabilities
from megopt.live.server import serve, served_in_thread
from megopt.live.service import EdgeService

TOKEN = "0123456789abcdef"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")


def made_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Return a certificate for 127.0.0.1 that vouches for itself, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=edge"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The edge's certificate and key."""
    return made_pair(tmp_path, "edge")


@needs_openssl
@pytest.mark.slow
def test_a_device_talks_to_an_edge_whose_certificate_it_trusts(
    pair: tuple[Path, Path], load_tiny: Callable[[str], Any]
) -> None:
    async def told(url: str, **access: Any) -> Capabilities:
        async with Connection(url, token=TOKEN, **access) as connection:
            return await connection.capabilities()

    service = EdgeService(load_tiny("sd"), "tiny")
    with served_in_thread(service, token=TOKEN, certificate=pair[0], key=pair[1]) as port:
        address = f"127.0.0.1:{port}"
        assert asyncio.run(told(f"https://{address}", certificate=pair[0])).model == "tiny"
        with pytest.raises(LinkError, match="CERTIFICATE_VERIFY_FAILED"):
            asyncio.run(told(f"https://{address}"))
        with pytest.raises(LinkError, match="link: "):
            asyncio.run(told(f"http://{address}"))


@needs_openssl
def test_a_key_of_another_certificate_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = made_pair(tmp_path, "other")
    for key in (other[1], pair[0], tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=r"cannot be used .*expected one pair in PEM"):
            serve(None, certificate=pair[0], key=key)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="belong together"):
        serve(None, certificate=pair[0])  # type: ignore[arg-type]


def test_a_certificate_with_an_address_of_http_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    overrides = ["edge=http://127.0.0.1:9", "certificate=edge.pem", f"hydra.run.dir={tmp_path}"]
    assert run_verb("generate", overrides) == 2
    assert "nothing is encrypted over http; expected https://host:port" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_what_is_no_certificate_is_told(text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trusted.pem"
    if text is not None:
        path.write_text(text)
    overrides = ["edge=https://127.0.0.1:9", f"certificate={path}", f"hydra.run.dir={tmp_path}"]
    assert run_verb("generate", overrides) == 2
    assert f"certificate={path}: cannot be read" in capsys.readouterr().err
