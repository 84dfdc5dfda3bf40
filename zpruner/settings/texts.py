"""The settings of texts: which one, which part of it, and what is done with its windows."""

from __future__ import annotations

from os.path import normpath
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from zpruner.settings.base import ALTERNATIVES, Settings, canonical_json

SELF = "self"
"""The source that stands for text which the dense model writes itself."""

S = TypeVar("S")


def _as_part(value: object) -> object:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("two numbers, 0 <= start < stop <= 1")
    return value


def _check_part(part: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 <= part[0] < part[1] <= 1.0:
        raise ValueError("0 <= start < stop <= 1")
    return part


_WITH_WINDOWS = {"batch_size", "gram", "min_expert_tokens", "propagation", "protocol", "divergence"}
"""Settings beside a text's that say what is done with its windows."""


class _Text(Settings, Generic[S]):
    """A source, how its documents are read, and which part of them."""

    source: S
    sha256: str | None = None
    column: str = "text"
    config: str | None = None
    split: str | None = None
    documents: Literal["file", "lines"] = "file"
    part: Annotated[tuple[float, float], BeforeValidator(_as_part), AfterValidator(_check_part)] = (0.0, 1.0)


class SourceSettings(_Text[str]):
    """Where a text comes from, and which part of it is used."""

    def overlaps(self, other: SourceSettings) -> bool:
        """Return whether text is read here that `other` reads, too, as far as their settings tell."""
        mine, theirs = ((normpath(text.source), text.config, text.split) for text in (self, other))
        same = mine == theirs or (self.sha256 is not None and self.sha256 == other.sha256)
        return same and self.part[0] < other.part[1] and other.part[0] < self.part[1]


class _Windows(Settings):
    """Windows of `seqlen` tokens, what they begin with, and how many are run at once.

    `bos: auto` is what the tokenizer puts before a text by itself (see zpruner.text.Bos).
    """

    seqlen: int = Field(gt=1)
    bos: Literal["auto", "always", "never"] = "auto"
    batch_size: int = Field(default=8, gt=0)

    @property
    def begin(self) -> Literal["auto", "always", "never", "published"]:
        """What windows begin with."""
        return self.bos

    def windows_settings(self) -> str:
        """Return what decides the windows, as canonical JSON: not what is done with them."""
        return canonical_json(self.model_dump(mode="json", exclude_defaults=True, exclude=_WITH_WINDOWS))


class TextSettings(_Windows, SourceSettings):
    """A text, and the windows that are cut from it."""


class _Calibrated(Settings):
    """How windows come from one source of the calibration.

    The last four are of `source: self` alone: temperature and share of the probability that tokens are sampled with,
    the share of windows that is dropped again (those of the highest perplexity), and the text that the model begins
    to write after, in place of its BOS.
    """

    sampling: Literal["stream", "documents"] = "stream"
    temperature: float | None = Field(default=None, gt=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    drop: float | None = Field(default=None, ge=0, lt=1)
    prompt: str | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        """Say what text of the model's own is sampled with where nothing else is asked for."""
        if isinstance(data, dict) and data.get("source") == SELF:
            return {**data, **{key: value for key, value in _SAMPLED.items() if data.get(key) is None}}
        return data


_SAMPLED = {"temperature": 0.8, "top_p": 0.95, "drop": 0.2}
"""As published (arXiv:2410.17711: 0.6 to 0.8, 0.95, 20 %)."""


class MixedSettings(_Calibrated, SourceSettings):
    """One of several sources of the calibration, and its share of the windows; null: as large as every other."""

    share: float | None = Field(default=None, gt=0, le=1)


def _as_mixed(value: object) -> object:
    if not isinstance(value, str | dict | MixedSettings):
        raise ValueError("a source, or a mapping with one")
    return {"source": value} if isinstance(value, str) else value


def _as_sources(value: object) -> object:
    if not isinstance(value, str | list | tuple) or not value:
        raise ValueError("a source, or a list of them")
    return value


_ONE, _SEVERAL = ALTERNATIVES
_Sources = Annotated[
    Annotated[str, Tag(_ONE)]
    | Annotated[tuple[Annotated[MixedSettings, BeforeValidator(_as_mixed)], ...], Tag(_SEVERAL)],
    Discriminator(lambda value: _ONE if isinstance(value, str) else _SEVERAL),
    BeforeValidator(_as_sources),
]


class CalibrationSettings(_Calibrated, _Windows, _Text[_Sources]):
    """The calibration windows and the statistics taken over them. `source` is one, or a list with shares."""

    nsamples: int = Field(gt=0)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    gram: bool | Literal["auto"] = "auto"
    min_expert_tokens: int = Field(default=128, ge=0)
    propagation: Literal["dense", "pruned"] = "dense"

    @property
    def sources(self) -> tuple[MixedSettings, ...]:
        """Every source with its own settings; one where `source` names one."""
        if not isinstance(self.source, str):
            return self.source
        own = {name: getattr(self, name) for name in MixedSettings.model_fields if name != "share"}
        return (MixedSettings(**own),)

    @property
    def mixed(self) -> bool:
        """Whether `source` is a list."""
        return not isinstance(self.source, str)


class PerplexitySettings(TextSettings):
    """The text that perplexity is measured on; `windows: null` takes all of it.

    Windows start `stride` tokens apart (null: `seqlen`, so that none overlap), and each counts its last `stride`
    tokens. `protocol` names the published protocol that the other settings spell out (see
    zpruner.evaluate.protocols), which is checked; it has its own rule for what windows begin with. `divergence`
    is the number of windows also compared token by token with the dense model.
    """

    protocol: str | None = None
    joiner: str = "\n\n"
    max_documents: int | None = Field(default=None, gt=0)
    windows: int | None = Field(default=None, gt=0)
    stride: int | None = Field(default=None, gt=0)
    divergence: int = Field(default=0, ge=0)

    @property
    def begin(self) -> Literal["auto", "always", "never", "published"]:
        """What windows begin with: `bos`, or what the protocol was published with."""
        return self.bos if self.protocol is None else "published"

    @field_validator("stride")
    @classmethod
    def _check_stride(cls, stride: int | None, known: ValidationInfo) -> int | None:
        if stride is not None and stride > known.data.get("seqlen", stride):
            raise ValueError(f"at most seqlen, {known.data['seqlen']}")
        return stride
