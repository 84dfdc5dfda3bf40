"""params.yaml -> checked, frozen settings. An unknown key is an error with the nearest known one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from zpruner.errors import InvalidPatternError, InvalidSettingError, did_you_mean, shown
from zpruner.patterns import ComparisonGroup, SparsityPattern
from zpruner.settings.evolution import EvolutionSettings
from zpruner.settings.explain import explain
from zpruner.settings.moved import settle
from zpruner.settings.plain_yaml import read_yaml
from zpruner.settings.setting_files import FORMULAS, read_files

_LABEL = re.compile(r"[A-Za-z0-9_]{1,100}")
_VARIANTS = 10_000
"""More than DVC's graph can hold."""


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(Settings):
    """Which model is pruned, and which of its layers stay dense."""

    source: str
    sha256: str | None = None
    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "auto"
    blocks: str | None = None
    ignore: tuple[str, ...] = ()
    trust_remote_code: bool = False


class MachineSettings(Settings):
    """How a run uses its machine: the numbers that come out are the same, so that a change re-runs nothing.

    `streaming` says whether weights are read block by block; `auto` does so where the model does not fit into `memory`
    (GB), or into what is available where that is null.
    """

    device: str = "auto"
    streaming: Literal["auto", "always", "never"] = "auto"
    memory: float | None = Field(default=None, gt=0)


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


class TextSettings(Settings):
    """Where a text comes from, which part of it is used, and what its windows of `seqlen` tokens begin with.

    `bos: auto` is what the tokenizer puts before a text by itself (see zpruner.text.Bos).
    """

    source: str
    sha256: str | None = None
    column: str = "text"
    config: str | None = None
    split: str | None = None
    documents: Literal["file", "lines"] = "file"
    part: Annotated[tuple[float, float], BeforeValidator(_as_part), AfterValidator(_check_part)] = (0.0, 1.0)
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


class CalibrationSettings(TextSettings):
    """The calibration windows and the statistics taken over them."""

    nsamples: int = Field(gt=0)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    sampling: Literal["stream", "documents"] = "stream"
    gram: bool | Literal["auto"] = "auto"
    min_expert_tokens: int = Field(default=128, ge=0)
    propagation: Literal["dense", "pruned"] = "dense"


class PerplexitySettings(TextSettings):
    """The text that perplexity is measured on; `windows: null` takes all of it.

    Windows start `stride` tokens apart (null: `seqlen`, so that none overlap), and each counts its last `stride`
    tokens. `protocol` names the published protocol that the other settings spell out (see
    zpruner.evaluate.protocols), which is checked; it has a rule of its own for what windows begin with. `divergence`
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


class ZeroShotSettings(Settings):
    """Tasks of lm-evaluation-harness; `include_path` is a folder of the project with own tasks as YAML files."""

    tasks: tuple[str, ...] = Field(min_length=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, gt=0)
    include_path: str | None = None


def _as_patterns(value: object) -> object:
    return (value,) if isinstance(value, str) and value != "all" else value


class EvaluationSettings(Settings):
    """What is measured on every variant.

    `checkpoints` says which variants are written to disk: `all`, or shell-style patterns of METHOD/SPARSITY. The others
    are made in memory from mask and weight update when they are evaluated.
    """

    perplexity: PerplexitySettings
    zero_shot: ZeroShotSettings | None = None
    checkpoints: Annotated[
        Literal["all"] | Annotated[tuple[str, ...], Field(max_length=1000)], BeforeValidator(_as_patterns)
    ] = "all"


class PackedSettings(Settings):
    """Which variants are also written without their zeros, and how their speed is measured.

    `variants` are shell-style patterns of METHOD/SPARSITY. Speeds are measured `rounds` times (0: not at all) beside
    the same weights with their zeros: the model is in memory twice for that.
    """

    variants: Annotated[Annotated[tuple[str, ...], Field(max_length=1000)], BeforeValidator(_as_patterns)] = ()
    rounds: int = Field(default=3, ge=0)
    new_tokens: int = Field(default=16, gt=0)
    prefill: int = Field(default=256, gt=0)


def _as_sparsity(value: object) -> object:
    if not isinstance(value, int | float | str):
        raise ValueError('a ratio in [0, 1) such as 0.5, or N:M such as "2:4"')
    return value


Sparsity = Annotated[Annotated[float, Field(allow_inf_nan=True)] | str, BeforeValidator(_as_sparsity)]


def _check_patterns(sparsities: tuple[Sparsity, ...]) -> tuple[Sparsity, ...]:
    for value in sparsities:
        SparsityPattern.parse(value)
    return sparsities


class SearchSettings(EvolutionSettings):
    """The search for pruning formulas: how formulas evolve, and what measures them.

    Fitness is the perplexity on `text` after pruning at each of `sparsities`, averaged in log space. The text may share
    nothing with that of the calibration nor with that of the evaluation.
    """

    text: TextSettings
    sparsities: Annotated[tuple[Sparsity, ...], AfterValidator(_check_patterns)] = Field(min_length=1)
    group: ComparisonGroup = ComparisonGroup.ROW


class Choice(Settings):
    """A registered name with settings of its own: `swaps`, or `{name: swaps, settings: {max_swaps: 100}}`."""

    name: str
    settings: dict[str, Any] = Field(default_factory=dict)


def _as_choice(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


def _as_correction(value: object) -> object:
    """Take settings without a name for those of `qep`."""
    if isinstance(value, dict) and "name" not in value:
        return {"name": "qep", "settings": value}
    return _as_choice(value)


class MethodSettings(Settings):
    """A composition: score or solver, comparison group, optional allocation, mask refinement and weight update.

    `settings` are the hyper-parameters of the score; `allocate` spreads the sparsity over the layers; `correct` (`{}`
    for the defaults) makes up for what earlier pruned blocks changed. Under pruned propagation `measure` says what is
    measured together before any of it is pruned: a whole block, or a sub-module of it (layers that read one input).
    """

    score: str
    settings: dict[str, Any] = Field(default_factory=dict)
    group: ComparisonGroup | None = None
    allocate: Annotated[Choice | None, BeforeValidator(_as_choice)] = None
    refine: Annotated[Choice | None, BeforeValidator(_as_choice)] = None
    update: Annotated[Choice | None, BeforeValidator(_as_choice)] = None
    correct: Annotated[Choice | None, BeforeValidator(_as_correction)] = None
    measure: Literal["block", "submodule"] = "block"


class Params(Settings):
    """The whole of params.yaml."""

    model: ModelSettings
    machine: MachineSettings = MachineSettings()
    calibration: CalibrationSettings
    methods: dict[str, MethodSettings]
    sparsities: dict[str, Sparsity]
    evaluation: EvaluationSettings
    packed: PackedSettings = PackedSettings()
    search: SearchSettings | None = None

    def pattern(self, sparsity: str) -> SparsityPattern:
        """Return the pattern labelled `sparsity`."""
        value = _entry("sparsities", self.sparsities, sparsity)
        try:
            return SparsityPattern.parse(value)
        except InvalidPatternError as error:
            raise InvalidPatternError(f"sparsities.{sparsity}", error.got, error.expected, error.action) from None

    def keeps_checkpoint(self, method: str, sparsity: str) -> bool:
        """Return whether the checkpoint of a variant is written."""
        chosen = self.evaluation.checkpoints
        return chosen == "all" or any(fnmatchcase(f"{method}/{sparsity}", pattern) for pattern in chosen)

    def packs(self, method: str, sparsity: str) -> bool:
        """Return whether a variant is also written without its zeros."""
        return any(fnmatchcase(f"{method}/{sparsity}", pattern) for pattern in self.packed.variants)

    def the_search(self) -> SearchSettings:
        """Return the settings of the search.

        Raises:
            InvalidSettingError: there are none.
        """
        if self.search is None:
            raise InvalidSettingError(
                "params.yaml", "no section search", "the settings of a search", "Copy it from the repository's."
            )
        return self.search

    def method(self, label: str) -> MethodSettings:
        """Return the composition labelled `label`."""
        return _entry("methods", self.methods, label)


def canonical_json(settings: BaseModel | dict[str, Any]) -> str:
    """Return settings as JSON with sorted keys, defaults left out: equal settings, equal text."""
    data = settings.model_dump(mode="json", exclude_defaults=True) if isinstance(settings, BaseModel) else settings
    return json.dumps(data, sort_keys=True)


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        InvalidSettingError: not YAML, an unknown or missing key, a value out of range, a bad label.
        InvalidPatternError: a sparsity that is neither a ratio in [0, 1) nor N:M.
    """
    return load_with_advice(path)[0]


def load_with_advice(path: Path) -> tuple[Params, str]:
    """Read and check params.yaml as `load` does; return also a sentence on keys that have moved since it was written.

    The sentence is empty where there is nothing to move.
    """
    try:
        data = read_yaml(path)
    except FileNotFoundError:
        raise InvalidSettingError(
            str(path), "no file", "the settings of the run", "Run in the folder that holds params.yaml."
        ) from None
    if isinstance(data, dict) and isinstance(methods := data.get("methods"), dict):
        for label, method in methods.items():
            if isinstance(method, dict) and isinstance(settings := method.get("settings"), dict):
                method["settings"] = read_files(settings, path.parent / FORMULAS, f"{path}: methods.{label}.settings")
    data, advice = settle(data, str(path))
    return check(data, str(path)), advice


def check(data: object, where: str) -> Params:
    """Return the checked settings of already parsed YAML; see `load`."""
    if not isinstance(data, dict):
        raise InvalidSettingError(
            where, type(data).__name__, "a mapping", "Start from the params.yaml of the repository."
        )
    try:
        params = Params.model_validate(data)
    except ValidationError as error:
        raise explain(error, where, Params) from None
    for kind, labels in (("methods", params.methods), ("sparsities", params.sparsities)):
        _check_labels(labels, f"{where}: {kind}")
    if (count := len(params.methods) * len(params.sparsities)) > _VARIANTS:
        raise InvalidSettingError(
            where, f"{count:,} variants (methods x sparsities)", f"at most {_VARIANTS:,}", "List fewer."
        )
    for label in params.sparsities:
        params.pattern(label)
    if params.search is not None:
        _check_apart(params, params.search.text, where)
    variants = [f"{method}/{sparsity}" for method in params.methods for sparsity in params.sparsities]
    checkpoints = params.evaluation.checkpoints
    chosen = {
        "evaluation.checkpoints": () if checkpoints == "all" else checkpoints,
        "packed.variants": params.packed.variants,
    }
    for key, pattern in ((key, pattern) for key, patterns in chosen.items() for pattern in patterns):
        if not any(fnmatchcase(variant, pattern) for variant in variants):
            raise InvalidSettingError(
                f"{where}: {key}",
                f"'{pattern}', which matches no variant",
                "patterns of METHOD/SPARSITY" + (", or all" if key == "evaluation.checkpoints" else ""),
                did_you_mean(pattern, variants),
            )
    for variant in variants:
        method, sparsity = variant.split("/")
        if params.packs(method, sparsity) and not params.keeps_checkpoint(method, sparsity):
            raise InvalidSettingError(
                f"{where}: packed.variants",
                f"'{variant}', whose checkpoint is not written",
                "variants of evaluation.checkpoints",
                f"Add '{variant}' to evaluation.checkpoints.",
            )
    return params


def _check_labels(labels: Iterable[str], where: str) -> None:
    """Refuse labels that cannot be a part of a path, of a DVC stage's name and of a DVC parameter's name alike.

    DVC takes a dot for a level of params.yaml, and joins the labels of a stage's name by hyphens.
    """
    for label in labels:
        if not _LABEL.fullmatch(label) or label == "dense":
            better = re.sub(r"[^A-Za-z0-9_]+", "_", label)[:100].strip("_") or "label"
            raise InvalidSettingError(
                where,
                f"the label {shown(label)}",
                "at most 100 letters, digits and '_', and not 'dense', which is the unpruned model",
                f"Name it e.g. {better if better != 'dense' else 'dense_'}: labels become file and stage names.",
            )


def _check_apart(params: Params, text: TextSettings, where: str) -> None:
    """Raise InvalidSettingError if the search's text overlaps with another: fitness would not be held out."""
    others: dict[str, TextSettings] = {
        "calibration": params.calibration,
        "evaluation.perplexity": params.evaluation.perplexity,
    }
    for name, other in others.items():
        same = (text.source, text.config, text.split) == (other.source, other.config, other.split)
        if same and text.part[0] < other.part[1] and other.part[0] < text.part[1]:
            raise InvalidSettingError(
                f"{where}: search.text.part",
                f"{list(text.part)}, which overlaps with {name}.part, {list(other.part)}, of the same source",
                "a text that only the search reads",
                "Choose parts that do not overlap, or another source.",
            )


def _entry(kind: str, entries: dict[str, Any], label: str) -> Any:
    if label not in entries:
        raise InvalidSettingError(kind, f"label '{label}'", "one listed in params.yaml", did_you_mean(label, entries))
    return entries[label]
