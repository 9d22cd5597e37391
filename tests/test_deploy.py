"""The compose file and the manifests: every setting and command in them exists, and no secret stands there."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from app.settings import Settings

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
SECRET_NAMES = ("PASSWORD", "TOKEN", "API_KEYS")
NOT_SETTINGS = {"EIS_DATABASE_PASSWORD", "EIS_RAY_TOKEN"}
"""Names in `.env` that the compose file puts into other values."""


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def manifests() -> list[dict[str, Any]]:
    names = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())["resources"]
    files = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(names) == files, "a file that nobody applies"
    return [one for name in names for one in yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())]


def pods() -> dict[str, dict[str, Any]]:
    """The one container of each workload, by name."""
    found = {}
    for one in manifests():
        if one["kind"] in {"Deployment", "StatefulSet"}:
            template = one["spec"]["template"]
            assert template["metadata"]["labels"] == one["spec"]["selector"]["matchLabels"]
            (container,) = template["spec"]["containers"]
            volumes = {volume["name"] for volume in template["spec"].get("volumes", ())}
            volumes |= {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", ())}
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
            found[one["metadata"]["name"]] = container
    return found


def test_every_setting_is_one() -> None:
    known = {f"EIS_{name.upper()}" for name in Settings.model_fields}
    used = set(re.findall(r"\bEIS_[A-Z_]+", "".join(path.read_text() for path in DEPLOY.rglob("*") if path.is_file())))
    assert len(used) > 6 and used - NOT_SETTINGS <= known, used - known


def test_secrets_come_from_outside() -> None:
    for name, service in compose()["services"].items():
        for key, value in service.get("environment", {}).items():
            if key.endswith(SECRET_NAMES):
                assert re.fullmatch(r"\$\{EIS_[A-Z_]+:\?[^}]+\}", value), (name, key)
    secret = {("eis", "database-password"), ("eis", "ray-token"), ("eis", "api-keys")}
    seen = set()
    for name, container in pods().items():
        for entry in container["env"]:
            if entry["name"].endswith(SECRET_NAMES):
                reference = entry["valueFrom"]["secretKeyRef"]
                assert (reference["name"], reference["key"]) in secret, name
                seen.add((reference["name"], reference["key"]))
    assert seen == secret


def test_compose_and_kubernetes_start_the_same() -> None:
    services, containers = compose()["services"], pods()
    assert set(services) == {"database", "ray-head", "worker", "server"} == set(containers)
    volumes = {mount.split(":")[0] for service in services.values() for mount in service.get("volumes", ())}
    assert volumes == set(compose()["volumes"])
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services)
        if "command" in service:
            assert shlex.split(service["command"]) == containers[name]["command"], name
        environment = {entry["name"] for entry in containers[name]["env"]} - {"PGDATA", "DATABASE_PASSWORD"}
        wanted = set(service["environment"]) - ({"EIS_HOME"} if name == "ray-head" else set())
        # Kubernetes names its servers by the Service, which a Host header then says.
        assert environment - {"EIS_ALLOWED_HOSTS"} == wanted, name
    claims = {one["metadata"]["name"] for one in manifests() if one["kind"] == "PersistentVolumeClaim"}
    assert claims == {"eis-home", "eis-pictures"}
    # What the workers and servers name as hosts is there under that name.
    hosts = {one["metadata"]["name"] for one in manifests() if one["kind"] == "Service"}
    assert {"database", "ray-head"} <= hosts


def test_the_image_holds_what_it_starts() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    extras = set(re.search(r"pip install .*'\.\[([a-z,]+)\]'", text).group(1).split(","))
    declared = (DEPLOY.parent / "pyproject.toml").read_text()
    assert {"postgres", "ray"} <= extras and all(f"\n{extra} = [" in declared for extra in extras)
    for source in re.findall(r"^COPY (.+) \S+$", text, re.M):
        assert all((DEPLOY.parent / part).exists() for part in source.split()), source
