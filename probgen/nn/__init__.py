"""Networks, plain torch modules; all accept any leading dims."""

from probgen.nn.augment import Color, Cutout, Jitter, RandomAffine, Thickness, Translation
from probgen.nn.basic import Constant, SkipConnection, Standardize
from probgen.nn.conditioning import SpanTime
from probgen.nn.context_sequence import Pooled
from probgen.nn.conv import ConvDecoder, ConvEncoder, ResidualBlock
from probgen.nn.dcgan import DCGANCritic, DCGANGenerator
from probgen.nn.dit import DiT
from probgen.nn.encodings import FourierFeatures, Levels, OneHot
from probgen.nn.equalized import Equalized, PixelNorm
from probgen.nn.equivariant import EGNN
from probgen.nn.invertible import CouplingNet
from probgen.nn.kernels import LinearKernel, RBFKernel
from probgen.nn.mlp import MLP
from probgen.nn.progressive import Fade, ProgressiveCritic, ProgressiveGenerator
from probgen.nn.quantizers import Codebook, FiniteScalarQuantizer
from probgen.nn.recurrent import RNN, Combiner, GatedTransition
from probgen.nn.side_by_side import SideBySide
from probgen.nn.style import ModulatedConvolution, StyleGenerator, StyleTruncation
from probgen.nn.temporal import TemporalConvolution
from probgen.nn.text import PretrainedEncoder, SequenceEncoder, TextEncoder
from probgen.nn.time import TimeMLP
from probgen.nn.transformer import Tokens
from probgen.nn.unet import UNet

__all__ = [
    "EGNN",
    "MLP",
    "RNN",
    "Codebook",
    "Color",
    "Combiner",
    "Constant",
    "ConvDecoder",
    "ConvEncoder",
    "CouplingNet",
    "Cutout",
    "DCGANCritic",
    "DCGANGenerator",
    "DiT",
    "Equalized",
    "Fade",
    "FiniteScalarQuantizer",
    "FourierFeatures",
    "GatedTransition",
    "Jitter",
    "Levels",
    "LinearKernel",
    "ModulatedConvolution",
    "OneHot",
    "PixelNorm",
    "Pooled",
    "PretrainedEncoder",
    "ProgressiveCritic",
    "ProgressiveGenerator",
    "RBFKernel",
    "RandomAffine",
    "ResidualBlock",
    "SequenceEncoder",
    "SideBySide",
    "SkipConnection",
    "SpanTime",
    "Standardize",
    "StyleGenerator",
    "StyleTruncation",
    "TemporalConvolution",
    "TextEncoder",
    "Thickness",
    "TimeMLP",
    "Tokens",
    "Translation",
    "UNet",
]
