"""Questions about scenes and their one true answer, in English and Chinese.

Every wording of a question belongs to one topic, and a topic has one answer template: an answer is either
right or wrong, never a matter of style.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .scene import Colour, Motion, Scene, Shape

Lang = Literal["en", "zh"]
LANGS: tuple[Lang, ...] = ("en", "zh")

VIDEO_TOPICS = ("describe_video", "colour", "shape", "motion")
IMAGE_TOPICS = ("describe_image", "colour", "shape")

COLOUR_ZH: dict[Colour, str] = {
    "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色",
    "blue": "蓝色", "purple": "紫色", "white": "白色", "black": "黑色",
}  # fmt: skip
SHAPE_ZH: dict[Shape, str] = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形",
    "star": "五角星", "cross": "十字形", "ring": "圆环",
}  # fmt: skip
MOTION_EN: dict[Motion, str] = {
    "left": "moves to the left", "right": "moves to the right", "up": "moves up", "down": "moves down",
    "closer": "comes closer", "away": "goes away", "still": "stays still",
}  # fmt: skip
MOTION_ZH: dict[Motion, str] = {
    "left": "向左移动", "right": "向右移动", "up": "向上移动", "down": "向下移动",
    "closer": "慢慢靠近", "away": "慢慢远离", "still": "静止不动",
}  # fmt: skip
ORDINALS: dict[Lang, tuple[str, ...]] = {"en": ("first", "second", "third"), "zh": ("一", "二", "三")}
NUMBERS: dict[Lang, tuple[str, ...]] = {"en": ("one", "two", "three"), "zh": ("一", "两", "三")}

QUESTIONS: dict[str, dict[Lang, tuple[str, ...]]] = {
    "describe_video": {
        "en": (
            "Describe the video.", "Please describe the video.", "Describe this clip.",
            "Describe this video.", "What happens in the video?", "What happens in this clip?",
            "What is happening in the video?", "What do you see in the video?",
            "Tell me what happens in the video.", "Please describe what happens in this clip.",
        ),
        "zh": (
            "请描述视频中的内容", "请描述视频中的内容。", "请描述这段视频。", "请描述这个视频的内容。",
            "描述一下这段视频。", "描述视频。", "视频里发生了什么?", "这段视频里发生了什么?",
            "你在视频中看到了什么?", "视频中有什么?",
        ),
    },
    "describe_image": {
        "en": (
            "Describe the image.", "Please describe the image.", "Describe this picture.",
            "Describe this image.", "Describe the picture.", "What is in the image?",
            "What is in this picture?", "What do you see in the image?", "What does the image show?",
            "Tell me what is in the picture.",
        ),
        "zh": (
            "请描述图片中的内容", "请描述图片中的内容。", "请描述这张图片。", "请描述这张图片的内容。",
            "描述一下这张图片。", "描述图片。", "图片里有什么?", "这张图片里有什么?",
            "你在图片中看到了什么?", "图中有什么?",
        ),
    },
    "colour": {
        "en": (
            "What colour is it?", "What color is it?", "Which colour is it?", "What colour is the object?",
            "What color is the object?", "What is its colour?", "Which colour does the object have?",
            "Tell me its colour.",
        ),
        "zh": (
            "它是什么颜色?", "它是什么颜色的?", "它的颜色是什么?", "物体是什么颜色?",
            "这个物体是什么颜色的?", "物体的颜色是什么?", "什么颜色?", "请说出它的颜色。",
        ),
    },
    "shape": {
        "en": (
            "What shape is it?", "Which shape is it?", "What shape is the object?", "What is its shape?",
            "What is the shape of the object?", "Which shape does the object have?", "Tell me its shape.",
        ),
        "zh": (
            "它是什么形状?", "它是什么形状的?", "它的形状是什么?", "物体是什么形状?",
            "这个物体是什么形状的?", "物体的形状是什么?", "什么形状?", "请说出它的形状。",
        ),
    },
    "motion": {
        "en": (
            "How does it move?", "How does the object move?", "Where does it move?",
            "Where does the object move?", "Which way does it move?", "Where does it go?",
            "What does the object do?", "Tell me how it moves.",
        ),
        "zh": (
            "它怎么移动?", "它是怎么移动的?", "它往哪里移动?", "它向哪里移动?", "物体怎么移动?",
            "物体是怎么移动的?", "物体往哪里移动?", "它怎么动?", "请说出它怎么移动。",
        ),
    },
    "describe_images": {
        "en": (
            "Describe the images in order.", "Please describe the images.",
            "Describe the pictures one by one.", "Describe the pictures.", "What is in the images?",
            "What do the images show?", "What do you see in the images?", "Describe each image.",
        ),
        "zh": (
            "请按顺序描述这些图片。", "请描述这些图片。", "依次描述每张图片。", "请描述这几张图片的内容。",
            "这些图片里有什么?", "每张图片里有什么?", "你在这些图片中看到了什么?",
        ),
    },
    "nth_image": {
        "en": (
            "What is in the {nth} image?", "Describe the {nth} image.", "What does the {nth} image show?",
            "What do you see in the {nth} picture?", "What is in the {nth} picture?",
        ),
        "zh": (
            "第{nth}张图片里有什么?", "请描述第{nth}张图片。", "第{nth}张图是什么?",
            "你在第{nth}张图片中看到了什么?", "第{nth}张图里有什么?",
        ),
    },
    "count": {
        "en": ("How many images are there?", "How many images do you see?", "How many pictures are there?"),
        "zh": ("有几张图片?", "一共有几张图片?", "你看到了几张图片?"),
    },
}  # fmt: skip

_Fact = dict[Lang, tuple[tuple[str, ...], str]]
_CHAT: tuple[_Fact, ...] = (
    {
        "en": (("Who are you?", "What are you?", "What is your name?", "Please introduce yourself."),
               "I am sailq-tiny, a small model that describes shapes in pictures and clips."),
        "zh": (("你是谁?", "你叫什么名字?", "请介绍一下你自己。", "请介绍你自己。"),
               "我是 sailq-tiny,一个描述图片和视频中的形状的小模型。"),
    },
    {
        "en": (("What can you do?", "How can you help me?"),
               "I can name a shape, its colour and how it moves."),
        "zh": (("你会做什么?", "你能做什么?"), "我能说出形状、颜色和移动方式。"),
    },
    {
        "en": (("Hello", "Hello!", "Hi", "Hi!", "Good morning!"), "Hello! Show me a picture or a clip."),
        "zh": (("你好", "你好!", "您好!", "早上好!"), "你好!请给我看图片或视频。"),
    },
    {
        "en": (("Thank you.", "Thank you!", "Thanks!", "Thanks"), "You are welcome."),
        "zh": (("谢谢", "谢谢!", "谢谢你!", "多谢!"), "不客气。"),
    },
)  # fmt: skip
_SIDES = ((("triangle", "三角形"), ("three", "三")), (("square", "正方形"), ("four", "四")),
          (("pentagon", "五边形"), ("five", "五")), (("hexagon", "六边形"), ("six", "六")))  # fmt: skip
_MIXES = ((("red", "红色"), ("yellow", "黄色"), ("orange", "橙色")),
          (("blue", "蓝色"), ("yellow", "黄色"), ("green", "绿色")),
          (("red", "红色"), ("blue", "蓝色"), ("purple", "紫色")),
          (("red", "红色"), ("white", "白色"), ("pink", "粉色")),
          (("black", "黑色"), ("white", "白色"), ("grey", "灰色")))  # fmt: skip
_SIDES_ASK: dict[Lang, tuple[str, ...]] = {
    "en": ("How many sides does a {} have?", "How many sides has a {}?", "A {} has how many sides?"),
    "zh": ("{}有几条边?", "一个{}有几条边?", "{}有多少条边?"),
}
_MIX_ASK: dict[Lang, tuple[str, ...]] = {
    "en": (
        "What do you get if you mix {} and {}?",
        "Which colour do {} and {} make?",
        "What colour is {} mixed with {}?",
    ),
    "zh": ("{}和{}混合是什么颜色?", "{}加{}是什么颜色?", "{}和{}混合得到什么颜色?"),
}
_SUM_ASK: dict[Lang, tuple[str, ...]] = {
    "en": ("What is {} + {}?", "What is {} plus {}?", "{} + {} = ?", "How much is {} plus {}?"),
    "zh": ("{} + {} = ?", "{}加{}等于几?", "{}加{}等于多少?", "{} + {} 等于几?"),
}
_NOTHING: dict[str, dict[Lang, str]] = {
    "picture": {"en": "There is no picture in this conversation.", "zh": "这段对话里没有图片。"},
    "clip": {"en": "There is no clip in this conversation.", "zh": "这段对话里没有视频。"},
}

Turn = tuple[str, str]
"""A question and its true answer."""


def noun(scene: Scene, lang: Lang) -> str:
    """The thing in the scene with its colour, as answers name it: `a red circle`, `一个红色的圆形`."""
    if lang == "zh":
        return f"一个{COLOUR_ZH[scene.colour]}的{SHAPE_ZH[scene.shape]}"
    return f"{'an' if scene.colour == 'orange' else 'a'} {scene.colour} {scene.shape}"


def about(rng: np.random.Generator, lang: Lang, topic: str, scene: Scene) -> Turn:
    """A question on one scene (a topic of `VIDEO_TOPICS` or `IMAGE_TOPICS`) and its answer."""
    question = _pick(rng, QUESTIONS[topic][lang])
    thing = noun(scene, lang)
    if lang == "zh":
        answers = {
            "describe_video": f"{thing}{MOTION_ZH[scene.motion]}。",
            "describe_image": f"这是{thing}。",
            "colour": f"它是{COLOUR_ZH[scene.colour]}的。",
            "shape": f"它是{SHAPE_ZH[scene.shape]}。",
            "motion": f"它{MOTION_ZH[scene.motion]}。",
        }
    else:
        answers = {
            "describe_video": f"{thing[0].upper()}{thing[1:]} {MOTION_EN[scene.motion]}.",
            "describe_image": f"This is {thing}.",
            "colour": f"It is {scene.colour}.",
            "shape": f"It is a {scene.shape}.",
            "motion": f"It {MOTION_EN[scene.motion]}.",
        }
    return question, answers[topic]


def about_several(rng: np.random.Generator, lang: Lang, topic: str, scenes: Sequence[Scene]) -> Turn:
    """A question on two or three images: `describe_images`, `count` or `nth_image` and a digit from 0."""
    name = topic.rstrip("012")
    question = _pick(rng, QUESTIONS[name][lang])
    if name == "count":
        number = NUMBERS[lang][len(scenes) - 1]
        return question, f"There are {number} images." if lang == "en" else f"有{number}张图片。"
    if name == "nth_image":
        place = int(topic[-1])
        return question.format(nth=ORDINALS[lang][place]), _nth(lang, place, scenes[place])
    answers = [_nth(lang, place, scene) for place, scene in enumerate(scenes)]
    return question, (" " if lang == "en" else "").join(answers)


def without_media(rng: np.random.Generator, lang: Lang) -> Turn:
    """A question that needs no picture, or asks for one that is not there."""
    if rng.random() < 0.75:
        return fact(rng, lang)
    if rng.integers(2):
        return _pick(rng, QUESTIONS["describe_video"][lang]), _NOTHING["clip"][lang]
    topic = ("describe_image", "describe_image", "colour", "shape")[rng.integers(4)]
    return _pick(rng, QUESTIONS[topic][lang]), _NOTHING["picture"][lang]


def fact(rng: np.random.Generator, lang: Lang) -> Turn:
    """A question whose answer never depends on a picture."""
    column = LANGS.index(lang)
    kind = rng.choice(4, p=[0.3, 0.2, 0.3, 0.2])
    if kind == 0:
        questions, answer = _CHAT[rng.integers(len(_CHAT))][lang]
        return _pick(rng, questions), answer
    if kind == 1:
        shape, number = (pair[column] for pair in _SIDES[rng.integers(len(_SIDES))])
        answer = f"A {shape} has {number} sides." if lang == "en" else f"{shape}有{number}条边。"
        return _pick(rng, _SIDES_ASK[lang]).format(shape), answer
    if kind == 2:
        a, b = (int(v) for v in rng.integers(0, 10, 2))
        return _pick(rng, _SUM_ASK[lang]).format(a, b), f"{a} + {b} = {a + b}"
    first, second, mixed = (pair[column] for pair in _MIXES[rng.integers(len(_MIXES))])
    if rng.integers(2):
        first, second = second, first
    answer = f"{first.capitalize()} and {second} make {mixed}." if lang == "en" else f"{first}和{second}混合是{mixed}。"
    return _pick(rng, _MIX_ASK[lang]).format(first, second), answer


def _nth(lang: Lang, place: int, scene: Scene) -> str:
    if lang == "en":
        return f"The {ORDINALS['en'][place]} image shows {noun(scene, lang)}."
    return f"第{ORDINALS['zh'][place]}张图是{noun(scene, lang)}。"


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
