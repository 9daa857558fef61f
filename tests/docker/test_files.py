"""The files that describe containers, looked at without an engine."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docker.engine import HOME

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
KUBERNETES = HOME / "deploy" / "kubernetes"
MANIFESTS = [*sorted(KUBERNETES.glob("base/[!k]*.yaml")), KUBERNETES / "convert" / "job.yaml"]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def merged(base: Any, patch: Any) -> Any:
    """What kustomize makes of the two: maps key by key, lists of named things by their names."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {key: merged(base.get(key), patch.get(key)) for key in base | patch}
    if isinstance(base, list) and isinstance(patch, list) and "name" in (patch or [{}])[0]:
        named = {item["name"]: item for item in base}
        for item in patch:
            named[item["name"]] = merged(named.get(item["name"]), item)
        return list(named.values())
    return base if patch is None else patch


def validate(manifest: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_every_family_goes_into_the_image():
    """Read as the builders read it: the last line that fits a name decides."""
    lines = [line for line in (HOME / ".dockerignore").read_text().splitlines() if line.strip()]
    kept = [line[1:] for line in lines if line.startswith("!")]
    for facts in HOME.glob("*/model.toml"):
        family = facts.parent.name
        assert any(fnmatch.fnmatch(family, pattern) for pattern in kept), (
            f"{family} is a family, and .dockerignore has no line for it"
        )


def test_the_dockerfile_has_no_faults():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
    if shutil.which(hadolint) is None:
        pytest.skip("hadolint is not installed")
    answer = subprocess.run([hadolint, "Dockerfile"], cwd=HOME, capture_output=True, text=True)
    assert answer.stdout + answer.stderr == ""


def test_nothing_names_a_package_index():
    """Where packages come from is the business of the machine that builds."""
    for name in ("Dockerfile", "docker-compose.yml", ".dockerignore"):
        addresses = re.findall(r"https?://(?!127\.0\.0\.1)\S+", (HOME / name).read_text())
        assert addresses == [], f"{name} names {addresses}"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_what_kubernetes_takes(path):
    validate(load(path))


def test_the_base_asks_the_right_routes():
    (container,) = load(KUBERNETES / "base" / "easel.yaml")["spec"]["template"]["spec"][
        "containers"
    ]
    asked = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    }
    assert asked == {"startup": "/health", "liveness": "/health", "readiness": "/health/ready"}


def test_the_pod_outlives_the_grace_of_its_job():
    spec = load(KUBERNETES / "base" / "easel.yaml")["spec"]["template"]["spec"]
    grace = next(env["value"] for env in spec["containers"][0]["env"] if env["name"] == "GRACE")
    assert spec["terminationGracePeriodSeconds"] >= float(grace) + 15


def test_the_gpu_overlay_asks_intels_plugin():
    overlay = load(KUBERNETES / "intel-gpu" / "kustomization.yaml")
    assert overlay["resources"] == ["../base"]
    base = load(KUBERNETES / "base" / "easel.yaml")
    deployment = merged(base, load(KUBERNETES / "intel-gpu" / "gpu.yaml"))
    validate(deployment)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    resources = container["resources"]
    assert resources["limits"]["gpu.intel.com/i915"] == 1
    assert resources["limits"]["gpu.intel.com/i915"] == resources["requests"]["gpu.intel.com/i915"]
    assert {"name": "DEVICE", "value": "GPU"} in container["env"]
    assert container["securityContext"]["readOnlyRootFilesystem"]


@pytest.mark.parametrize("name", ["base", "intel-gpu", "convert"])
def test_kustomize_takes_it(name):
    folder = KUBERNETES / name
    files = load(folder / "kustomization.yaml")
    named = files["resources"] + [patch["path"] for patch in files.get("patches", [])]
    assert all((folder / path).exists() for path in named)
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; the files it would read are all there")
    answer = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True
    )
    for manifest in yaml.safe_load_all(answer.stdout):
        validate(json.loads(json.dumps(manifest)))


def test_compose_has_what_the_documents_promise():
    services = load(HOME / "docker-compose.yml")["services"]
    assert {profile for service in services.values() for profile in service["profiles"]} == {
        "cpu",
        "gpu",
        "axera",
        "convert",
    }
    for name in ("easel", "easel-gpu", "easel-axera"):
        (condition,) = services[name]["depends_on"].values()
        assert condition == {"condition": "service_completed_successfully"}
        assert services[name]["mem_limit"]
        assert services[name]["read_only"]
        assert services[name]["secrets"] == ["hf_token", "api_keys"]
