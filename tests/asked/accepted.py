"""Arguments that are data, and unusual values that arguments take on purpose, with the reason."""

from __future__ import annotations

import math
from typing import Any

from probgen.diffusion import CosineSchedule

# data have checks of their own: shapes, support, missing values
DATA = {
    ("*", "batch"),
    ("*", "x"),
    ("*", "data"),
    ("*", "samples"),
    ("*", "real"),
    ("*", "reference"),
    ("*", "validation"),
    ("copying_test", "train"),
    ("copying_test", "held_out"),
    ("sample_report", "train"),
    ("verdict", "held_out"),
    ("em", "weights"),
    ("classifier_features", "labels"),
    ("sample", "context"),
    ("impute", "context"),
    ("check_generative", "context"),
    ("Marginal", "context"),
    ("reverse_annealing", "base"),
    ("conditional", "mask"),
    ("gibbs", "mask"),
    ("StickBreaking", "validate_args"),  # an argument of every distribution of Pyro
}

ANY_NUMBER = "a number of either sign"
OF_ONE_NUMBER = "a context that is one number"
NO_PLATES = "a program without plates"
NO_BASELINE = "no estimate of the baseline"
NO_TEST = "no p-value"
COLOR = "a gray level of images in [-1, 1]"
NOT_ASKED = "these steps do not look at the schedule"

# (callable or "*", argument): (values, why they are taken)
ACCEPTED: dict[tuple[str, str], tuple[tuple[Any, ...], str]] = {
    ("*", "context"): ((0,), "no context"),
    ("*", "context_ndim"): ((0,), OF_ONE_NUMBER),
    ("*", "max_plate_nesting"): ((0,), NO_PLATES),
    ("*", "seed"): ((0,), "a seed"),
    ("*", "splits"): ((0,), NO_BASELINE),
    ("*", "permutations"): ((0,), NO_TEST),
    ("*", "fill"): ((-1.0,), COLOR),
    ("*", "low"): ((-1.0,), ANY_NUMBER),
    ("*", "high"): ((-1.0,), ANY_NUMBER),
    ("*", "start"): ((-1.0,), ANY_NUMBER),
    ("*", "stop"): ((-1.0,), ANY_NUMBER),
    ("*", "log_snr_max"): ((-1.0,), ANY_NUMBER),
    ("*", "log_snr_min"): ((-1.0,), ANY_NUMBER),
    ("*", "limit"): ((0,), "never summed out"),
    ("uniform_steps", "schedule"): ((3, "x", CosineSchedule, None), NOT_ASKED),
    ("quadratic_steps", "schedule"): ((3, "x", CosineSchedule, None), NOT_ASKED),
    ("Autoregressive", "batch_shape"): (((0,),), "no rows"),
    ("Autoregressive", "entry_ndim"): ((0,), "entries that are numbers"),
    ("Codes", "continuous"): ((0,), "categories alone"),
    ("Constant", "*shape"): ((0,), "no raw values, for what has none"),
    ("ContinuousFlow", "frequencies"): ((0,), "a field that does not see the time"),
    ("Fixed", "event_ndim"): ((0,), "events that are numbers"),
    ("Independent", "ndim"): ((0,), "nothing moves to the event"),
    ("LinearGaussian", "parents"): ((0,), "a variable without parents"),
    ("LogNormalTimes", "mean"): ((-1.0,), ANY_NUMBER),
    ("MarkovChain", "order"): ((0,), "independent variables"),
    ("Normalized", "log_z"): ((-1.0,), ANY_NUMBER),
    ("RandomFeatures", "location"): ((-1.0,), ANY_NUMBER),
    ("Renyi", "alpha"): ((-1.0,), "an upper bound"),
    ("TextEncoder", "padding"): ((0,), "the first token"),
    ("PretrainedEncoder", "padding"): ((0,), "the first token"),
    ("captioned_digits", "detail"): ((0, 1, 0.0, 1.0), "nothing is told, or all"),
    ("UNet", "attention"): ((0,), "no attention"),
    ("annealed_importance", "settle"): ((0,), "no steps before the way back"),
    **{
        (name, "padding"): ((math.nan, -1.0, 0.0), "marks the end of a sequence")
        for name in (
            "VariableLength",
            "VariableLengthLatents",
            "EndToken",
            "EndingHiddenMarkovModel",
        )
    },
    ("EndToken", "end"): ((-1.0, 0.0), "a value that ends a sequence"),
    ("StopOr", "end"): ((-1.0, 0.0), "a value that ends a sequence"),
    ("VariableLength", "least"): ((0,), "empty sequences"),
    ("VariableLengthLatents", "least"): ((0,), "empty sequences"),
    ("Autoregressive", "conditionals"): ((None,), "a distribution that is scored alone"),
    ("em", "max_iter"): ((0,), "the score of the start"),
    ("em", "n_init"): ((0,), "on from the present parameters"),
    ("em", "tol"): ((0,), "as many steps as asked"),
    ("DiversitySensitive", "bound"): ((math.inf,), "no bound"),
    ("PixelNorm", "dim"): ((-1,), "features of vectors"),
    ("StyleTruncation", "layers"): ((0,), "no layer is changed"),
    ("PredictorCorrector", "corrections"): ((0,), "ancestral steps alone"),
    ("Labeled", "unknown"): ((math.nan, -1.0), "stands for an unknown label"),
    ("sample", "n"): ((0,), "no draws"),
}

# public names that are not in the tables of good calls, and why
EXEMPT = {
    "Recorded": "a base",
    "KINDS": "a tuple",
    "Keywords": "a dict",
    "GenerativeModel": "a protocol",
    "Predictor": "a protocol",
    "Rule": "a protocol",
    "plain": "a rule, asked by samplers",
    "DistributionModule": "abstract",
    "LatentVariableModel": "abstract",
    "Emission": "abstract",
    "Objective": "abstract",
    "CheckpointError": "an error",
    "CompileWarning": "a warning",
    "FitWarning": "a warning",
    "NonFiniteLoss": "an error",
    "NotCompilable": "an error",
    "Run": "made by fit",
    "History": "made by fit",
    "Chains": "made by mcmc",
    "Imputation": "made by impute",
    "LogZ": "made by annealed_importance",
    "SampleReport": "made by sample_report",
    "TwoSample": "made by the tests",
    "Decomposition": "made by total_correlation",
    "Divergence": "made by kl_divergence",
    "observe": "called in programs, at every step, with rows",
    "penalty": "called in programs, at every step, with tensors",
    "precision_weighted": "called in programs, at every step, with distributions",
    "straight_through": "called in programs, at every step, with distributions",
    "data_plate": "called in programs, at every step, with rows",
    "density_kind": "asks any object",
    "ConformanceError": "an error",
    "Head": "abstract",
    "LooResult": "made by loo",
    "Mnist": "made by load_mnist",
    "CAPTION_WORDS": "a dict",
    "CaptionedDigits": "made by captioned_digits",
    "Showers": "made by calorimeter_showers",
    "caption": "its argument is data",
    "Tokenizer": "a type",
    "words": "its argument is data",
    "characters": "its argument is data",
    "Splits": "made by load_digits",
    "PredictiveCheck": "made by predictive_check",
    "FitVerdict": "made by verdict",
    "Positive": "a constraint's map, without arguments",
    "Preprocessed": "made by Preprocessed.fitted, whose rows are asked as data",
    "binarize": "its arguments are data",
    "effective_sample_size": "its arguments are data",
    "pareto_khat": "its arguments are data",
    "pareto_smooth": "its arguments are data",
    "settled": "its arguments are data",
    "read_idx": "its argument is a file",
    "pad": "its arguments are data",
    "turn": "takes nothing",
    "default_objective": "asks any model",
    "load_digits": "without arguments",
    "as_chains": "takes draws, which are data",
    "categorical_emission": "called in programs, at every step, with tensors",
    "normal_emission": "called in programs, at every step, with tensors",
    "poisson_emission": "called in programs, at every step, with tensors",
}
