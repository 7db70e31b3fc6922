"""The README's Python runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write images
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert blocks
    for block in blocks:
        names: dict = {}
        exec(compile(block, str(README), "exec"), names)
        # shapes that comments promise
        for name, shape in re.findall(r"^ *(\w+) = .*# .*?(\[[\d, ]+\])$", block, re.M):
            assert list(names[name].shape) == eval(shape), name


def test_commands_exist():
    from albef.cli import COMMANDS
    from albef.commands.train import all_recipes

    for command, argument in re.findall(r"^albef (\w+) ([\w-]+)", README.read_text(), re.M):
        assert command in COMMANDS
        if command == "train" and not argument.startswith("-"):
            assert argument in all_recipes()
