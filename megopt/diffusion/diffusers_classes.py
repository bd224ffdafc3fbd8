"""The classes of `diffusers` that training builds on; they carry no types, so they are `Any` here, once for all."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import configuration_utils
from diffusers.models import attention_processor

AttnProcessor: Any = attention_processor.AttnProcessor
DDIMScheduler: Any = diffusers.DDIMScheduler
StableDiffusionPipeline: Any = diffusers.StableDiffusionPipeline
UNet2DConditionModel: Any = diffusers.UNet2DConditionModel
UNet2DModel: Any = diffusers.UNet2DModel
ConfigMixin: Any = configuration_utils.ConfigMixin
ModelMixin: Any = diffusers.ModelMixin
register_to_config: Any = configuration_utils.register_to_config
