"""What people pass as rows: unusual forms of good data, and data that are wrong.

``cases`` lists the inputs, ``doors`` the public functions that take rows, ``families`` models with
good rows, ``outcome`` says what became of one input at one door.
"""

from inputs.cases import CASES, Case
from inputs.doors import DOORS, SAMPLE_DOORS, Door
from inputs.families import FAMILIES, Family
from inputs.outcome import BARE, CLEAR, OUTCOMES, WORKS, WRONG, Trial
from inputs.trials import SAMPLES, Row, at_doors, samples

__all__ = [
    "BARE",
    "CASES",
    "CLEAR",
    "DOORS",
    "FAMILIES",
    "OUTCOMES",
    "SAMPLES",
    "SAMPLE_DOORS",
    "WORKS",
    "WRONG",
    "Case",
    "Door",
    "Family",
    "Row",
    "Trial",
    "at_doors",
    "samples",
]
