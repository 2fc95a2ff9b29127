"""`sailq ask`: asks one question and prints the answer."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sailq.shared.options import Json, Model, RedisUrl

from . import _flags as flags


@flags.answers
def ask(
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", show_default="describe the media", help="Question. Required without media."
        ),
    ] = None,
    video: flags.Videos = None,
    image: flags.Images = None,
    vision_inputs: Annotated[
        str,
        typer.Option(
            "--vision-inputs",
            metavar="JSON",
            show_default=False,
            help="Media in the format of sophon-demo's --vision_inputs. They come before --video and --image.",
        ),
    ] = "",
    system: flags.System = None,
    conversation: Annotated[
        str | None,
        typer.Option(
            "--conversation", metavar="ID",
            help="Name of a conversation to continue or start. Its clips are kept for later questions.",
        ),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while it is generated.")] = False,
    wait: flags.Wait = 0.0,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Give up if the answer takes longer."),
    ] = None,
    schema: flags.Schema = None,
    choice: flags.Choice = None,
    json: Json = False,
    redis_url: RedisUrl = None,
    model: Model = None,
    *,
    generation: dict[str, Any],
    media: dict[str, Any],
) -> None:
    """Ask one question, with or without videos and images.

    The answer goes to stdout, the timings to stderr. The model sees all videos
    before all images. --vision-inputs can give another order.

    With --json the result is one JSON object. With --json and --stream, one
    {"chunk": text} for each piece of the answer comes before it, and one
    {"reasoning": text} for each piece of the thought of a model that thinks.
    On a terminal, --stream shows the thought dimmed.

    \b
    Examples:
      sailq ask --video clip.mp4 --prompt "What happens here?" --stream
      sailq ask --image a.png --image b.png --prompt "Which is older?" --json
      sailq ask --prompt "How many sides does a square have?"
      sailq ask --video clip.mp4 --prompt "Is it moving?" --choice yes,no
      sailq ask --image a.png --prompt "What is it?" --schema answer.json
    """
    from sailq.shared import terminal

    with terminal.command(json):
        from sailq.shared.errors import BadRequest, SailqError
        from sailq.shared.settings import load_settings, model_name

        from ..captioning.rows import as_row, why
        from ..client import Client
        from ..media_defaults import fill_in
        from ..vision_inputs import to_parts
        from ._answer import check_served, receive, timings

        options = flags.check(generation, media, schema, choice)
        parts = to_parts(vision_inputs) + flags.media_parts(video, image)
        question = prompt or flags.default_prompt(parts)
        if not question:
            raise BadRequest("There is nothing to ask: give --prompt, --video or --image.")
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})

        settings = load_settings(redis_url=redis_url, model=model)
        name = model_name(settings.model)
        with Client(settings=settings) as client:
            check_served(client, name)
            handle = client.submit(
                fill_in(messages, media),
                conversation=conversation,
                model=name,
                options=options,
                timeout=timeout,
                stream=stream,
                wait=wait,
            )
            printer = _JsonPrinter() if json else terminal.AnswerPrinter()
            result = receive(client, handle.job, printer if stream else None, timeout=timeout)
        row = as_row(result)
        reason = why(row)
        if json:
            terminal.print_json(row)
            if reason is not None:
                raise typer.Exit(terminal.FAILURE)
            return
        if result.text or reason is None:
            print("" if stream else result.text, flush=True)
        if reason is not None:
            raise SailqError(reason)
        terminal.note(timings(result))


class _JsonPrinter:
    """Prints each piece of an answer as a JSON object."""

    def thought(self, piece: str) -> None:
        self._print("reasoning", piece)

    def text(self, piece: str) -> None:
        self._print("chunk", piece)

    @staticmethod
    def _print(name: str, piece: str) -> None:
        from sailq.shared import terminal

        terminal.print_json({name: piece})
