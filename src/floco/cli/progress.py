"""What a command shows while it trains, and how it stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from floco.cli.console import err_console, out_console, say
from floco.core.errors import RunFailed

_MANY = 1_000_000  # outputs for test samples from which measuring takes more than some seconds

if TYPE_CHECKING:
    from floco.client.setup import Setup
    from floco.core.metrics import Metrics
    from floco.server.progress import Progress


@contextmanager
def stoppable(path: Path) -> Iterator[None]:
    """When the user interrupts or a run fails, print how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        err_console.print(f"\nstopped; continue with: floco resume {path}", markup=False, highlight=False)
        raise typer.Exit(130) from None
    except RunFailed as error:
        raise RunFailed(f"{error}\ncontinue, once the cause is gone, with: floco resume {path}") from error


def begin_bar(stack: ExitStack, path: Path, setup: Setup, start: Progress, debug: bool) -> Callable[[Progress], None]:
    """Show a run's rounds until the stack is closed; say so if it is finished already."""
    if start.round == setup.training.rounds:
        say(f"{path} is finished: all {start.round} rounds are done")
    watch = stack.enter_context(show_rounds(start.round, setup.training.rounds, setup.task.metrics, debug))
    tested = sum(len(c.test) for c in setup.federation.clients)

    def watch_and_tell(progress: Progress) -> None:
        watch(progress)
        if progress.round == setup.training.rounds and tested * setup.federation.outputs > _MANY:
            say(f"measuring the models of {len(setup.evaluated)} clients on {tested} test samples")

    return watch_and_tell


@contextmanager
def show_rounds(done: int, total: int, metrics: Metrics, debug: bool) -> Iterator[Callable[[Progress], None]]:
    """Show the progress: a bar on a terminal, otherwise one line per evaluation."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    accuracies = TextColumn("{task.description}")
    columns = TextColumn("round"), MofNCompleteColumn(), BarColumn(), accuracies, TimeRemainingColumn()
    with Bar(*columns, console=out_console, auto_refresh=False, disable=not out_console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)
        text = ""

        def watch(progress: Progress) -> None:
            nonlocal text
            for failure in progress.failures:
                line = f"left out: {failure}" + (f"\n{failure.trace}" if debug else "")
                err_console.print(line, style="yellow", markup=False, highlight=False)
            if progress.evaluation is not None:
                row: dict[str, Any] = progress.evaluation.history
                name = metrics.primary
                values = (f"{which} {metrics.text(name, row[f'{name}_{which}'])}" for which in ("global", "personal"))
                text = " ".join([name.replace("_", " "), *values])
                if not out_console.is_terminal:
                    say(f"round {progress.round}/{total}: {text}")
            bar.update(task, completed=progress.round, description=text, refresh=True)

        yield watch
