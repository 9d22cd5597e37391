"""`eis doctor`: what this installation is made of, and what is wrong with it."""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DEVICE_SECONDS = 60
DEVICE_SCRIPT = (
    "import torch; n = torch.cuda.device_count(); "
    "print(f'{torch.get_num_threads()} CPU threads' + ''.join("
    "f'; cuda:{i} {torch.cuda.get_device_name(i)}, {torch.cuda.get_device_properties(i).total_memory >> 20} MiB' "
    "for i in range(n)))"
)

Finding = tuple[str, str, str]


def declare(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """No flags: it looks at everything."""
    parser.set_defaults(act=act)


def act(options: argparse.Namespace) -> int:
    """One line for each finding; 1 when something is wrong."""
    wrong = 0
    for mark, name, text in findings():
        wrong += mark == "wrong"
        print(f"{mark:5}  {name:18} {text}", flush=True)
    return 1 if wrong else 0


def findings() -> Iterator[Finding]:
    """(ok | note | wrong, what, a sentence), in order."""
    from app.cli_settings import read_settings
    from app.main import FLOORS, numbers, own_version
    from app.models.library import ModelLibrary

    yield "ok", "edit-image-service", own_version()
    mark = "ok" if sys.version_info >= (3, 11) else "wrong"
    yield mark, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name, floor in FLOORS.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            yield "wrong", name, f"not installed; at least {floor} is needed"
            continue
        fresh = numbers(installed) >= numbers(floor)
        yield ("ok" if fresh else "wrong"), name, installed + ("" if fresh else f"; at least {floor} is needed")
    settings = read_settings()
    yield keys(len(settings.api_keys), len(settings.admin_keys))
    yield from disk(settings.home, settings.min_free_bytes)
    yield devices()
    library = ModelLibrary(settings.home)
    installed_models = [row.spec.id for row in library.rows() if row.installed]
    yield ("ok" if installed_models else "wrong"), "models", ", ".join(installed_models) or "none is installed"
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    yield ("ok" if browser else "note"), "browser for tests", browser or "none; only the page's own tests need one"


def keys(known: int, admins: int) -> Finding:
    """Who may use the service, and who may change how it runs."""
    if not known:
        return "ok", "keys", "none: whoever reaches the address may do everything"
    may = f"{admins} may" if admins else "each may"
    return "ok", "keys", f"{known}; {may} pause the queue and change devices, memory and models (EIS_ADMIN_KEYS)"


def disk(home: os.PathLike[str], reserved: int) -> Iterator[Finding]:
    """Whether EIS_HOME can be written and has room."""
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        yield "wrong", "home", f"{home}: cannot be written"
        return
    free = shutil.disk_usage(existing).free
    text = f"{home}, {free / 2**30:.1f} GiB free"
    yield ("ok" if free >= reserved else "wrong"), "home", text


def devices() -> Finding:
    """What torch sees, asked in a child so that this process stays light."""
    try:
        child = subprocess.run(
            [sys.executable, "-c", DEVICE_SCRIPT], capture_output=True, text=True, timeout=DEVICE_SECONDS, check=True
        )
    except subprocess.TimeoutExpired:
        return "wrong", "devices", "torch did not answer within a minute"
    except subprocess.CalledProcessError as error:
        return "wrong", "devices", f"torch does not start: {error.stderr.strip().splitlines()[-1]}"
    return "ok", "devices", child.stdout.strip()
