"""`sailq doctor` and the server's ACL: it checks all that a role does, and finds each right that is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import openai
import pytest
from acl_server import DEPLOY, Server
from asking import LONG_ANSWER
from gateways import gateway

from sailq.operators.doctor.acl import rights
from sailq.operators.doctor.dry_run import Role, refused
from sailq.producer.client import Client
from sailq.producer.gateway.keys import make_key
from sailq.producer.managed_process import ManagedProcess, sailq_command
from sailq.producer.samples import write_samples
from sailq.shared import keys, scripts
from sailq.shared.checks import Plan
from sailq.shared.workers import live_workers

QUEUE = keys.queue("sailq-tiny")
ROLES: tuple[Role, ...] = ("producer", "worker")
SEVERAL_KEYS = {"DEL", "EXISTS", "MGET", "UNLINK", "XREAD"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("secrets"))
    with server.running():
        yield server


@contextmanager
def rules(server: Server, user: str, *words: str) -> Iterator[None]:
    """The user has these rights alone."""
    with server.connect("admin") as admin:
        try:
            nothing = ("resetkeys", "resetchannels", "-@all", "clearselectors")
            admin.execute_command("ACL", "SETUSER", user, *nothing, *words)
            yield
        finally:
            admin.acl_load()


def checked(server: Server, role: Role) -> list[str]:
    """All commands that doctor checks: a user without rights is refused each."""
    with rules(server, role, "~*", "+evalsha", "+script|load"), server.connect(role) as connection:
        return refused(connection, role, QUEUE)


def test_each_command_of_each_script_is_checked(server: Server) -> None:
    found = [command for role in ROLES for command in checked(server, role)]
    site = re.compile(r"(?:redis\.call|redis\.pcall|try)\('([A-Z]+)'(?:, '([^']*)')?")
    calls = {call for name in {*scripts.PRODUCER, *scripts.WORKER} for call in site.findall(scripts.text(name))}
    assert len(calls) > 80
    missing = {(name, key) for name, key in calls if not any(one.startswith(f"{name} {key}".strip()) for one in found)}
    assert not missing


def tight(commands: list[str]) -> list[str]:
    """ACL rules for these commands, each on its keys alone."""
    made = set()
    for command in commands:
        name, *words = command.split()
        names = [word.replace(QUEUE, keys.queue("*")) for word in words if ":" in word]
        patterns = [re.sub(r"\b(id|other)\b", "*", word) for word in names]
        if name in {"PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE"}:
            made.add(f"(+{name} &{patterns[0]})")
            continue
        if name == "MEMORY":
            name = f"{name}|{words[0]}"
        of = patterns if name in SEVERAL_KEYS else patterns[:1]
        made.add(f"({' '.join([f'+{name}', *(f'~{pattern}' for pattern in of)])})")
    return sorted(made)


@pytest.mark.proof
def test_a_user_with_no_more_rights_than_doctor_checks_can_do_its_work(server: Server, tmp_path: Path) -> None:
    """Real jobs, so that no command is missing from doctor's list."""
    list(write_samples(7, 2, tmp_path / "samples"))
    image = str(next((tmp_path / "samples").rglob("*.png")))
    shown = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}]}]
    hello = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    needed = {role: tight(checked(server, role)) for role in ROLES}
    with ExitStack() as stack:
        for role in ROLES:
            stack.enter_context(rules(server, role, "+evalsha", "+script|load", "~rq:*", "~sailq:*", *needed[role]))
        admin = stack.enter_context(server.connect("admin"))
        admin.acl_log_reset()
        command = sailq_command("worker", "--threads", "1")
        worker = ManagedProcess("worker", command, tmp_path / "log", {"SAILQ_REDIS_URL": server.url("worker")})
        stack.callback(worker.stop)
        worker.wait_until(lambda: live_workers(admin), 90)
        client = stack.enter_context(Client(server.url("producer")))
        turns = [client.submit(shown, conversation="talk", priority="high") for _ in range(3)]
        assert {job for job, _ in client.as_completed([turn.job for turn in turns], timeout=60)} == {
            turn.job for turn in turns
        }
        assert client.history("talk") and client.models() and client.cancel(turns[0].job) == "finished"
        client.clear("talk")
        running = client.submit(hello, options=LONG_ANSWER, stream=True)
        next(iter(client.stream(running.job, timeout=60)))
        assert client.cancel(running.job) == "running"
        assert client.wait(running.job, timeout=60).finish_reason == "cancelled"
        waiting = [client.submit(hello, model="nobody-serves-it", conversation="w", timeout=60) for _ in range(2)]
        assert [client.cancel(turn.job) for turn in waiting] == ["cancelled"] * 2
        secret, entry = make_key("cameras")
        entry["cameras"].update(rate=0.01, burst=2, max_queued=1)
        (tmp_path / "keys.json").write_text(json.dumps(entry))
        running = stack.enter_context(gateway(server.url("producer"), tmp_path / "gateway.log", "--keys",
                                              tmp_path / "keys.json"))
        asking = stack.enter_context(openai.OpenAI(base_url=f"{running.url}/v1", api_key=secret, max_retries=0))
        for _ in range(2):
            asking.chat.completions.create(model="sailq-tiny", messages=[{"role": "user", "content": "Hello"}],
                                           extra_headers={"Idempotency-Key": "once"})
        assert running.stop(60) == 0 and worker.stop(60) == 0
        # What redis-py and RQ ask for, and do without.
        unneeded = {f"client|{name}" for name in ("setinfo", "setname", "list", "info")}
        assert {entry["object"] for entry in admin.acl_log()} <= unneeded


def template(user: str) -> list[str]:
    """The rules of a user in users.acl.template; a selector is one rule."""
    text = re.sub(r"^ *#.*$", "", (DEPLOY / "users.acl.template").read_text(), flags=re.MULTILINE)
    line = next(part for part in text.split("user ") if part.startswith(f"{user} "))
    return re.findall(r"\([^)]*\)|\S+", line.partition("PASSWORDS")[2])


UNCHECKED = {
    "worker": {"+client", "+script|exists", "+publish"},
    "producer": {
        "+client", "+script|exists", "+multi", "+exec", "+unwatch", "+discard", "rq:job +watch", "rq:job +hget",
        "rq:job +sadd", "rq:results +xrevrange", "%W~rq:finished:sailq3-*", "~rq:executions:*",
        "rq:executions +zrange", "rq:executions +zremrangebyscore", "%R~rq:execution:*", "rq:execution +hgetall",
        "rq:wip +zrem",
    },
}
"""The rights that sailq can do without: redis-py and RQ's own API use them."""


def without_each(user: str) -> Iterator[tuple[str, list[str]]]:
    """Each right, and the user's rules without it."""
    found = template(user)
    for place, rule in enumerate(found):
        words = rule.strip("()").split()
        of = re.sub(r"^%?[RW]?~|:[^:]*\*$", "", words[0]) if rule.startswith("(") else ""
        for word in words:
            if not word.startswith("-"):
                left = " ".join(one for one in words if one != word)
                rest = [f"({left})"] if rule.startswith("(") else []
                yield word if "~" in word else f"{of} {word}".strip(), [*found[:place], *rest, *found[place + 1:]]


@pytest.mark.proof
@pytest.mark.parametrize("role", ROLES)
def test_each_right_that_is_missing_is_found(role: Role, server: Server) -> None:
    plan = Plan(redis_url=server.url(role), model="sailq-tiny", worker=role == "worker", device="cpu", bmodel=None,
                metrics_port=0)
    assert rights(plan).state == "ok"
    unseen = set[str]()
    for right, rest in without_each(role):
        with rules(server, role, *rest):
            found = rights(plan)
        if found.state != "wrong":
            unseen.add(right)
    assert unseen == UNCHECKED[role]
