"""What params.yaml holds, section by section; `zpruner.settings.reading` reads it."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
)

from zpruner.errors import InvalidPatternError, InvalidSettingError, did_you_mean
from zpruner.patterns import (
    ComparisonGroup,
    Pattern,
    Permutation,
    SparsityPattern,
    StructuredPattern,
    StructureKind,
    parse_pattern,
)
from zpruner.settings.base import Settings
from zpruner.settings.evolution import EvolutionSettings
from zpruner.settings.texts import CalibrationSettings, PerplexitySettings, TextSettings


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


class ZeroShotSettings(Settings):
    """Tasks of lm-evaluation-harness; `include_path` is a folder of the project with own tasks as YAML files."""

    tasks: tuple[str, ...] = Field(min_length=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, gt=0)
    include_path: str | None = None


def _as_several(value: object) -> object:
    return (value,) if isinstance(value, str) and value != "all" else value


class ContinuationSettings(Settings):
    """A prompt that every model continues, by at most `new_tokens` of its most likely tokens."""

    prompt: str = Field(min_length=1)
    new_tokens: int = Field(default=16, gt=0)


class EvaluationSettings(Settings):
    """What is measured on every variant.

    `checkpoints` says which variants are written to disk: `all`, or shell-style patterns of METHOD/SPARSITY. The others
    are made in memory from mask and weight update when they are evaluated.
    """

    perplexity: PerplexitySettings
    zero_shot: ZeroShotSettings | None = None
    continuation: ContinuationSettings | None = None
    checkpoints: Annotated[
        Literal["all"] | Annotated[tuple[str, ...], Field(max_length=1000)], BeforeValidator(_as_several)
    ] = "all"


class PackedSettings(Settings):
    """Which variants are also written without their zeros, and how their speed is measured.

    `variants` are shell-style patterns of METHOD/SPARSITY. Speeds are measured `rounds` times (0: not at all) beside
    the same weights with their zeros, those of structured variants beside the dense model: two models are in memory
    for that. A structured variant has no zeros, so that only its speed is measured where it is not quantised.
    """

    variants: Annotated[Annotated[tuple[str, ...], Field(max_length=1000)], BeforeValidator(_as_several)] = ()
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


def _named(name: str) -> Callable[[object], object]:
    """Return what takes settings without a name for those of the part `name`."""

    def choice(value: object) -> object:
        unnamed = isinstance(value, dict) and "name" not in value
        return {"name": name, "settings": value} if unnamed else _as_choice(value)

    return choice


def _as_rounding(value: object) -> object:
    """Take settings without a name for those of the rounding that they name, or of `gptq`."""
    if isinstance(value, dict) and "name" not in value:
        return {"name": value.get("rounding", "gptq"), "settings": {k: v for k, v in value.items() if k != "rounding"}}
    return _as_choice(value)


def _check_kinds(kinds: tuple[Permutation, ...]) -> tuple[Permutation, ...]:
    if len(set(kinds)) < len(kinds):
        raise ValueError("every kind once")
    if Permutation.CHANNELS in kinds and len(kinds) > 1:
        raise ValueError("channels alone: they put the inputs of every layer into an order of its own")
    return tuple(sorted(kinds))  # which comes first changes nothing


class MethodSettings(Settings):
    """A composition: score or solver, comparison group, optional allocation, refinement, update and quantisation.

    `settings` are the hyper-parameters of the score; `allocate` spreads the sparsity over the layers; `correct` (`{}`
    for the defaults) makes up for what earlier pruned blocks changed. Under pruned propagation `measure` says what is
    measured together before any of it is pruned: a whole block, or a sub-module of it (layers that read one input);
    `tune` (`{}` for the defaults) lets gradients of a block's own outputs change what is kept in it. `quantize` comes
    last and puts what stays on a grid. `structures` (kind -> ranking or score) ranks what structured patterns remove,
    where the score, summed over each, does not. `correct_bias` puts the mean of what a layer loses into its bias, where
    it has one. `permute` says what N:M finds in an order in which more can stay: neurons, heads, the
    residual stream; or the channels of every layer by itself.
    """

    score: str
    settings: dict[str, Any] = Field(default_factory=dict)
    group: ComparisonGroup | None = None
    allocate: Annotated[Choice | None, BeforeValidator(_as_choice)] = None
    refine: Annotated[Choice | None, BeforeValidator(_as_choice)] = None
    update: Annotated[Choice | None, BeforeValidator(_as_choice)] = None
    correct: Annotated[Choice | None, BeforeValidator(_named("qep"))] = None
    quantize: Annotated[Choice | None, BeforeValidator(_as_rounding)] = None
    measure: Literal["block", "submodule"] = "block"
    tune: Annotated[Choice | None, BeforeValidator(_named("reconstruct"))] = None
    structures: dict[StructureKind, Annotated[Choice, BeforeValidator(_as_choice)]] = Field(default_factory=dict)
    correct_bias: bool = False
    permute: Annotated[tuple[Permutation, ...], BeforeValidator(_as_several), AfterValidator(_check_kinds)] = ()


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

    def pattern(self, sparsity: str) -> Pattern:
        """Return the pattern labelled `sparsity`."""
        value = _entry("sparsities", self.sparsities, sparsity)
        try:
            return parse_pattern(value)
        except InvalidPatternError as error:
            raise InvalidPatternError(f"sparsities.{sparsity}", error.got, error.expected, error.action) from None

    def keeps_checkpoint(self, method: str, sparsity: str) -> bool:
        """Return whether the checkpoint of a variant is written."""
        chosen = self.evaluation.checkpoints
        return chosen == "all" or any(fnmatchcase(f"{method}/{sparsity}", pattern) for pattern in chosen)

    def packs(self, method: str, sparsity: str) -> bool:
        """Return whether a variant is also packed."""
        has = not isinstance(self.pattern(sparsity), StructuredPattern) or self.method(method).quantize is not None
        return has and self._names(method, sparsity)  # zeros, which no lost structure leaves, or integers

    def times(self, method: str, sparsity: str) -> bool:
        """Return whether the speed of a variant is measured."""
        return self.packed.rounds > 0 and self._names(method, sparsity)

    def _names(self, method: str, sparsity: str) -> bool:
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


def _entry(kind: str, entries: dict[str, Any], label: str) -> Any:
    if label not in entries:
        raise InvalidSettingError(kind, f"label '{label}'", "one listed in params.yaml", did_you_mean(label, entries))
    return entries[label]
