"""Merkle trees against RFC 6962's vectors and against its definition, taken word for word."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from station.merkle import (
    CHUNK,
    EMPTY,
    Chunked,
    Front,
    Growing,
    Tree,
    consistency,
    inclusion,
    is_consistent,
    is_included,
    leaf_hash,
    node_hash,
    root_of,
)

INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657",
          "606162636465666768696a6b6c6d6e6f"]  # fmt: skip
"""Leaves of the test tree of the Certificate Transparency reference implementation
(merkletree_test.cc of google/certificate-transparency)."""
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""Of the first 1, 2, … 8 of them."""


def leaves(count: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(count)]


def naive(of: list[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1."""
    if len(of) < 2:
        return of[0] if of else hashlib.sha256(b"").digest()
    k = 1
    while 2 * k < len(of):
        k *= 2
    return node_hash(naive(of[:k]), naive(of[k:]))


def chunked(of: list[bytes]) -> Chunked:
    full = [naive(of[n : n + CHUNK]) for n in range(0, len(of) // CHUNK * CHUNK, CHUNK)]
    return Chunked(full, lambda first, last: of[first:last])


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_are_those_of_the_reference_implementation(size: int) -> None:
    found = [leaf_hash(bytes.fromhex(text)) for text in INPUTS[:size]]
    assert root_of(found).hex() == ROOTS[size - 1]


def test_an_inclusion_proof_is_that_of_the_reference_implementation() -> None:
    tree = Tree([leaf_hash(bytes.fromhex(text)) for text in INPUTS])
    assert [part.hex() for part in inclusion(tree, 5, 8)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [part.hex() for part in consistency(tree, 6, 8)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


SIZES = st.integers(0, 40) | st.integers(CHUNK - 2, 3 * CHUNK + 3)


@settings(max_examples=60, deadline=None)
@given(size=SIZES, data=st.data())
def test_every_tree_has_the_head_and_the_proofs_of_the_definition(
    size: int, data: st.DataObject
) -> None:
    of = leaves(size)
    root = naive(of)
    cut = data.draw(st.integers(0, size))
    grown, front = Growing(), Front()
    for tree in (grown, front):
        tree.extend(of[:cut])
        assert tree.root() == naive(of[:cut])
        tree.extend(of[cut:])
    assert root == root_of(of) == grown.root() == front.root() == chunked(of).head(0, size)
    assert size or root == EMPTY
    if not size:
        return
    place, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    for hashes in (Tree(of), chunked(of)):
        path = inclusion(hashes, place, size)
        assert is_included(of[place], place, size, path, root)
        between = consistency(hashes, old, size)
        assert is_consistent(old, naive(of[:old]), size, root, between)
    wrong = data.draw(st.integers(0, size - 1).filter(lambda other: other != place) | st.none())
    if wrong is not None:
        assert not is_included(of[place], wrong, size, path, root)
    if path:
        broken = data.draw(st.integers(0, len(path) - 1))
        changed = [*path[:broken], leaf_hash(path[broken]), *path[broken + 1 :]]
        assert not is_included(of[place], place, size, changed, root)
        assert not is_included(of[place], place, size, path[:-1], root)
    assert not is_included(of[place], place, size, [*path, root], root)
    if 0 < old < size:
        assert not is_consistent(old, leaf_hash(b"other"), size, root, between)
        assert not is_consistent(old, naive(of[:old]), size, leaf_hash(b"other"), between)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 70), changes=st.lists(st.tuples(st.integers(0, 69), st.binary(max_size=3)))
)
def test_a_replaced_leaf_makes_the_head_of_the_other_tree(
    size: int, changes: list[tuple[int, bytes]]
) -> None:
    of, grown = leaves(size), Growing()
    grown.extend(of)
    for place, data in changes:
        of[place % size] = leaf_hash(data)
        grown.replace(place % size, leaf_hash(data))
        assert grown.root() == naive(of)


def test_leaves_that_are_not_there_are_no_tree() -> None:
    of = leaves(CHUNK + 5)
    with pytest.raises(IndexError):
        chunked(of).head(0, CHUNK + 6)
    with pytest.raises(IndexError):
        Chunked([], lambda first, last: of[first:last]).head(0, CHUNK)
