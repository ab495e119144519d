"""Small Transformers that are read in one sitting."""

from lossbook.models.decoder import Decoder
from lossbook.models.encoder import Encoder, PairEncoder
from lossbook.models.infilling import Infiller, infilling_visibility
from lossbook.models.transformer import Block, Output, Transformer, TransformerConfig

__all__ = [
    "Block",
    "Decoder",
    "Encoder",
    "Infiller",
    "Output",
    "PairEncoder",
    "Transformer",
    "TransformerConfig",
    "infilling_visibility",
]
