"""Reads an upload: a body of type multipart/form-data whose part `file` goes to the disk as it comes."""

from __future__ import annotations

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from ..openai_api.errors import ApiError
from .files import Upload

_MOST_FIELDS = 16
_FIELD_BYTES = 1024
_HEADER_BYTES = 8192
_NAME_CHARACTERS = 255


async def receive(request: Request, upload: Upload) -> tuple[dict[str, str], str]:
    """Writes the part `file` of a request's body to `upload`. Returns (the other fields, the file's name).

    Raises ApiError: 400 if the body is not such a form, 413 and 507 as `upload` does.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(415, "The Content-Type must be multipart/form-data.", code="unsupported_media_type")
    try:
        form = _Form(boundary, upload)
        async for chunk in request.stream():
            await run_in_threadpool(form.write, chunk)
        form.end()
    except FormParserError:
        raise ApiError(400, "The body is not a form of type multipart/form-data.", code="invalid_form") from None
    if form.filename is None:
        raise ApiError(400, "The form has no file in the field 'file'.", code="missing_required_parameter",
                       param="file")
    return form.fields, form.filename


class _Form:
    """A form that comes in pieces. Raises FormParserError."""

    def __init__(self, boundary: bytes, upload: Upload) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._upload = upload
        self._complete = False
        self._header, self._value, self._head = b"", b"", 0
        self._name: str | None = None
        self._is_file = False
        self._text = b""
        self._parser = MultipartParser(boundary, {
            "on_part_begin": self._begin, "on_header_field": self._field, "on_header_value": self._said,
            "on_header_end": self._headed, "on_headers_finished": self._known, "on_part_data": self._data,
            "on_part_end": self._ended, "on_end": self._end,
        })

    def write(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def end(self) -> None:
        self._parser.finalize()
        if not self._complete:
            raise FormParserError("The form is incomplete.")

    def _begin(self) -> None:
        self._header, self._value, self._head, self._text = b"", b"", 0, b""
        self._name, self._is_file = None, False

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._header += data[start:end]

    def _said(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > _HEADER_BYTES:
            raise FormParserError("The head of a part is too long.")

    def _headed(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            name = options.get(b"name")
            self._name = None if name is None else name.decode(errors="replace")
            if self._name == "file":
                if self.filename is not None:
                    raise FormParserError("There are two files.")
                self._is_file, self.filename = True, _shown(options.get(b"filename", b""))
        self._header, self._value = b"", b""

    def _known(self) -> None:
        if self._name is None:
            raise FormParserError("A part has no name.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._upload.write(memoryview(data)[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _FIELD_BYTES:
            raise ApiError(400, f"A field of the form is longer than {_FIELD_BYTES} bytes.", code="invalid_form")

    def _ended(self) -> None:
        if self._is_file:
            return
        assert self._name is not None
        self.fields[self._name] = self._text.decode(errors="replace")
        if len(self.fields) > _MOST_FIELDS:
            raise FormParserError("There are too many fields.")

    def _end(self) -> None:
        self._complete = True


def _shown(name: bytes) -> str:
    """A file's name, for people: it never becomes a path."""
    text = name.decode(errors="replace").replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in text if letter.isprintable())[:_NAME_CHARACTERS] or "upload"
