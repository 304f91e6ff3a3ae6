"""The house: imports point one way, nothing is unpickled, everything public is documented, the wheel holds `dim` only."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dim
from dim.recipes.load import recipe_names

ROOT = Path(dim.__file__).parents[1]
FILES = sorted((ROOT / "dim").rglob("*.py"))

# The floors of the house, from the ground up. A room may use itself and the rooms of lower floors.
FLOORS = (
    ("text",),
    ("errors", "rng", "provenance", "launch", "signals"),
    ("classes", "libraries"),
    ("outputs",),
    ("spec", "config", "io", "processes", "repository", "chunks"),
    ("recipes", "augment", "pictures", "run_folder", "compiling"),
    ("continuation",),
    ("loop",),
    ("nets",),
    ("coding",),
    ("data",),
    ("trajectory", "features", "sampler", "program"),
    ("programs",),
    ("pool",),
    ("pools",),
    ("teacher", "objectives"),
    ("score", "emit"),
    ("audit", "timed"),
    ("runs", "budget", "replay"),
    ("cards",),
    ("hub",),
    ("commands",),
)
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines
RANKS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path) for path in FILES}


def _imports(path: Path) -> list[tuple[int, str]]:
    """Line and full name of everything imported, also inside functions and for type checking."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.append((node.lineno, "." * node.level))
                continue
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((node.lineno, full if full in MODULES else node.module))
    return found


def _room(module: str) -> str:
    return module.split(".")[1]


def _id(path: Path) -> str:
    return _module(path)


@pytest.mark.parametrize("path", [path for path in FILES if "." in _module(path)], ids=_id)
def test_imports_point_one_way(path):
    room = _room(_module(path))
    assert room in RANKS, f"{room} has no rank: say where it stands"
    for line, name in _imports(path):
        assert not name.startswith("."), f"{path}:{line} has a relative import"
        if name.partition(".")[0] != "dim":
            continue
        if name == "dim":
            assert room == "commands", f"{path}:{line} imports the package itself, which reaches every room"
            continue
        other = _room(name)
        assert other == room or RANKS[other] < RANKS[room], f"{path}:{line} ({room}) imports {name}"


def test_the_parser_of_imports_sees_imports_in_functions():
    names = [name for _, name in _imports(ROOT / "dim" / "commands" / "making.py")]
    assert "dim.runs.train" in names
    assert "dim.config" in names


def test_the_package_itself_imports_nothing_heavy():
    heavy = "sorted({'torch', 'numpy', 'tyro', 'accelerate', 'dim.config'} & sys.modules.keys())"
    command = [sys.executable, "-c", f"import sys, dim; print({heavy})"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in dim.__all__:
        assert getattr(dim, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = dim.no_such_name


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_nothing_is_unpickled(path):
    for line, name in _imports(path):
        assert name.partition(".")[0] not in {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}, f"{path}:{line}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and _module(path) != "dim.data.torch_files":
            assert ast.unparse(node) not in {"torch.load", "torch.save", "torch.jit.load"}, f"{path}:{node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "torch.jit.load"}:
            assert {"weights_only": "True"}.items() <= {word.arg: ast.unparse(word.value) for word in node.keywords}.items()
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False", f"{path}:{node.value.lineno}"


def test_no_file_is_called_utils():
    assert not [path for path in FILES if "util" in path.stem]


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_files_and_functions_are_short(path):
    """A file has one reason to change, and a function fits a screen; docstrings count."""
    text = path.read_text()
    lines = len(text.splitlines())
    assert lines <= LONGEST_FILE, f"{path} has {lines} lines: expected at most {LONGEST_FILE}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{path}:{node.lineno} {node.name} has {lines}: expected at most {LONGEST_FUNCTION}"


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_everything_public_has_a_docstring(path):
    """Modules, functions and classes at the top of a module."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name} has no docstring"


def test_every_setting_has_a_docstring():
    """They are the help texts of the command line."""
    seen = 0
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            settings = isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Options", "Arguments", "Recipe"))
            for field, below in zip(node.body, [*node.body[1:], None], strict=True) if settings else ():
                hint = ast.unparse(field.annotation) if isinstance(field, ast.AnnAssign) else "ClassVar"
                if not hint.startswith("ClassVar") and not hint.endswith("Config"):
                    documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                    assert documented, f"{path}: {node.name}.{ast.unparse(field.target)} has no docstring"
                    seen += 1
    assert seen > 200


def test_the_wheel_holds_dim_and_its_recipes_only(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "results")
    for entry in ROOT.iterdir():
        if entry.name in {"dim", "train", "sample", "benchmarks", "tests"}:
            shutil.copytree(entry, source / entry.name, ignore=skipped)
        elif entry.is_file():
            shutil.copy(entry, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "out", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "out").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dim"}
    assert len(tops) == 2
    assert {f"dim/recipes/{name}.toml" for name in recipe_names()} <= names
    assert {path.relative_to(ROOT).as_posix() for path in FILES} <= names
    assert "dim/py.typed" in names  # type checkers look at the annotations of packages that have it
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_type_checkers_see_the_public_names_and_no_others():
    """What is loaded on first use is imported for type checkers, from the same places, and `__getattr__` is hidden from them."""
    tree = ast.parse((ROOT / "dim" / "__init__.py").read_text())
    (branch,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {alias.asname: node.module for node in branch.body for alias in node.names if alias.asname == alias.name}
    assert imported == dim._HOMES
    assert not any(isinstance(node, ast.FunctionDef) for node in tree.body)
