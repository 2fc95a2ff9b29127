"""Answers as the original release gives them. Runs in an environment of `release.py`, without sailq:

    python release_program.py REQUEST ANSWERS

REQUEST is an .npz file: `request`, a JSON object, and the frames that it speaks of, uint8 [n, height, width, 3] RGB.
See `release.py` for what each kind of request asks and answers.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def with_torchvision() -> None:
    """Import torchvision where there is one, also where its compiled operators do not load: it registers two."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401

        torchvision.library_of_this_process = library  # the folder is deleted with its last reference
    except ImportError:
        pass


class Release:
    """The processor and the model of a directory, fp32, in this environment's transformers."""

    def __init__(self, directory: Path, clocks: list[float]) -> None:
        import transformers

        config, processor, tokenizer = (
            json.loads((directory / name).read_text("utf-8"))
            for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json")
        )
        self.family, self.clocks = config["model_type"], clocks
        own = directory / "chat_template.jinja"
        self.template = own.read_text("utf-8") if own.exists() else tokenizer["chat_template"]
        images = getattr(transformers, processor["image_processor_type"])
        parts = {"image_processor": images.from_pretrained(directory, do_resize=False)}
        video, kind = directory / "video_preprocessor_config.json", "Qwen2VLVideoProcessor"
        if video.exists():
            kind = json.loads(video.read_text("utf-8"))["video_processor_type"]
        try:
            videos = getattr(transformers, kind)
        except AttributeError:  # before 4.52: the image processor does both
            pass
        else:
            parts["video_processor"] = videos.from_pretrained(directory, do_resize=False)
        module = importlib.import_module(f"transformers.models.{self.family}.processing_{self.family}")
        fast = transformers.Qwen2TokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
        self.processor = getattr(module, processor["processor_class"])(**parts, tokenizer=fast)
        model = getattr(transformers, config["architectures"][0])
        self.model = model.from_pretrained(directory, torch_dtype=torch.float32).eval()

    def inputs(self, messages: list[dict[str, Any]], frames: dict[str, np.ndarray]) -> dict[str, Any]:
        """What the processor makes of a conversation whose frames have their final size."""
        text = self.processor.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        media: dict[str, list[Any]] = {"image": [], "video": []}
        parts = [part for message in messages for part in message["content"] if part["type"] in media]
        for part in parts:
            size = part["frames"], part["height"], part["width"], 3
            array = frames.get(part["blob"], np.broadcast_to(np.uint8(0), size))
            assert array.shape == size, (array.shape, size)
            media[part["type"]].append(array[0] if part["type"] == "image" else array)
        times = self.times([part for part in parts if part["type"] == "video"])
        return self.processor(
            text=[text], images=media["image"] or None, videos=media["video"] or None, return_tensors="pt", **times
        )

    def times(self, videos: list[dict[str, Any]]) -> dict[str, Any]:
        """What the family's processor takes to know the frames' times. Two frames a second where they are unknown, as
        qwen-vl-utils has it."""
        if not videos or self.family == "qwen2_vl":
            return {}
        if self.family == "qwen2_5_vl":
            return {"fps": [video.get("fps") or 2.0 for video in videos]}
        return {"video_metadata": [self.metadata(video) for video in videos], "do_sample_frames": False}

    def metadata(self, video: dict[str, Any]) -> dict[str, Any]:
        """The numbers of a video's frames in its file, and the file's frames a second: a frame's time is exactly its
        number / fps."""
        count, times = video["frames"], video.get("times")
        if not times:
            return {"total_num_frames": count, "fps": 2.0, "frames_indices": list(range(count))}
        numbers = {clock: [round(time * clock) for time in times] for clock in self.clocks}
        clock = next(c for c in self.clocks if [number / c for number in numbers[c]] == list(times))
        return {"total_num_frames": numbers[clock][-1] + 1, "fps": clock, "frames_indices": numbers[clock]}

    def positions(self, inputs: dict[str, Any]) -> tuple[np.ndarray, int]:
        """[3, L], and the delta."""
        index = getattr(self.model, "get_rope_index", None) or self.model.model.get_rope_index
        grids = {key: value for key, value in inputs.items() if key.endswith("grid_thw") or key == "second_per_grid_ts"}
        length = inputs["input_ids"].shape[1]
        if not grids:
            return np.tile(np.arange(length), (3, 1)), 0
        found, delta = index(inputs["input_ids"], **grids, attention_mask=inputs["attention_mask"])
        return found[:, 0].numpy(), int(delta)

    @torch.no_grad()
    def greedy(self, inputs: dict[str, Any], tokens: int) -> list[int]:
        """The answer's tokens, the end token included."""
        out = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return [int(token) for token in out[0, inputs["input_ids"].shape[1] :]]


def prompts(request: dict[str, Any], frames: dict[str, np.ndarray]) -> dict[str, Any]:
    release, answers = Release(Path(request["model"]), request["clocks"]), {}
    for number, messages in enumerate(request["prompts"]):
        inputs = release.inputs(messages, frames)
        answers[f"{number}.tokens"] = inputs["input_ids"][0].numpy()
        answers[f"{number}.positions"], answers[f"{number}.delta"] = release.positions(inputs)
        if request["patches"]:
            kinds = [key for key in ("pixel_values", "pixel_values_videos") if key in inputs]
            answers |= {f"{number}.{key}": inputs[key].numpy() for key in kinds}
        if request["max_new_tokens"]:
            answers[f"{number}.answer"] = release.greedy(inputs, request["max_new_tokens"])
    return answers


def pixels(request: dict[str, Any], frames: dict[str, np.ndarray]) -> dict[str, Any]:
    """Media through qwen-vl-utils and the processors, with the limits that Qwen2-VL's own files state."""
    import qwen_vl_utils.vision_process as qwen
    from PIL import Image
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    def decoded(asked: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
        return torch.from_numpy(frames[asked["video"]]).permute(0, 3, 1, 2), {}, 2.0

    qwen.VIDEO_READER_BACKENDS[qwen.get_video_reader_backend()] = decoded
    limits = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 16384}
    images, videos = Qwen2VLImageProcessor(**limits), Qwen2VLVideoProcessor(**limits)
    answers = {}
    for number, (kind, name, options) in enumerate(request["media"]):
        pictures = [Image.fromarray(frame) for frame in frames[name]]
        if kind == "image":
            done = images(images=[qwen.fetch_image({"image": pictures[0], **options})], return_tensors="np")
            values, grid = done["pixel_values"], done["image_grid_thw"]
        else:
            video = qwen.fetch_video({"video": pictures if kind == "list" else name, **options})
            done = videos(videos=[video], return_tensors="pt")
            values, grid = done["pixel_values_videos"], done["video_grid_thw"]
        answers[f"{number}.values"], answers[f"{number}.grid"] = np.asarray(values), np.asarray(grid)[0]
    return answers


def sampling(request: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Probabilities of each row of logits [n, V] after a prompt, with `generate`'s own processors in its own order."""
    from transformers import GenerationConfig

    model = Release(Path(request["model"]), []).model
    prompt, rows = (torch.from_numpy(arrays[name]) for name in ("prompt", "logits"))
    answers = {}
    for number, options in enumerate(request["options"]):
        config = GenerationConfig(do_sample=True, **options)
        apply = model._get_logits_processor(config, input_ids_seq_length=len(prompt))
        answers[str(number)] = apply(prompt.expand(len(rows), -1), rows.clone()).softmax(-1).numpy()
    return answers


def main() -> None:
    torch.set_num_threads(1)
    with_torchvision()
    with np.load(sys.argv[1]) as file:
        request, frames = json.loads(str(file["request"])), {name: file[name] for name in file.files}
    kinds = {"prompts": prompts, "pixels": pixels, "sampling": sampling}
    np.savez(sys.argv[2], **kinds[request["kind"]](request, frames))


if __name__ == "__main__":
    main()
