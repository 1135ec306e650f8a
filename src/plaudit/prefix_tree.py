"""How the responses of a shared-prefix row branch off from one another: data lays it out so, attention reads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import TypeAlias

from plaudit.schema import EncodedExample

Node: TypeAlias = tuple[int, int, int]
"""A run of tokens that the same responses have in common: its length, the node before it (-1: none), and how many
responses of the batch it belongs to."""


@dataclass
class PrefixTree:
    """The nodes of a row in the order in which they lie there, each directly followed by its first branch.

    A node that nothing branches off from is a leaf: the own tokens of a response. What a response reads is the path
    that leads to its leaf.

    Attributes:
        nodes: Length, parent and number of responses of each.

    >>> tree = PrefixTree(((3, -1, 2), (2, 0, 1), (1, 0, 1)))  # a prompt of three tokens, responses of two and one
    >>> tree.paths, tree.starts, tree.depths, tree.tokens
    ([[0, 1], [0, 2]], [0, 3, 5], [0, 3, 3], 6)
    """

    nodes: tuple[Node, ...]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each node."""
        return [length for length, _, _ in self.nodes]

    @cached_property
    def copies(self) -> list[int]:
        """How many responses of the batch each node belongs to."""
        return [copies for _, _, copies in self.nodes]

    @cached_property
    def starts(self) -> list[int]:
        """Where each node starts in the row."""
        return _ends(self.lengths)[:-1]

    @cached_property
    def depths(self) -> list[int]:
        """Tokens before each node in a response: the position at which it starts."""
        depths: list[int] = []
        for _, parent, _ in self.nodes:
            depths.append(0 if parent < 0 else depths[parent] + self.nodes[parent][0])
        return depths

    @cached_property
    def paths(self) -> list[list[int]]:
        """Pieces of each response, from the first to its leaf, in the order of the leaves in the row."""
        paths: list[list[int]] = []
        parents = {parent for _, parent, _ in self.nodes}
        for leaf in range(len(self.nodes)):
            if leaf in parents:
                continue
            path = [leaf]
            while (parent := self.nodes[path[-1]][1]) >= 0:
                path.append(parent)
            paths.append(path[::-1])
        return paths

    @cached_property
    def own(self) -> list[int]:
        """For each path, how many of its last nodes no path before it has: they are neighbours in the row."""
        seen: set[int] = set()
        counts = []
        for path in self.paths:
            counts.append(sum(node not in seen for node in path))
            seen.update(path)
        return counts

    @cached_property
    def response_lengths(self) -> list[int]:
        """Tokens of each path."""
        return [self.depths[path[-1]] + self.lengths[path[-1]] for path in self.paths]

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return sum(self.lengths)

    def place(self, leaf: int, token: int) -> int:
        """Where a token of a response lies in the row.

        Args:
            leaf: The response's last node.
            token: Index of the token in the response, prompt included.

        >>> PrefixTree(((3, -1, 2), (2, 0, 1), (1, 0, 1))).place(2, 3)
        5
        """
        while self.depths[leaf] > token:
            leaf = self.nodes[leaf][1]
        return self.starts[leaf] + token - self.depths[leaf]


def _ends(lengths: Iterable[int]) -> list[int]:
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return ends


Ids = Sequence[int]
SHORTEST_NODE = 8
"""Fewer common tokens than this are not worth a branch of their own: telling them apart costs more than they do."""


@dataclass
class SharedRow:
    """All different responses of a batch, laid out so that no common prefix is there twice.

    Attributes:
        tree: How the responses branch off from one another.
        input_ids: The tokens of the row.
        leaves: For response n of example g, its last node.
    """

    tree: PrefixTree
    input_ids: list[int]
    leaves: dict[tuple[int, int], int]


@dataclass
class _Branch:
    depth: int  # where it ends: tokens from the beginning of a response
    response: int  # one of those that run through it
    parent: int
    leaf: bool


def share_prefixes(examples: Sequence[EncodedExample]) -> SharedRow:
    """Lay the responses of a batch out as a tree of their common prefixes.

    A prompt is computed once for all of its responses, what prompts have in common (a system prompt, a passage) once
    for all of them, and equal responses are one. Every response keeps at least one token of its own, at which its
    reward is read.

    Args:
        examples: The examples of a batch.

    >>> pair, other = EncodedExample(([1, 2, 3], [1, 2, 4])), EncodedExample(([1, 2, 3], [1, 2, 5, 6]))
    >>> row = share_prefixes([pair, other])
    >>> row.input_ids, row.tree.nodes
    ([1, 2, 3, 4, 5, 6], ((2, -1, 4), (1, 0, 2), (1, 0, 1), (2, 0, 1)))
    """
    copies: dict[tuple[int, ...], int] = {}
    for example in examples:
        for ids in example.response_ids:
            copies[tuple(ids)] = copies.get(tuple(ids), 0) + 1
    # Neighbours in the order of their tokens have most in common.
    responses = sorted(copies)
    branches = _worthwhile(_branches(responses))
    nodes: list[tuple[int, int, int]] = []
    input_ids: list[int] = []
    leaf_of: dict[tuple[int, ...], int] = {}
    counts = [copies[responses[branch.response]] if branch.leaf else 0 for branch in branches]
    for index in reversed(range(len(branches))):
        if branches[index].parent >= 0:
            counts[branches[index].parent] += counts[index]
    for index, branch in enumerate(branches):
        start = branches[branch.parent].depth if branch.parent >= 0 else 0
        ids = responses[branch.response]
        nodes.append((branch.depth - start, branch.parent, counts[index]))
        input_ids.extend(ids[start : branch.depth])
        if branch.leaf:
            leaf_of[ids] = index
    leaves = {
        (g, n): leaf_of[tuple(ids)] for g, example in enumerate(examples) for n, ids in enumerate(example.response_ids)
    }
    return SharedRow(PrefixTree(tuple(nodes)), input_ids, leaves)


def _branches(responses: Sequence[tuple[int, ...]]) -> list[_Branch]:
    """The tree of sorted, different responses, every node directly followed by its first branch."""
    common = [common_prefix_length(two) for two in pairwise(responses)]
    branches: list[_Branch] = []
    path: list[int] = []  # of open branches, from the root
    for n, ids in enumerate(responses):
        before = common[n - 1] if n else 0
        while path and branches[path[-1]].depth > before:
            path.pop()
        # A branch of this depth may be open already; deeper ones begin here.
        for depth in _rising(islice(common, n, None), branches[path[-1]].depth if path else 0):
            branches.append(_Branch(depth, n, path[-1] if path else -1, leaf=False))
            path.append(len(branches) - 1)
        branches.append(_Branch(len(ids), n, path[-1] if path else -1, leaf=True))
    return branches


def _rising(common: Iterable[int], above: int) -> list[int]:
    """Depths of the branches that begin at a response: where it parts from those after it, below an open branch."""
    depths: list[int] = []
    limit = None
    for depth in common:
        if depth <= above:
            break
        if limit is None or depth < limit:
            depths.append(depth)
            limit = depth
    return depths[::-1]


def _worthwhile(branches: Sequence[_Branch]) -> list[_Branch]:
    """Leave out short common nodes, except where they are the whole of what responses share."""
    inner = {branch.parent for branch in branches if not branch.leaf}
    kept: list[_Branch] = []
    place: dict[int, int] = {-1: -1}  # of each branch, or of what it hangs on where it is left out
    for index, branch in enumerate(branches):
        parent = place[branch.parent]
        length = branch.depth - (kept[parent].depth if parent >= 0 else 0)
        if not branch.leaf and length < SHORTEST_NODE and (parent >= 0 or index in inner):
            place[index] = parent
            continue
        place[index] = len(kept)
        kept.append(_Branch(branch.depth, branch.response, parent, branch.leaf))
    return kept


def common_prefix_length(response_ids: Sequence[Ids]) -> int:
    """Length of the longest common prefix that leaves every response at least one token of its own.

    >>> common_prefix_length([[1, 2, 3], [1, 2, 4, 5]]), common_prefix_length([[1, 2], [1, 2]])
    (2, 1)
    """
    limit = min(len(ids) for ids in response_ids) - 1
    first = response_ids[0]
    for ids in response_ids[1:]:
        limit = _common(first[:limit], ids[:limit])
    return limit


def _common(one: Ids, other: Ids) -> int:
    """Length of the common prefix of two lists."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if list(one[low:middle]) == list(other[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low
