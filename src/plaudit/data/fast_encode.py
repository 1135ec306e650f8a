"""Renders conversations from sketches: a chat template is run once on opaque texts, and its result is reused."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class _Sketch:
    """A rendered conversation with gaps for its texts."""

    parts: Parts  # the text; numbers stand for the contents of the messages
    # what the template asked about the contents: another conversation must give the same answers
    answers: tuple[Answer, ...]


@dataclass
class TemplateSketches:
    """Renders plain conversations with one template, which is run once for each way that it can take.

    A chat template is a program. It is run on contents that it cannot look into: it can print, join and strip
    them, and ask whether they are empty, equal some text, or have it in them, at their start or at their end.
    Whatever it asks is noted with the answer. A conversation with the same roles whose contents give the same
    answers takes the same way through the program, and its contents go to the same indices. Where a template does
    more, or a message is more than a role and a text, the template itself renders.

    Each sketch is held against the template when it is made, and again on samples of what is rendered with it.
    """

    render_all: Callable[[list[Conversation]], list[str]]  # renders conversations with the template itself
    template: jinja2.Template | None  # what :func:`compile_opaque` made of it (None: it is not used)
    variables: Mapping[str, Any]  # what it can see beside the messages
    _sketches: dict[Shape, list[_Sketch]] = field(default_factory=dict)
    _tries: Counter[Shape] = field(default_factory=Counter)
    _reused: int = 0

    def render(self, conversations: Sequence[Conversation]) -> list[str]:
        """Renders conversations; raises one of `RENDER_ERRORS` where the template rejects one."""
        texts = [self._fill(conversation) for conversation in conversations]
        indices = [index for index, text in enumerate(texts) if text is None or self._is_sampled(index)]
        rendered = self.render_all([conversations[index] for index in indices]) if indices else []
        for index, text in zip(indices, rendered, strict=True):
            filled = texts[index]
            if filled is not None and filled != text:
                self._give_up("a filled-in conversation differs from a rendered one")
                return self.render_all(list(conversations))
            texts[index] = text
        return [text for text in texts if text is not None]

    def _is_sampled(self, index: int) -> bool:
        return index % _CHECK_EVERY == _CHECK_EVERY - 1

    def _fill(self, conversation: Conversation) -> str | None:
        """Fills a conversation into a sketch, a new one if need be; None where it cannot be sketched."""
        if self.template is None:
            return None
        keys = list(conversation[0])
        if sorted(keys) != ["content", "role"]:
            return None
        roles, contents = [], []
        for message in conversation:
            if list(message) != keys:
                return None
            roles.append(message["role"])
            contents.append(message["content"])
        if {*map(type, roles), *map(type, contents)} != {str}:
            return None
        shape = (keys[0], *roles)
        for sketch in self._sketches.get(shape, ()):
            if all(answer.holds(contents) for answer in sketch.answers):
                self._reused += 1
                return fill_in(sketch.parts, contents)
        drawn = self._draw(shape, contents, conversation)
        if drawn is None:
            return None
        self._sketches.setdefault(shape, []).append(drawn)
        return fill_in(drawn.parts, contents)

    def _draw(self, shape: Shape, contents: list[str], conversation: Conversation) -> _Sketch | None:
        """Runs the template for a sketch; None where it looks into the contents, or was tried often enough."""
        if self.template is None or self._tries[shape] >= _TRIES_A_SHAPE:
            return None
        self._tries[shape] += 1
        tries = self._tries.total()
        if tries > _PATIENCE and self._reused < 2 * tries:
            self._give_up("the chat template looks into the messages, or each conversation has other roles")
            return None
        try:
            content_first = shape[0] == "content"
            parts, answers = run_opaque(self.template, shape[1:], contents, self.variables, content_first=content_first)
            if fill_in(parts, contents) == self.render_all([conversation])[0]:
                return _Sketch(parts, tuple(answers))
            self._give_up("a filled-in conversation differs from a rendered one")
        except (LookedInside, *RENDER_ERRORS) as error:
            logger.debug("No sketch of the chat template: %s: %s", type(error).__name__, error)
        return None

    def _give_up(self, reason: str) -> None:
        if self.template is not None:
            logger.info("Every conversation is rendered by itself, which takes longer: %s.", reason)
        self.template = None
        self._sketches.clear()


def sketches_for(
    tokenizer: PreTrainedTokenizerBase, render_all: Callable[[list[Conversation]], list[str]]
) -> TemplateSketches:
    """Returns the sketches of a tokenizer's chat template, for conversations without tools and variables."""
    template = None
    compile_original = getattr(chat_template_utils, "_compile_jinja_template", None)
    # A tokenizer class with a way of its own to render does not use the template alone.
    stock = type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    if compile_original is not None and stock and tokenizer.chat_template:
        try:
            source = tokenizer.get_chat_template()
            template = compile_opaque(source, compile_original(source).environment)
        except RENDER_ERRORS as error:
            # The template itself says what is wrong with it when the first conversation is rendered.
            logger.debug("The chat template is not sketched: %s", error)
    variables = {**tokenizer.special_tokens_map, "tools": None, "documents": None, "add_generation_prompt": False}
    return TemplateSketches(render_all, template, variables)


_MARKER = "plaudit7f3c9e51opaque"
"""What C code that bypasses our methods sees instead of a text; a result in which it shows up is thrown away."""
_STRIPS = ("strip", "lstrip", "rstrip")
_CHANGING_GLOBALS = ("strftime_now", "lipsum")
# These hand values on, or ask about them with Python's own operators, which an `OpaqueText` answers or refuses itself.
_SAFE_FILTERS = frozenset(
    ("string", "default", "d", "length", "count", "first", "last", "list", "selectattr", "rejectattr")
)
_SAFE_TESTS = frozenset(("eq", "==", "equalto", "ne", "!="))
_TYPE_TESTS = frozenset(
    ("defined", "undefined", "none", "string", "mapping", "sequence", "iterable", "number", "integer", "float")
) | {"boolean", "true", "false", "callable"}


class LookedInside(BaseException):
    """A template asked for something that depends on a text in a way that cannot be noted down.

    No `Exception`, because jinja catches those in indices and goes on as if the answer were no.
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
    return "".join(
        part
        if isinstance(part, str)
        else texts[part]
        if isinstance(part, int)
        else getattr(fill_in(part.parts, texts), part.method)(part.characters)
        for part in parts
    )


@dataclass(frozen=True)
class Answer:
    """What a template wanted to know about a text, and was told."""

    parts: Parts  # the text
    question: str  # name of the method of `str` that answers
    arguments: tuple[Any, ...]  # its arguments
    answer: bool  # what it was told

    def holds(self, texts: Sequence[str]) -> bool:
        """Whether other texts give the same answer."""
        return _ask(fill_in(self.parts, texts), self.question, self.arguments) == self.answer


def _ask(text: str, question: str, arguments: tuple[Any, ...]) -> bool:
    return bool(text) if question == "__bool__" else bool(getattr(text, question)(*arguments))


@dataclass
class Questions:
    """All that one run of a template asked."""

    texts: Sequence[str]  # the texts that it ran on
    answers: list[Answer] = field(default_factory=list)  # what it asked about them, in order

    def ask(self, parts: Parts, question: str, *arguments: Any) -> bool:
        """Answers a question about a text, and records it."""
        if any(type(argument) is not str for argument in arguments):
            raise LookedInside(question)
        answer = Answer(parts, question, arguments, _ask(fill_in(parts, self.texts), question, arguments))
        if answer not in self.answers:
            self.answers.append(answer)
        return answer.answer


class OpaqueText(str):
    """A text that can be printed, joined and stripped, and asked a few things; anything else raises `LookedInside`."""

    parts: Parts
    questions: Questions

    def __new__(cls, parts: Parts, questions: Questions) -> OpaqueText:
        """Make a text whose own letters are a marker."""
        text = super().__new__(cls, _MARKER)
        text.parts, text.questions = parts, questions
        return text

    def __str__(self) -> str:
        return self

    def __add__(self, other: Any) -> Any:
        return join_opaque((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return join_opaque((other, self)) if isinstance(other, str) else NotImplemented

    def __bool__(self) -> bool:
        return self.questions.ask(self.parts, "__bool__")

    def __contains__(self, other: object) -> bool:
        return self.questions.ask(self.parts, "__contains__", other)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.questions.ask(self.parts, "__eq__", other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __getitem__(self, key: Any) -> Any:
        if type(key) is str:
            # jinja asks any value for attributes as if they were keys.
            raise TypeError("string indices must be integers")
        raise LookedInside("an index")

    def startswith(self, *arguments: Any) -> bool:
        """Answers, and records the question."""
        return self.questions.ask(self.parts, "startswith", *arguments)

    def endswith(self, *arguments: Any) -> bool:
        """Answers, and records the question."""
        return self.questions.ask(self.parts, "endswith", *arguments)

    def _stripped(self, method: str, chars: str | None = None) -> OpaqueText:
        if chars is not None and type(chars) is not str:
            raise LookedInside(method)
        return OpaqueText((Stripped(self.parts, method, chars),), self.questions)


def _refuse(name: str) -> Callable[..., NoReturn]:
    def method(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise LookedInside(name)

    return method


def _close(kind: type[str]) -> None:
    """Let every method of `str` that is not answered above raise."""
    open_ones = {"__new__", "__init__", "__class__", "__doc__", "__getattribute__", "__setattr__", "__delattr__"}
    open_ones |= {"__init_subclass__", "__subclasshook__", "__dir__"}
    for name in (*dir(str), "__rmul__", "__rmod__", "__int__", "__float__", "__index__", "__html__"):
        if name not in vars(kind) and name not in open_ones:
            setattr(kind, name, _refuse(name))
    for name in _STRIPS:
        setattr(kind, name, functools.partialmethod(cast(Any, OpaqueText)._stripped, name))  # noqa: SLF001
    # Defining `__eq__` has set it to None, and a TypeError would be taken for an answer.
    kind.__hash__ = _refuse("__hash__")  # type: ignore[method-assign]


_close(OpaqueText)


def join_opaque(parts: Iterable[str]) -> str:
    """Join texts, some of which may be opaque."""
    texts = list(parts)
    questions = next((text.questions for text in texts if isinstance(text, OpaqueText)), None)
    if questions is None:
        return "".join(texts)
    merged: list[str | int | Stripped] = []
    for text in texts:
        for part in text.parts if isinstance(text, OpaqueText) else (str(text),):
            if isinstance(part, str) and merged and isinstance(merged[-1], str):
                merged[-1] += part
            else:
                merged.append(part)
    return OpaqueText(tuple(merged), questions)


def leaks(parts: Parts) -> bool:
    """Whether code that bypasses our methods has printed the marker of an opaque text."""
    return any(
        _MARKER in part.lower() if isinstance(part, str) else isinstance(part, Stripped) and leaks(part.parts)
        for part in parts
    )


class _Closed(str):
    """Plain text of a template in which no opaque text is searched for."""

    def __contains__(self, other: object) -> bool:
        if isinstance(other, OpaqueText):
            raise LookedInside("in")
        return super().__contains__(cast(str, other))


def _is_clear(value: Any) -> bool:
    """Whether a value certainly holds no opaque text."""
    if isinstance(value, OpaqueText):
        return False
    if isinstance(value, list | tuple):
        return all(map(_is_clear, value))
    if isinstance(value, dict):
        return all(map(_is_clear, value.values()))
    # What a generator, a view or a namespace holds cannot be seen without using it up.
    known = (str, int, float, range, Undefined, Context, nodes.EvalContext, jinja2.Environment)
    return value is None or isinstance(value, known)


def _guard(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Let a filter or test of jinja refuse values that it would look into."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if not all(map(_is_clear, args)) or not all(map(_is_clear, kwargs.values())):
            raise LookedInside(name)
        return function(*args, **kwargs)

    return guarded


def _type_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def test(value: Any, *args: Any) -> Any:
        return function("text" if isinstance(value, OpaqueText) else value, *args)

    return test


class _Rewrite(NodeTransformer):
    """Reindices the two operators that read a text in C code, ``~`` and ``in``, by functions of ours."""

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
        """Call an object from a template."""
        changing = [__self.globals.get(name) for name in _CHANGING_GLOBALS]
        if any(__obj is function for function in changing if function is not None):
            raise LookedInside("a function that answers differently each time")
        values = [*args, *(value for value in kwargs.values() if not isinstance(value, Macro))]
        if not isinstance(__obj, Macro) and not all(map(_is_clear, values)):
            raise LookedInside("an argument")
        return super().call(__context, __obj, *args, **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Read an item of an object."""
        if isinstance(argument, OpaqueText):
            raise LookedInside("an index")
        return super().getitem(obj, argument)


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
        else _type_test(cast(Any, function))
        if name in _TYPE_TESTS
        else _guard(cast(Any, function), name)
        for name, function in original.tests.items()
    }
    tree = cast(nodes.Template, _Rewrite().visit(environment.parse(source)))
    code = environment.compile(tree)
    return jinja2.Template.from_code(environment, code, environment.make_globals(None))


def run_opaque(
    template: jinja2.Template,
    roles: Sequence[str],
    texts: Sequence[str],
    variables: Mapping[str, Any],
    *,
    content_first: bool = False,
) -> tuple[Parts, list[Answer]]:
    """Renders a conversation with opaque contents; returns its parts and what was asked about the contents."""
    questions = Questions(texts)
    messages: list[dict[str, str]] = []
    for index, role in enumerate(roles):
        content = OpaqueText((index,), questions)
        both = {"content": content, "role": role} if content_first else {"role": role, "content": content}
        messages.append(both)
    rendered = template.render(messages=messages, **variables)
    parts: Parts = rendered.parts if isinstance(rendered, OpaqueText) else (rendered,)
    if leaks(parts):
        raise LookedInside("the result")
    return parts, questions.answers
