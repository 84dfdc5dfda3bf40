"""Tasks of lm-evaluation-harness on a model in memory."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zpruner.errors import InvalidSettingError, SourceError, UnknownNameError, did_you_mean
from zpruner.runtime.quiet import first_line, quiet
from zpruner.sources import http_errors

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel

    from zpruner.settings.params import ZeroShotSettings

_SEED = 1234
"""The harness's own default for few-shot examples, numpy and torch; Python's generator starts from 0."""


class ZeroShot:
    """The tasks that settings name, ready to be run one by one.

    Args:
        model: the model to evaluate, in memory: no checkpoint is loaded.
        tokenizer: the model's.
        settings: tasks and how to run them.
        root: the project folder; `include_path` and the `data_files` of own tasks are relative to it.
        device: where the model computes; None: where its weights lie.
        found: the index that `find_tasks` returned; None: looked for here.

    Raises:
        UnknownNameError: a task that neither the harness nor `include_path` has.
        InvalidSettingError: no such folder, the harness is not installed, or the model has no tokenizer.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        settings: ZeroShotSettings,
        root: Path,
        device: torch.device | None = None,
        found: TaskManager | None = None,
    ) -> None:
        self.settings, self.root = settings, root
        if tokenizer is None:
            raise InvalidSettingError(
                "evaluation.zero_shot", "tasks, and a model without a tokenizer", "a tokenizer", "Set it to null."
            )
        self._tasks = find_tasks(settings, root) if found is None else found
        from lm_eval.models.huggingface import HFLM

        with _quiet_harness():
            self._model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size)
            if device is not None:  # weights that come and go are nowhere between two passes
                self._model._device = device

    def run(self, task: str) -> dict[str, dict[str, float | str]]:
        """Return, for the task (or each member of a group and the group), its metrics.

        Keys are the harness's metrics (`acc`, `acc_norm`, ...), each with its `_stderr`, and `version`, `samples`,
        `num_fewshot`.

        Raises:
            SourceError: the task's data set cannot be had.
        """
        from lm_eval import evaluate

        try:
            with _quiet_harness(), chdir(self.root):
                loaded = self._load(task)
                found = evaluate(self._model, loaded, limit=self.settings.limit, log_samples=False)
        except _data_errors() as error:
            raise SourceError(
                f"zero-shot task '{task}'",
                f"no data set ({first_line(error)})",
                "its data on this machine or from the hub",
                "Check the network, or write the task over a local file: see docs/zero_shot.md.",
            ) from None
        return scores(found)

    def _load(self, task: str) -> Any:
        """Return a task prepared as `lm_eval.simple_evaluate` does.

        That also asks git and the machine's tools for their versions, which takes seconds and prints errors of theirs.
        """
        random.seed(0)
        np.random.seed(_SEED)
        torch.manual_seed(_SEED)
        loaded = self._tasks.load([task])
        for found in loaded["tasks"].values():
            own, given = found.get_config("num_fewshot"), self.settings.num_fewshot
            if given is None or own == 0:  # 0 says that the task makes no sense with examples
                given = own or 0
            found.set_config(key="num_fewshot", value=given)
            found.set_fewshot_seed(seed=_SEED)
        return loaded


def find_tasks(settings: ZeroShotSettings, root: Path) -> TaskManager:
    """Return the harness's index of tasks, which has every one that the settings name; no data is read.

    Raises:
        UnknownNameError, InvalidSettingError: as `ZeroShot`.
    """
    folder = None if settings.include_path is None else root / settings.include_path
    if folder is not None and not folder.is_dir():
        raise InvalidSettingError(
            "evaluation.zero_shot.include_path",
            f"'{settings.include_path}'",
            "a folder with *.yaml",
            "Name the folder of your tasks, such as tasks.",
        )
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise InvalidSettingError(
            "evaluation.zero_shot",
            f"tasks without lm-evaluation-harness ({first_line(error)})",
            "the package lm-eval",
            "Install it: pip install 'zpruner[pipeline]'.",
        ) from None
    with _quiet_harness():
        return _manager(folder, settings.tasks)


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Silence the harness's warnings (about a model in memory, which is what we want), the hub's retries and bars."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _manager(folder: Path | None, tasks: tuple[str, ...]) -> TaskManager:
    """Return a task manager that knows every one of `tasks`; the harness's thousands are indexed only where needed."""
    from lm_eval.tasks import TaskManager

    path = None if folder is None else str(folder.resolve())
    if path is not None:
        own = TaskManager(include_path=path, include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    manager = TaskManager(include_path=path)
    for task in tasks:
        if task not in manager.all_tasks:
            raise UnknownNameError(
                "evaluation.zero_shot.tasks",
                f"'{task}'",
                "a task of the harness",
                did_you_mean(task, manager.all_tasks),
            )
    return manager


def scores(found: Mapping[str, Any]) -> dict[str, dict[str, float | str]]:
    """Return what of the harness's results belongs into a metrics file; names lose their filter (`acc,none`)."""
    result: dict[str, dict[str, float | str]] = {}
    for task, values in found["results"].items():
        entry: dict[str, float | str] = {}
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if kind and isinstance(value, int | float):
                entry[metric if kind == "none" else f"{metric}.{kind}"] = float(value)
        facts = {
            "version": found.get("versions", {}).get(task),
            "num_fewshot": found.get("n-shot", {}).get(task),
            "samples": found.get("n-samples", {}).get(task, {}).get("effective"),
        }
        result[task] = {**entry, **{key: value for key, value in facts.items() if isinstance(value, int | float | str)}}
    return result


def _data_errors() -> tuple[type[Exception], ...]:
    """Return what the harness's data libraries raise when data cannot be had."""
    from datasets.exceptions import DatasetsError

    return (OSError, DatasetsError, *http_errors())
