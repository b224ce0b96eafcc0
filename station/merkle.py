"""Merkle trees as in RFC 9162 (and RFC 6962): heads, inclusion and consistency proofs.

A tree is what its leaves' hashes make it. `Tree` holds them all; `Chunked` holds the heads of full
chunks of leaves and asks for single leaves only where a proof needs them, so that a head or a proof
of a million leaves reads a few hundred of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

CHUNK = 256
"""Leaves, a power of two: half a megabyte of heads for four million leaves, and a proof reads no
more than so many."""
EMPTY = hashlib.sha256(b"").digest()
"""Head of a tree without leaves (RFC 9162, 2.1.1)."""


class Hashes(Protocol):
    """Leaves first <= number < last, hashed together."""

    def head(self, first: int, last: int) -> bytes:
        """Of these leaves as a tree of their own."""
        ...


def leaf_hash(data: bytes) -> bytes:
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Head of the tree with these leaf hashes, or with these heads of full trees of one size of
    which only the last may be smaller."""
    level = list(leaves)
    if not level:
        return EMPTY
    while len(level) > 1:
        # An odd one goes up as it is: the right edge of the RFC's tree.
        odd = level[len(level) & ~1 :]
        level = [*_parents(level), *odd]
    return level[0]


def _parents(level: Sequence[bytes]) -> list[bytes]:
    """As `node_hash` of each pair; a long log has millions."""
    sha256, pairs = hashlib.sha256, iter(level)
    return [
        sha256(b"\1" + left + right).digest() for left, right in zip(pairs, pairs, strict=False)
    ]


class Tree:
    """A tree whose leaf hashes are all here."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._leaves = leaves

    def head(self, first: int, last: int) -> bytes:
        return root_of(self._leaves[first:last])


class Chunked:
    """A tree whose full chunks' heads are here; `leaves(first, last)` gives those of one chunk, the
    last chunk's as far as there are."""

    def __init__(self, chunks: Sequence[bytes], leaves: Callable[[int, int], list[bytes]]) -> None:
        self._chunks = chunks
        self._leaves = leaves
        self._seen: dict[int, list[bytes]] = {}

    def head(self, first: int, last: int) -> bytes:
        """Raises `IndexError` where leaves are asked for that are not there."""
        if first % CHUNK or last - first < CHUNK:
            return root_of(self._within(first, last))
        full = self._chunks[first // CHUNK : last // CHUNK]
        if len(full) < (last - first) // CHUNK:
            raise IndexError(f"leaves {first} to {last} are asked for, fewer are there")
        part = [self.head(last - last % CHUNK, last)] if last % CHUNK else []
        return root_of([*full, *part])

    def _within(self, first: int, last: int) -> list[bytes]:
        """A proof asks for one leaf after the other of a chunk: it is read once."""
        start = first - first % CHUNK
        known = self._seen.get(start, [])
        if len(known) < last - start:
            known = self._seen[start] = self._leaves(start, start + CHUNK)
        if len(known) < last - start:
            raise IndexError(f"leaves {first} to {last} are asked for, fewer are there")
        return known[first - start : last - start]


def inclusion(hashes: Hashes, index: int, size: int) -> list[bytes]:
    """The path of a leaf in the tree of `size` leaves, from the leaf up (RFC 9162, 2.1.3.1)."""
    return _path(hashes, index, 0, size)


def _path(hashes: Hashes, index: int, first: int, last: int) -> list[bytes]:
    if last - first <= 1:
        return []
    middle = first + _left(last - first)
    if index < middle:
        return [*_path(hashes, index, first, middle), hashes.head(middle, last)]
    return [*_path(hashes, index, middle, last), hashes.head(first, middle)]


def consistency(hashes: Hashes, old: int, size: int) -> list[bytes]:
    """That the tree of `old` leaves is the beginning of that of `size` (RFC 9162, 2.1.4.1)."""
    return _subproof(hashes, old, 0, size, is_known=True) if 0 < old < size else []


def _subproof(hashes: Hashes, old: int, first: int, last: int, is_known: bool) -> list[bytes]:
    if old == last:
        return [] if is_known else [hashes.head(first, last)]
    middle = first + _left(last - first)
    if old <= middle:
        below = _subproof(hashes, old, first, middle, is_known)
        return [*below, hashes.head(middle, last)]
    below = _subproof(hashes, old, middle, last, is_known=False)
    return [*below, hashes.head(first, middle)]


def _left(size: int) -> int:
    """Leaves in the left part: the largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """RFC 9162, 2.1.3.2."""
    if not 0 <= index < size:
        return False
    place, last, found = index, size - 1, leaf
    for other in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            found = node_hash(other, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, other)
        place, last = place >> 1, last >> 1
    return last == 0 and found == root


def is_consistent(
    old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> bool:
    """RFC 9162, 2.1.4.2. Every tree begins with the empty one."""
    if old == 0 or old == size:
        return not proof and old_root == (EMPTY if old == 0 else root)
    if not 0 < old < size or not proof:
        return False
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    place, last = old - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    before = after = path[0]
    for other in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            before, after = node_hash(other, before), node_hash(other, after)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            after = node_hash(after, other)
        place, last = place >> 1, last >> 1
    return last == 0 and (before, after) == (old_root, root)


class Front:
    """A tree that only grows: no more of it than its next head needs."""

    def __init__(self) -> None:
        self.size = 0
        self._full: list[tuple[int, bytes]] = []
        """Leaves and head of full trees, each larger than the next."""
        self._rest: list[bytes] = []

    def extend(self, leaves: Sequence[bytes]) -> None:
        self.size += len(leaves)
        self._rest += leaves
        while len(self._rest) >= CHUNK:
            self._push(CHUNK, root_of(self._rest[:CHUNK]))
            del self._rest[:CHUNK]

    def root(self) -> bytes:
        heads = [head for _, head in self._full]
        heads += [root_of(self._rest)] if self._rest else []
        return _joined(heads)

    def _push(self, size: int, head: bytes) -> None:
        while self._full and self._full[-1][0] == size:
            head, size = node_hash(self._full.pop()[1], head), 2 * size
        self._full.append((size, head))


def _joined(heads: Sequence[bytes]) -> bytes:
    """Head over full trees that become smaller."""
    if not heads:
        return EMPTY
    found = heads[-1]
    for head in reversed(heads[:-1]):
        found = node_hash(head, found)
    return found


class Growing:
    """A tree that grows and can have a leaf replaced; its head at any time."""

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]

    def __len__(self) -> int:
        return len(self._levels[0])

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Only full subtrees are kept: about one more hash a leaf."""
        number = 0
        while leaves:
            if number == len(self._levels):
                self._levels.append([])
            level = self._levels[number]
            paired = len(level) & ~1
            level += leaves
            leaves, number = _parents(level[paired:]), number + 1

    def replace(self, index: int, leaf: bytes) -> None:
        for level in self._levels:
            level[index] = leaf
            if index | 1 >= len(level):
                return
            leaf = node_hash(level[index & ~1], level[index | 1])
            index >>= 1

    def root(self) -> bytes:
        """From the last full subtree of each level that has an odd one."""
        return _joined([level[-1] for level in reversed(self._levels) if len(level) % 2])
