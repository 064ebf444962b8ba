"""What a server allows, and the keys that open it."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..evaluation.encoding import at_least_one
from ..text.printable import printable

__all__ = ["Keys", "Role", "Settings", "is_loopback"]

Role = Literal["ask", "edit"]
"""Who may ask the model, and who may look at the edits and change them as well."""

_LEAST = 16  # characters of a key


@dataclass(frozen=True)
class Settings:
    """Limits and names of one server.

    Attributes:
        name: the id under which ``/v1/models`` lists the edited model; ``NAME:base`` is the base model.
        batch: rows that one ``generate`` runs at most.
        window: seconds for which a batch waits for further rows.
        workers: batches that run at once, so that a short answer need not wait for a long one.
        queue: rows that may wait; more are refused with 429.
        max_tokens: new tokens of an answer at most, and where a chat does not say how many.
        max_prompt_tokens: tokens of a prompt at most; None for what the model's context holds.
        max_body: bytes of a request at most.
        rate: requests a minute that each key may make, in a token bucket as large; 0 for any number.
        log_text: whether logs may hold prompts, answers and facts.

    Raises:
        ValueError: a number out of its range.
    """

    name: str = "memplug"
    batch: int = 8
    window: float = 0.01
    workers: int = 2
    queue: int = 64
    max_tokens: int = 512
    max_prompt_tokens: int | None = None
    max_body: int = 1 << 20
    rate: int = 600
    log_text: bool = False

    def __post_init__(self) -> None:
        least = {"max_prompt_tokens": self.max_prompt_tokens} if self.max_prompt_tokens is not None else {}
        at_least_one(
            batch=self.batch, workers=self.workers, queue=self.queue, max_tokens=self.max_tokens,
            max_body=self.max_body, **least,
        )  # fmt: skip
        for name, most in (("rate", 1e9), ("window", 10.0)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 to {most:g}")


@dataclass(frozen=True)
class Keys:
    """The API keys by role; without any, everybody may do everything.

    Raises:
        ValueError: a key that is short, is not ASCII or stands for both roles.
    """

    ask: tuple[str, ...] = field(default=(), repr=False)
    edit: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for role, keys in (("ask", self.ask), ("edit", self.edit)):
            if any(len(key) < _LEAST or not key.isascii() or not key.isprintable() for key in keys):
                raise ValueError(f"a key for {role} is not {_LEAST} or more printable ASCII characters")
        if set(self.ask) & set(self.edit):
            raise ValueError("one key is given for both ask and edit; give each role its own")

    @classmethod
    def read(cls, path: Path | None, environment: Mapping[str, str] = os.environ) -> Keys:
        """Keys of ``MEMPLUG_ASK_KEY`` and ``MEMPLUG_EDIT_KEY`` in the environment, and of a file.

        Args:
            path: a file with a line ``ask KEY`` or ``edit KEY`` for each key; # begins a comment.
            environment: the environment variables.

        Raises:
            ValueError: other lines, or a file that others than its owner may read.
            OSError: the file cannot be read.
        """
        found: dict[str, list[str]] = {
            role: [environment[name]] if environment.get(name := f"MEMPLUG_{role.upper()}_KEY") else []
            for role in ("ask", "edit")
        }
        if path is not None:
            if os.name == "posix" and path.stat().st_mode & 0o077:
                raise ValueError(f"{path} may be read by others than its owner; chmod 600 it")
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                words = line.split()
                if not words or words[0].startswith("#"):
                    continue
                if len(words) != 2 or words[0] not in found:
                    raise ValueError(f"{path}, line {number}: write `ask KEY` or `edit KEY`")
                found[words[0]].append(words[1])
        return cls(*map(tuple, found.values()))

    def __bool__(self) -> bool:
        return bool(self.ask or self.edit)

    def role(self, given: str) -> Role | None:
        """The role that a key stands for. Compared with every key in the same time, whichever it is."""
        found: Role | None = None
        names: tuple[Role, Role] = ("ask", "edit")
        for role in names:
            for key in self.ask if role == "ask" else self.edit:
                if hmac.compare_digest(key.encode(), given.encode()):
                    found = role
        return found

    def check_host(self, host: str) -> None:
        """Raises ValueError for an address that others can reach, without a key."""
        if not self and not is_loopback(host):
            raise ValueError(
                f"{printable(host)} can be reached from elsewhere, and there is no API key; set "
                "MEMPLUG_ASK_KEY and MEMPLUG_EDIT_KEY, give --keys FILE, or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
