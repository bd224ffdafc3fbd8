"""The text side of the bundled models: a tokenizer of whole words, and a text encoder that knows what captions tell.

A CLIP text encoder is causal: the words of an object do not know of a relation that follows. Captions are therefore
padded by a token per place and one for the floor, which see all of it, and the encoder is trained to answer there: what
stands at a place is read from its token by one linear map, the same for all places. A denoiser then finds an object by
its place and has no sentence to understand. The encoder is frozen afterwards and shared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from megopt.diffusion.attribute_network import NUM_VALUES, accuracy, attribute_loss, decided
from megopt.diffusion.captions import FLOORS, MAX_TOKENS, PLACES, VOCABULARY
from megopt.diffusion.training_data import SceneSet
from megopt.diffusion.training_objective import Objective

NUM_ANSWERS = len(PLACES) + 1
"""Tokens at the end of every caption that tell what stands at each place, and the floor."""
NUM_TOKENS = MAX_TOKENS + 2 + NUM_ANSWERS
"""Longest caption with its begin, its end and the answers."""
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"


def word_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer with one token per word of the scenes' vocabulary.

    Byte pairs join the letters of a word from its end, so that no pair fits inside of another word.
    """
    letters = sorted(set("".join(VOCABULARY)))
    tokens, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in VOCABULARY:
        for start in range(len(word) - 2, -1, -1):
            pair = (word[start], f"{word[start + 1 :]}</w>")
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
    numbered = {token: number for number, token in enumerate(dict.fromkeys([*tokens, _BEGIN, _END]))}
    return CLIPTokenizer(vocab=numbered, merges=merges, model_max_length=NUM_TOKENS)  # type: ignore[arg-type]


def token_numbers(tokenizer: CLIPTokenizer, captions: tuple[str, ...]) -> torch.Tensor:
    """Return padded token numbers as stock pipelines make them, shape (num_captions, NUM_TOKENS)."""
    told = tokenizer(list(captions), padding="max_length", max_length=NUM_TOKENS, truncation=True, return_tensors="pt")
    numbers: torch.Tensor = told.input_ids
    return numbers


class CaptionReader(nn.Module):
    """A text encoder and the linear maps that read attributes from its last tokens."""

    def __init__(self, tokenizer: CLIPTokenizer, width: int, num_layers: int) -> None:
        super().__init__()
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=num_layers,
            num_attention_heads=width // 32,
            max_position_embeddings=NUM_TOKENS,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        self.encoder = CLIPTextModel(config)
        self.fields = nn.Linear(width, sum(NUM_VALUES.values()))
        self.floor = nn.Linear(width, len(FLOORS))

    def forward(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits of the object fields, shape (n, num_places, 23), and of the floor, shape (n, num_floors).

        Args:
            numbers: token numbers, shape (n, NUM_TOKENS).
        """
        told = self.encoder(numbers).last_hidden_state[:, -NUM_ANSWERS:]
        return self.fields(told[:, :-1]), self.floor(told[:, -1])


class TextObjective(Objective):
    """Captions to attribute vectors; accuracy on held-out captions is evaluated."""

    def __init__(
        self, train: SceneSet, test: SceneSet, device: str = "cpu", width: int = 128, num_layers: int = 2
    ) -> None:
        self.tokenizer = word_tokenizer()
        self.num_samples, self._device, self._width, self._num_layers = len(train), device, width, num_layers
        self._numbers, self._attributes = (
            token_numbers(self.tokenizer, train.captions),
            torch.from_numpy(train.attributes),
        )
        self._test = token_numbers(self.tokenizer, test.captions), test.attributes

    def build(self) -> nn.Module:
        """Return the reader; its `encoder` is what stays."""
        return CaptionReader(self.tokenizer, self._width, self._num_layers)

    def loss(self, network: nn.Module, rows: torch.Tensor, rng: torch.Generator, progress: float) -> torch.Tensor:
        """Return the mean cross-entropy per caption."""
        fields, floor = network(self._numbers[rows].to(self._device))
        return attribute_loss(fields, floor, self._attributes[rows].to(self._device))

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the accuracy of each attribute on held-out captions."""
        numbers, attributes = self._test
        fields, floor = network(numbers.to(self._device))
        return accuracy(decided(fields, floor), attributes)

    def describe(self) -> dict[str, Any]:
        """Return the size."""
        return {
            "part": "text_encoder",
            "width": self._width,
            "num_layers": self._num_layers,
            "num_samples": self.num_samples,
        }


@torch.no_grad()
def embed(encoder: nn.Module, numbers: torch.Tensor) -> torch.Tensor:
    """Return token embeddings (n, NUM_TOKENS, width) as stock pipelines hand them to the denoiser."""
    told: torch.Tensor = encoder(numbers).last_hidden_state
    return told
