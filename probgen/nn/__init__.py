"""Networks, plain torch modules; all accept any leading dims."""

from probgen.nn.basic import Constant, Standardize
from probgen.nn.conv import ConvDecoder, ConvEncoder, ResidualBlock
from probgen.nn.encodings import Levels, OneHot
from probgen.nn.invertible import CouplingNet
from probgen.nn.mlp import MLP
from probgen.nn.recurrent import RNN, Combiner, GatedTransition
from probgen.nn.temporal import TemporalConvolution
from probgen.nn.transformer import Tokens

__all__ = [
    "MLP",
    "RNN",
    "Combiner",
    "Constant",
    "ConvDecoder",
    "ConvEncoder",
    "CouplingNet",
    "GatedTransition",
    "Levels",
    "OneHot",
    "ResidualBlock",
    "Standardize",
    "TemporalConvolution",
    "Tokens",
]
