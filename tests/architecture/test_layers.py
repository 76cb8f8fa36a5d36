"""Rules of docs/architecture.md: layers, lengths of files and functions, registry, light imports."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from nextitem.core import registry, roles

SOURCE = Path(__file__).parents[2] / "src" / "nextitem"
LAYERS = [
    {"ops"},
    {"core"},
    {"distributed"},
    {"nn", "losses", "data", "decoding"},
    {"neighbours"},
    {"models", "tokenizers"},
    {"training", "evaluation", "alignment", "cascade", "simulation"},
    {"reporting"},
    {"pipeline"},
    {"testing"},
    {"serving"},
    {"cli"},
]
RANK = {package: rank for rank, packages in enumerate(LAYERS) for package in packages}
FILES = sorted(SOURCE.rglob("*.py"))


def package_of(file: Path) -> str | None:
    inside = file.relative_to(SOURCE).parts
    return inside[0] if len(inside) > 1 else None


def imported_packages(file: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        packages |= {name.split(".")[1] for name in names if name.startswith("nextitem.")}
    return packages


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_point_to_lower_layers(file: Path) -> None:
    package = package_of(file)
    if package is None or package == "recipes":
        return
    for other in imported_packages(file) - {package, "recipes"}:
        assert RANK[other] < RANK[package], f"{file.name} in {package} imports {other}, which is not below it"


def test_every_package_has_a_layer() -> None:
    packages = {package for file in FILES if (package := package_of(file))}
    assert packages - {"recipes"} <= set(RANK)
    assert not packages & {"utils", "common", "helpers"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_and_functions_stay_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    limit = 300 if package_of(file) == "models" else 500
    assert text.count("\n") <= limit, f"{file} is longer than {limit} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and package_of(file) != "cli":
            start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.body[0].lineno
            length = (node.end_lineno or 0) - start + 1
            assert length <= 60, f"{file.name}: {node.name} has {length} lines"


def test_every_model_file_is_registered_and_indexed() -> None:
    modules = [entry.path.split(":")[0] for entry in registry.MODELS.values()]
    # A model that is composed of models, the cascade, is in a package above them.
    registered = {module.rsplit(".", 1)[1] for module in modules if module.startswith("nextitem.models.")}
    flat = {file.stem for file in (SOURCE / "models").glob("*.py")} - {"__init__"}
    in_folders = {file.stem: file.parent.name for file in (SOURCE / "models").glob("*/*.py") if file.stem in registered}
    assert registered == flat | set(in_folders)
    # A folder contains at least two registered models, which share its other files.
    folders = {file.parent.name for file in (SOURCE / "models").glob("*/*.py")}
    assert all(list(in_folders.values()).count(folder) >= 2 for folder in folders)
    index = (SOURCE.parents[1] / "docs" / "papers.md").read_text(encoding="utf-8")
    for table in (registry.MODELS, registry.TOKENIZERS, registry.RERANKERS):
        for name in table:
            assert f"`{name}`" in index, f"docs/papers.md does not list {name}"


def test_every_model_has_a_debug_recipe() -> None:
    for name in registry.MODELS:
        assert (SOURCE / "recipes" / "debug" / f"{name}.toml").is_file()


def test_import_loads_no_heavy_package() -> None:
    heavy = [
        "triton",
        "transformers",
        "ray",
        "sentence_transformers",
        "lightning",
        "matplotlib",
        "redis",
        "psycopg",
        "fastapi",
        "onnx",
        "onnxruntime",
        "huggingface_hub",
    ]
    modules = "nextitem, nextitem.models.sasrec, nextitem.reporting.report, sys"
    code = f"import {modules}; print([m for m in {heavy!r} if m in sys.modules])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_help_needs_no_torch_and_answers_quickly() -> None:
    code = "import sys, nextitem.cli.main; print('torch' in sys.modules, 'polars' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False False"
    assert any(processor_seconds("--help") < 2.0 for _ in range(3))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["data", "describe", "FOLDER"], 0),
        (["data", "describe", "nowhere"], 2),
        (["train", "sasrex", "--data", "FOLDER", "--out", "OUT"], 2),
        (["train", "sasrec", "--data", "nowhere", "--out", "OUT"], 2),
        (["train", "sasrec", "--data", "FOLDER", "--out", "FOLDER"], 2),
        (["train", "sasrec", "--data", "FOLDER", "--out", "OUT", "--set", "model.widht=3"], 2),
        (["train", "sasrec", "--data", "FOLDER", "--out", "OUT", "--set", "training.epochs=3"], 2),
        (["recommend", "nowhere", "--user", "1"], 2),
        (["compare", "nowhere", "--data", "FOLDER", "--out", "OUT"], 2),
        (["tokenize", "lsh", "--data", "nowhere", "--out", "OUT"], 2),
        (["tune", "sasrec", "--data", "nowhere", "--out", "OUT", "--trials", "3"], 2),
        (["tune", "sasrec", "--data", "FOLDER", "--out", "OUT", "--trials", "3", "--space", "model.width=9..2"], 2),
        (["scale", "item-cf", "--data", "FOLDER", "--out", "OUT"], 2),
        (["scale", "sasrec", "--data", "FOLDER", "--out", "OUT", "--sizes", "1"], 2),
    ],
)
def test_data_are_described_and_mistakes_reported_without_torch(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    """Measured in processor time, which a busy machine changes less than the time of a clock."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [f"u{user},i{(user + step) % 5},{1_700_000_000 + step}" for user in range(9) for step in range(4)]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]), encoding="utf-8")
    places = {"FOLDER": str(folder), "OUT": str(tmp_path / "out")}
    words = [places.get(word, word) for word in arguments]
    # 0.6 on a quiet machine; a busy one shares its caches, and may try again.
    assert any(processor_seconds(*words, code=code) < 2.0 for _ in range(2))


def processor_seconds(*arguments: str, code: int = 0) -> float:
    """Run a command, check its exit code and that it imports no torch, and return its processor time in seconds."""
    program = (
        "import sys; from nextitem.cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.returncode == code, process.stderr
    assert process.stderr.splitlines()[-1] == "False"
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_repository_contains_sources_only() -> None:
    """No output of a run or of a peer is in git: no weights, no checkpoint, no file of more than a MiB."""
    root = SOURCE.parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    files = [root / name for name in listed.split("\0") if name and (root / name).is_file()]
    assert files
    output_suffixes = {".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".safetensors", ".parquet"}
    assert not [str(file) for file in files if file.suffix in output_suffixes or file.stat().st_size > 2**20]


@pytest.mark.parametrize("name", [name for name in vars(roles) if isinstance(getattr(roles, name), type)])
def test_roles_that_isinstance_checks_have_methods_only(name: str) -> None:
    """From Python 3.12 on isinstance does not find submodules and buffers, as they are not attributes of the class."""
    role = getattr(roles, name)
    if getattr(role, "_is_runtime_protocol", False):
        assert not [attribute for base in role.__mro__ for attribute in vars(base).get("__annotations__", {})]
