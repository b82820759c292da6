"""From a cohort to a model: try recipes, choose one, calibrate its intervals, fit it to everything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.learning.cohort import Cohort
from models.learning.conformal import Conformal
from models.learning.preparation import Caveat
from models.learning.quantile_shift import QuantileShift
from models.learning.selection import Selection, auto
from models.regressors.base import Model, Regressor
from models.regressors.settings import settings_of
from models.training import Watch
from storage.jobs import Progress
from workers.context import JobContext
from workers.packages import program
from workers.trials import Terms, Trial, Trials, learning_of, told_apart, tried

BASELINES = ("constant", "tabular")
"""What every training is compared with; the second where there are covariates."""


@dataclass(frozen=True, eq=False)
class Learning:
    """What was tried, what was chosen, by name or by its figures, and the model that was made of all rows."""

    trials: Trials
    selection: Selection
    chosen: Trial
    by_name: bool
    conformal: Conformal
    model: Model

    @property
    def shift(self) -> QuantileShift | None:
        """What the model's quantiles are to be moved by, where it tells quantiles."""
        return self.chosen.validation.shift

    @property
    def parameters(self) -> int:
        """Trained numbers of the model."""
        count: int = learning_of(self.model)["parameters"]
        return count

    @property
    def reasons(self) -> dict[str, str]:
        """Why each recipe was taken or not."""
        told = {each.name: each.reason for each in self.selection.candidates}
        if self.chosen.name != self.selection.chosen:
            told[self.chosen.name] = f"asked for by name; {told[self.chosen.name]}"
        return told

    def warnings(self, scans: int) -> list[Caveat]:
        """What a reader of the figures should know."""
        told = [
            Caveat("not-tried", f"{name} could not be made of this cohort: {why}")
            for name, why in self.trials.failed.items()
        ]
        if self.parameters > scans:
            text = f"{self.parameters:,} trained numbers for {scans:,} scans: more may be learnt than holds"
            told.append(Caveat("few-scans", text))
        if self.chosen.name != self.selection.chosen:
            text = f"{self.selection.chosen} is as good on this cohort, as far as it can tell, or better"
            told.append(Caveat("another-is-as-good", text))
        elif self.chosen.name in BASELINES and self._looked_at_scans():
            text = f"no recipe that looks at scans surely beats {self.chosen.name} on this cohort"
            told.append(Caveat("scans-tell-nothing", text))
        if not self.by_name and (count := len(self.trials.made)) > 1:
            text = f"{self.chosen.name} was chosen of {count} by these very figures: expect a little less"
            told.append(Caveat("chosen-by-these-figures", text))
        return told

    def _looked_at_scans(self) -> bool:
        """Whether any recipe that was tried looks at scans."""
        return not self.trials.made.keys() <= set(BASELINES)


def learn(
    context: JobContext,
    cohort: Cohort,
    recipes: Mapping[str, Regressor],
    terms: Terms,
    named: str | None = None,
) -> Learning:
    """The model of the recipe that was named, or of the simplest that none of the others beats.

    Goes on from the job's checkpoints, where they are of this program. Raises what the recipe raises,
    JobCancelled and LeaseLost.
    """

    def report(phase: str, done: int, total: int | None) -> None:
        context.report(Progress(phase, done, total))

    checkpoints = context.checkpoints.meant_for(purpose(context.job.parameters, recipes, terms))
    patients = cohort.row_patients
    trials = tried(recipes, cohort, terms, Watch(report, checkpoints), needed=named)
    losses = {name: trial.validation.losses for name, trial in trials.made.items()}
    selection = auto(losses, patients, seed=terms.seed)
    chosen = trials.made[named or selection.chosen]
    outputs = chosen.validation.outputs
    conformal = Conformal.of(outputs, cohort.targets, patients, terms.task, method="out-of-fold")
    watch = Watch(told_apart(report, f"{chosen.name}, all rows"), checkpoints.part("all-rows"))
    model = chosen.recipe.fit(cohort, terms.task, seed=terms.seed, device=terms.device, watch=watch)
    return Learning(trials, selection, chosen, named is not None, conformal, model)


def purpose(parameters: Mapping[str, Any], recipes: Mapping[str, Regressor], terms: Terms) -> str:
    """All that checkpoints depend on, as a digest: the program, the recipes, the terms, and the job's
    parameters with its table.
    """
    said = {
        "program": program(),
        "recipes": {name: settings_of(recipe) for name, recipe in recipes.items()},
        "folds": terms.folds.tolist(),
        "seed": terms.seed,
        "parameters": parameters,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
