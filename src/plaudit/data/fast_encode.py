"""Renders conversations from sketches: a chat template is run once on opaque texts, and its result is reused."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, partialmethod, wraps
from typing import Any, NoReturn, TypeAlias, cast

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

logger = logging.getLogger("plaudit")
RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)
"""Errors of a chat template that rejects a conversation."""
Conversation: TypeAlias = Sequence[Mapping[str, Any]]
Shape: TypeAlias = tuple[str, ...]
"""The first key of the messages, ``role`` or ``content``, and the role of each."""
_TRIES_A_SHAPE = 8
_PATIENCE = 16
_CHECK_EVERY = 64


class TemplateSketches:
    """Renders plain conversations with one template, which is run once for each way that it can take.

    A chat template is a program. It is run on contents that it cannot look into: it can print, join and strip
    them, and ask whether they are empty, equal some text, or have it in them, at their start or at their end.
    Whatever it asks is noted with the answer. A conversation with the same roles whose contents give the same
    answers takes the same way through the program, and its contents go to the same positions. Where a template does
    more, or a message is more than a role and a text, the template itself renders.

    Each sketch is held against the template when it is made, and again on samples of what is rendered with it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, render_all: Callable[[list[Conversation]], list[str]]
    ) -> None:
        self.render_all = render_all  # renders conversations with the template itself
        self.template: jinja2.Template | None = None  # what :func:`compile_opaque` made of it (None: it is not used)
        self.variables: dict[str, Any] = {**tokenizer.special_tokens_map, "tools": None, "documents": None}
        self.variables["add_generation_prompt"] = False
        # The parts of a rendered conversation, and what the template asked about its contents: another conversation
        # must give the same answers.
        self._sketches: dict[Shape, list[tuple[Parts, dict[Question, bool]]]] = {}
        self._tries: Counter[Shape] = Counter()
        self._reused = 0
        compile_original = getattr(chat_template_utils, "_compile_jinja_template", None)
        # A tokenizer class with a way of its own to render does not use the template alone.
        stock = type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
        if compile_original is not None and stock and tokenizer.chat_template:
            try:
                source = tokenizer.get_chat_template()
                self.template = compile_opaque(source, compile_original(source).environment)
            except RENDER_ERRORS as error:
                # The template itself says what is wrong with it when the first conversation is rendered.
                logger.debug("The chat template is not sketched: %s", error)

    def render(self, conversations: Sequence[Conversation]) -> list[str]:
        """Renders conversations; raises one of `RENDER_ERRORS` where the template rejects one."""
        texts = [self._fill(conversation) for conversation in conversations]
        sampled = range(_CHECK_EVERY - 1, len(texts), _CHECK_EVERY)
        indices = [index for index, text in enumerate(texts) if text is None or index in sampled]
        rendered = self.render_all([conversations[index] for index in indices]) if indices else []
        for index, text in zip(indices, rendered, strict=True):
            filled = texts[index]
            if filled is not None and filled != text:
                self._give_up("a filled-in conversation differs from a rendered one")
                return self.render_all(list(conversations))
            texts[index] = text
        return [text for text in texts if text is not None]

    def _fill(self, conversation: Conversation) -> str | None:
        """Fills a conversation into a sketch, a new one if need be; None where it cannot be sketched."""
        if self.template is None:
            return None
        keys = list(conversation[0])
        if sorted(keys) != ["content", "role"]:
            return None
        if any(list(message) != keys for message in conversation):
            return None
        roles, contents = ([message[key] for message in conversation] for key in ("role", "content"))
        if {*map(type, roles), *map(type, contents)} != {str}:
            return None
        shape = (keys[0], *roles)
        for parts, answers in self._sketches.get(shape, ()):
            if all(question.answer(contents) == answer for question, answer in answers.items()):
                self._reused += 1
                return fill_in(parts, contents)
        return self._draw(shape, contents, conversation)

    def _draw(self, shape: Shape, contents: list[str], conversation: Conversation) -> str | None:
        """Runs the template for a sketch; None where it looks into the contents, or was tried often enough."""
        if self.template is None or self._tries[shape] >= _TRIES_A_SHAPE:
            return None
        self._tries[shape] += 1
        tries = self._tries.total()
        if tries > _PATIENCE and self._reused < 2 * tries:
            self._give_up("the chat template looks into the messages, or each conversation has other roles")
            return None
        answers: dict[Question, bool] = {}
        messages = []
        for index, role in enumerate(shape[1:]):
            message = {"role": role, "content": OpaqueText((index,), contents, answers)}
            messages.append(message if shape[0] == "role" else dict(reversed(message.items())))
        try:
            rendered = self.template.render(messages=messages, **self.variables)
            parts: Parts = rendered.parts if isinstance(rendered, OpaqueText) else (rendered,)
            if _MARKER in repr(parts).lower():  # code that bypasses our methods has printed it
                raise LookedInside("the result")
            text = fill_in(parts, contents)
            if text == self.render_all([conversation])[0]:
                self._sketches.setdefault(shape, []).append((parts, answers))
                return text
            self._give_up("a filled-in conversation differs from a rendered one")
        except (LookedInside, *RENDER_ERRORS) as error:
            logger.debug("No sketch of the chat template: %s: %s", type(error).__name__, error)
        return None

    def _give_up(self, reason: str) -> None:
        if self.template is not None:
            logger.info("Every conversation is rendered by itself, which takes longer: %s.", reason)
        self.template = None
        self._sketches.clear()


_MARKER = "plaudit7f3c9e51opaque"
"""What C code that bypasses our methods sees instead of a text; a result in which it shows up is thrown away."""
_CHANGING_GLOBALS = ("strftime_now", "lipsum")
# These hand values on, or ask about them with Python's own operators, which an `OpaqueText` answers or refuses itself.
_SAFE_FILTERS = {"string", "default", "d", "length", "count", "first", "last", "list", "selectattr", "rejectattr"}
_SAFE_TESTS = {"eq", "==", "equalto", "ne", "!="}
_TYPE_TESTS = {
    "defined",
    "undefined",
    "none",
    "string",
    "mapping",
    "sequence",
    "iterable",
    "number",
    "integer",
    "float",
}
_TYPE_TESTS |= {"boolean", "true", "false", "callable"}


class LookedInside(BaseException):
    """A template asked for something that depends on a text in a way that cannot be noted down.

    No `Exception`, because jinja catches those of subscripts and goes on as if the answer were no.
    """


@dataclass(frozen=True)
class Stripped:
    """A text without some of its outer characters."""

    parts: Parts  # the text
    method: str  # `"strip"`, `"lstrip"` or `"rstrip"`
    characters: str | None  # its argument


Parts: TypeAlias = "tuple[str | int | Stripped, ...]"
"""A text in pieces: literal text, the number of a text that is filled in, or either of them stripped."""


def fill_in(parts: Parts, texts: Sequence[str]) -> str:
    """Fills texts into parts.

    >>> fill_in(("<", 0, "|", Stripped((1,), "strip", None), ">"), ["a", " b "])
    '<a|b>'
    """
    filled = []
    for part in parts:
        if isinstance(part, Stripped):
            filled.append(getattr(fill_in(part.parts, texts), part.method)(part.characters))
        else:
            filled.append(texts[part] if isinstance(part, int) else part)
    return "".join(filled)


@dataclass(frozen=True)
class Question:
    """What a template wants to know about a text."""

    parts: Parts  # the text
    method: str  # name of the method of `str` that answers
    arguments: tuple[str, ...]  # its arguments

    def answer(self, texts: Sequence[str]) -> bool:
        """Answers for some texts."""
        text = fill_in(self.parts, texts)
        return bool(text) if self.method == "__bool__" else bool(getattr(text, self.method)(*self.arguments))


class OpaqueText(str):
    """A text that can be printed, joined and stripped, and asked a few things; anything else raises `LookedInside`."""

    parts: Parts
    texts: Sequence[str]  # those that the template runs on
    answers: dict[Question, bool]  # what the template asked about them, in order

    def __new__(cls, parts: Parts, texts: Sequence[str], answers: dict[Question, bool]) -> OpaqueText:
        """Makes a text whose own letters are a marker."""
        text = super().__new__(cls, _MARKER)
        text.parts, text.texts, text.answers = parts, texts, answers
        return text

    def __str__(self) -> str:
        return self

    def __add__(self, other: Any) -> Any:
        return join_opaque((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return join_opaque((other, self)) if isinstance(other, str) else NotImplemented

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self._ask("__eq__", other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __getitem__(self, key: Any) -> Any:
        if type(key) is str:
            # jinja asks any value for attributes as if they were keys.
            raise TypeError("string indices must be integers")
        raise LookedInside("an index")

    def _ask(self, method: str, *arguments: Any) -> bool:
        if any(type(argument) is not str for argument in arguments):
            raise LookedInside(method)
        question = Question(self.parts, method, arguments)
        return self.answers.setdefault(question, question.answer(self.texts))

    def _stripped(self, method: str, chars: str | None = None) -> OpaqueText:
        if chars is not None and type(chars) is not str:
            raise LookedInside(method)
        return OpaqueText((Stripped(self.parts, method, chars),), self.texts, self.answers)


def _refuse(name: str) -> Callable[..., NoReturn]:
    def method(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise LookedInside(name)

    return method


_ANSWERED = dict.fromkeys(("__bool__", "__contains__", "startswith", "endswith"), cast(Any, OpaqueText)._ask)  # noqa: SLF001
_ANSWERED |= dict.fromkeys(("strip", "lstrip", "rstrip"), cast(Any, OpaqueText)._stripped)  # noqa: SLF001
_OPEN = {"__new__", "__init__", "__class__", "__doc__", "__getattribute__", "__setattr__", "__delattr__"}
_OPEN |= {"__init_subclass__", "__subclasshook__", "__dir__"} | (vars(OpaqueText).keys() - {"__hash__"})
# `__hash__` is None where `__eq__` is defined, and a TypeError would be taken for an answer.
for _name in (*dir(str), "__bool__", "__rmul__", "__rmod__", "__int__", "__float__", "__index__", "__html__"):
    if _name not in _OPEN:
        answered = _name in _ANSWERED
        setattr(OpaqueText, _name, partialmethod(_ANSWERED[_name], _name) if answered else _refuse(_name))


def join_opaque(parts: Iterable[str]) -> str:
    """Joins texts, some of which may be opaque."""
    texts = list(parts)
    opaque = next((text for text in texts if isinstance(text, OpaqueText)), None)
    if opaque is None:
        return "".join(texts)
    merged: list[str | int | Stripped] = []
    for text in texts:
        for part in text.parts if isinstance(text, OpaqueText) else (str(text),):
            if isinstance(part, str) and merged and isinstance(merged[-1], str):
                merged[-1] += part
            else:
                merged.append(part)
    return OpaqueText(tuple(merged), opaque.texts, opaque.answers)


class _Closed(str):
    """Plain text of a template in which no opaque text is searched for."""

    def __contains__(self, other: object) -> bool:
        if isinstance(other, OpaqueText):
            raise LookedInside("in")
        return super().__contains__(cast(str, other))


def _is_clear(value: Any) -> bool:
    """Whether a value certainly holds no opaque text."""
    if isinstance(value, list | tuple | dict):
        return all(map(_is_clear, value.values() if isinstance(value, dict) else value))
    # What a generator, a view or a namespace holds cannot be seen without using it up.
    known = (str, int, float, range, Undefined, Context, nodes.EvalContext, jinja2.Environment)
    return value is None or (isinstance(value, known) and not isinstance(value, OpaqueText))


def _guard(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Lets a filter or test of jinja refuse values that it would look into."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if not all(map(_is_clear, args)) or not all(map(_is_clear, kwargs.values())):
            raise LookedInside(name)
        return function(*args, **kwargs)

    return guarded


class _Rewrite(NodeTransformer):
    """Replaces the two operators that read a text in C code, ``~`` and ``in``, by functions of ours."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        node = cast(nodes.Concat, self.generic_visit(node))
        return nodes.Filter(node.nodes[0], "opaque_concat", node.nodes[1:], [], None, None, lineno=node.lineno)

    def visit_Operand(self, node: nodes.Operand) -> nodes.Operand:
        node = cast(nodes.Operand, self.generic_visit(node))
        if node.op in ("in", "notin"):
            node.expr = nodes.Filter(node.expr, "opaque_haystack", [], [], None, None, lineno=node.lineno)
        return node


class _OpaqueEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox in which a template meets opaque texts."""

    concat = staticmethod(join_opaque)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        changing = [__self.globals.get(name) for name in _CHANGING_GLOBALS]
        if any(__obj is function for function in changing if function is not None):
            raise LookedInside("a function that answers differently each time")
        values = [*args, *(value for value in kwargs.values() if not isinstance(value, Macro))]
        if not isinstance(__obj, Macro) and not all(map(_is_clear, values)):
            raise LookedInside("an argument")
        return super().call(__context, __obj, *args, **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, OpaqueText):
            raise LookedInside("an index")
        return super().getitem(obj, argument)


def _type_test(function: Callable[..., Any], value: Any, *args: Any) -> Any:
    return function("text" if isinstance(value, OpaqueText) else value, *args)


def compile_opaque(source: str, original: jinja2.Environment) -> jinja2.Template:
    """Compiles a template to run on opaque texts, with the settings and functions of its usual environment."""
    environment = _OpaqueEnvironment(
        trim_blocks=original.trim_blocks,
        lstrip_blocks=original.lstrip_blocks,
        keep_trailing_newline=original.keep_trailing_newline,
        extensions=[type(extension) for extension in original.extensions.values()],
    )
    environment.globals.update(original.globals)
    environment.filters = {
        name: function if name in _SAFE_FILTERS else _guard(function, name)
        for name, function in original.filters.items()
    }
    trim = _guard(original.filters["trim"], "trim")
    environment.filters["trim"] = lambda value, *args, **kwargs: (
        value.strip(*args, **kwargs) if isinstance(value, OpaqueText) else trim(value, *args, **kwargs)
    )
    environment.filters["random"] = _refuse("random")
    environment.filters["opaque_concat"] = lambda *values: join_opaque(map(str, values))
    environment.filters["opaque_haystack"] = lambda value: _Closed(value) if type(value) is str else value
    environment.tests = {
        name: function
        if name in _SAFE_TESTS
        else partial(_type_test, cast(Any, function))
        if name in _TYPE_TESTS
        else _guard(cast(Any, function), name)
        for name, function in original.tests.items()
    }
    tree = cast(nodes.Template, _Rewrite().visit(environment.parse(source)))
    code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))
