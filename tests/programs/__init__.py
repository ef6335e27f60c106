"""Programs that people bring: small ones of the structure of every example and tutorial of Pyro."""

from programs.case import Case, Pair
from programs.classic import CLASSIC
from programs.neural import NEURAL
from programs.sequences import SEQUENCES

__all__ = ["PROGRAMS", "Case", "Pair"]

PROGRAMS: list[Case] = CLASSIC + SEQUENCES + NEURAL
