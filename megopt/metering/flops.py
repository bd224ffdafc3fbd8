"""Floating-point operations of a torch computation, attention included on every backend.

One multiply-add counts as 2; matrix products, convolutions and attention are counted, element-wise operations and norms
are not. torch's own counter has no formula for the attention kernel of the CPU, and silently counts it as 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_ATTENTION = "_scaled_dot_product"
_KERNELS_WITHOUT_FORMULA = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math_for_mps",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopCount:
    """Operations of one call.

    Attributes:
        total: all of them [flop].
        attention: those of scaled dot-product attention [flop], its projections not included. Attention that runs as
            plain matrix products, as on the meta device, counts in `total` alone.
    """

    total: int
    attention: int


def count_flops(call: Callable[[], object]) -> FlopCount:
    """Run `call` once, without gradients, and return its floating-point operations.

    Models on the meta device are counted without computing anything.

    Args:
        call: takes nothing; what it returns is dropped.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    formulas = {
        getattr(torch.ops.aten, name): _attention_flops
        for name in _KERNELS_WITHOUT_FORMULA
        if hasattr(torch.ops.aten, name)  # which kernels there are depends on the version of torch
    }
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        call()
    counts = {str(operation): int(flops) for operation, flops in counter.get_flop_counts().get("Global", {}).items()}
    attention = sum(flops for operation, flops in counts.items() if _ATTENTION in operation)
    return FlopCount(total=sum(counts.values()), attention=attention)


def _attention_flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Return 2 b h n m (d + e) for shapes (b, h, n, d), (b, h, m, d), (b, h, m, e): scores, then weighted values."""
    batch, heads, num_queries, width = query
    return 2 * batch * heads * num_queries * key[-2] * (width + value[-1])
