"""Run the commands of a page, and write what they print below them.

    python docs/execute.py docs/hospitals.md

A command is the line `$ COMMAND` of a block of console output. All run in one new folder, in order, at 80 columns;
longer lines are folded at 120.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import TextWrapper

BLOCK = re.compile(r"(?<=^``` \{ \.console \}\n)\$ (.*?)\n(.*?)(?=^```$)", re.M | re.S)
WRAPPER = TextWrapper(120, replace_whitespace=False, drop_whitespace=False, break_long_words=False)
PLAIN = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the commands of a page, and what the page says that they print."""
    return [(command, output) for command, output in BLOCK.findall(page)]


def fold(line: str) -> list[str]:
    """Return a line in parts of at most 120 characters."""
    first, *rest = WRAPPER.wrap(line) or [""]
    return [first, *(part.lstrip() for part in rest)]


def execute(commands: list[str], folder: Path) -> Iterator[str]:
    """Yield what each command prints in a folder, and its exit code if that is not 0."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        done = subprocess.run(
            command,
            shell=True,
            cwd=folder,
            env={**os.environ, **PLAIN, "PATH": path},
            text=True,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        lines = [part.rstrip() for line in done.stdout.splitlines() for part in fold(line)]
        text = "".join(f"{line}\n" for line in lines if line)
        yield text + (f"(exit code {done.returncode})\n" if done.returncode else "")


def prepare(page: Path, folder: Path) -> None:
    """Write the scripts and files that a page shows into a folder."""
    text = page.read_text(encoding="utf-8")
    for script in re.findall(r"examples/(\w+\.py)", text):
        (folder / script).write_text((page.parents[1] / "examples" / script).read_text(encoding="utf-8"))
    for name, content in re.findall(r'title="([\w.-]+)" \}\n(.*?)^```$', text, re.M | re.S):
        (folder / name).write_text(content, encoding="utf-8")


def main(page: Path) -> None:
    """Rewrite the outputs of a page."""
    text = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        prepare(page, Path(folder))
        said = execute([command for command, _ in blocks(text)], Path(folder))
        page.write_text(BLOCK.sub(lambda m: f"$ {m[1]}\n{next(said)}", text), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
