"""Chat templates: Jinja programs that come with a model file and must be trusted no more than the file.

They run in jinja2's immutable sandbox (no access to Python's internals, no change of the values passed in) with the
functions that templates on the model hubs expect, and with a budget: every turn of a loop, every call and every
`CHUNK` characters made cost one, and no value may grow beyond `MAX_SIZE`, all that it holds counted.  So a hostile
template ends in an error instead of a hang or of all memory.
"""

import json
import re
import warnings
from functools import cache, cached_property, wraps

from ..arguments import nearest
from ..errors import ChatTemplateWarning

ROLES = ("system", "user", "assistant", "tool")
MAX_STEPS = 500_000  # of one rendering; real conversations need some thousands
MAX_SIZE = 1 << 24  # characters and list items in a value, all levels; an integer argument
MAX_NODES = 1 << 20  # lists, dicts and items in a value, all levels
MAX_WIDTH = 1000  # of padding and indentation
CHUNK = 2048
MAX_SOURCE = 1 << 20  # characters of the source
MAX_TOKENS = 20_000  # of the source, as Jinja reads it: the longest of real models has 4,000, and each costs 40 us to compile
_ALWAYS = frozenset(("bos_token", "eos_token", "unk_token", "pad_token", "add_generation_prompt"))  # given to every template

_BAD_WIDTH = re.compile(r"\d{4,}|\*|\{[^{}]*\{")  # in a format: a width above 999, or one from an argument
_WIDTHS = frozenset(("center", "indent", "tojson", "truncate", "batch", "slice"))  # filters that take some
_UNFIT = ("wordwrap", "urlize", "pprint", "xmlattr", "striptags")  # filters that no chat needs, slow on long texts


class ChatTemplate:
    """One compiled template.

    Parameters
    ----------
    source : str
        Jinja source.

    Raises
    ------
    ValueError
        It does not parse; the message has the line.
    """

    def __init__(self, source):
        import jinja2

        if not isinstance(source, str):
            raise TypeError(f"the chat template is {type(source).__name__}; wanted str")
        try:
            if len(source) > MAX_SOURCE or sum(1 for _ in zip(_environment().lex(source), range(MAX_TOKENS + 1))) > MAX_TOKENS:
                raise ValueError(f"the chat template has {len(source)} characters and more than {MAX_TOKENS} pieces; a real one has some "
                                 "thousands")
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template does not parse, line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise ValueError("the chat template nests too deeply") from None
        self._source = source

    @cached_property
    def variables(self):
        """Names that the template takes from outside, frozenset of str."""
        from jinja2 import meta

        return frozenset(meta.find_undeclared_variables(self._template.environment.parse(self._source)))

    @cached_property
    def reads_parts(self):
        """Whether the template writes the text of a content that is a list of parts, bool: found by trying."""
        mark = "\N{SNOWMAN}numainfer\N{SNOWMAN}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                text = self.render([{"role": "user", "content": [{"type": "text", "text": mark}]}], bos_token="", eos_token="")
        except ValueError:
            return False
        return mark in text and f"'{mark}'" not in text and f'"{mark}"' not in text

    def names_role(self, role):
        """Whether a role is a usual one, or one that the template names."""
        return role in ROLES or f"'{role}'" in self._source or f'"{role}"' in self._source

    def render(self, messages, *, tools=None, add_generation_prompt=True, **variables):
        """The text of a conversation.

        Parameters
        ----------
        messages : list of dict
            Passed to the template as they are; each has a ``role``, one of `ROLES` or another that the template names.
        tools : list of dict, optional
        add_generation_prompt : bool
        **variables
            ``bos_token``, ``eos_token`` and what else the template may ask for.

        Returns
        -------
        str

        Raises
        ------
        ValueError
            The template refuses the messages (its own words), fails, or exceeds the budget; a role looks misspelt.

        Warns
        -----
        ChatTemplateWarning
            Another role: many templates ignore the message.
        """
        import jinja2

        self._check_roles(messages)
        self._check_used(tools, variables)
        environment = self._template.environment
        budget = environment.budget
        budget.steps = MAX_STEPS
        try:
            parts, size = [], 0
            for part in self._template.generate(messages=messages, tools=tools,
                                                add_generation_prompt=add_generation_prompt, **variables):
                parts.append(part)
                size += len(part)
                environment.check_size(size)
            return "".join(parts)
        except jinja2.TemplateError as error:
            raise ValueError(f"chat template: {error.message or type(error).__name__}") from None
        except (RecursionError, MemoryError) as error:
            raise ValueError(f"chat template: {type(error).__name__}") from None
        # A template is a program: what it trips over is the file's fault. Other errors are not of its making: a signal
        # handler's TimeoutError, what the caller's own objects raise.
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"chat template: {type(error).__name__}: {error}") from error

    def _check_used(self, tools, variables):
        given = [*(["tools"] if tools else []), *(name for name in variables if name not in _ALWAYS)]
        for name in given:
            if name not in self.variables:
                used = ", ".join(sorted(self.variables - _ALWAYS - {"messages", "raise_exception", "strftime_now"})) or "none but messages"
                warnings.warn(f"the chat template does not use {name!r}, which has no effect; it uses {used}", ChatTemplateWarning,
                              stacklevel=3)

    def _check_roles(self, messages):
        for i, message in enumerate(messages):
            role = message["role"]
            if self.names_role(role):
                continue
            near = nearest(str(role), ROLES)
            if near:
                raise ValueError(f"messages[{i}]['role'] = {role!r}: did you mean {near[0]!r}?")
            warnings.warn(f"messages[{i}]['role'] = {role!r}: the chat template does not name this role and may ignore the message; "
                          f"usual are {', '.join(ROLES)}", ChatTemplateWarning, stacklevel=2)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Plain JSON: jinja2's own ``tojson`` writes HTML escapes, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form):
    """The local time now, formatted as by ``strftime``."""
    from datetime import datetime

    return datetime.now().strftime(form)


@cache
def _environment():
    """The environment of all templates.  It is built on first use: importing jinja2 takes 50 ms."""
    import threading

    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    class Generation(Extension):
        """``{% generation %}``: marks the assistant's part for training; here it is just its body."""

        tags = frozenset(("generation",))

        def parse(self, parser):
            parser.stream.skip(1)
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def __init__(self, **options):
            super().__init__(**options)
            self.budget = threading.local()

        def spend(self, steps=1):
            self.budget.steps -= steps
            if self.budget.steps < 0:
                raise SecurityError(f"more than {MAX_STEPS} steps; does it loop for ever?")

        def check_size(self, size):
            if size > MAX_SIZE:
                raise SecurityError(f"a value of size {size}; at most {MAX_SIZE} is allowed")

        def weigh(self, value):
            """Characters and items that a value holds; a list that is in it twice counts twice, as in print."""
            if isinstance(value, (str, bytes)):
                self.check_size(len(value))
                return len(value)
            size, nodes, stack = 0, 0, [value]
            while stack:
                item = stack.pop()
                nodes += 1
                if isinstance(item, (str, bytes)):
                    size += len(item)
                elif isinstance(item, (list, tuple, dict, set, frozenset)):
                    size += len(item) + 1
                    if nodes + len(stack) + len(item) > MAX_NODES:
                        raise SecurityError(f"a value of more items than the at most {MAX_NODES} that are allowed")
                    stack += item
                    stack += item.values() if isinstance(item, dict) else ()
                elif isinstance(item, jinja2.utils.Namespace):
                    stack.append(item._Namespace__attrs)
                self.check_size(size)
            return size + nodes // 8

        def bounded(self, value):
            """The value, paid for."""
            self.spend(self.weigh(value) // CHUNK)
            return value

        def _parse(self, source, name, filename):
            tree = super()._parse(source, name, filename)
            for loop in list(tree.find_all(nodes.For)):
                loop.iter = nodes.Filter(loop.iter, "metered", [], [], None, None, lineno=loop.lineno)
            for text in list(tree.find_all(nodes.Concat)):
                text.nodes = [nodes.Filter(nodes.Concat(text.nodes, lineno=text.lineno), "bounded", [], [], None, None,
                                           lineno=text.lineno)]
            for literal in list(tree.find_all((nodes.List, nodes.Tuple))):
                if getattr(literal, "ctx", "load") == "load":
                    literal.items = [nodes.Filter(item, "bounded", [], [], None, None, lineno=literal.lineno)
                                     if not isinstance(item, nodes.Const) else item for item in literal.items]
            for pair in list(tree.find_all(nodes.Pair)):
                pair.value = nodes.Filter(pair.value, "bounded", [], [], None, None, lineno=pair.lineno)
            return tree

        def call(self, context, obj, /, *args, **kwargs):
            self.spend()
            for value in (*args, *kwargs.values()):
                if isinstance(value, int):
                    self.check_size(abs(value))
            text = getattr(obj, "__self__", None)
            if isinstance(text, str):
                args = self.check_text(text, obj.__name__, args)
            return self.bounded(super().call(context, obj, *args, **kwargs))

        def wrap_str_format(self, value):
            if (wrapped := super().wrap_str_format(value)) is not None:
                self.check_text(value.__self__, "format", ())
            return wrapped

        def check_text(self, text, what, args):
            """Refuses a method or filter of a text whose result is too long; the arguments, made lists."""
            if what in ("format", "format_map") and _BAD_WIDTH.search(text):
                raise SecurityError("a format with a width above 999, or with one from an argument")
            if what == "replace" and len(args) > 1:
                self.check_size(len(text) + text.count(str(args[0])) * len(str(args[1])))
            if what == "expandtabs":
                self.check_size(len(text) + text.count("\t") * max((*args, 8)))
            if what == "translate":
                raise SecurityError("translate")
            if what == "join" and args:
                items, size = [], 0
                for item in args[0]:
                    size += self.weigh(item) + len(text)
                    self.check_size(size)
                    self.spend()
                    items.append(item)
                args = (items, *args[1:])
            return args

        def check_filter(self, name, value, args, kwargs):
            """The value that a filter is to get, if its result is not too long."""
            numbers = [v for v in (*args, *kwargs.values()) if isinstance(v, int)]
            if name in _WIDTHS and any(abs(v) > MAX_WIDTH for v in numbers):
                raise SecurityError(f"{name} by more than {MAX_WIDTH}")
            if name == "join":
                separator = args[0] if args else kwargs.get("d", "")
                return self.check_text(str(separator), name, (value,))[0]
            if isinstance(value, str):
                self.check_text(value, name, args)
                if name == "indent":
                    width = (*args, *kwargs.values(), 4)[0]
                    self.check_size(len(value) + value.count("\n") * (len(width) if isinstance(width, str) else width))
            return value

        def call_binop(self, context, operator, left, right):
            if operator == "%" and isinstance(left, str):
                raise SecurityError("the % operator on text; use format or ~")
            sizes = [self.weigh(v) if hasattr(v, "__len__") else None for v in (left, right)]
            if operator == "+" and None not in sizes:
                self.check_size(sum(sizes))
                self.spend(sum(sizes) // CHUNK)
            elif operator == "*" and sizes != [None, None]:
                size = ((sizes[0] if sizes[0] is not None else max(0, left))
                        * (sizes[1] if sizes[1] is not None else max(0, right)))
                self.check_size(size)
                self.spend(size // CHUNK)
            elif operator in ("*", "**"):
                self.check_size(abs(left))
                self.check_size(abs(right) * (64 if operator == "**" else 1))
            return super().call_binop(context, operator, left, right)

    def metered(values):
        for value in values:
            environment.spend()
            yield value

    def guarded(name, function):
        at = int(hasattr(function, "jinja_pass_arg"))  # where the value stands: some get the context before it

        @wraps(function)
        def filtered(*args, **kwargs):
            environment.spend()
            value = environment.check_filter(name, args[at], args[at + 1:], kwargs)
            return environment.bounded(function(*args[:at], value, *args[at + 1:], **kwargs))

        return filtered

    def raise_exception(message):
        raise jinja2.TemplateError(str(message))

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    environment.filters |= {"tojson": _to_json}
    environment.filters = {name: guarded(name, function) for name, function in environment.filters.items()
                           if name not in _UNFIT}
    environment.filters |= {"metered": metered, "bounded": environment.bounded}
    del environment.globals["lipsum"]
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": _strftime_now}
    return environment
