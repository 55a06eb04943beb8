# Copyright (C) 2026 the anomalib-cdd authors
# SPDX-License-Identifier: Apache-2.0
"""What disks, editors and spreadsheets do to files, drawn from a seed."""

import random
from collections.abc import Callable

Mutation = Callable[[bytes, random.Random], bytes]


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def empty(content: bytes, rng: random.Random) -> bytes:
    return b""


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 20)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def zeroed(content: bytes, rng: random.Random) -> bytes:
    """A block that was never written."""
    start = rng.randrange(len(content))
    length = min(rng.choice([1, 16, 512, 4096]), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def repeated(content: bytes, rng: random.Random) -> bytes:
    return content + content[rng.randrange(len(content)) :]


def noise(content: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([1, 10, 100, 1000]))


def inserted(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.randint(1, 8)) + content[place:]


BYTES: tuple[Mutation, ...] = (truncated, empty, flipped, zeroed, repeated, noise, inserted)


def _by_line(change: Callable[[list[bytes], random.Random], list[bytes]]) -> Mutation:
    def mutate(content: bytes, rng: random.Random) -> bytes:
        return b"\n".join(change(content.split(b"\n"), rng))

    return mutate


def _without_a_column(lines: list[bytes], rng: random.Random) -> list[bytes]:
    place = rng.randrange(2)
    return [b",".join(value for i, value in enumerate(line.split(b",")) if i != place) for line in lines]


def _field(lines: list[bytes], rng: random.Random, value: bytes) -> list[bytes]:
    row = rng.randrange(len(lines))
    fields = lines[row].split(b",")
    fields[rng.randrange(len(fields))] = value
    return [*lines[:row], b",".join(fields), *lines[row + 1 :]]


def _strange(lines: list[bytes], rng: random.Random) -> list[bytes]:
    values = [
        b"",
        b'"',
        b"\0",
        b"=cmd|'/c calc'!A1",
        b"../../etc/passwd",
        b"\xff\xfe",
        b"nan",
        b"-1",
        b"1e400",
        b"a\rb",
    ]
    return _field(lines, rng, rng.choice([*values, b"x" * 200_000, b'"' + b"y\n" * 1000, "ä".encode("latin-1")]))


TEXT: tuple[Mutation, ...] = (
    *BYTES,
    _by_line(_without_a_column),
    _by_line(_strange),
    _by_line(lambda lines, rng: [lines[0], *lines]),
    _by_line(lambda lines, rng: [lines[0] + b"," + lines[0], *lines[1:]]),
    _by_line(lambda lines, rng: rng.sample(lines, len(lines))),
    _by_line(lambda lines, rng: lines[1:]),
    lambda content, rng: content.replace(b",", rng.choice([b";", b"\t", b",,"])),
    lambda content, rng: content.replace(b"\n", rng.choice([b"\r", b"\r\n", b"\n\n"])),
    lambda content, rng: content.decode("latin-1").encode(
        rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp500"]), "replace"
    ),
)


def mutate(content: bytes, rng: random.Random, kinds: tuple[Mutation, ...] = BYTES) -> bytes:
    """Apply one or two mutations to content that is not empty."""
    for _ in range(rng.choice([1, 1, 2])):
        content = rng.choice(kinds)(content, rng) if content else content
    return content
