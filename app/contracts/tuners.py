"""The menu of tuners (API field `peft`): which parameters train, under PEFT's own parameter names."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from app.contracts.common import Strict


class FullConfig(Strict):
    """Every parameter trains."""

    type: Literal["full"] = "full"


class LoraConfig(Strict):
    """Low-rank adapters on the base model, merged into it for export (Hu et al. 2021, arXiv:2106.09685)."""

    type: Literal["lora"] = "lora"
    r: int = Field(16, ge=1, le=512)
    lora_alpha: int = Field(32, ge=1, le=4096)
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    target_modules: list[Annotated[str, Field(min_length=1, max_length=128)]] | Literal["all-linear"] = Field(
        "all-linear", max_length=64
    )
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False


def _name_to_config(value: object) -> object:
    """`"lora"` stands for `{"type": "lora"}`."""
    return {"type": value} if isinstance(value, str) else value


Tuner = Annotated[FullConfig | LoraConfig, Field(discriminator="type"), BeforeValidator(_name_to_config)]

TUNERS: dict[str, type[Strict]] = {"full": FullConfig, "lora": LoraConfig}
