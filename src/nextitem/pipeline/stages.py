"""Training of the models that another model is composed of: one after the other, each saved, resumed and refit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from nextitem.cascade.cascade import CascadeConfig
from nextitem.core.batch import SequenceBatch
from nextitem.core.components import component_class
from nextitem.core.config import Config
from nextitem.core.dataset import Dataset, Split
from nextitem.core.errors import UserError
from nextitem.core.recommender import Recommender
from nextitem.core.roles import ClosedForm, Examples, FitsExamples, Generator, Ranker, Trainable
from nextitem.decoding.guidance import GuidedConfig
from nextitem.evaluation.evaluate import quick_score
from nextitem.evaluation.evaluate_ranking import quick_auc
from nextitem.models.blend import BlendConfig
from nextitem.pipeline.bundle import load_weights, save_weights
from nextitem.pipeline.options import FitOptions
from nextitem.pipeline.recipe import Recipe
from nextitem.training.config import TrainingConfig
from nextitem.training.fit import fit

DEFAULT_METRIC = "ndcg@10"  # figure of lists that the best epoch is selected by
GENERATOR_VALIDATION = 2000  # maximum number of requests that a generator is validated on


@dataclass(frozen=True)
class StageTrainer:
    """Trains the stages of one model: the channels and rankers of a cascade, the parts of a blend, a guide.

    Attributes:
        recipe: the recipe of the whole model; `recipe.stages` has the training settings of each stage.
        options: how and where to train; stages are saved under `options.folder`.
        num_fits: number of fits by gradient, among which a time budget of the whole run is divided evenly.
        is_refit: whether the run is a refit. Stages then repeat the best numbers of epochs of the run in the parent
            folder; otherwise validation decides.
        subfolder: folder within "stages", if the stages are those of a part of the model; empty: none.

    """

    recipe: Recipe
    options: FitOptions
    num_fits: int
    is_refit: bool
    subfolder: str = ""

    @property
    def folder(self) -> Path:
        """Folder of the stages."""
        return self.options.folder / "stages" / self.subfolder

    @property
    def first_folder(self) -> Path:
        """Folder of the stages of the first fit; of a refit, that of the run in the parent folder."""
        return self.options.folder.parent / "stages" / self.subfolder if self.is_refit else self.folder

    def untrained(self, build: Callable[[], Recommender]) -> Recommender:
        """Return the model that `build` builds, with the initial weights that it has if it is trained alone."""
        torch.manual_seed(self.recipe.seed)
        return build()

    def fit(
        self,
        name: str,
        model: Recommender,
        train: Dataset,
        *,
        examples: Callable[[], Examples[SequenceBatch]] | None = None,
        validate: Callable[[], float] | None = None,
        epochs: int | None = None,
    ) -> int | None:
        """Fit one stage and save its weights; when resuming, load a stage that is finished.

        Args:
            name: name of the stage, which is also its folder.
            model: the model to fit, in place.
            train: training data.
            examples: returns the examples to learn from, instead of those that the model makes of `train`.
            validate: returns the validation figure that the best epoch is selected by.
            epochs: number of epochs to train; None: as the settings say. A refit without validation trains as many as
                were best in the first fit.

        Returns:
            The best epoch, or None for a model in closed form.

        Raises:
            UserError: the model cannot learn, or not from `examples`.
            KeyboardInterrupt: training was interrupted.

        """
        folder = self.folder / name
        weights = folder / "weights.safetensors"
        if self.options.resume and weights.is_file():
            load_weights(weights, model)
            model.eval()
            return _best_epoch(folder)
        self.options.log(f"{name} ...")
        model.set_popularity_from(train)
        torch.manual_seed(self.recipe.seed)
        best = None
        if examples is not None and isinstance(model, FitsExamples):
            model.fit_to(examples())
        elif examples is None and isinstance(model, ClosedForm):
            model.fit(train)
        elif isinstance(model, Trainable):
            if validate is None and self.is_refit:
                epochs = _best_epoch(self.first_folder / name)
            result = fit(
                cast(torch.nn.Module, model),
                model.examples(train) if examples is None else examples(),
                self._training(name.split("/")[0]),
                seed=self.recipe.seed,
                out=folder if self.options.is_resumable else None,
                validate=validate,
                stop_after=epochs,
                resume=self.options.resume,
                device=self.options.device,
                progress=self.options.progress,
                label=name,
            )
            if result.stop_reason == "interrupted":
                raise KeyboardInterrupt
            for note in result.notes:
                self.options.log(f"note: {name}: {note}")
            best = result.best_epoch
        else:
            source = "alone" if examples is None else "from the candidates of a cascade"
            raise UserError(f"{name}: {type(model).__name__} cannot learn {source}")
        folder.mkdir(parents=True, exist_ok=True)
        model.eval()
        save_weights(weights, model)
        (folder / "best_epoch").write_text(str(best or 0), encoding="utf-8")
        return best

    def _training(self, name: str) -> TrainingConfig:
        """Return the training settings of a stage; a time budget of the whole run is divided evenly."""
        settings = self.recipe.stages.get(name, TrainingConfig())
        minutes = self.recipe.training.max_minutes
        if minutes is None:
            return settings
        return settings.model_copy(update={"max_minutes": minutes / max(1, self.num_fits)})


def stage_names(config: Config) -> tuple[str, ...]:
    """Return the names of the stages of a composed model, which are tables of [stages]; empty for another model."""
    if isinstance(config, CascadeConfig):
        return (*config.channels, "pre-ranking", "ranking")
    if isinstance(config, GuidedConfig) and config.guide is not None:
        return tuple(config.guide.model.get("parts", ("guide",)))
    return tuple(config.parts) if isinstance(config, BlendConfig) else ()


def learns_by_gradient(table: Mapping[str, Any]) -> bool:
    """Return whether the model of a table of settings is trained by gradient, not in closed form."""
    return not issubclass(component_class("model", table)[0], ClosedForm)


def validation_figure(model: Recommender, split: Split, *, metric: str = DEFAULT_METRIC) -> Callable[[], float] | None:
    """Return the function that validates an epoch, or None without validation requests.

    It measures the recommended lists by `metric`; of a ranker under a protocol that judges scores, the AUC on logged
    impressions. A generator is validated on a sample of the requests.
    """
    requests: SequenceBatch = split.validation
    if not requests.num_requests:
        return None
    if split.judges_scores and isinstance(model, Ranker):
        return partial(quick_auc, model, requests)
    if isinstance(model, Generator):
        requests = requests.sample(GENERATOR_VALIDATION)
    return partial(quick_score, model, requests, metric=metric)


def _best_epoch(folder: Path) -> int | None:
    file = folder / "best_epoch"
    return (int(file.read_text(encoding="utf-8")) or None) if file.is_file() else None
