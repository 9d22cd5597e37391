"""The rules of the house (docs/architecture.md) as tests; each notices when it sees too little to mean anything."""

import ast
import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "app"
LONGEST_FILE = 400
LONGEST_CAPABILITY = 200
HEAVY = {"torch", "diffusers", "transformers", "onnxruntime", "accelerate", "peft", "torchvision"}

TORCHLESS_MODELS = {
    "app.models",
    "app.models.adding",
    "app.models.spec",
    "app.models.catalog",
    "app.models.catalog_base",
    "app.models.catalog_controls",
    "app.models.catalog_editing",
    "app.models.catalog_qwen",
    "app.models.catalog_enhancing",
    "app.models.catalog_faces",
    "app.models.catalog_identity",
    "app.models.catalog_ip_adapters",
    "app.models.catalog_segmenters",
    "app.models.checksums",
    "app.models.choosing",
    "app.models.conversion",
    "app.models.embedded",
    "app.models.licences",
    "app.models.library",
    "app.models.download",
    "app.models.inspect_editing",
    "app.models.inspect_qwen",
    "app.models.inspect_file",
    "app.models.inspect_identity",
    "app.models.inspect_networks",
    "app.models.catalog_taggers",
    "app.models.inspect_segmenters",
    "app.models.inspect_taggers",
    "app.models.tag_labels",
    "app.models.inspection",
    "app.models.installed",
    "app.models.installing",
    "app.models.machine",
    "app.models.tensor_files",
    "app.models.tiers",
}
TORCHLESS_POCKET = {"app.pocket", "app.pocket.spec"}
GROUND_FILES = {
    "app.collector",
    "app.main",
    "app.settings",
    "app.guarded_http",
    "app.public_addresses",
    "app.public_urls",
    "app.errors",
    "app.on_disk",
    "app.search_providers",
    "app.strict_json",
}
CONTRACT = {
    "app.core.fields",
    "app.core.capability",
    "app.core.attachments",
    "app.core.borrowed_models",
    "app.core.control_fields",
    "app.core.edit_fields",
    "app.core.enhance_fields",
    "app.core.identity_fields",
    "app.core.segment_fields",
    "app.core.tag_fields",
    "app.core.training_fields",
}
SHARED = {
    "app.core.control_drawing",
    "app.core.control_pictures",
    "app.core.drawing",
    "app.core.identity",
    "app.core.face_swap",
    "app.core.ecomid_settings",
    "app.core.segmenting",
    "app.core.grounding",
    "app.core.staying_put",
    "app.core.step1x_reasoning",
    "app.core.training_needs",
    "app.core.training_notebook",
    "app.core.training_run",
    "app.core.further_controls",
    "app.core.pulid_settings",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_linter_is_content():
    run = subprocess.run([sys.executable, "-m", "ruff", "check", "app", "tests", "benchmarks", "examples", "docs"],
                         capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


@cache
def sources() -> dict[str, ast.Module]:
    """Module name -> syntax tree of every file of the product."""
    found = {module_name(path): ast.parse(path.read_text()) for path in sorted(APP.rglob("*.py"))}
    assert len(found) >= 40, "the rules see too few files"
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Everything a module imports, at any depth of its syntax tree (functions and TYPE_CHECKING included)."""
    names = set()
    known = sources()
    for node in ast.walk(known[module]):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                names.add(whole if whole in known else node.module)
    return frozenset(names)


@cache
def capability_modules() -> frozenset[str]:
    return frozenset(
        name for name in imports("app.core.catalog") if name.startswith("app.core.") and name not in CONTRACT | SHARED
    )


def layer(module: str) -> str:
    """The floor of the tower on which a module stands."""
    if module in GROUND_FILES:
        return module.removeprefix("app.")
    if module == "app":
        return "ground"
    if module.startswith("app.cli"):
        return "cli"
    if module.startswith("app.api") or module.startswith("app.ui"):
        return module.split(".")[1]
    if module in CONTRACT:
        return "contract"
    if module in SHARED:
        return "shared"
    if module in capability_modules():
        return "capability"
    if module == "app.core.catalog":
        return "catalog"
    if module.startswith("app.core"):
        return "engine"
    if module.startswith("app.imaging"):
        return "imaging"
    if module in TORCHLESS_MODELS or module in TORCHLESS_POCKET:
        return "plain"
    if module.startswith("app.models") or module.startswith("app.pocket"):
        return "torch"
    raise AssertionError(f"{module} stands on no floor: give it one in docs/architecture.md and here")


GROUND = {"ground", "errors", "guarded_http", "on_disk", "strict_json"}

MAY_IMPORT = {
    "ground": set(),
    "errors": set(),
    "collector": set(),
    "on_disk": set(),
    "strict_json": set(),
    "guarded_http": GROUND | {"public_addresses", "public_urls"},
    "public_urls": {"errors", "public_addresses"},
    "public_addresses": {"errors"},
    "settings": {"ground"},
    "plain": GROUND | {"plain"},
    "imaging": GROUND | {"imaging"},
    "contract": GROUND | {"contract"},
    "shared": GROUND | {"shared", "contract", "imaging"},
    "capability": GROUND | {"shared", "contract", "imaging", "plain"},
    "catalog": GROUND | {"capability", "contract"},
    "search_providers": GROUND,
    "engine": GROUND | {"collector", "engine", "search_providers", "catalog", "contract", "imaging", "plain"},
    "api": GROUND | {"api", "engine", "catalog", "contract", "imaging", "plain"},
    "ui": GROUND | {"ui", "engine", "catalog", "contract", "imaging", "plain"},
    "main": GROUND | {"collector", "settings", "api", "ui", "engine", "catalog", "contract", "imaging", "plain"},
    "cli": GROUND
    | {"cli", "collector", "main", "settings", "engine", "catalog", "contract", "imaging", "plain", "torch"},
    "torch": GROUND | {"torch", "plain", "imaging", "contract", "engine"},
}
ENGINE_FOR_TORCH = {"app.core.model_offload"}


def app_imports(module: str) -> set[str]:
    known = sources()
    return {name for name in imports(module) if name in known}


def test_arrows_point_downward():
    wrong = []
    for module in sources():
        here = layer(module)
        for target in app_imports(module):
            there = layer(target)
            if there not in MAY_IMPORT[here]:
                wrong.append(f"{module} ({here}) imports {target} ({there})")
            if here == "torch" and there == "engine" and target not in ENGINE_FOR_TORCH:
                wrong.append(f"{module} (torch) imports {target} of the engine")
            if here == "cli" and there == "torch" and not target.startswith("app.pocket"):
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_faces_know_models_only_as_plain_data():
    seen = 0
    for module in sources():
        if layer(module) in {"api", "ui"}:
            seen += 1
            reached = {name for name in app_imports(module) if name.startswith("app.models")}
            assert reached <= {"app.models.spec", "app.models.catalog"}, f"{module} imports {reached}"
    assert seen >= 8


def test_capabilities_stand_side_by_side():
    assert len(capability_modules()) >= 4
    for module in capability_modules():
        others = app_imports(module) & capability_modules() - {module}
        assert not others, f"{module} imports {others}"


def test_no_import_circle():
    state: dict[str, int] = {}
    trail: list[str] = []

    def visit(module: str) -> None:
        state[module] = 1
        trail.append(module)
        for target in sorted(app_imports(module)):
            if state.get(target) == 1:
                raise AssertionError("circle: " + " -> ".join([*trail[trail.index(target) :], target]))
            if target not in state:
                visit(target)
        trail.pop()
        state[module] = 2

    for module in sources():
        if module not in state:
            visit(module)
    assert len(state) == len(sources())


def test_torch_appears_only_where_weights_live():
    holders = set()
    for module in sources():
        if {name.split(".")[0] for name in imports(module)} & HEAVY:
            holders.add(module)
            assert layer(module) == "torch", f"{module} imports a model library"
    assert len(holders) >= 4, "the rule sees no torch at all"


def test_only_device_says_torch_cuda():
    speakers = set()
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "cuda" and getattr(node.value, "id", "") == "torch":
                speakers.add(module)
    assert speakers == {"app.models.device"} or speakers <= {"app.models.device", "app.pocket.train"}
    assert "app.models.device" in speakers


def test_settings_are_read_only_by_the_roots():
    readers = {module for module in sources() if "app.settings" in app_imports(module)}
    assert readers <= {"app.main"} | {name for name in sources() if name.startswith("app.cli")}
    assert "app.main" in readers


def test_importing_main_leaves_torch_unloaded():
    heavy = {"torch", "diffusers", "transformers", "gradio", "cv2", "onnxruntime", "psycopg", "pynvml"}
    code = f"import sys, app.main; print(sorted(set(sys.modules) & {heavy}))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


def test_every_file_is_one_thing():
    for path in sorted(APP.rglob("*.py")):
        lines = len(path.read_text().splitlines())
        limit = LONGEST_CAPABILITY if module_name(path) in capability_modules() else LONGEST_FILE
        assert lines <= limit, f"{path.relative_to(ROOT)} has {lines} lines; at most {limit}"


def test_every_module_says_what_stands_here():
    for module, tree in sources().items():
        assert ast.get_docstring(tree), f"{module} has no docstring"


def test_file_names_say_what_a_file_is():
    vague = {"utils", "helpers", "manager", "common", "misc", "util", "helper"}
    for module in sources():
        assert module.rsplit(".", 1)[-1] not in vague, module


def called_name(node: ast.Call) -> str:
    parts = []
    target = node.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    if isinstance(target, ast.Name):
        parts.append(target.id)
    return ".".join(reversed(parts))


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, str, ast.Call]]:
    """(module, dotted name, call) of every call in the product."""
    found = [
        (module, called_name(node), node)
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]
    assert len(found) >= 1000, "the rules see too few calls"
    return found


def keyword(node: ast.Call, name: str) -> ast.expr | None:
    return next((argument.value for argument in node.keywords if argument.arg == name), None)


def is_evaluation(node: ast.Call, name: str) -> bool:
    """`eval(...)` and its like; `model.eval()` is another word."""
    plain = isinstance(node.func, ast.Name) and name in {"eval", "exec", "compile"}
    return plain or name in {"os.system", "os.popen"}


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_unsafe_calls_are_absent(calls):
    wrong = []
    for module, name, node in calls:
        last = name.rsplit(".", 1)[-1]
        where = f"{module}:{node.lineno} {name}"
        if name == "torch.load" and not is_constant(keyword(node, "weights_only"), True):
            wrong.append(f"{where}: without weights_only=True")
        if is_constant(keyword(node, "shell"), True) or is_evaluation(node, name):
            wrong.append(f"{where}: a shell or evaluated text")
        if last in {"extractall", "unpack_archive"}:
            wrong.append(f"{where}: unpacks an archive whole")
        if name == "Image.open" and keyword(node, "formats") is None:
            wrong.append(f"{where}: Image.open without formats")
        if is_constant(keyword(node, "trust_remote_code"), True):
            wrong.append(f"{where}: remote code")
    assert not wrong, "\n".join(wrong)


def test_image_open_rule_sees_something(calls):
    assert sum(name == "Image.open" for _, name, _ in calls) >= 1


def test_no_pickle():
    for module in sources():
        assert not {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal"} & imports(module), module


CLIENTS = {"httpx", "requests", "urllib.request", "http.client", "aiohttp", "urllib3"}
CLIENT_EXCEPTIONS = {"app.models.download": {"huggingface_hub"}}


HARMLESS = {"URL", "Response", "InvalidURL"}


def speaks_http(module: str) -> bool:
    """Whether a module imports an HTTP client for more than httpx's plain types."""
    clients = imports(module) & CLIENTS
    if clients != {"httpx"}:
        return bool(clients)
    used = {
        node.attr
        for node in ast.walk(sources()[module])
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "httpx"
    }
    return not used or bool(used - HARMLESS)


def test_only_the_guarded_client_speaks_http():
    assert {module for module in sources() if speaks_http(module)} == {"app.guarded_http"}
    hub = {module for module in sources() if any(name.split(".")[0] == "huggingface_hub" for name in imports(module))}
    assert hub <= set(CLIENT_EXCEPTIONS), hub


def routes(tree: ast.Module) -> list[ast.AsyncFunctionDef | ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)]


def answers_constants(node: ast.AsyncFunctionDef) -> bool:
    """Whether a function only builds an answer of what is there already: nothing in it can hold up the loop."""
    made = {called_name(inner) for inner in ast.walk(node) if isinstance(inner, ast.Call)}
    kinds = {type(statement) for statement in node.body}
    return kinds == {ast.Return} and {name for name in made if not name.startswith("router.")} == {"Response"}


def test_the_rule_of_constant_answers_sees_what_works():
    rule = {
        "return Response(alive)": True,
        "return Response(service.alive())": False,
        "time.sleep(1); return Response(alive)": False,
        "return alive": False,
    }
    for body, holds in rule.items():
        function = ast.parse(f"async def health():\n    {body}").body[0]
        assert answers_constants(function) is holds, body


def test_no_async_function_that_never_awaits():
    """What blocks in an async function stops every request; one that cannot block may save the thread."""
    seen = constant = 0
    for module, tree in sources().items():
        if layer(module) not in {"api", "main"}:
            continue
        for node in routes(tree):
            if not isinstance(node, ast.AsyncFunctionDef):
                continue
            seen += 1
            waits = any(isinstance(inner, ast.Await | ast.AsyncFor | ast.AsyncWith) for inner in ast.walk(node))
            constant += not waits
            assert waits or answers_constants(node), f"{module}:{node.lineno} {node.name} is async and never awaits"
    assert constant <= 1, "more than /health answers without a thread"
    assert seen >= 5, "the rule sees too few async functions"


def test_route_generators_keep_real_annotations():
    """`from __future__ import annotations` would turn a generated route's types into strings."""
    for module, tree in sources().items():
        if layer(module) in {"api", "contract"}:
            futures = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
            assert not futures, module


def test_loaders_named_by_rows_exist():
    rows = importlib.import_module("app.models.catalog").CATALOG
    assert len(rows) >= 7
    for row in rows:
        module, _, name = row.loader.partition(":")
        tree = sources()[module]
        assert any(getattr(node, "name", None) == name for node in tree.body), f"{row.id}: {row.loader}"
        assert row.licence.name and row.licence.url.startswith("https://"), row.id
        assert row.bytes > 0 or row.parts or row.comes_along, row.id


def test_texts_name_no_registry_host_or_workplace():
    words = ("pypi" + ".org", "registry." + "npmjs", "deb." + "debian.org", "/work/" + "main", "/work/" + "shared")
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    files = [ROOT / name for name in listed.stdout.splitlines()] if listed.returncode == 0 else list(ROOT.rglob("*.py"))
    seen = 0
    for path in files:
        if (
            path.suffix in {".py", ".md", ".toml", ".yml", ".yaml", ".css", ".js", ".html", ".sh", ""}
            and path.is_file()
        ):
            text = path.read_text(errors="ignore")
            seen += 1
            for word in words:
                assert word not in text, f"{path.relative_to(ROOT)} names {word}"
    assert seen >= 60
