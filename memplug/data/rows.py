"""Reads a file of edits row by row: JSON, JSONL, CSV, or a dataset of the Hugging Face hub.

Knows nothing about what a row should hold. A row that cannot be read comes out as its reason, so that
the caller decides whether it may be skipped; a file that cannot be read any further raises.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["DataError", "Row", "read_file", "read_hub"]


class DataError(ValueError):
    """A data set that cannot be used; the message names file, line and reason."""


class Row(NamedTuple):
    """One record as it stands in its source.

    Attributes:
        line: the line it begins on, counted from 1 (the row's number for a hub data set).
        values: its fields; empty if it is broken.
        broken: why it cannot be read; None if it can.
    """

    line: int
    values: dict[str, Any]
    broken: str | None = None


def read_file(path: Path) -> Iterator[Row]:
    """The records of a file: one JSON object a line, a JSON list of objects, or CSV/TSV with a header.

    Raises:
        DataError: no such file, an unknown ending, or a list or table that breaks off.
    """
    if not path.is_file():
        raise DataError(
            f"there is no file {str(path)!r}; give the path of a .jsonl, .json, .csv or .tsv file"
        )
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _read_table(path, "," if kind == ".csv" else "\t")
    elif kind in (".jsonl", ".ndjson", ".json"):
        with path.open("rb") as file:
            start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        yield from _read_list(path) if start == b"[" else _read_lines(path)
    else:
        raise DataError(
            f"{path.name}: unknown ending {path.suffix!r}; memplug reads .jsonl, .json, .csv and .tsv"
        )


def read_hub(name: str, split: str | None = None, config: str | None = None) -> Iterator[Row]:
    """The records of a data set that the ``datasets`` library can load.

    Args:
        name: as `datasets.load_dataset` takes it.
        split: which part; needed if there are several.
        config: which configuration, if there are several.

    Raises:
        ImportError: ``datasets`` is not installed.
        DataError: the data set cannot be loaded, or the split is missing or unknown.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            'hub data sets need the "datasets" library; pip install "memplug[data]", or download the file'
        ) from error
    try:
        found = datasets.load_dataset(name, config)
    except (OSError, ValueError) as error:
        raise DataError(f"hub:{name} cannot be loaded: {error}") from error
    splits = list(found)
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        asked = "several splits" if split is None else f"no split {split!r}"
        raise DataError(f"hub:{name} has {asked}; name one of {splits}: hub:{name}:{splits[0]}")
    for number, values in enumerate(found[split], start=1):
        yield Row(number, dict(values))


def _read_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                yield Row(number, {}, f"not UTF-8 (byte {error.start + 1} of the line)")
                continue
            if not text:
                continue
            try:
                yield _row(number, json.loads(text))
            except json.JSONDecodeError as error:
                yield Row(number, {}, f"not valid JSON: {error.msg} at column {error.colno}")
            except RecursionError:
                yield Row(number, {}, "not usable JSON: nested too deeply")


def _read_list(path: Path) -> Iterator[Row]:
    """One element after the other, so that each one's line is known."""
    text = _text(path)
    decoder, blank = json.JSONDecoder(), re.compile(r"\s*")

    def skip(position: int) -> int:
        match = blank.match(text, position)
        return match.end() if match else position

    position, line, counted = skip(text.index("[") + 1), 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path.name}, line {error.lineno}: not valid JSON: {error.msg} at column {error.colno}; "
                "nothing behind it can be read"
            ) from error
        yield _row(line, value)
        position = skip(position)
        if text[position : position + 1] == ",":
            position = skip(position + 1)
        elif text[position : position + 1] != "]":
            line += text.count("\n", counted, position)
            raise DataError(f"{path.name}, line {line}: the list is not closed; the file may be cut off")


def _read_table(path: Path, delimiter: str) -> Iterator[Row]:
    lines = _text(path).splitlines(keepends=True)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise DataError(
                f"{path.name} is empty; its first line must name the columns (prompt, target, ...)"
            )
        start = reader.line_num + 1
        for cells in reader:
            number, start = start, reader.line_num + 1  # a quoted cell may hold line breaks
            if not cells:
                continue
            if len(cells) != len(header):
                yield Row(number, {}, f"{len(cells)} cells in a table of {len(header)} columns")
                continue
            yield Row(number, {k: v for k, v in zip(header, cells, strict=True) if v.strip()})
    except csv.Error as error:
        raise DataError(
            f"{path.name}, line {reader.line_num}: not valid CSV: {error}; nothing behind it can be read"
        ) from error


def _row(line: int, value: Any) -> Row:
    if not isinstance(value, dict):
        return Row(line, {}, f"expected a JSON object, got {type(value).__name__}")
    return Row(line, value)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path.name}, line {line}: not UTF-8; save the file as UTF-8") from error
