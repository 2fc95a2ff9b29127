"""Twenty JSON schemas of the ordinary world: pydantic models, OpenAI's and vLLM's documents, and camera events."""

from __future__ import annotations

from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

Schema = dict[str, Any]
Short = Annotated[str, Field(max_length=20)]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Shape(str, Enum):
    circle, square, triangle = "circle", "square", "triangle"


class Box(Closed):
    x: Annotated[int, Field(ge=0, le=640)]
    y: Annotated[int, Field(ge=0, le=480)]


class Sighting(Closed):
    shape: Shape
    colour: Literal["red", "green", "blue"]
    box: Box
    moving: bool


class Report(Closed):
    """Nested models, a list of them, and an optional field."""

    camera: Annotated[int, Field(ge=1, le=16)]
    seen: Annotated[list[Sighting], Field(max_length=3)]
    note: Short | None = None


class Person(Closed):
    kind: Literal["person"]
    age: Annotated[int, Field(ge=0, lt=120)]


class Car(Closed):
    kind: Literal["car"]
    plate: Annotated[str, Field(pattern=r"^[A-Z]{2}-[0-9]{4}$")]


class Found(Closed):
    """A union by tag."""

    what: Annotated[Person | Car, Field(discriminator="kind")]


class Visit(Closed):
    day: date
    visitor: UUID


class Event(BaseModel):
    """OpenAI's first example of a pydantic model; further properties are allowed."""

    name: str
    date: str
    participants: list[str]


class CarType(str, Enum):
    sedan, suv, truck, coupe = "sedan", "SUV", "Truck", "Coupe"


class CarDescription(BaseModel):
    """vLLM's example of a pydantic model."""

    brand: str
    model: str
    car_type: CarType


def closed(**properties: Schema) -> Schema:
    """An object with exactly these properties, as OpenAI's strict mode asks for."""
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }


def text(most: int) -> Schema:
    return {"type": "string", "maxLength": most}


STEPS = closed(
    steps={"type": "array", "items": closed(explanation={"type": "string"}, output={"type": "string"})},
    final_answer={"type": "string"},
)
LINKED_LIST = {
    **closed(linked_list={"$ref": "#/$defs/node"}),
    "$defs": {"node": closed(value={"type": "number"}, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})},
}
USER_INTERFACE = closed(
    type={"type": "string", "enum": ["div", "button", "header", "section"]},
    label={"type": "string"},
    children={"type": "array", "items": {"$ref": "#"}},
    attributes={"type": "array", "items": closed(name={"type": "string"}, value={"type": "string"})},
)

FINITE: dict[str, Schema] = {
    "sighting": Sighting.model_json_schema(),
    "report": Report.model_json_schema(),
    "tagged union": Found.model_json_schema(),
    "date and uuid": Visit.model_json_schema(),
    "moderation": closed(
        is_violating={"type": "boolean"},
        category={"type": ["string", "null"], "enum": ["violence", "sexual", "self_harm", None]},
        explanation_if_violating={"anyOf": [text(30), {"type": "null"}]},
    ),
    "chinese": closed(
        颜色={"enum": ["红色", "蓝色", "绿色"]}, 形状={"type": "string", "enum": ["圆形", "方形"]}, 描述=text(12),
        数量={"type": "integer", "minimum": 0, "maximum": 9},
    ),
    "list of enums": {
        "type": "array", "minItems": 1, "maxItems": 4, "items": {"enum": ["left", "right", "up", "down"]},
    },
    "optional": {
        "type": "object", "additionalProperties": False, "required": ["a"],
        "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": text(5), "d": {"const": "end"}},
    },
    "tuple": {
        "type": "array", "prefixItems": [{"enum": ["x", "y"]}, {"type": "integer", "minimum": -9, "maximum": 9}],
        "items": False, "minItems": 2,
    },
    "deep": closed(a=closed(b=closed(c=closed(d=closed(e={"type": "boolean"}))))),
    "pattern": closed(time={"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"}, id=text(8)),
    "constants": closed(version={"const": 1}, kind={"const": "sailq \"quoted\" \\ 引号 😀"}, ok={"type": "boolean"}),
    "any of": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 100}, text(10), {"type": "null"}]},
    "all of": {"allOf": [{"$ref": "#/$defs/a"}, closed(a={"enum": [1, 2, 3]})], "$defs": {"a": {"type": "object"}}},
}
"""Their answers have a longest one."""

ENDLESS: dict[str, Schema] = {
    "event": Event.model_json_schema(),
    "car": CarDescription.model_json_schema(),
    "steps": STEPS,
    "linked list": LINKED_LIST,
    "user interface": USER_INTERFACE,
    "numbers": closed(score={"type": "number", "minimum": 0, "maximum": 1}, each={
        "type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 4,
    }, exact={"type": "integer", "exclusiveMinimum": 10}),
}
"""Some of their answers are as long as one likes."""

SCHEMAS = {**FINITE, **ENDLESS}
assert len(SCHEMAS) == 20
