"""`sailq chat`: a conversation at a terminal. Each line is a question."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import typer

from sailq.shared.options import Model, RedisUrl

from . import _flags as flags

if TYPE_CHECKING:
    from sailq.shared.generation import GenerationOptions

    from ..client import Client

_HELP = """\
/image FILE   add an image to the next question
/video FILE   add a video to the next question
/clear        start over: forget the conversation and the files added
/help         show this list
q, /quit      leave (Ctrl-D leaves, too); Ctrl-C stops an answer"""


@flags.answers
def chat(
    video: flags.Videos = None,
    image: flags.Images = None,
    system: flags.System = None,
    schema: flags.Schema = None,
    choice: flags.Choice = None,
    redis_url: RedisUrl = None,
    model: Model = None,
    *,
    generation: dict[str, Any],
    media: dict[str, Any],
) -> None:
    """Chat about videos and images. The model sees earlier questions and answers.

    Each line is one question. --video and --image come with the first question.
    On a terminal, the thought of a model that thinks is shown dimmed. It is not
    part of the conversation. /help lists the chat's own commands. Questions can
    be piped in. The exit code is then 1 if one of them was not answered.

    \b
    Examples:
      sailq chat --video clip.mp4
      printf 'What is it?\\nWhich colour?\\n' | sailq chat --image a.png
      sailq chat --video clip.mp4 --choice yes,no,unclear
    """
    from sailq.shared import terminal

    with terminal.command():
        from sailq.shared.settings import load_settings, model_name

        from ..client import Client
        from ._answer import check_served

        options = flags.check(generation, media, schema, choice)
        settings = load_settings(redis_url=redis_url, model=model)
        name = model_name(settings.model)
        with Client(settings=settings) as client:
            talk = _Chat(client, name, options, media, system)
            talk.attached = flags.media_parts(video, image)
            check_served(client, name)
            talk.run()
    if talk.failures and not sys.stdin.isatty():
        raise typer.Exit(terminal.FAILURE)


class _Chat:
    """One conversation. `attached`: media that go with the next question."""

    def __init__(
        self, client: Client, model: str, options: GenerationOptions, media: dict[str, Any], system: str | None
    ) -> None:
        self._client = client
        self._model = model
        self._options = options
        self._media = media
        self._system = system
        self._conversation: str | None = None
        self._begun = False
        self.attached: list[dict[str, Any]] = []
        self.failures = 0

    def run(self) -> None:
        """Reads lines until the user leaves."""
        from sailq.shared.errors import SailqError, ServerUnavailable

        interactive = sys.stdin.isatty()
        if interactive:
            import readline  # noqa: F401  (gives `input` its history and editing)

            print("Ask, or /help.")
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                return
            if line in {"q", "/quit"}:
                return
            try:
                if line.startswith("/"):
                    self._command(line)
                elif line:
                    self._turn(line)
            except ServerUnavailable:
                raise
            except SailqError as error:
                self.failures += 1
                print(f"sailq: {error}", file=sys.stderr, flush=True)

    def _command(self, line: str) -> None:
        from sailq.shared.errors import BadMedia, BadRequest

        word, _, rest = line.partition(" ")
        path = _file(rest.strip())
        if word == "/help":
            print(_HELP)
        elif word == "/clear":
            if self._conversation is not None:
                self._client.clear(self._conversation)
            self._begun, self.attached = False, []
        elif word in {"/image", "/video"}:
            if not os.path.isfile(path):
                raise BadMedia(f"There is no file {path!r}." if path else f"{word} needs a file.")
            kind = word[1:]
            self.attached.append({"type": kind, kind: path})
        else:
            raise BadRequest(f"There is no command {word}; /help lists the commands.")

    def _turn(self, question: str) -> None:
        from sailq.shared import terminal
        from sailq.shared.errors import SailqError

        from ..captioning.rows import as_row, why
        from ..media_defaults import fill_in
        from ._answer import receive, timings

        shown, self.attached = self.attached, []
        messages: list[dict[str, Any]] = [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}]
        if self._system and not self._begun:
            messages.insert(0, {"role": "system", "content": self._system})
        handle = self._client.submit(
            fill_in(messages, self._media),
            conversation=self._conversation,
            model=self._model,
            options=self._options,
            stream=True,
            keep=True,
        )
        self._conversation = handle.conversation
        try:
            result = receive(self._client, handle.job, terminal.AnswerPrinter())
            reason = why(as_row(result))
        except KeyboardInterrupt:
            reason = "The answer was stopped; the conversation continues."
        print(flush=True)
        if reason is not None:
            self.attached = shown  # an unanswered question is not part of the conversation
            raise SailqError(reason)
        self._begun = True
        terminal.note(timings(result))


def _file(typed: str) -> str:
    """The path that was typed, or dropped on the terminal, which puts quotes around it."""
    if typed[:1] in {"'", '"'} and typed[-1] == typed[0]:
        return typed[1:-1]
    return os.path.expanduser(typed)
