"""Whether a method, a task, a network and settings go together."""

from __future__ import annotations

from floco.core.algorithm import Algorithm
from floco.core.delivery import Delivery
from floco.core.errors import FlocoError
from floco.core.task import Task
from floco.core.values import Layout, Training
from floco.tasks.classification import Classification


def check_parts(
    algorithm: Algorithm, task: Task, layout: Layout, training: Training, delivery: Delivery, *, classes: int
) -> None:
    """Raise where one of them asks for what another does not have; `classes` is the number of the targets' classes."""
    delivery.check(layout)
    _check_method(algorithm, task, delivery)
    if training.head_lr is not None and not layout.head:
        raise FlocoError(
            "training.head_lr is the step size of the nn.Linear that gives the logits, and the model has none that "
            "is trained: leave it out"
        )
    if task.shift((1,) * classes) is None:
        return
    if algorithm.labelled:
        raise FlocoError(f'{algorithm.name} corrects for class frequencies itself: set task.prior = "none"')
    if len(layout.head) < 2:
        raise FlocoError(
            'task.prior = "client" adds to the bias of the nn.Linear that gives the logits, and the model has none '
            "that is trained: give its last layer a bias"
        )


def _check_method(algorithm: Algorithm, task: Task, delivery: Delivery) -> None:
    if algorithm.labelled and not task.labelled:
        raise FlocoError(f"{algorithm.name} needs class frequencies, and task {task.name} has no classes")
    if algorithm.labelled and isinstance(task, Classification) and task.label_smoothing:
        why = "adds log n_c to logits, which is minus infinity for a class that a client lacks"
        raise FlocoError(f"{algorithm.name} {why}: set task.label_smoothing = 0, got {task.label_smoothing}")
    if not algorithm.distributions:
        return
    if not isinstance(task, Classification):
        raise FlocoError(
            f"{algorithm.name} mixes probabilities of classes and needs task classification, and this one is "
            f"{task.name}: take another method"
        )
    if delivery.model != "personal":
        raise FlocoError(
            f'deliver.model = "{delivery.model}" trains or chooses one network, and a personal model of '
            f'{algorithm.name} is no one network: set deliver.model = "personal" for it'
        )
