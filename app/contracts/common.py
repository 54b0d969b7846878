"""What all contracts share: strict models and bounded types. Every field that a caller fills has a bound."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Auto = Literal["auto"]
ModelName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
ModelId = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ObjectId = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:-]+$")]
ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Strict(BaseModel):
    """Unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)
