"""The files in deploy/ can be read, fit each other, and name only settings, ports and paths that exist.

Containers are not built here. Where nginx or systemd is installed, their own checkers read the files too.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("pydantic_settings", reason="needs the extra serve")

from moonshelf.service.settings import CONFIG, Settings, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
DEFAULT = {name: field.default for name, field in Settings.model_fields.items()}


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def compose() -> dict[str, Any]:
    return yaml.safe_load(read("compose.yaml"))


def copies() -> dict[str, dict[str, Any]]:
    return {name: one for name, one in compose()["services"].items() if name != "nginx"}


def kubernetes() -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all(read("kubernetes.yaml"))}


def container() -> dict[str, Any]:
    return kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"][0]


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in read("moonshelf.service").splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


@pytest.mark.parametrize("path", sorted(DEPLOY.iterdir()), ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path) -> None:
    names = {f"MOONSHELF_{name.upper()}" for name in Settings.model_fields} | {CONFIG}
    assert set(re.findall(r"\bMOONSHELF_[A-Z_]+\b", path.read_text(encoding="utf-8"))) <= names


def environments() -> dict[str, dict[str, str]]:
    docker = dict(re.findall(r"^\s+(?:ENV )?(\w+)=(\S+)(?: \\)?$", read("Dockerfile"), re.MULTILINE))
    of_unit = dict(word.split("=", 1) for line in unit()["Environment"] for word in line.split())
    return {
        "Dockerfile": docker,
        "kubernetes.yaml": {one["name"]: one["value"] for one in container()["env"]},
        "moonshelf.service": {**of_unit, "MOONSHELF_FOLDER": "shop"},
        **{name: {**docker, **one["environment"]} for name, one in copies().items()},
    }


@pytest.mark.parametrize("name", ["kubernetes.yaml", "moonshelf.service", "writer", "reader-1", "reader-2"])
def test_every_environment_makes_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in environments()[name].items():
        if variable.startswith("MOONSHELF_"):
            monkeypatch.setenv(variable, value)
    got = load_settings()
    assert got.keys_file is not None and got.port == DEFAULT["port"]


def test_an_image_without_keys_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in environments()["Dockerfile"].items():
        if variable.startswith("MOONSHELF_"):
            monkeypatch.setenv(variable, value)
    with pytest.raises(Exception, match="there are no API keys"):
        load_settings()


def test_the_yaml_file_makes_settings() -> None:
    given = yaml.safe_load(read("moonshelf.yaml"))
    got = load_settings("shop", DEPLOY / "moonshelf.yaml")
    assert got.rate_limit == given["rate_limit"] and got.trusted_proxies == ("127.0.0.1",)


def test_the_image() -> None:
    text = read("Dockerfile")
    build, final = text.split("\nFROM ")[1:]
    assert "USER 10001" in final and "apt-get" not in text and "pip" not in final
    assert f"EXPOSE {DEFAULT['port']}" in final and f":{DEFAULT['port']}/ready" in final
    project = (DEPLOY.parent / "pyproject.toml").read_text(encoding="utf-8")
    for requirement in re.findall(r'pip install --index-url \S+ "(.+?)"', build):
        assert f'"{requirement}"' in project  # one torch, of the bounds that the package asks for
    for extra in re.search(r'"\.\[(.+?)\]"', build).group(1).split(","):  # type: ignore[union-attr]
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", build, re.MULTILINE):
        for name in copied.split():
            assert (DEPLOY.parent / name).exists() and f"!{name}" in read("Dockerfile.dockerignore")


def test_compose_mounts_one_writer_and_readers_that_cannot_write() -> None:
    services = copies()
    modes = {name: one["volumes"][0].endswith(":/catalogue:ro") for name, one in services.items()}
    assert modes == {"writer": False, "reader-1": True, "reader-2": True}
    for one in services.values():
        assert one["read_only"] and one["cap_drop"] == ["ALL"]
        assert seconds(one["stop_grace_period"]) > float(one["environment"]["MOONSHELF_SHUTDOWN_S"])
        assert int(one["environment"]["MOONSHELF_THREADS"]) == one["cpus"]
    subnet = compose()["networks"]["inside"]["ipam"]["config"][0]["subnet"]
    assert {one["environment"]["MOONSHELF_TRUSTED_PROXIES"] for one in services.values()} == {subnet}
    assert all(port.startswith("127.0.0.1:") for port in compose()["services"]["nginx"]["ports"])


def test_nginx_knows_the_copies_and_waits_longer_than_they_do() -> None:
    text = read("nginx.conf")
    for name, port in re.findall(r"^\s+server ([\w-]+):(\d+)", text, re.MULTILINE):
        assert name in copies() and int(port) == DEFAULT["port"]
    given = dict(re.findall(r"^\s+(\w+)\s+(\w+);", text, re.MULTILINE))
    assert given["client_max_body_size"] == f"{DEFAULT['max_body_mb']}m"
    assert seconds(given["proxy_read_timeout"]) > DEFAULT["deadline_s"]
    assert compose()["services"]["nginx"]["ports"][0].endswith(f":{given['listen']}")


@pytest.mark.parametrize(
    ("call", "copy"),
    [
        ("POST /v1/embeddings", "readers"),
        ("POST /v1/search", "readers"),
        ("GET /v1/products/SKU-1", "readers"),
        ("GET /", "readers"),
        ("POST /v1/products", "writer"),
        ("POST /v1/products/delete", "writer"),
        ("DELETE /v1/products/SKU-1", "writer"),
        ("POST /v1/feedback", "writer"),
        ("GET /v1/feedback", "writer"),
        ("POST /v1/creatives/rank", "writer"),
    ],
)
def test_nginx_sends_writes_to_the_writer(call: str, copy: str) -> None:
    table = re.search(r"map .*?\{(.*?)\n    \}", read("nginx.conf"), re.DOTALL).group(1)  # type: ignore[union-attr]
    rules = re.findall(r'"~(.+?)"\s+(\w+);', table)
    assert next((to for pattern, to in rules if re.search(pattern, call)), "readers") == copy


def test_nginx_takes_its_file(tmp_path: Path) -> None:
    if (nginx := shutil.which("nginx")) is None:
        pytest.skip("nginx is not installed")
    text = re.sub(r"server [\w-]+:\d+", "server 127.0.0.1:8765", read("nginx.conf"))
    (tmp_path / "nginx.conf").write_text(text.replace("/tmp/", f"{tmp_path}/"), encoding="utf-8")
    command = [nginx, "-t", "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_unit_starts_the_service_and_gives_it_time_to_stop() -> None:
    found = unit()
    program, command, _folder, *flags = shlex.split(found["ExecStart"][0])
    assert Path(program).name == "moonshelf" and command == "serve"
    for flag in flags[::2]:
        assert flag.removeprefix("--").replace("-", "_") in {*Settings.model_fields, "config"}
    shutdown = yaml.safe_load(read("moonshelf.yaml"))["shutdown_s"]
    assert float(found["TimeoutStopSec"][0]) > shutdown


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if (checker := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd is not installed")
    path = tmp_path / "moonshelf.service"
    path.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", read(path.name)), encoding="utf-8")
    done = subprocess.run([checker, "verify", str(path)], capture_output=True, text=True, timeout=60)
    assert "moonshelf.service" not in done.stderr, done.stderr  # it tells of other units of the machine too


def test_kubernetes() -> None:
    parts = kubernetes()
    pod = parts["Deployment"]["spec"]["template"]["spec"]
    one = container()
    assert pod["enableServiceLinks"] is False  # else MOONSHELF_PORT would be an address
    assert {
        name: one[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")
    } == {
        "startupProbe": "/health",
        "livenessProbe": "/health",
        "readinessProbe": "/ready",
    }
    environment = {e["name"]: e["value"] for e in one["env"]}
    assert one["ports"][0]["containerPort"] == int(environment["MOONSHELF_PORT"])
    assert environment["MOONSHELF_THREADS"] == one["resources"]["limits"]["cpu"]
    waits = one["lifecycle"]["preStop"]["sleep"]["seconds"] + float(environment["MOONSHELF_SHUTDOWN_S"])
    assert pod["terminationGracePeriodSeconds"] > waits
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert environment["MOONSHELF_KEYS_FILE"].startswith(mounts["keys"])
    assert environment["MOONSHELF_FOLDER"] == mounts["catalogue"]
    claim = volumes["catalogue"]["persistentVolumeClaim"]["claimName"]
    assert claim == parts["PersistentVolumeClaim"]["metadata"]["name"]
    labels = parts["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert (
        parts["Deployment"]["spec"]["selector"]["matchLabels"]
        == labels
        == parts["Service"]["spec"]["selector"]
    )
    assert json.dumps(pod["securityContext"]["runAsNonRoot"]) == "true"


def test_the_paths_of_probes_exist() -> None:
    pytest.importorskip("fastapi", reason="needs the extra serve")
    source = (DEPLOY.parent / "src/moonshelf/service/app.py").read_text(encoding="utf-8")
    for path in ("/health", "/ready", "/metrics"):
        assert f'@app.get("{path}"' in source


def test_the_example_for_ray_uses_what_exists() -> None:
    tree = ast.parse(read("ray_serve.py"))
    ours = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and "moonshelf" in str(node.module)
    ]
    assert {(node.module, node.names[0].name) for node in ours} == {
        ("moonshelf.service.app", "create_app"),
        ("moonshelf.service.settings", "load_settings"),
    }
