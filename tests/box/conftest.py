"""The box that all tests of this folder share."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest
from debian import TREE, require
from flashed import UNIT, Server, break_device, flash, setup
from machine import Machine, Service


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    server = Server(port)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def box(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Flashed and booted; it has no sailq yet."""
    require(systemd_nspawn="systemd-container", mmdebstrap="mmdebstrap")
    root, debugfs = flash(tmp_path_factory.mktemp("box"), server.port)
    with Machine(root, f"--bind-ro={TREE}:/data/sailq", f"--bind-ro={debugfs}:/sys/kernel/debug") as machine:
        machine.run(  # the folder of libsophon's libraries on a box
            "python3", "-m", "pip", "install", "--quiet", "--no-deps", "--target", "/opt/sophon/libsophon-0.5.1/lib",
            "onnxruntime", seconds=900,
        )
        yield machine


@pytest.fixture(scope="session")
def set_up(box: Machine, server: Server) -> subprocess.CompletedProcess[str]:
    """The result of setup.sh, run as an operator runs it."""
    return setup(box)


@pytest.fixture
def service(box: Machine, set_up: subprocess.CompletedProcess[str], server: Server) -> Iterator[Service]:
    """The shipped unit with its worker ready, restored for each test."""
    service = Service(box, UNIT)
    yield service
    break_device(box, "")
    service.drop_in()
    service.systemctl("start")
