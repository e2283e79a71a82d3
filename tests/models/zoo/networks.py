"""All of them, by name."""

from tests.models.zoo.attention import ATTENTION
from tests.models.zoo.convolutions import CONVOLUTIONS
from tests.models.zoo.sequences import SEQUENCES

ZOO = {**CONVOLUTIONS, **ATTENTION, **SEQUENCES}
