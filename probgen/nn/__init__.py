"""Networks, plain torch modules; all accept any leading dims."""

from probgen.nn.basic import Constant, Standardize
from probgen.nn.conv import ConvDecoder, ConvEncoder, ResidualBlock
from probgen.nn.mlp import MLP

__all__ = ["MLP", "Constant", "ConvDecoder", "ConvEncoder", "ResidualBlock", "Standardize"]
