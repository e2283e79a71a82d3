"""OQFL as a method whose server half runs beside the clients, for the tests of where that may be.

`strategy._target_=tests.app.colocated.Colocated`.
"""

from typing import ClassVar

from strategies import oqfl


class Colocated(oqfl.OQFL):
    """Server half: OQFL's."""

    needs_colocation: ClassVar[bool] = True
