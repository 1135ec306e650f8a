"""The tree of common prefixes of a batch's responses: the collator lays a row out by it, attention reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import TypeAlias

from plaudit.schema import EncodedExample

Ids: TypeAlias = Sequence[int]
Node: TypeAlias = tuple[int, int, int]
"""A run of tokens that the same responses have in common: its length, the node before it (-1: none), and how many
responses of the batch it belongs to."""
# Fewer common tokens than this get no node of their own: telling them apart costs more than computing them again.
SHORTEST_NODE = 8


class PrefixTree:
    """The nodes of a row in the order in which they lie there, each directly followed by its first branch.

    A node that nothing branches off from is a leaf: the own tokens of a response. What a response reads is the path
    that leads to its leaf.

    >>> tree = PrefixTree(((3, -1, 2), (2, 0, 1), (1, 0, 1)))  # a prompt of three tokens, responses of two and one
    >>> tree.paths, tree.starts, tree.depths, tree.tokens
    ([[0, 1], [0, 2]], [0, 3, 5], [0, 3, 3], 6)
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = tuple(nodes)
        self.lengths = [length for length, _, _ in self.nodes]  # tokens of each node
        self.copies = [copies for _, _, copies in self.nodes]  # how many responses of the batch each node belongs to
        *self.starts, self.tokens = [0, *accumulate(self.lengths)]  # where each node starts in the row; its length
        self.depths: list[int] = []  # tokens before each node in a response: the position at which it starts
        for _, parent, _ in self.nodes:
            self.depths.append(0 if parent < 0 else self.depths[parent] + self.lengths[parent])
        # Nodes of each response, from the first to its leaf, in the order of the leaves in the row.
        self.paths: list[list[int]] = []
        # For each path, how many of its last nodes no path before it has: they are neighbours in the row.
        self.own: list[int] = []
        parents = {parent for _, parent, _ in self.nodes}
        seen: set[int] = set()
        for leaf in range(len(self.nodes)):
            if leaf in parents:
                continue
            path = [leaf]
            while (parent := self.nodes[path[-1]][1]) >= 0:
                path.append(parent)
            self.paths.append(path[::-1])
            self.own.append(sum(node not in seen for node in path))
            seen.update(path)
        self.response_lengths = [self.depths[path[-1]] + self.lengths[path[-1]] for path in self.paths]

    def index_of(self, leaf: int, token: int) -> int:
        """Returns the index in the row of a token of the response that ends with a leaf, counted with its prompt.

        >>> PrefixTree(((3, -1, 2), (2, 0, 1), (1, 0, 1))).index_of(2, 3)
        5
        """
        node = leaf
        while self.depths[node] > token:
            node = self.nodes[node][1]
        return self.starts[node] + token - self.depths[node]


@dataclass
class SharedRow:
    """All different responses of a batch, laid out so that no common prefix is there twice."""

    tree: PrefixTree
    input_ids: list[int]
    leaves: dict[tuple[int, int], int]  # the leaf of response n of example g


@dataclass
class _Branch:
    depth: int  # tokens from the beginning of a response to the end of the branch
    response: int  # one of the responses that run through it
    parent: int
    leaf: bool


def share_prefixes(examples: Sequence[EncodedExample]) -> SharedRow:
    """Lays the responses of a batch out as a tree of their common prefixes.

    A prompt is computed once for all of its responses, what prompts have in common (a system prompt, a passage) once
    for all of them, and equal responses are one. Every response keeps at least one token of its own, at which its
    reward is read.

    >>> examples = [EncodedExample(([1, 2, 3], [1, 2, 4])), EncodedExample(([1, 2, 3], [1, 2, 5, 6]))]
    >>> row = share_prefixes(examples)
    >>> row.input_ids, row.tree.nodes
    ([1, 2, 3, 4, 5, 6], ((2, -1, 4), (1, 0, 2), (1, 0, 1), (2, 0, 1)))
    """
    copies = Counter(tuple(ids) for example in examples for ids in example.response_ids)
    responses = sorted(copies)  # neighbours in the order of their tokens have most in common
    branches = _without_short_nodes(_branches(responses))
    counts = [copies[responses[branch.response]] if branch.leaf else 0 for branch in branches]
    for index in reversed(range(len(branches))):
        if branches[index].parent >= 0:
            counts[branches[index].parent] += counts[index]
    nodes: list[Node] = []
    input_ids: list[int] = []
    leaf_of: dict[tuple[int, ...], int] = {}
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
    return SharedRow(PrefixTree(nodes), input_ids, leaves)


def _branches(responses: Sequence[tuple[int, ...]]) -> list[_Branch]:
    """Returns the tree of sorted, different responses, every node directly followed by its first branch."""
    common = [common_prefix_length(neighbours) for neighbours in pairwise(responses)]
    branches: list[_Branch] = []
    path: list[int] = []  # the open branches, from the root
    for n, ids in enumerate(responses):
        before = common[n - 1] if n else 0
        while path and branches[path[-1]].depth > before:
            path.pop()
        # A branch of this depth may be open already; deeper ones begin here, where later responses part from this one.
        above = branches[path[-1]].depth if path else 0
        depths: list[int] = []
        for depth in islice(common, n, None):
            if depth <= above:
                break
            if not depths or depth < depths[-1]:
                depths.append(depth)
        for depth in reversed(depths):
            branches.append(_Branch(depth, n, path[-1] if path else -1, leaf=False))
            path.append(len(branches) - 1)
        branches.append(_Branch(len(ids), n, path[-1] if path else -1, leaf=True))
    return branches


def _without_short_nodes(branches: Sequence[_Branch]) -> list[_Branch]:
    """Removes short common nodes, except where they are the whole of what responses share."""
    inner = {branch.parent for branch in branches if not branch.leaf}
    kept: list[_Branch] = []
    kept_at: dict[int, int] = {-1: -1}  # index of each branch among those kept, or that of its parent if removed
    for index, branch in enumerate(branches):
        parent = kept_at[branch.parent]
        length = branch.depth - (kept[parent].depth if parent >= 0 else 0)
        if not branch.leaf and length < SHORTEST_NODE and (parent >= 0 or index in inner):
            kept_at[index] = parent
            continue
        kept_at[index] = len(kept)
        kept.append(_Branch(branch.depth, branch.response, parent, branch.leaf))
    return kept


def common_prefix_length(response_ids: Sequence[Ids]) -> int:
    """Returns the length of the longest common prefix that leaves every response at least one token of its own.

    >>> common_prefix_length([[1, 2, 3], [1, 2, 4, 5]]), common_prefix_length([[1, 2], [1, 2]])
    (2, 1)
    """
    limit = min(len(ids) for ids in response_ids) - 1
    first = response_ids[0]
    for ids in response_ids[1:]:
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if list(first[low:middle]) == list(ids[low:middle]):
                low = middle
            else:
                high = middle - 1
        limit = low
    return limit
