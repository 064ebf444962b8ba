"""Reads a file of edits row by row: JSON, JSONL, CSV, or a dataset of the Hugging Face hub.

Knows about what a row should hold only what it is told of a table's columns. A row that cannot be read
comes out as its reason, so that the caller decides whether it may be skipped; a file that cannot be read
any further raises.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Columns", "DataError", "Row", "read_file", "read_hub"]


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


class Columns(NamedTuple):
    """What the columns of a table are.

    Attributes:
        known: names that are recognised in any letter case.
        lists: columns that may hold several values a row, as a JSON list or as several columns of one name;
            they come out as lists.
        needed: groups of names; a table has one of each.
    """

    known: Collection[str] = ()
    lists: Collection[str] = ()
    needed: Sequence[Sequence[str]] = ()


_ANY = Columns()


def read_file(path: Path, columns: Columns = _ANY) -> Iterator[Row]:
    """The records of a file: one JSON object a line, a JSON list of objects, or CSV/TSV with a header.

    Args:
        path: the file; its ending says which it is. A .csv whose first line has no comma is read with the
            semicolons or tabs that are there.
        columns: of a table; empty cells are left out of its rows.

    Raises:
        DataError: no such file, a folder, an unknown ending, a list or table that breaks off, or a table
            without a needed column or with one that is there twice.
    """
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder; name a file in it (.jsonl, .json, .csv or .tsv)")
    if not path.is_file():
        raise DataError(
            f"there is no file {str(path)!r}; give the path of a .jsonl, .json, .csv or .tsv file"
        )
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _read_table(path, "," if kind == ".csv" else "\t", columns)
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


def _read_table(path: Path, delimiter: str, columns: Columns) -> Iterator[Row]:
    # `str.splitlines` would end rows at characters that may stand in a cell.
    text = io.StringIO(_text(path), newline="")
    first = next((line for line in text if line.strip()), "")
    if delimiter == "," and "," not in first:
        delimiter = next((other for other in ";\t" if other in first), delimiter)
    text.seek(0)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] = []
    start = 1
    try:
        for cells in reader:
            number, start = start, reader.line_num + 1  # a quoted cell may hold line breaks
            if not cells:
                continue
            if header:
                yield _table_row(number, header, cells, columns)
            else:
                header = _header(path.name, cells, columns)
    except csv.Error as error:
        reason = f"not valid CSV: {error}"
        if "field limit" in str(error):
            reason = (
                f"a cell is longer than {csv.field_size_limit()} characters; a quote may not be closed, and "
                "texts as long as that belong into a .jsonl file"
            )
        raise DataError(
            f"{path.name}, line {start}: {reason}; nothing behind that line can be read"
        ) from error
    if not header:
        raise DataError(f"{path.name} is empty; its first line must name the columns (prompt, target, ...)")


def _header(file: str, cells: Sequence[str], columns: Columns) -> list[str]:
    """The columns' names, the known ones as they are known."""
    names = [cell.strip() for cell in cells]
    names = [name.casefold() if name.casefold() in columns.known else name for name in names]
    for name in names:
        if name and name not in columns.lists and names.count(name) > 1:
            raise DataError(f"{file} names the column {name!r} twice; keep one of the two")
    for group in columns.needed:
        if not set(group) & set(names):
            raise DataError(
                f"{file} has no column {' or '.join(map(repr, group))}; its first line names "
                f"{[cell.strip() for cell in cells]}"
            )
    return names


def _table_row(number: int, header: Sequence[str], cells: Sequence[str], columns: Columns) -> Row:
    if len(cells) != len(header):
        return Row(number, {}, f"{len(cells)} cells in a table of {len(header)} columns")
    values: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=True):
        if not name or not cell.strip():
            continue
        if name not in columns.lists:
            values[name] = cell
            continue
        try:
            values[name] = [*values.get(name, ()), *_listed(cell.strip())]
        except (ValueError, RecursionError) as error:
            return Row(number, {}, f'{name} holds no JSON list: {error}; write ["one", "two"]')
    return Row(number, values)


def _listed(cell: str) -> list[Any]:
    """What a cell holds: a JSON list, or one text.

    Raises:
        ValueError: it looks like a list of texts or objects, and is no JSON.
    """
    if not (cell.startswith("[") and cell.endswith("]")):
        return [cell]
    try:
        found: list[Any] = json.loads(cell)
    except ValueError:
        if cell[1:].lstrip().startswith(("'", '"', "{")):
            raise
        return [cell]  # a text in brackets
    return found


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
