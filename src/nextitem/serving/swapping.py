"""Swap of the versions of served models: the version that RUN/current names is loaded beside the old one, and checked.

A thread looks at the files every few seconds. A version is taken into use only if it is complete, knows all items of
the version before, and answers; otherwise the old one serves on, and the new one is tried again when its files change.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import torch

from nextitem.core.errors import UserError
from nextitem.pipeline.bundle import load_catalog
from nextitem.pipeline.recommend import RecommendationList
from nextitem.pipeline.runs import Run
from nextitem.pipeline.versions import FIRST, current_version, version_folder
from nextitem.serving.batching import yield_to_others
from nextitem.serving.garbage import settle_again
from nextitem.serving.metrics import Metrics
from nextitem.serving.requests import HistoryEvent, ServedRequest
from nextitem.serving.served_model import ModelVersion, RefusedVersion, ServedModel

log = logging.getLogger("nextitem.serving")
# What a run is loaded from; its other files (metrics, logs of training, checkpoints) change nothing that is served.
IS_BUNDLE = frozenset({".toml", ".safetensors", ".parquet", ".json", ".npy", ".txt"})
NO_BUNDLE = frozenset({"metrics.json"})

State = tuple[str, tuple[tuple[str, int, int], ...]]  # name of a version; name, size and time of each of its files


@dataclass
class _Watched:
    """A model whose run is watched.

    Attributes:
        model: the model.
        run: folder of the run, which contains its versions.
        used: state of the files from which the version in use was loaded.
        refused: state of the files that were refused last.
        previous: state at the look before.

    """

    model: ServedModel
    run: Path
    used: State | None
    refused: State | None = None
    previous: State | None = None


class VersionWatcher:
    """Thread that takes new versions of models into use."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        folders: Mapping[str, Path],
        open_run: Callable[[Path], Run],
        metrics: Metrics,
        *,
        seconds: float = 2.0,
    ) -> None:
        """Note the files of the versions in use; `start` starts the thread.

        Args:
            models: the models.
            folders: folder of the run of each, by the name of the model; the others are not watched.
            open_run: opens a run, in the version in use, as those were opened that are served now.
            metrics: where swaps and refusals are counted.
            seconds: time between two looks.

        """
        self.open_run, self.metrics, self.seconds = open_run, metrics, seconds
        self._watched = [
            _Watched(model, folders[model.name], state_of(model.run.folder, model.version.name))
            for model in models
            if model.name in folders
        ]
        self._wake, self._is_closing = threading.Event(), False
        self._thread = threading.Thread(target=self._loop, name="versions", daemon=True)

    def start(self) -> None:
        """Start the thread, which looks every few seconds."""
        self._thread.start()

    def wake(self) -> None:
        """Let the thread look at the files at once."""
        self._wake.set()

    def close(self, timeout: float | None = None) -> None:
        """Stop to look; a version that is being loaded is not used any more."""
        self._is_closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def check(self) -> None:
        """Look at each run once, and take into use what is new."""
        for watched in self._watched:
            self._check(watched)

    def _loop(self) -> None:
        yield_to_others(10)
        while not self._is_closing:
            self._wake.wait(self.seconds)
            self._wake.clear()
            if not self._is_closing:
                self.check()

    def _check(self, watched: _Watched) -> None:
        model = watched.model
        try:
            name = current_version(watched.run)
            state = state_of(version_folder(watched.run, name), name)
        except (UserError, OSError) as error:
            self._refuse(watched, ("?", ((str(error), 0, 0),)), str(error))
            return
        is_new_name = name != model.version.name and (watched.refused is None or watched.refused[0] != name)
        is_settled = is_new_name or state == watched.previous
        watched.previous = state
        if state in (watched.used, watched.refused):
            if state == watched.used:
                watched.refused = None
                model.refused = None
                self.metrics.is_refused.labels(model.name).set(0)
            return
        if not is_settled:  # files are being replaced: look again
            return
        try:
            version = self._loaded(watched, name)
        except Exception as error:
            reason = str(error) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"
            self._refuse(watched, state, reason)
            return
        if self._is_closing or state_of(version.run.folder, name) != state:
            watched.previous = None
            return  # the files changed while they were read
        if version.fingerprint != model.version.fingerprint or name != model.version.name:
            log.warning("%s: version %s (%s) is used now", model.name, name, version.fingerprint)
            self.metrics.swaps.labels(model.name).inc()
        model.use(version)
        settle_again()
        watched.used, watched.refused = state, None
        self.metrics.is_refused.labels(model.name).set(0)

    def _loaded(self, watched: _Watched, name: str) -> ModelVersion:
        """Return the version with its data, after it has passed all checks. Raises if it is not fit for use."""
        former = watched.model.version
        run = self.open_run(watched.run)
        if run.folder != version_folder(watched.run, name):
            raise UserError(f"{watched.run}: another version was chosen meanwhile")
        check_model(run, required_items(watched.run, name, former.run))
        is_same_data = run.recipe.data == former.run.recipe.data
        is_same_catalog = run.model.catalog.fingerprint == former.run.model.catalog.fingerprint
        if not run.has_dataset and former.run.has_dataset and is_same_data and is_same_catalog:
            run.use_data(former.run.dataset)  # otherwise it is read from disk
        version = ModelVersion.of(run, list(former.engines), state_bytes=watched.model.config.state_bytes)
        check_answers(version)
        return version

    def _refuse(self, watched: _Watched, state: State, reason: str) -> None:
        model = watched.model
        if state == watched.refused:
            return
        watched.refused = state
        model.refused = RefusedVersion(state[0], reason)
        self.metrics.refusals.labels(model.name).inc()
        self.metrics.is_refused.labels(model.name).set(1)
        log.error(
            "%s: version %s is refused, and version %s serves on: %s", model.name, state[0], model.version.name, reason
        )


def state_of(folder: Path, name: str) -> State:
    """Return the state of the files from which a version is loaded."""
    files = []
    for path in sorted(folder.iterdir()):
        if path.suffix in IS_BUNDLE and path.name not in NO_BUNDLE and path.is_file():
            status = path.stat()
            files.append((path.name, status.st_size, status.st_mtime_ns))
    return name, tuple(files)


def check_model(new: Run, required: pl.Series) -> None:
    """Raise UserError if a run lacks required items, or a parameter of its model is not finite."""
    missing = required.filter(pl.Series(new.model.catalog.ids.encode(required) == 0)).to_list()
    if missing:
        examples = ", ".join(str(item) for item in missing[:3])
        raise UserError(
            f"its catalogue lacks {len(missing)} of {len(required)} items of the run, such as {examples}; a version "
            "has all items of the first one (serve another catalogue as another run)"
        )
    for name, parameter in new.model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise UserError(f"its weights are damaged: {name} has values that are not finite; train it again")


def required_items(run: Path, name: str, former: Run) -> pl.Series:
    """Return the ids that a version must know: those of the first version of the run, so that others may be given up.

    If the first version itself was replaced, they are those of the former one.
    """
    if name == FIRST and former.folder == run:
        return former.model.catalog.ids.external
    return load_catalog(run).ids.external


def check_answers(version: ModelVersion) -> None:
    """Raise UserError if a version does not answer requests by history and by user."""
    items = [str(item) for item in version.run.model.catalog.ids.external.head(3)]
    users = [str(user) for user in version.run.dataset.users.ids.external.head(1)]
    requests = [ServedRequest(history=tuple(HistoryEvent(item) for item in items[:1]), k=10)]
    requests += [ServedRequest(user, k=10, exclude_seen=False) for user in users]
    answers = version.engine.recommend(requests)
    for answer in answers:
        if not isinstance(answer, RecommendationList):
            raise UserError(f"it does not answer: {type(answer).__name__}: {answer}")
        if not all(math.isfinite(score) for score in answer.scores):
            raise UserError("its scores are not finite; train it again")
    if len(items) > 1 and not any(isinstance(answer, RecommendationList) and answer.item_ids for answer in answers):
        raise UserError("its lists are empty; train it again")
