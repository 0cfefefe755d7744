"""What is learned: one file a task, one registry line. A task knows targets, losses and metrics, and no data set."""

from floco.core.task import Task
from floco.tasks.classification import Classification

TASKS: dict[str, type[Task]] = {t.name: t for t in (Classification,)}
"""Name -> class; the settings are the class's fields."""

__all__ = ["TASKS", "Classification"]
