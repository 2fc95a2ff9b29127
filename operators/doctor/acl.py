"""Checks that the server's ACL lets this machine's user do all that its role does."""

from __future__ import annotations

from redis.exceptions import NoPermissionError

from sailq.shared import keys
from sailq.shared.checks import Plan, Verdict, ok, wrong
from sailq.shared.connection import connect, server_errors
from sailq.shared.settings import model_name

from .dry_run import Role, refused


def rights(plan: Plan) -> Verdict:
    """Checks each command that the role sends, and each command in its scripts, on the keys that it uses."""
    role: Role = "worker" if plan.worker else "producer"
    with connect(plan.redis_url, retries=0) as connection, server_errors(connection):
        user = connection.connection_pool.connection_kwargs.get("username") or "default"
        try:
            commands = refused(connection, role, keys.queue(model_name(plan.model)))
        except NoPermissionError as error:
            commands = [str(error).rstrip(".")]
    if not commands:
        return ok(f"the user {user!r} has all rights that a {role} needs")
    more = f", and {len(commands) - 1} more commands" if len(commands) > 1 else ""
    return wrong(
        f"The user {user!r} lacks rights that a {role} needs: {commands[0]}{more}. deploy/redis makes a user that has "
        "them.",
        f'export "$(cat {role}.env)"',
    )
