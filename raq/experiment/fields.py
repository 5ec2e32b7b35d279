"""What every part of the experiment's schema is made of: the base of its sections, and the types of their values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1, le=10**9)]
Natural = Annotated[int, Field(ge=0, le=10**9)]
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
Share = Annotated[float, Field(ge=0, le=1)]
Channels = Annotated[tuple[float, ...], Field(min_length=1, max_length=64)]
Backend = Literal["x86", "arm", "xnnpack", "cuda"]
Half = Literal["bfloat16", "float16"]
HALF_NAMES: dict[str, str] = {"bfloat16": "bf16", "float16": "fp16"}  # candidates, by the type that they compute in
OtherTool = Literal["nncf", "onnxruntime"]
OTHER_TOOLS: dict[str, str] = {"nncf": "openvino", "onnxruntime": "onnxruntime"}  # candidates, and their runtimes
Mode = Literal["static", "dynamic", "weight-only"]
ModeKind = Literal["ptq", "dynamic", "weight_only"]
MODE_NAMES: dict[str, str] = {"static": "ptq", "dynamic": "dynamic", "weight-only": "weight-only"}  # candidates
MODE_OF = {name: mode for mode, name in MODE_NAMES.items()}
MODE_KINDS: dict[str, ModeKind] = {"ptq": "ptq", "dynamic": "dynamic", "weight-only": "weight_only"}  # by candidate
INCLUDED = "included"  # model.weights: the function returns a trained network
Extent = Literal["none", "folded", "all"]
RoundingSteps = Annotated[int, Field(ge=0, le=100_000)]
Effort = Literal["fast", "better", "best"]
Observer = Literal["histogram", "minmax", "moving-average", "percentile", "entropy"]


class Section(BaseModel):
    """A part of the experiment: frozen, strict about types, and refusing keys that it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
