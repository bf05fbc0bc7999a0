"""What lies in deploy/, held against the server that it starts, and what a wheel must hold."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from octavo.cli.serve import serve_config
from octavo.launch.serve_loop import END_SECONDS
from octavo.server.keys import OPEN_PATHS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"


def load(path: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- wheels
WHEEL_FILES = (
    "octavo/py.typed", "octavo/server/ui.html", "octavo/__init__.py", "octavo/_cpu.abi3.so",
    "octavo-0.1.0.dist-info/METADATA", "octavo-0.1.0.dist-info/licenses/LICENSE",
)  # fmt: skip


def wheel_faults(directory: Path, names: tuple[str, ...], name: str = "octavo-0.1.0-cp312-abi3-linux.whl") -> list[str]:
    with zipfile.ZipFile(directory / name, "w") as archive:
        for member in names:
            archive.writestr(member, "")
    faults: list[str] = load(DEPLOY / "wheels" / "check.py").faults(directory / name)
    return faults


def test_a_wheel_with_all_of_its_parts_is_good_and_the_files_are_there_to_be_packed(tmp_path: Path) -> None:
    assert wheel_faults(tmp_path, WHEEL_FILES) == []
    assert wheel_faults(tmp_path, (*WHEEL_FILES, "octavo-0.1.0.dist-info/")) == []  # as auditwheel packs
    for needed in load(DEPLOY / "wheels" / "check.py").NEEDED:
        assert (ROOT / "src" / needed).is_file()
    assert (ROOT / "LICENSE").is_file()


@pytest.mark.parametrize("missing", ["octavo/py.typed", "octavo/server/ui.html", "octavo/_cpu.abi3.so", "LICENSE"])
def test_a_wheel_without_a_part_is_refused(tmp_path: Path, missing: str) -> None:
    (fault,) = wheel_faults(tmp_path, tuple(name for name in WHEEL_FILES if not name.endswith(missing)))
    assert "missing" in fault or "one native module is wanted" in fault


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ("tests/conftest.py", "does not belong in it"),
        ("octavo/_cpu.cpython-311-x86_64-linux-gnu.so", "one native module is wanted"),
    ],
)
def test_a_wheel_with_something_else_is_refused(tmp_path: Path, extra: str, fault: str) -> None:
    (found,) = wheel_faults(tmp_path, (*WHEEL_FILES, extra))
    assert fault in found


def test_a_module_of_another_abi_than_the_wheels_name_says_is_refused(tmp_path: Path) -> None:
    (found,) = wheel_faults(tmp_path, WHEEL_FILES, "octavo-0.1.0-cp311-cp311-linux.whl")
    assert "does not fit the wheel's tag" in found


# ---------------------------------------------------------------- containers
def instructions(file: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile and what follows them, of all stages."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", file.read_text()))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_serves_as_nobody_in_particular_and_hears_signals(name: str) -> None:
    found = dict(instructions(DEPLOY / "docker" / name))  # the last of each kind
    # The exec form: no shell between the signals and the server. What follows the image's name is appended.
    entry = json.loads(found["ENTRYPOINT"])
    assert entry[:4] == ["tini", "--", "octavo", "serve"] and "CMD" not in found
    serve_config([*entry[4:], "model.gguf", "--max-model-len", "8k"], {})
    # A number, so that Kubernetes can tell that it is not root.
    assert found["USER"].isdigit() and int(found["USER"]) > 0
    environment = dict(word.split("=", 1) for word in shlex.split(found["ENV"]))
    assert {environment[name] for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR")} == {found["VOLUME"]}
    serve_config([], environment)  # no variable that would stop the start
    check = re.search(r"CMD (\[.*\])", found["HEALTHCHECK"])
    assert check is not None
    assert json.loads(check[1])[1] == found["COPY"].split()[-1]


def test_the_context_of_an_image_has_what_the_build_reads_and_no_secrets() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / path).exists() for path in allowed)
    for name in ("Dockerfile", "Dockerfile.cuda"):
        copied = [text.split()[0] for kind, text in instructions(DEPLOY / "docker" / name) if kind == "COPY"]
        assert {path for path in copied if not path.startswith("-")} - {"."} <= allowed


def test_the_service_of_compose_starts_and_has_time_to_drain() -> None:
    service = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())["services"]["octavo"]
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    server = serve_config(service["command"], {}).server
    assert int(service["stop_grace_period"].removesuffix("s")) >= server.shutdown_timeout + END_SECONDS


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_of_an_image_asks_the_server(status: int, code: int) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/health"
        command = [sys.executable, str(DEPLOY / "docker" / "healthcheck.py")]
        run = subprocess.run(command, env={"HEALTH_URL": url}, capture_output=True, text=True, check=False)
        thread.join()
    assert run.returncode == code, run.stderr
    assert ("status 503" in run.stderr) == bool(code)


# ---------------------------------------------------------------- systemd
def unit(name: str = "octavo.service") -> dict[str, str]:
    """The settings of a unit, the last of each name."""
    lines = (DEPLOY / "systemd" / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_unit_starts_a_server_that_tells_and_has_time_to_drain() -> None:
    lines = (DEPLOY / "systemd" / "octavo.env").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    settings = unit()
    command = settings["ExecStart"].replace("$MODEL", variables["MODEL"]).replace("$FLAGS", variables["FLAGS"]).split()
    assert command[1] == "serve" and settings["Type"] == "notify"
    environment = [line.split("=", 1)[1] for line in (DEPLOY / "systemd" / "octavo.service").read_text().splitlines()
                   if line.startswith("Environment=")]  # fmt: skip
    given = dict(word.split("=", 1) for line in environment for word in line.split())
    # Also the variables that the file only names must be ones that the server knows.
    named = dict.fromkeys(re.findall(r"(?m)^#([A-Z_]+)=", "\n".join(lines)), "secret")
    config = serve_config(command[2:], variables | given | {"OCTAVO_API_KEY": "key"} | {
        name: f"{name} {value}" for name, value in named.items()
    })  # fmt: skip
    assert config.server.host == "127.0.0.1" and config.server.admin_api_key is not None
    cache = f"/var/cache/{settings['CacheDirectory']}"
    assert {given[name] for name in ("HOME", "XDG_CACHE_HOME", "OCTAVO_CACHE_DIR")} == {cache}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / "octavo.service").read_text().replace("/opt/octavo/bin/octavo", sys.executable)
    (tmp_path / "octavo.service").write_text(text)
    overrides = tmp_path / "octavo.service.d"
    overrides.mkdir()
    shutil.copy(DEPLOY / "systemd" / "gpu.conf", overrides)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "octavo.service")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, "octavo.service" in run.stderr) == (0, False), run.stderr


# ---------------------------------------------------------------- Kubernetes
def manifest(name: str) -> Any:
    return yaml.safe_load((KUBERNETES / name).read_text())


def test_a_pod_serves_its_settings_and_leaves_without_a_lost_request() -> None:
    deployment = manifest("base/deployment.yaml")["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    settings = KUBERNETES / "base" / "octavo.yaml"
    assert container["args"] == ["--config", "/etc/octavo/octavo.yaml"]
    config = serve_config(["--config", str(settings)], {"OCTAVO_PORT": "tcp://10.0.0.1:80"})
    # Old pods go when new ones serve; they hear of it before they get TERM, and then have their time.
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    needed = int(seconds) + config.server.shutdown_timeout + END_SECONDS
    assert pod["terminationGracePeriodSeconds"] >= needed
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/health", "readiness": "/ready", "liveness": "/health"}
    assert set(paths.values()) <= OPEN_PATHS  # kubelet has no key
    assert config.server.port == container["ports"][0]["containerPort"]


def test_a_pod_needs_no_root_writes_into_its_volume_alone_and_has_its_secrets_in_files() -> None:
    pod = manifest("base/deployment.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    image = dict(instructions(DEPLOY / "docker" / "Dockerfile"))
    assert pod["securityContext"]["runAsUser"] == int(image["USER"])
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert [path for path, mount in mounts.items() if not mount.get("readOnly")] == [image["VOLUME"]]
    settings = manifest("base/octavo.yaml")
    assert settings["api-key-file"].startswith("/etc/octavo-keys/") and "/etc/octavo-keys" in mounts
    assert settings["model"].startswith("/models/") and "/models" in mounts
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}
    assert container["resources"]["limits"] == container["resources"]["requests"]


def test_every_manifest_is_in_its_kustomization_and_the_queue_has_the_name_of_its_metric() -> None:
    for kustomization in KUBERNETES.glob("*/kustomization.yaml"):
        content = yaml.safe_load(kustomization.read_text())
        for path in content.get("resources", []) + content.get("components", []):
            assert (kustomization.parent / path).exists(), f"{kustomization}: {path}"
        named = {*content.get("resources", [])}
        named.update(*(maps["files"] for maps in content.get("configMapGenerator", [])))
        files = {file.name for file in kustomization.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert files <= named
    metric = re.search(r"seriesQuery: '([\w:]+)", (KUBERNETES / "autoscaling" / "autoscaler.yaml").read_text())
    assert metric is not None
    assert f'"{metric[1]}"' in (ROOT / "src" / "octavo" / "server" / "metrics.py").read_text()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_puts_all_of_it_together() -> None:
    run = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / "example")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    objects = {item["kind"]: item for item in yaml.safe_load_all(run.stdout)}
    assert {"Deployment", "Service", "PersistentVolumeClaim", "ConfigMap", "PodDisruptionBudget",
            "HorizontalPodAutoscaler", "ServiceMonitor"} == set(objects)  # fmt: skip
    deployment = objects["Deployment"]["spec"]
    assert "replicas" not in deployment
    (container,) = deployment["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1 and container["image"].endswith(":cuda")
    labels = deployment["template"]["metadata"]["labels"]
    for kind in ("Service", "PodDisruptionBudget", "ServiceMonitor"):
        selector = objects[kind]["spec"]["selector"]
        assert selector.get("matchLabels", selector) == labels
