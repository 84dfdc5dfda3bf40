"""Where everything of a project lies: the only place that spells a path below `data/`, beside the graph in dvc.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EVALUATION, COSTS = "evaluation", "costs"
"""The folders of results below `data/`, which a report may also read elsewhere."""


@dataclass(frozen=True)
class Layout:
    """The paths of a project folder's artifacts; data/README.md says what each of them is."""

    root: Path

    @property
    def data(self) -> Path:
        """The folder of all artifacts."""
        return self.root / "data"

    @property
    def downloads(self) -> Path:
        """Downloaded files, kept so that they are fetched once."""
        return self.data / ".downloads"

    @property
    def work_root(self) -> Path:
        """Where unfinished artifacts lie, out of sight of DVC and git."""
        return self.data / ".work"

    def sources(self, what: str) -> Path:
        """Where DVC sees a source change: a link to a local one, else a note of what is fetched."""
        return self.data / "sources" / what

    def plan(self, search: bool = False) -> Path:
        """What decides each stage instance of the pipeline, or of the search: its code and settings."""
        return (self.search if search else self.data) / "plan"

    @property
    def packages(self) -> Path:
        """Where DVC sees installed packages change that methods come from: links to their source files."""
        return self.data / "packages"

    @property
    def dense(self) -> Path:
        """The unpruned checkpoint."""
        return self.data / "models" / "dense"

    def tokens(self, text: str) -> Path:
        """Token windows of `calibration`, `evaluation` or `search`."""
        return self.data / text / "tokens.arrow"

    @property
    def generated(self) -> Path:
        """Windows that the unpruned model wrote itself; without files where the calibration lists no such source."""
        return self.data / "generated"

    @property
    def activations(self) -> Path:
        """Activation statistics of the unpruned model."""
        return self.data / "activations" / "dense"

    @property
    def gradients(self) -> Path:
        """Gradient statistics of the unpruned model; without files where no listed method needs them."""
        return self.data / "gradients"

    def scores(self, method: str) -> Path:
        """Importance scores."""
        return self.data / "scores" / method

    def masks(self, method: str, sparsity: str) -> Path:
        """Keep masks."""
        return self.data / "masks" / method / sparsity

    def orders(self, method: str, sparsity: str) -> Path:
        """The order that a variant's masks were found in; without files where it is the dense model's."""
        return self.data / "orders" / method / sparsity

    def solved(self, method: str, sparsity: str) -> Path:
        """Weights of a variant as pruned propagation solved them; without files under dense propagation."""
        return self.data / "solved" / method / sparsity

    def pruned(self, method: str, sparsity: str) -> Path:
        """The pruned checkpoint."""
        return self.data / "pruned" / method / sparsity

    def packed(self, method: str, sparsity: str) -> Path:
        """The pruned checkpoint without its zeros."""
        return self.data / "packed" / method / sparsity

    def evaluation(self, *labels: str) -> Path:
        """The metrics of a variant, or of `dense`."""
        return self.data.joinpath(EVALUATION, *labels[:-1], f"{labels[-1]}.json")

    def costs(self, search: bool = False) -> Path:
        """What stage instances took; those of the search lie apart, since the report does not wait for them."""
        return (self.search if search else self.data) / COSTS

    def cost_file(self, *instance: str, search: bool = False) -> Path:
        """What a stage instance (stage and labels) took."""
        return self.costs(search).joinpath(*instance[:-1], f"{instance[-1]}.json")

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return self.data / "report"

    @property
    def search(self) -> Path:
        """What the search reads and finds: its plan, text, gradients, log, best formula and report."""
        return self.data / "search"

    @property
    def search_logs(self) -> Path:
        """The logs of searches begun, one per settings and inputs: out of sight of DVC, so that any can be resumed."""
        return self.data / ".searches"
