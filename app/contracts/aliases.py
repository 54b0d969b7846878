"""What a caller may ask of an alias: one version, or shares of the requests for several, and a shadow beside them."""

import math
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from app.contracts.common import Strict

MAX_VERSIONS = 16
"""That share an alias."""

VersionNumber = Annotated[int, Field(ge=1, le=999_999_999)]
# The key of a JSON object is a string; "03" would be a second name of "3".
_NumberKey = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,8}$")]
_Share = Annotated[float, Field(ge=0.0, le=1.0)]


class AliasSet(Strict):
    """`PUT /v1/models/{model}/aliases/{alias}`: all of what the alias does from now on."""

    version: VersionNumber | None = None
    weights: Annotated[dict[_NumberKey, _Share], Field(min_length=1, max_length=MAX_VERSIONS)] | None = None
    shadow: VersionNumber | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.version is None) == (self.weights is None):
            raise ValueError(
                'give either a version, {"version": 3}, or the share of each, {"weights": {"3": 0.9, "4": 0.1}}'
            )
        # Shares such as 0.7, 0.2 and 0.1 miss 1 by a rounding error.
        total = math.fsum(self.shares.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"the weights add up to {total:g}; they must add up to 1")
        if self.shadow in self.shares:
            raise ValueError(f"version {self.shadow} answers already: a shadow is a version without a share")
        return self

    @property
    def shares(self) -> dict[int, float]:
        """Version -> share of the requests."""
        if self.weights is None:
            return {self.version or 0: 1.0}
        return {int(number): share for number, share in self.weights.items()}
