"""Models, single files and data sets from the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from zpruner.errors import InvalidSettingError, SourceError
from zpruner.runtime.quiet import first_line, quiet
from zpruner.runtime.system_errors import system_errors_named
from zpruner.sources._form import NAME, Remote, inner_path, on_disk, refuse
from zpruner.sources._form import Kind as Kind
from zpruner.sources._hash import file_sha256, folder_sha256, require_sha256

if TYPE_CHECKING:
    import pyarrow as pa


# Weights as safetensors only; the rest is configuration and tokenizer. Pickles (*.bin, *.pt) are never downloaded.
_MODEL_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja"]
_CARD = "README.md"
_HUB = re.compile(rf"({NAME}/{NAME})@([A-Za-z0-9][A-Za-z0-9._-]*)(?:/(.+))?")


@dataclass(frozen=True)
class HubRef(Remote):
    """A model or data set `repo` ("ORG/NAME") on the hub at `revision`, or one `file` of it."""

    prefix: ClassVar[str] = "hf:"
    form: ClassVar[str] = "hf:ORG/NAME@REVISION[/FILE]"

    repo: str
    revision: str
    file: str | None = None

    @classmethod
    def parse(cls, text: str, rest: str) -> HubRef:
        """Read ORG/NAME@REVISION[/FILE]."""
        match = _HUB.fullmatch(rest)
        if match is None:
            refuse(text, f"{cls.form} (without a revision, the content could change between two runs)")
        on_disk(text, Path(f"{match[1].replace('/', '--')}@{match[2]}"), "inner")
        return cls(match[1], match[2], inner_path(text, match[3]) if match[3] else None)

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a full commit hash, the only kind that always names the same content."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None

    @property
    def origin(self) -> str:
        """The repository."""
        return f"{self.repo} at {self.revision} comes from the Hugging Face hub"

    def fetch(self, sha256: str | None, downloads: Path, kind: Kind) -> Path:
        """Return the one file of it, see `fetch_hub_file`; a whole repository is no file."""
        if self.file is None:
            raise SourceError(str(self), "a whole repository", "one file of it", f"Write {self}/FILE.")
        return fetch_hub_file(self, self.file, sha256, downloads, kind)

    def __str__(self) -> str:
        return f"hf:{self.repo}@{self.revision}" + (f"/{self.file}" if self.file else "")


def fetch_hub_model(ref: HubRef, sha256: str | None, downloads: Path, trust_remote_code: bool) -> Path:
    """Download the top-level checkpoint files of `ref` and return their folder.

    Raises:
        InvalidSettingError: a revision that can move, and no sha256.
        HashMismatchError: the folder's hash (see `folder_sha256`) is another.
        SourceError: it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    require_pinned(ref, sha256)
    folder = _local_folder(ref, downloads)
    with _hub_errors(ref, folder), quiet():
        snapshot_download(
            ref.repo,
            revision=ref.revision,
            local_dir=folder,
            # The card, for its licence; not where a hash is known, which is of the checkpoint's files alone.
            allow_patterns=_MODEL_FILES + (["*.py"] if trust_remote_code else []) + ([_CARD] if sha256 is None else []),
            ignore_patterns=["*/*"],
        )
    if sha256 is not None:
        require_sha256(str(ref), folder_sha256(folder), sha256)
    return folder


def fetch_hub_file(ref: HubRef, file: str, sha256: str | None, downloads: Path, repo_type: Kind) -> Path:
    """Download one file of `ref` and return its path. Raises as `fetch_hub_model`."""
    from huggingface_hub import hf_hub_download

    require_pinned(ref, sha256)
    folder = _local_folder(ref, downloads)
    with _hub_errors(ref, folder), quiet():
        path = Path(hf_hub_download(ref.repo, file, revision=ref.revision, repo_type=repo_type, local_dir=folder))
    if sha256 is not None:
        require_sha256(str(ref), file_sha256(path), sha256)
    return path


def hub_commit(repo: str, revision: str, kind: Kind) -> str:
    """Return the commit, 40 hexadecimal digits, that `revision` of a model or data set stands for now.

    Raises:
        SourceError: there is none, it is gated, or the hub cannot be asked.
    """
    ref = HubRef(repo, revision)
    with _hub_errors(ref):
        from huggingface_hub import dataset_info, model_info

        found = (model_info if kind == "model" else dataset_info)(repo, revision=revision)
        commit = found.sha
    if commit is None or not HubRef(repo, commit).is_pinned:
        raise SourceError(str(ref), f"the commit {commit!r} from the hub", "40 hexadecimal digits", "Name the commit.")
    return commit


def load_hub_table(ref: HubRef, config: str | None, split: str | None, downloads: Path) -> pa.Table:
    """Load one split of the data set `ref` with the `datasets` library.

    Raises:
        InvalidSettingError: no split.
        SourceError: it cannot be loaded, or `datasets` is not installed.
    """
    if split is None:
        raise InvalidSettingError(f"split of {ref}", "null", "the name of a split, such as train or test", "Set split.")
    with _hub_errors(ref, downloads), quiet():
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError

        try:
            data = load_dataset(
                ref.repo, config, split=split, revision=ref.revision, cache_dir=str(downloads / "datasets")
            )
        except DatasetsError as error:
            raise _unobtainable(ref, error) from None
        return data.with_format("arrow")[:]


def require_pinned(ref: HubRef, sha256: str | None) -> None:
    """Raise InvalidSettingError when neither the revision nor a hash fixes the content."""
    if sha256 is None and not ref.is_pinned:
        raise InvalidSettingError(
            f"sha256 of {ref}",
            "null with a revision that can move",
            "a revision of 40 hexadecimal digits (a commit), or a sha256",
            "Name the commit in the source, so that two runs see the same content.",
        )


def _local_folder(ref: HubRef, downloads: Path) -> Path:
    return downloads / "hf" / f"{ref.repo.replace('/', '--')}@{ref.revision}"


def http_errors() -> tuple[type[Exception], ...]:
    """Return what an HTTP request of the hub's client raises, whichever HTTP library its version uses."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception))


@contextmanager
def _hub_errors(ref: HubRef, folder: Path | None = None) -> Iterator[None]:
    """Turn what the hub's libraries raise into one sentence."""
    # OSError: errors of the hub's libraries, being offline; ValueError: unknown configurations and splits.
    unobtainable: tuple[type[Exception], ...] = (OSError, ValueError, *http_errors())
    try:
        with nullcontext() if folder is None else system_errors_named(folder):
            yield
    except ImportError as error:
        raise SourceError(
            str(ref),
            f"a missing library ({first_line(error)})",
            "the libraries that read from the hub",
            "Install them: pip install 'zpruner[sources]'.",
        ) from None
    except unobtainable as error:
        raise _unobtainable(ref, error) from None


def _unobtainable(ref: HubRef, error: Exception) -> SourceError:
    return SourceError(
        str(ref),
        f"nothing from the hub ({first_line(error)})",
        f"{ref.repo} at revision {ref.revision}",
        f"{_next_step(ref, error)}, or download it elsewhere and set source in params.yaml to its local path.",
    )


def _next_step(ref: HubRef, error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case GatedRepoError():
            return f"It is gated: ask for access at https://huggingface.co/{ref.repo} and log in (hf auth login)"
        case RepositoryNotFoundError():
            return "Nothing has this name here or there: check it; log in (hf auth login) if it is private"
        case RevisionNotFoundError():
            return f"Name a branch, tag or commit that https://huggingface.co/{ref.repo} has"
        case OfflineModeIsEnabled():
            return "Unset HF_HUB_OFFLINE"
        case _:
            return "Check the name, your access to it and the network"
