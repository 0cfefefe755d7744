"""What is learned: one file a task, one registry line. A task knows targets, losses and metrics, and no data set."""

from floco.core.task import Task
from floco.tasks.classification import Classification
from floco.tasks.multilabel import Multilabel
from floco.tasks.regression import Regression
from floco.tasks.segmentation import Segmentation
from floco.tasks.tokens import Tokens

TASKS: dict[str, type[Task]] = {t.name: t for t in (Classification, Regression, Multilabel, Segmentation, Tokens)}
"""Name -> class; the settings are the class's fields."""

__all__ = ["TASKS", "Classification", "Multilabel", "Regression", "Segmentation", "Tokens"]
