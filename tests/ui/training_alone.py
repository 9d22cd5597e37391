"""A short catalog for a server whose page opens fast: training, and what draws with what was learned."""

from app.core.lora_training import LORA_TRAINING
from app.core.text_to_image import TEXT_TO_IMAGE

CATALOG = (LORA_TRAINING, TEXT_TO_IMAGE)
