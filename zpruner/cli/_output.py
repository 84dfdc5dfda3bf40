"""Where a command writes a checkpoint: whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from zpruner.errors import InvalidSettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_output(output: Path, force: bool) -> None:
    """Raise InvalidSettingError unless `output` can be written: it is new, or a checkpoint folder and `force`."""
    if not output.exists():
        place = next(folder for folder in output.absolute().parents if folder.exists())
        try:
            with TemporaryDirectory(dir=place, prefix=".zpruner-"):
                return
        except OSError as error:
            raise InvalidSettingError(
                f"--output {output}", f"{place}: {error.strerror}", "a place to write to", "Choose another folder."
            ) from None
    if not force:
        raise InvalidSettingError(
            f"--output {output}", "a path that exists", "a new folder", "Choose another, or add --force to replace it."
        )
    if not (output / "config.json").is_file():
        raise InvalidSettingError(
            f"--output {output}", "something that is no checkpoint folder", "one to replace", "Remove it yourself."
        )


def save(model: PreTrainedModel, tokenizer: Any, output: Path, card: str, source: str, force: bool) -> None:
    """Write the checkpoint beside `output` and rename it, so that `output` is whole or not there.

    Raises:
        DiskFullError: no space left.
    """
    from zpruner.checkpoint import write_manifest
    from zpruner.runtime.quiet import quiet

    with place(output, force) as staging, quiet():
        model.save_pretrained(staging)
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        (staging / "README.md").write_text(card, encoding="utf-8")
        write_manifest(staging, source)


@contextmanager
def place(output: Path, force: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes `output`, whole, when the block ends without an error; or not at all.

    Raises:
        DiskFullError: no space left.
    """
    from zpruner.artifacts.work import disk_full_named

    output = output.resolve()  # "." has no name
    staging, old = (output.with_name(f".{output.name}.{suffix}") for suffix in ("tmp", "old"))
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with disk_full_named(output):
            staging.mkdir(parents=True)
            yield staging
        check_output(output, force)
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)  # of a run that was killed before it could
            output.rename(old)
            staging.rename(output)
            shutil.rmtree(old)
        else:
            staging.rename(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
