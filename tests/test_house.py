"""The rules of the house that a program can check: sizes, floors, imports, names, shipped files."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import grimp
import pytest
import yaml

from medssl import cli

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "medssl"
FILES = sorted(PACKAGE.rglob("*.py"))
SHARED = {"__init__", "base", "contract"}
OBJECTIVES = [path for path in FILES if path.parent.name == "objectives" and path.stem not in SHARED]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))

FILE_LINES, OBJECTIVE_LINES, FUNCTION_LINES = 400, 250, 60
ARGUMENTS, FIELDS = 8, 8

Function = ast.FunctionDef | ast.AsyncFunctionDef

# functions of the command line: their arguments are its keys, and no code calls them
VERBS = {path.replace(".", "/").replace(":", ".py:") for path in (verb.place for verb in cli.VERBS.values())}

# what a module may import at its top although it takes long to load; everything else heavy goes inside functions
HEAVY = {
    "SimpleITK", "blosc2", "distributed", "dynamic_network_architectures", "gdcm", "imagecodecs", "jsonargparse",
    "lightning", "matplotlib", "monai", "nibabel", "h5py", "openslide", "pandas", "peft", "pyarrow", "pydicom", "scipy",
    "tensorboard", "tifffile", "timm", "torchvision", "transformers",
}  # fmt: skip
SUBCLASSES = {
    "medssl/training/fabric.py": {"lightning"},
    "medssl/encoders/timm_twins.py": {"timm"},
}  # of those packages' classes
MONAI_CLASSES = "data/loading/monai.py"  # this subclasses MONAI's reader and is imported only by those who use MONAI
WITHOUT_TORCH = [
    "types",
    "cli",
    "ops.draws",
    "data.index.scan_index",
    "data.formats.recognition",
    "data.split",
    "data.loading.order",
    "data.synthetic.phantoms",
]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> list[Function]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, Function)]


def lines_without_docstring(function: Function) -> int:
    """Lines from ``def`` to the end, less the docstring's."""
    count = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        count -= (first.end_lineno or 0) - first.lineno + 1
    return count


def arguments(function: Function) -> list[str]:
    spec = function.args
    names = [argument.arg for argument in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    return [name for name in names if name not in {"self", "cls"}]


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def top_imports(path: Path) -> set[str]:
    """First names of the packages that a module imports when it is imported."""
    names = set()
    for node in tree(path).body:
        inner = [node] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.If | ast.Try) and not is_type_checking(node):
            inner = [part for part in ast.walk(node) if isinstance(part, ast.Import | ast.ImportFrom)]
        for part in inner:
            found = [alias.name for alias in part.names] if isinstance(part, ast.Import) else [part.module or ""]
            names |= {name.split(".")[0] for name in found}
    return names


def tracked() -> list[Path]:
    """Files under version control; without git, every file that a checkout would have."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("no git checkout: which files are ours cannot be told")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- sizes


def test_files_stay_short():
    limits = {path: OBJECTIVE_LINES if path in OBJECTIVES else FILE_LINES for path in FILES}
    long = {
        relative(path): f"{count} lines, limit {limit}"
        for path, limit in limits.items()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > limit
    }
    assert not long


def test_functions_stay_short():
    long = {
        f"{relative(path)}:{function.lineno} {function.name}": lines_without_docstring(function)
        for path in FILES
        for function in functions(path)
        if lines_without_docstring(function) > FUNCTION_LINES
    }
    assert not long


def test_functions_take_few_arguments():
    many = {
        f"{relative(path)}:{function.lineno} {function.name}": len(arguments(function))
        for path in FILES
        for function in functions(path)
        if len(arguments(function)) > ARGUMENTS and f"{relative(path)}:{function.name}" not in VERBS
    }
    assert not many


def test_dataclasses_have_few_fields():
    many = {}
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                count = sum(isinstance(part, ast.AnnAssign) for part in node.body)
                if count > FIELDS:
                    many[f"{relative(path)} {node.name}"] = count
    assert not many


def test_counting_leaves_the_docstring_out():
    function = ast.parse('def f(self, a, *, b):\n    """One.\n\n    Two.\n    """\n    return a\n').body[0]
    assert isinstance(function, ast.FunctionDef)
    assert lines_without_docstring(function) == 2
    assert arguments(function) == ["a", "b"]


# --- names and state


def test_no_drawer_files():
    drawers = {"utils", "util", "helpers", "common", "misc", "tools"}
    assert not [relative(path) for path in FILES if path.stem in drawers or path.parent.name in drawers]


def test_no_global_statements():
    assert not [relative(path) for path in FILES if any(isinstance(n, ast.Global) for n in ast.walk(tree(path)))]


def test_nothing_reads_the_environment_at_import():
    def reads(node: ast.AST) -> bool:
        if isinstance(node, Function | ast.Lambda):
            return False
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
            return True
        return any(reads(child) for child in ast.iter_child_nodes(node))

    assert not [relative(path) for path in FILES if reads(tree(path))]


def test_tests_match_the_message_of_what_is_raised():
    bare = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.raises":
                code = ast.unparse(node.args[0]) if node.args else ""
                if code != "SystemExit" and "match" not in {keyword.arg for keyword in node.keywords}:
                    bare.append(f"{relative(path)}:{node.lineno}")
    assert not bare


def test_no_machine_paths_and_no_registry_hosts():
    paths = re.compile(r"(?<![\w.~$}\"'])/(?:work|root|home|tmp)/[\w.]|[\"'`=( ]/(?:work|root|home|tmp)\b/?[\w.]*")
    hosts = re.compile(r"pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org|anaconda[.]org", re.IGNORECASE)
    found = []
    for path in tracked():
        if path.suffix in {".png", ".gz", ".dcm", ".nii"} or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if paths.search(line) or hosts.search(line):
                found.append(f"{relative(path)}:{number} {line.strip()}")
    assert not found


ABOVE = {"cli", "commands", "comparison", "api.py", "__main__.py", "__init__.py"}  # floors 7 to 9, and the public names
OF_COMMANDS = re.compile(rf"(?<![\w-])--[a-z][\w-]*(\.[\w-]+)*|\bmedssl ({'|'.join(cli.VERBS)})\b")
TITLES = {("medssl/reporting/page.py", "medssl report")}  # of the page


def texts(path: Path) -> list[tuple[int, str]]:
    """Strings, docstrings among them, and comments of a file, each with its line."""
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    with path.open("rb") as stream:
        return [(token.start[0], token.string) for token in tokenize.tokenize(stream.readline) if token.type in kinds]


def test_floors_below_the_commands_speak_of_keys_and_functions():
    """No option such as ``--run`` and no command stands in a message, a docstring or a comment below floor 7."""
    named = [
        f"{relative(path)}:{line} {match[0]}"
        for path in FILES
        if path.relative_to(PACKAGE).parts[0] not in ABOVE
        for line, text in texts(path)
        for match in OF_COMMANDS.finditer(text)
        if (relative(path), match[0]) not in TITLES
    ]
    assert not named, "write the key (``label.masks``) or what is done (``an evaluation``)"


def test_options_and_commands_are_recognized(tmp_path):
    (tmp_path / "one.py").write_text(
        '"""Of --label.masks."""\n\nx = f"medssl index {1}"  # --run\n\ny = "a--b, a -- b"\n'
    )
    named = [(line, match[0]) for line, text in texts(tmp_path / "one.py") for match in OF_COMMANDS.finditer(text)]
    assert named == [(1, "--label.masks"), (3, "medssl index"), (3, "--run")]


# --- floors and imports


def test_imports_point_down():
    code = "import sys; from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


DEEPEST = 5
BOTH_WAYS = {  # parts that import each other, one of them inside a function
    "medssl.encoders": ("base", "contract"),
    "medssl.objectives": ("base", "contract"),
}


@functools.cache
def import_graph():
    return grimp.build_graph("medssl", cache_dir=None, exclude_type_checking_imports=True)


def rooms():
    """Every package; its parts are the modules and packages directly inside it."""
    return sorted({name.rpartition(".")[0] for name in import_graph().modules} - {"", "medssl"})


def parts_of(imports, room):
    """Which parts each part of a room imports, by their names in the room; a package counts as one part."""

    def part(module):
        return module.removeprefix(f"{room}.").split(".")[0] if module.startswith(f"{room}.") else None

    parts = {part(module): set() for module in imports.modules if part(module)}
    for module in imports.modules:
        if name := part(module):
            others = map(part, imports.find_modules_directly_imported_by(module))
            parts[name] |= {other for other in others if other not in (None, name)}
    return parts


def longest_chain(parts):
    """The longest chain of parts of which each imports the next, none twice."""

    def longest(part, above):
        ends = [longest(other, (*above, part)) for other in parts[part] if other not in above]
        return [part, *max(ends, key=len, default=[])]

    return max((longest(part, ()) for part in sorted(parts)), key=len, default=[])


@pytest.mark.parametrize("room", rooms())
def test_rooms_are_flat(room):
    parts = parts_of(import_graph(), room)
    together = BOTH_WAYS.get(room, ())
    merged = {  # parts that import each other count as one
        part: {"+".join(together) if other in together else other for other in others}
        for part, others in parts.items()
        if part not in together
    }
    if together:
        outside = set().union(*(parts[part] for part in together)) - set(together)
        merged["+".join(together)] = outside
    chain = longest_chain(merged)
    assert len(chain) <= DEEPEST, f"{room}: {' -> '.join(chain)}"


def test_chains_are_counted():
    imports = grimp.ImportGraph()
    for module in ("p", "p.a", "p.b", "p.b.x", "p.b.y", "p.c", "other"):
        imports.add_module(module)
    edges = [("p.a", "p.b.x"), ("p.b.x", "p.b.y"), ("p.b.y", "p.c"), ("p.c", "other"), ("p.c", "p")]
    for importer, imported in edges:
        imports.add_import(importer=importer, imported=imported)
    parts = parts_of(imports, "p")
    assert parts == {"a": {"b"}, "b": {"c"}, "c": set()}
    assert longest_chain(parts) == ["a", "b", "c"]
    assert longest_chain(parts_of(imports, "p.b")) == ["x", "y"]


def test_heavy_packages_are_imported_where_they_are_used():
    heavy = {}
    for path in FILES:
        allowed = {name for place, names in SUBCLASSES.items() if relative(path).startswith(place) for name in names}
        allowed |= {"monai"} if relative(path) == f"medssl/{MONAI_CLASSES}" else set()
        if found := (top_imports(path) & HEAVY) - allowed:
            heavy[relative(path)] = sorted(found)
    assert not heavy


def test_light_modules_do_not_load_torch():
    modules = [
        f"medssl.{name}"
        for name in WITHOUT_TORCH
        if (PACKAGE / f"{name.replace('.', '/')}.py").exists() or (PACKAGE / name / "__init__.py").exists()
    ]
    assert "medssl.types" in modules
    loaded = run_python(
        f"import sys, importlib\nfor name in {modules}:\n    importlib.import_module(name)\n"
        f"print(sorted({HEAVY | {'torch'}} & set(sys.modules)))"
    )
    assert loaded.strip() == "[]"


def test_objectives_and_encoders_load_torch_and_nothing_else_heavy():
    modules = [f"medssl.{path.parent.name}.{path.stem}" for path in OBJECTIVES]
    modules += ["medssl.encoders.base", "medssl.encoders.resenc", "medssl.encoders.timm2d", "medssl.encoders.vit"]
    modules += ["medssl.encoders.primus"]
    loaded = run_python(
        f"import sys, importlib\nfor name in {modules}:\n    importlib.import_module(name)\n"
        f"print(sorted({HEAVY - {'scipy'}} & set(sys.modules)))"  # torch itself may load scipy
    )
    assert loaded.strip() == "[]"


def test_help_does_not_load_torch():
    code = (
        "import sys\nfrom medssl.cli import main\nassert main(['--help']) == 0\n"
        f"print(sorted({HEAVY | {'torch', 'numpy'}} & set(sys.modules)))"
    )
    assert run_python(code).strip().endswith("[]")


# --- what hangs together


def defines(dotted: str) -> bool:
    """Whether ``medssl.room.file.Name`` is defined at the top of that file."""
    module, _, name = dotted.rpartition(".")
    path = ROOT / f"{module.replace('.', '/')}.py"
    return path.is_file() and name in {getattr(node, "name", None) for node in tree(path).body}


def class_paths(content: object) -> list[str]:
    if isinstance(content, list):
        return [found for item in content for found in class_paths(item)]
    if not isinstance(content, dict):
        return []
    own = [content["class_path"]] if isinstance(content.get("class_path"), str) else []
    return own + [found for item in content.values() for found in class_paths(item)]


@pytest.mark.parametrize("path", CONFIGS, ids=relative)
def test_configs_name_classes_that_exist(path: Path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    assert not [name for name in class_paths(content) if name.startswith("medssl.") and not defines(name)]


def test_verbs_name_functions_that_exist():
    from medssl.cli import VERBS

    assert not [verb for verb, known in VERBS.items() if not defines(known.place.replace(":", "."))]


def test_every_objective_has_a_preset_and_a_test():
    configured = {name for path in CONFIGS for name in class_paths(yaml.safe_load(path.read_text(encoding="utf-8")))}
    lacking = []
    for name in (path.stem for path in OBJECTIVES):
        has_preset = any(path.startswith(f"medssl.objectives.{name}.") for path in configured)
        has_test = any((ROOT / "tests" / "objectives").glob(f"test_{name}*.py"))
        if not (has_preset and has_test):
            lacking.append(f"{name}: preset {has_preset}, test {has_test}")
    assert not lacking


def test_news_fragments_have_names_that_the_changelog_understands():
    pattern = re.compile(r"(\d+|\+[a-z0-9-]+)(\.[a-z0-9-]+)?\.(feature|fix)\.md|\.gitkeep|README\.md")
    assert not [path.name for path in (ROOT / "docs" / "news").iterdir() if not pattern.fullmatch(path.name)]


# where the name of an import is another
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "openslide": "openslide-python"}
FORMER = {  # newest version with a known advisory, and which
    "torch": ("2.10", "CVE-2026-4538; to 2.9 CVE-2026-24747"),  # CVE-2025-3000 is of torch.jit.script, unused here
    "monai": ("1.5.1", "GHSA-89gg-p5r5-q6r4, CVE-2026-21851"),
    "pydicom": ("3.0.1", "CVE-2026-32711"),
    "lightning": ("2.6.3", "replaced releases; to 2.6.0 CVE-2026-31221"),
    "pillow": ("12.3", "CGA-6r43-cc9v-c6c4 and others; to 12.2 CVE-2026-59200 and others"),
    "jinja2": ("3.1.5", "CVE-2025-27516"),
    "tqdm": ("4.66.2", "CVE-2024-34062"),
    "pyyaml": ("5.3", "CVE-2020-14343"),
    "pyarrow": ("23.0.0", "CVE-2026-25087"),
    "scipy": ("1.9", "CVE-2023-25399"),
    "numpy": ("1.21", "CVE-2021-41495, CVE-2021-41496"),
    "imagecodecs": ("2026.1.14", "no packed samples and no fax codes of TIFF; to 2024.6.1 lossless JPEG read wrongly"),
    "tifffile": ("2026.2.24", "no packed samples and no fax codes"),
    "openslide-bin": ("4.0.0.14", "CVE-2026-48977, CVE-2026-54604"),
}


def requirements() -> dict[str, tuple[str, str]]:
    """Lower bound and extra of each package that is declared ("": always installed)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    declared: dict[str, tuple[str, str]] = {}
    for extra in sorted(extras, reverse=True):  # those that are always installed come last and win
        for line in extras[extra]:
            name, _, bound = re.sub(r"\[.*?\]", "", line).partition(">=")
            if extra not in ("docs", "test"):
                declared[name.lower().replace("_", "-")] = bound, extra
    return declared


def imports(path: Path) -> set[str]:
    """Packages that a module imports, wherever in it, by the first part of their names."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


def test_every_imported_package_is_declared():
    imported = {name for path in FILES for name in imports(path)} - set(sys.stdlib_module_names) - {"medssl"}
    names = {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in imported}
    assert sorted(names - requirements().keys()) == []


@pytest.mark.parametrize("name", FORMER)
def test_lower_bounds_exclude_versions_with_advisories(name):
    bound = requirements()[name][0]
    assert [int(n) for n in bound.split(".")] > [int(n) for n in FORMER[name][0].split(".")], FORMER[name][1]


def test_the_wheel_carries_the_configs_and_the_type_marker():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["configs"] == "medssl/configs"  # where the command line looks first
    assert (PACKAGE / "py.typed").exists()
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").lstrip().startswith("Apache License")
