"""Rules that hold for every file under ldm/: who imports whom, and what is written nowhere."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "ldm").rglob("*.py"))

RANKS = [  # a file imports from lower ranks, and from its own entry's folder
    ["ldm.files", "ldm.names", "ldm.prompt_tree"],
    ["ldm.config_file"],
    ["ldm.registry"],
    ["ldm.config", "ldm.finite", "ldm.images", "ldm.noise", "ldm.prompt"],
    ["ldm.png", "ldm.masks"],
    ["ldm.modules"],
    ["ldm.models.diffusion"],
    ["ldm.models.chunks", "ldm.models.clip", "ldm.models.encoders"],
    ["ldm.models.autoencoder", "ldm.models.framing", "ldm.models.text_encoder"],
    ["ldm.models.bert", "ldm.models.depth", "ldm.models.image_encoder", "ldm.models.tiled_autoencoder"],
    ["ldm.models.latent_diffusion"],
    ["ldm.checkpoint", "ldm.offload"],
    ["ldm.backends", "ldm.cuda_graph", "ldm.guidance", "ldm.provenance", "ldm.regions"],
    ["ldm.items", "ldm.refiner", "ldm.settings", "ldm.sizes"],
    ["ldm.memory"],
    ["ldm.hints", "ldm.prompting"],
    ["ldm.sampling"],
    ["ldm.generate"],
    ["ldm.pipeline"],
    ["ldm.data"],
    ["ldm.metrics"],
    ["ldm.training"],
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
SAMPLERS = {"ancestral", "consistency", "ddim", "ddpm", "dpmpp_sde", "step", "spacing", "levels"}
SAMPLERS |= {"euler", "multistep", "exponential", "dpm_solver", "restart"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def place(module: str) -> str | None:
    """The longest beginning of the name that has a rank."""
    while module not in RANK and "." in module:
        module = module.rpartition(".")[0]
    return module if module in RANK else None


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports, inside functions too."""
    tree = ast.parse(path.read_text())
    skipped = {child for node in ast.walk(tree) if is_type_checking(node) for child in ast.walk(node)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:  # `from ldm.checkpoint import keys` is ldm.checkpoint.keys
                inner = ROOT.joinpath(*f"{node.module}.{alias.name}".split("."))
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield f"{node.module}.{alias.name}" if is_module else str(node.module)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_downward(path: Path) -> None:
    name = module_name(path)
    if name in ("ldm", "ldm.assets", "ldm.models"):  # packages of no rank of their own: they import nothing
        assert [target for target in imports(path) if target.startswith("ldm")] == []
        return
    own = place(name)
    assert own is not None, f"{name} has no place yet: give it one in RANKS"
    upward = []
    for target in imports(path):
        if target.partition(".")[0] == "ldm":
            other = place(target)
            below = other is not None and RANK[other] < RANK[own]
            upward += [] if below or other == own else [target]
        elif target.partition(".")[0] in ("scripts", "tests"):
            upward.append(target)
    assert upward == []


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent.name == "diffusion" and p.stem in SAMPLERS], ids=module_name
)
def test_samplers_import_torch_and_each_other_only(path: Path) -> None:
    allowed = ("torch", "ldm.models.diffusion", *sys.stdlib_module_names)
    assert [target for target in imports(path) if not target.startswith(allowed)] == []


def test_only_one_file_knows_open_clip() -> None:
    assert [module_name(p) for p in FILES if any(t.partition(".")[0] == "open_clip" for t in imports(p))] == []
    named = [module_name(p) for p in FILES if "model_configs" in p.read_text()]
    assert named == ["ldm.models.clip"]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_what_is_written_nowhere(path: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append(f"{line}: print(")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.partition(":")[0] == "cuda":
            found.append(f"{line}: a device by name")
        if isinstance(node, ast.keyword) and node.arg == "strict" and getattr(node.value, "value", None) is False:
            found.append(f"{line}: strict=False")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{line}: a bare except")
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "argv"):
            found.append(f"{line}: {node.attr}")
    assert found == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_every_function_is_annotated(path: Path) -> None:
    bare = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if node.returns is None or any(a.annotation is None for a in arguments if a.arg not in ("self", "cls")):
                bare.append(node.name)
    assert bare == []


def test_importing_ldm_imports_nothing_heavy() -> None:
    code = (
        "import json, sys\nimport ldm\ndir(ldm)\n"
        "print(json.dumps([m for m in ('torch', 'numpy', 'PIL', 'omegaconf', 'open_clip') if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(out.stdout) == []


def test_public_names() -> None:
    import ldm

    assert callable(ldm.load) and callable(ldm.txt2img) and callable(ldm.img2img) and callable(ldm.save)
    assert callable(ldm.Refiner)
    assert set(ldm.__all__) <= set(dir(ldm))
    with pytest.raises(AttributeError, match="it has .*img2img, .*load"):
        _ = ldm.txt3img
