"""Arrows point down: who may import whom inside the package, and how little an import costs."""

import ast
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "albef"

# Part of the package -> what it may import of the others; its own modules always.
MAY_IMPORT = {
    "": [],  # albef/__init__.py
    "__main__": ["cli"],
    "cli": ["commands", "files"],
    "commands": [
        "pull",
        "published",
        "calibration",
        "conversion",
        "evaluation",
        "pipeline",
        "protocols",
        "results",
        "recipes",
        "tasks",
        "engine",
        "data",
        "distributed",
        "recipe",
        "files",
    ],
    "calibration": ["pipeline", "tasks", "data", "models", "files"],
    "pull": ["conversion", "download", "published", "data", "models", "files"],
    "download": ["files"],
    "conversion": ["published", "data", "models", "files"],
    "evaluation": ["pipeline", "protocols", "tasks", "data", "models", "distributed"],
    "protocols": [],
    "pipeline": ["features", "inputs", "regions", "results", "tasks", "data", "models", "files"],
    "features": ["inputs", "results", "tasks", "models"],
    "regions": ["results", "tasks", "data", "models", "metrics"],
    "inputs": ["data", "models"],
    "results": ["data.records", "heat"],
    "heat": [],
    "recipes": ["models.config", "recipe"],
    "tasks": ["engine.optim", "batches", "objectives", "data", "models", "metrics", "distributed", "recipe", "files"],
    "engine": ["data.broken", "models.legacy", "distributed", "recipe", "files"],
    "objectives": ["batches", "models", "distributed"],
    "models": ["files"],
    "data": ["files"],
    "metrics": [],
    "files": ["published"],
    "published": [],
    "recipe": ["models.config", "objectives.weights", "files"],
    "distributed": [],
    "errors": [],
    "batches": ["models.layout", "objectives.pretrain"],  # for types alone
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module below `albef` by its dotted name in it, e.g. `models.vit`; a package by the package's."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imported(source: str) -> set[str]:
    """Modules of the package that `source` imports, at the top or inside a function, as dotted names in the package."""
    found = set()
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not _for_types_alone(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write out relative imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, inner = name.partition(".")
            if package == "albef":
                # `from albef import distributed` names a module, `from albef.recipe import Recipe` a name in one
                found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found


def _for_types_alone(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_only_the_command_line_knows_the_demonstration() -> None:
    for name, path in MODULES.items():
        if name != "cli" and not name.startswith("commands"):
            imports = [line for line in path.read_text(encoding="utf-8").splitlines() if "import" in line]
            assert not [line for line in imports if "albef_demo" in line], name


def inside(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def test_imports_are_read() -> None:
    assert imported("import torch\nfrom albef import distributed") == {"distributed"}
    assert imported("def f():\n    from albef.models.vit import VisionTransformer") == {"models.vit"}
    assert imported("import albef.recipe as r\nfrom albef import Recipe\nimport albef") == {"recipe", ""}


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module: str) -> None:
    part = module.split(".")[0]
    assert part in MAY_IMPORT, f"give albef/{part} its row in MAY_IMPORT"
    allowed = [part, *MAY_IMPORT[part]]
    others = {
        other for other in imported(MODULES[module].read_text(encoding="utf-8")) if other != "errors"
    }  # which all may raise
    wrong = [f"albef.{other}".rstrip(".") for other in others if not any(inside(other, row) for row in allowed)]
    assert not wrong, f"albef/{module} imports {wrong}; its part may import only {allowed}"


def test_rows_and_arrows_are_real() -> None:
    """A row or an arrow whose module is gone would allow what nobody looked at."""
    named = {name for part, others in MAY_IMPORT.items() for name in (part, *others)}
    assert not named - set(MODULES), f"in MAY_IMPORT but not in albef/: {sorted(named - set(MODULES))}"


def best_of_three(measure: Callable[[], float]) -> float:
    """The least of three seconds: other work on the machine only ever adds."""
    return min(measure() for _ in range(3))


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_quick_and_leaves_torch_alone() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import albef; seconds = time.perf_counter() - start; "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(seconds)"
    )
    assert best_of_three(lambda: float(python("-c", code))) < 0.3


def test_help_is_quick() -> None:
    def measure() -> float:
        start = time.perf_counter()
        assert "albef train" in python("-m", "albef", "--help")
        return time.perf_counter() - start

    assert best_of_three(measure) < 0.5
