"""`sailq ask`: one question, one answer."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sailq.shared.options import Json, Model, RedisUrl

from . import _flags as flags


def ask(
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT", show_default="a description", help="The question. Without media it is needed."
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
            help="Media as sophon-demo's --vision_inputs names them, before those of --video and --image.",
        ),
    ] = "",
    system: flags.System = None,
    conversation: Annotated[
        str | None,
        typer.Option(
            "--conversation", metavar="ID",
            help="Go on with a conversation, or begin one of this name. Its clips are kept for later questions.",
        ),
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it comes.")] = False,
    wait: Annotated[float, flags.WAIT] = 0.0,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Give up when there is no answer by then."),
    ] = None,
    json: Json = False,
    redis_url: RedisUrl = None,
    model: Model = None,
    max_new_tokens: flags.MaxNewTokens = None,
    temperature: flags.Temperature = None,
    top_p: flags.TopP = None,
    top_k: flags.TopK = None,
    repetition_penalty: flags.RepetitionPenalty = None,
    seed: flags.Seed = None,
    stop: flags.Stop = None,
    nframes: flags.NFrames = None,
    fps: flags.Fps = None,
    resized_height: flags.ResizedHeight = None,
    resized_width: flags.ResizedWidth = None,
    min_pixels: flags.MinPixels = None,
    max_pixels: flags.MaxPixels = None,
    video_start: flags.VideoStart = None,
    video_end: flags.VideoEnd = None,
    video_sample_num: flags.VideoSampleNum = None,
) -> None:
    """Ask about a video, about images, or just ask.

    The answer goes to stdout, the timings to stderr. Videos come before images,
    each kind in its order; any other order can be given with --vision-inputs.

    With --json the result is one JSON object; with --stream too, it comes after
    one {"chunk": text} for each piece.

    \b
    Examples:
      sailq ask --video clip.mp4 --prompt "What happens here?" --stream
      sailq ask --image a.png --image b.png --prompt "Which is older?" --json
      sailq ask --prompt "How many sides does a square have?"
    """
    from . import _terminal as terminal

    with terminal.command(json):
        from sailq.shared.errors import BadRequest, SailqError
        from sailq.shared.jobs import GenerationOptions, parse
        from sailq.shared.settings import load_settings, model_name

        from ..captioning.rows import as_row, why
        from ..client import Client
        from ..vision_inputs import to_parts
        from ._answer import receive

        options = parse(
            GenerationOptions,
            flags.given(
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                repetition_penalty=repetition_penalty,
                seed=seed,
                stop=stop,
            ),
        )
        media = flags.media_options(
            nframes=nframes,
            fps=fps,
            resized_height=resized_height,
            resized_width=resized_width,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            video_start=video_start,
            video_end=video_end,
            video_sample_num=video_sample_num,
        )
        parts = to_parts(vision_inputs) + flags.media_parts(video, image)
        question = prompt or flags.default_prompt(parts)
        if not question:
            raise BadRequest("There is nothing to ask: give --prompt, --video or --image.")
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})

        settings = load_settings(redis_url=redis_url, model=model)
        name = model_name(settings.model)
        with Client(settings=settings) as client:
            terminal.check_served(client, name)
            handle = client.submit(
                flags.fill_in(messages, media),
                conversation=conversation,
                model=name,
                options=options,
                timeout=timeout,
                stream=stream,
                wait=wait,
            )
            show = (lambda text: terminal.print_json({"chunk": text})) if json else terminal.print_piece
            result = receive(client, handle.job, timeout=timeout, show=show if stream else None)
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
        terminal.note(terminal.timings(result))
