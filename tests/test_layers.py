"""The layout enforced.

Which file may import which, and the house rules that a syntax tree can see.
"""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "probgen"
BELOW = {
    "core": set(),
    "parallel": {"core"},
    "compile": {"core"},
    "scoring": {"core", "compile"},
    "sampling": {"core", "compile"},
    "exporting": {"core", "compile"},
    "comparing": {"core", "scoring"},
    "nn": set(),
    "text": set(),
    "datasets": {"core", "captions", "showers"},
    "samplers": set(),
    "heads": {"core"},
    "table": {"core", "heads"},
    "streams": {"core"},
    "distributions": {"core", "samplers", "heads"},
    "models": {"core", "distributions", "samplers", "nn", "heads", "table"},
    "objectives": {"core"},
    "evaluate": {"core", "table", "distributions", "diagnostics"},
    "infer": {"core", "compile", "scoring", "distributions", "samplers", "parallel"},
    "diagnostics": {"core", "compile", "scoring", "infer", "parallel"},
    "train": {"core", "compile", "objectives", "diagnostics", "streams"},
    "compression": {"core", "distributions", "heads", "train"},
    "decisions": {"core", "scoring", "distributions", "infer", "nn", "train"},
}
TOP = {"plot", "testing"}
NAMESPACES = {  # lists of public names
    "flows",
    "diffusion",
    "energy",
    "sequences",
    "graphical",
    "guidance",
    "latents",
}
BELOW |= {name: set(BELOW) - {"models"} for name in TOP}
BELOW |= {"hub": {"core", "train"}}
BELOW |= {"reporting": set(BELOW) - {"models", "testing"}}
BELOW |= {"searching": set(BELOW) - {"reporting", "plot", "testing"}}
BELOW |= {name: {*BELOW, "bif"} for name in NAMESPACES}
BELOW |= {
    "sklearn": {
        "core",
        "scoring",
        "sampling",
        "distributions",
        "models",
        "infer",
        "train",
        "decisions",
    }
}
TORCH_AND_PYRO_ONLY = {"core", "compile", "nn", "samplers", "heads", "text", "captions", "showers"}
BARE = {"torch", "pyro", "probgen"} | set(sys.stdlib_module_names)
# these import nothing of the project
EVERYWHERE = (
    "probgen.core.checks",
    "probgen.core.construction",
    "probgen.core.keywords",
    "probgen.libraries",
)
LIGHT = BARE | {"numpy", "safetensors", "zuko"}
FACES = {"sklearn": {"sklearn"}}  # layers that nothing imports, and the libraries they are made for
KNOWS_PYROS_INSIDE = {"core/runtime.py", "core/own_pyro.py", "core/recording.py"}
KNOWS_TORCHS_INSIDE = "core/private_torch.py"
TORCHS_PRIVATE_ATTRIBUTES = {
    "_schema",
    "_overloadname",
    "_cdata",
    "_post_accumulate_grad_hooks",
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
}
DEPTH = 2
RECORDED = ("probgen.core.construction", "Recorded")  # has no behavior of its own


class File:
    """One source file and what its syntax tree tells."""

    def __init__(self, path: str, source: str):
        self.path, self.source = path, source
        self.nodes = list(ast.walk(ast.parse(source)))  # for all rules
        self.layer = path.split("/")[0].removesuffix(".py")
        self.module = "probgen." + path.removesuffix(".py").replace("/", ".").removesuffix(
            ".__init__"
        )

    @cache  # noqa: B019, for as long as the tests run
    def imports(self, *, typing: bool = True, lazy: bool = True) -> list[str]:
        """Dotted names that the file imports; ``from a import b`` counts as ``a.b``."""
        skipped = set()
        for node in self.nodes:
            guarded = (
                isinstance(node, ast.If)
                and isinstance(node.test, ast.Name)
                and node.test.id == "TYPE_CHECKING"
                and not typing
            )
            deferred = isinstance(node, ast.FunctionDef) and not lazy
            if guarded or deferred:
                skipped |= set(ast.walk(node))
        return [name for node in self.nodes if node not in skipped for name in imported(node)]


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, (
            f"expected absolute imports, got a relative one on line {node.lineno}"
        )
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


@cache
def package() -> list[File]:
    return [
        File(path.relative_to(ROOT).as_posix(), path.read_text())
        for path in sorted(ROOT.rglob("*.py"))
    ]


def upward_imports(file: File) -> list[str]:
    """Imports of a layer that the file's own layer must not know.

    A model file knows no other model file.
    """
    own = {file.layer} - {"models"}
    wrong = []
    for name in file.imports():
        parts = name.split(".")
        if name.startswith(EVERYWHERE):
            continue
        if parts[0] == "probgen" and parts[1] not in BELOW.get(file.layer, set()) | own:
            wrong.append(f"{file.path} imports {name}")
    return wrong


def heavy_imports(file: File) -> list[str]:
    """What makes ``import probgen`` slow, or a low layer depend on more than torch and Pyro."""
    bare = file.layer in TORCH_AND_PYRO_ONLY
    names = file.imports(typing=False, lazy=bare)
    return [
        f"{file.path} imports {name}"
        for name in names
        if name.split(".")[0] not in (BARE if bare else LIGHT) | FACES.get(file.layer, set())
    ]


def calls_of_hasattr(file: File) -> list[str]:
    calls = (node for node in file.nodes if isinstance(node, ast.Call))
    return [f"{file.path}:{call.lineno}" for call in calls if ast.unparse(call.func) == "hasattr"]


def private_pyro(file: File) -> list[str]:
    """Imports of Pyro's private names, and private attributes of what was imported from Pyro."""
    if file.path in KNOWS_PYROS_INSIDE:
        return []
    return [f"{file.path} uses {name}" for name in private_names(file, "pyro")]


def private_torch(file: File) -> list[str]:
    """The same for torch's, with what lies under ``experimental``, and for names in strings."""
    if file.path == KNOWS_TORCHS_INSIDE:
        return []
    wrong = private_names(file, "torch")
    wrong += [name for name in file.imports() if name.startswith("torch.fx.experimental")]
    for node in file.nodes:
        if isinstance(node, ast.Attribute) and node.attr in TORCHS_PRIVATE_ATTRIBUTES:
            wrong.append(ast.unparse(node))
        if isinstance(node, ast.Constant) and str(node.value).startswith("torch._"):
            wrong.append(node.value)
    return [f"{file.path} uses {name}" for name in wrong]


def private_names(file: File, library: str) -> list[str]:
    """Private names of a library that a file imports, or reaches from what it imports."""
    names = [name for name in file.imports() if name.split(".")[0] == library]
    wrong = [name for name in names if any(is_private(part) for part in name.split("."))]
    bound = {alias.asname or alias.name.split(".")[-1] for alias in aliases_from(file, library)}
    for node in file.nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = ast.unparse(node.value).split(".")[0]
            wrong += [ast.unparse(node)] if root in bound | {library} else []
    return wrong


def aliases_from(file: File, library: str) -> list[ast.alias]:
    nodes = [node for node in file.nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    return [
        alias
        for node in nodes
        for alias in node.names
        if all(n.split(".")[0] == library for n in imported(node))
    ]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


Class = tuple[str, str]  # module and name


def classes(files: list[File]) -> dict[Class, ast.ClassDef]:
    return {
        (f.module, node.name): node
        for f in files
        for node in f.nodes
        if isinstance(node, ast.ClassDef)
    }


def ancestors(files: list[File]) -> dict[Class, list[Class]]:
    """For each class of the project its bases that are of the project too.

    Each with all of theirs.
    """
    known = classes(files)
    imports = {
        file.module: {name.rpartition(".")[2]: name.rpartition(".")[0] for name in file.imports()}
        for file in files
    }

    def above(key: Class) -> list[Class]:
        names = [ast.unparse(base).split("[")[0] for base in known[key].bases]
        bases = [(imports[key[0]].get(name, key[0]), name) for name in names]
        return [found for base in bases if base in known for found in (base, *above(base))]

    return {key: above(key) for key in known}


def deep_classes(files: list[File]) -> list[str]:
    """Classes more than two steps below a base of the project."""
    return [
        f"{name} stands below {above}"
        for (_, name), above in ancestors(files).items()
        if len(set(above) - {RECORDED}) > DEPTH
    ]


def concrete_overrides(files: list[File]) -> list[str]:
    """Methods that replace one with a body in a class of the project; special methods may."""
    known, wrong = classes(files), []
    for key, above in ancestors(files).items():
        for parent in above:
            twice = concrete_methods(known[key]) & concrete_methods(known[parent])
            wrong += [f"{key[1]}.{method} overrides that of {parent[1]}" for method in twice]
    return wrong


def concrete_methods(node: ast.ClassDef) -> set[str]:
    methods = [
        part
        for part in node.body
        if isinstance(part, ast.FunctionDef) and not part.name.startswith("__")
    ]
    abstract = {
        m.name for m in methods if any("abstractmethod" in ast.unparse(d) for d in m.decorator_list)
    }
    return {method.name for method in methods} - abstract


def cycle(files: list[File]) -> str:
    """The first import cycle; imports for type checkers alone do not run and do not count."""
    modules = {file.module: file for file in files if file.layer != "__init__"}
    graph = {}
    for name, file in modules.items():
        targets = {target for target in file.imports(typing=False) if target.startswith("probgen")}
        resolved = {
            target if target in modules else target.rpartition(".")[0] for target in targets
        }
        graph[name] = resolved & set(modules) - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " -> ".join(error.args[1])
    return ""


PER_FILE = [upward_imports, heavy_imports, calls_of_hasattr, private_pyro, private_torch]


@pytest.mark.parametrize("rule", PER_FILE, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule):
    exempt = {"__init__.py"} if rule is upward_imports else set()  # the list of public names
    assert [wrong for file in package() if file.path not in exempt for wrong in rule(file)] == []


def test_no_import_cycle():
    assert cycle(package()) == ""


def test_inheritance_is_shallow():
    assert deep_classes(package()) == []


def test_nothing_concrete_is_overridden():
    assert concrete_overrides(package()) == []


@pytest.mark.slow
def test_importing_probgen_loads_no_heavy_library():
    heavy = [
        "arviz",
        "sklearn",
        "pandas",
        "matplotlib",
        "xarray",
        "scipy.stats",
        "lightning_fabric",
        "torchvision",
    ]
    code = f"import sys, probgen; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=True
    )
    assert run.stdout.strip() == "[]"


BROKEN = [
    (upward_imports, "models/vae.py", "from probgen.objectives.elbo import ELBO"),
    (upward_imports, "models/vae.py", "from probgen.models.mixture import GaussianMixture"),
    (upward_imports, "models/vae.py", "def f():\n    import probgen.train.fit"),
    (upward_imports, "objectives/elbo.py", "import probgen.models.vae"),
    (upward_imports, "core/density.py", "from probgen.distributions import mixture"),
    (upward_imports, "infer/em.py", "from probgen import fit"),
    (upward_imports, "testing.py", "from probgen.models import vae"),
    (heavy_imports, "nn/mlp.py", "def f():\n    import sklearn"),
    (heavy_imports, "heads.py", "import numpy as np"),
    (heavy_imports, "diagnostics.py", "import arviz as az"),
    (heavy_imports, "decisions/clusters.py", "from sklearn.base import ClusterMixin"),
    (upward_imports, "decisions/clusters.py", "from probgen.sklearn import Clusterer"),
    (calls_of_hasattr, "train/fit.py", "if hasattr(gen, 'encoder'): pass"),
    (private_pyro, "infer/mcmc.py", "from pyro.infer.traceenum_elbo import _compute_dice_elbo"),
    (
        private_pyro,
        "infer/mcmc.py",
        "from pyro.poutine import runtime\nruntime._PYRO_STACK.clear()",
    ),
    (private_pyro, "infer/mcmc.py", "import pyro\npyro.poutine.runtime._PYRO_STACK.clear()"),
    (private_torch, "train/data.py", "from torch.utils._pytree import tree_map"),
    (private_torch, "train/run.py", "import torch\ntorch._foreach_norm([])"),
    (private_torch, "compile/tracing.py", "from torch.fx.experimental.proxy_tensor import make_fx"),
    (private_torch, "compile/passes.py", "def f(node):\n    return node.target._schema"),
    (private_torch, "libraries.py", "load('torch._dynamo')"),
]


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN)
def test_rules_find_what_breaks_them(rule, path, source):
    assert len(rule(File(path, source))) == 1


KEPT = [
    (upward_imports, "models/vae.py", "from probgen.core.module import LatentVariableModel"),
    (upward_imports, "train/fit.py", "from probgen.train.history import History"),
    (heavy_imports, "diagnostics.py", "def f():\n    import arviz"),
    (heavy_imports, "sklearn/clusters.py", "from sklearn.base import ClusterMixin"),
    (
        private_pyro,
        "core/runtime.py",
        "from pyro.poutine import runtime\nruntime._PYRO_STACK.clear()",
    ),
    (private_torch, "core/private_torch.py", "import torch\ntorch._foreach_norm([])"),
    (private_torch, "core/module.py", "from torch import nn\nnn.Linear(1, 1).weight.exp_()"),
]


@pytest.mark.parametrize(("rule", "path", "source"), KEPT)
def test_rules_leave_the_rest_alone(rule, path, source):
    assert rule(File(path, source)) == []


def test_cycles_are_found_across_three_files_and_typing_is_not_one():
    ring = ["b", "c", "a"]
    run = [
        File(f"core/{a}.py", f"from probgen.core.{b} import f")
        for a, b in zip("abc", ring, strict=True)
    ]
    assert cycle(run).count("->") == 3
    typing = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from probgen.core.a import f"
    assert cycle([*run[:2], File("core/c.py", typing)]) == ""


def test_depth_counts_the_steps_below_the_base():
    source = "class A: pass\nclass B(A): pass\nclass C(B): pass\n"
    assert deep_classes([File("models/a.py", source)]) == []
    assert (
        deep_classes(
            [
                File("models/a.py", source),
                File("models/d.py", "from probgen.models.a import C\nclass D(C): pass"),
            ]
        )
        != []
    )


def test_overrides_are_found_up_the_chain():
    source = "class A:\n    def f(self): pass\n    @abstractmethod\n    def g(self): pass\n"
    below = "class B(A):\n    def g(self): pass\nclass C(B):\n    def f(self): pass\n"
    assert concrete_overrides([File("models/a.py", source + below.replace("def f", "def h"))]) == []
    assert concrete_overrides([File("models/a.py", source + below)]) == ["C.f overrides that of A"]
