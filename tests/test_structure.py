"""The shape of the package: layers, budgets, names, and that the documents say what is so."""

import ast
import importlib.util
import io
import json
import pydoc
import re
import runpy
import statistics
import tokenize
from functools import cache
from pathlib import Path

import pytest

import floco
from conftest import make
from floco.algorithms import Floco

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "floco"
FILES = sorted(SOURCE.rglob("*.py"))
PURE = {"core", "simplex", "algorithms", "client", "server"}


def module(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


def part(name: str) -> str:
    """`floco.simplex.mixing` -> `simplex`."""
    return name.split(".")[1] if "." in name else name


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]


@cache
def code_lines(path: Path) -> frozenset[int]:
    """Lines of a file with code on them: no comments, no blank lines, no docstrings."""
    text = path.read_text()
    skip = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = {
        i
        for t in tokenize.generate_tokens(io.StringIO(text).readline)
        if t.type not in skip
        for i in range(t.start[0], t.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return frozenset(lines)


@cache
def sizes(path: Path) -> dict[str, int]:
    """Lines of code of every function of a file, by its name and its place."""
    found = functions(ast.parse(path.read_text()))
    lines = code_lines(path)
    return {f"{f.name}, line {f.lineno}": len(lines & {*range(f.lineno, (f.end_lineno or 0) + 1)}) for f in found}


@pytest.mark.parametrize("path", [p for p in FILES if part(module(p)) in PURE], ids=module)
def test_values_and_methods_do_no_input_output_and_read_no_clock(path: Path) -> None:
    tree = ast.parse(path.read_text())
    used = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    used |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    own = (
        {"os", "random"} if module(path) == "floco.core.random" else set()
    )  # the one place that touches global random state, and renews its lock in forked children
    assert not used & {"os", "pathlib", "time", "datetime", "subprocess", "socket", "random", "logging"} - own
    assert not called & {"open", "print", "input"}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_module_is_short_and_so_are_its_functions(path: Path) -> None:
    assert path.read_text().count("\n") <= 250
    assert not {name: size for name, size in sizes(path).items() if size > 40}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_no_module_catches_whatever_comes(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler) and n.type is None]


def test_half_of_all_functions_are_very_short() -> None:
    assert statistics.median(size for p in FILES for size in sizes(p).values()) <= 8


def test_the_package_stays_within_its_budget() -> None:
    assert sum(len(code_lines(p)) for p in FILES) <= 17_506


WORDS = re.findall(r"^\| ([\w ]+) \|.*\| (.*) \|.*\| `([\w.]+)` \|$", (ROOT / "docs" / "method.md").read_text(), re.M)


@pytest.mark.parametrize(("setting", "name"), [w[1:] for w in WORDS], ids=[w[0] for w in WORDS])
def test_a_word_of_the_table_of_words_is_the_word_of_the_code(setting: str, name: str) -> None:
    owner, attribute = name.rsplit(".", 1)
    found = pydoc.locate(f"floco.{owner}")
    assert hasattr(found, attribute) or attribute in found.__annotations__
    assert setting == "" or setting.strip("`") in (ROOT / "docs" / "configuration.md").read_text()


def test_public_names_are_few_explicit_and_documented() -> None:
    assert len(floco.__all__) <= 25
    assert set(floco.__all__) <= set(dir(floco))
    for name in floco.__all__:
        assert getattr(floco, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'flco'"):
        floco.flco  # noqa: B018


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda c: c.splitlines()[0])
def test_the_readmes_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= 110


def test_the_readmes_way_through_a_round_exists_and_is_as_long_as_it_says() -> None:
    text = (ROOT / "README.md").read_text()
    lines = 0
    files = re.findall(r"^\d\. `(.*?)`(?::(.*?))?\.\s", text, re.M)
    for file, names in files:
        tree, source = ast.parse((SOURCE / file).read_text()), (SOURCE / file).read_text().splitlines()
        found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        wanted = re.findall(r"`(\w+)`", names)
        lines += sum(found[n].end_lineno - found[n].lineno + 1 for n in wanted) if wanted else len(source)
    assert len(files) == 7
    assert lines == pytest.approx(int(re.search(r"about (\d+) lines of `src/floco`", text)[1]), abs=50)


def test_the_list_of_folders_is_complete() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for path in FILES:
        name = f"{path.stem}.py" if path.parent == SOURCE else f"{part(module(path))}/"
        assert path == SOURCE / "__init__.py" or f"`{name}`" in text, name


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_what_scripts_import_of_the_package_exists(folder: str) -> None:
    """Also in shell scripts, and where a script takes too long to be run here."""
    seen = 0
    for path in (p for p in sorted((ROOT / folder).iterdir()) if p.suffix in (".py", ".sh")):
        pattern = r"^\s*from (floco[\w.]*) import (\([^)]*\)|[^\n#]*)"
        for name, names in re.findall(pattern, path.read_text(), re.M):
            home = importlib.import_module(name)
            for imported in re.findall(r"(\w+)(?: as \w+)?\s*(?:,|$|\))", names.replace("\n", " ").strip("()")):
                seen += 1
                inside = hasattr(home, "__path__") and importlib.util.find_spec(f"{name}.{imported}")
                assert hasattr(home, imported) or inside, (path.name, name, imported)
    assert seen >= 10


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), (document.name, target)


def test_the_tables_of_the_comparison_are_made_from_the_files_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    filled, found = tables["filled"], 0
    for page in tables["PAGES"]:
        text = (ROOT / "docs" / page).read_text()
        assert filled(text) == text, page
        found += len(re.findall(r"<!-- table \S+ \w+ -->\n\|", text))
        broken = re.sub(r"(\| (?:floco|mathachieve|paper|CIFAR-10, folds) \| .*?)\d(?=[ |])", r"\g<1>99", text, count=1)
        assert broken != text
        assert filled(broken) == text  # a number typed in by hand does not stay
    assert found >= 8


def test_three_rounds_give_the_numbers_they_always_gave() -> None:
    """A change of any of these is a change of results and belongs in the changelog."""
    from conftest import train

    expected = json.loads((ROOT / "tests" / "golden" / "three_rounds.json").read_text())
    history = [p.evaluation.history for p in train(make(Floco(endpoints=4, assign_at=2), rounds=3))]
    for row, want in zip(history, expected, strict=True):
        assert {k: row[k] for k in want} == pytest.approx(want, rel=1e-5)
