"""The sandbox of chat templates, which are programs and must be trusted no more than the file that they come in.

jinja2's immutable sandbox (no access to Python's internals, no change of the values passed in) with the functions that templates on
the model hubs expect, and with a budget: every turn of a loop, every call and every `CHUNK` characters made cost one, and no value
may grow beyond `MAX_SIZE`, all that it holds counted.  So a hostile template ends in an error instead of a hang or of all memory.

What can change, namespaces and lists that the template began as ``[]``, is never part of another value: else that value could
grow after it was weighed.
"""

import contextlib
import json
import re
from functools import cache, wraps

MAX_STEPS = 500_000  # of one rendering; real conversations need some thousands
MAX_SIZE = 1 << 24  # characters and list items in a value, all levels; an integer argument
MAX_NODES = 1 << 20  # lists, dicts and items in a value, all levels
MAX_WIDTH = 1000  # of padding and indentation
CHUNK = 2048
MAX_LISTS = 10_000  # that may grow

_BAD_WIDTH = re.compile(r"\d{4,}|\*|\{[^{}]*\{")  # in a format: a width above 999, or one from an argument
_WIDTHS = frozenset(("center", "indent", "tojson", "truncate", "batch", "slice"))  # filters that take some
_UNFIT = ("wordwrap", "urlize", "pprint", "xmlattr", "striptags")  # filters that no chat needs, slow on long texts


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """Plain JSON: jinja2's own ``tojson`` writes HTML escapes, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form):
    """The local time now, formatted as by ``strftime``."""
    from datetime import datetime

    return datetime.now().strftime(form)


@cache
def environment():
    """The environment of all templates.  It is built on first use: importing jinja2 takes 50 ms."""
    import threading

    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.runtime import Macro
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
    from jinja2.utils import Namespace
    from jinja2.visitor import NodeTransformer

    class Generation(Extension):
        """``{% generation %}``: marks the assistant's part for training; here it is just its body."""

        tags = frozenset(("generation",))

        def parse(self, parser):
            parser.stream.skip(1)
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body)

    def filtered(node, name):
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    class Growing(NodeTransformer):
        """Marks the lists that begin as ``[]``."""

        def visit_List(self, node):
            node = self.generic_visit(node)
            return node if node.items else filtered(node, "growing")

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("+", "*", "**", "%"))

        def __init__(self, **options):
            super().__init__(**options)
            self.budget = threading.local()

        @contextlib.contextmanager
        def rendering(self):
            """Where a template is rendered: its budget, and its lists that may grow, by id."""
            self.budget.steps, self.budget.lists, self.budget.grown = MAX_STEPS, {}, 0
            try:
                yield
            finally:
                self.budget.lists = {}

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
                elif isinstance(item, Namespace):
                    if item is not value:
                        self.nest([item])
                    stack.append(item._Namespace__attrs)
                self.check_size(size)
            return size + nodes // 8

        def bounded(self, value):
            """The value, paid for."""
            self.spend(self.weigh(value) // CHUNK)
            return value

        def nest(self, values):
            """They become parts of another value: so they grow no more."""
            for value in values:
                self.budget.lists.pop(id(value), None)
                if isinstance(value, Namespace):
                    raise SecurityError("a namespace within another value")

        def part(self, value):
            self.nest([value])
            return self.bounded(value)

        def held(self, value):
            """A namespace's attribute: that alone may hold a list that grows."""
            if isinstance(value, Namespace):
                self.nest([value])
            return value

        def is_safe_attribute(self, obj, attr, value):
            return super().is_safe_attribute(obj, attr, value) or attr in ("append", "pop") and id(obj) in self.budget.lists

        def check_growth(self, grown, append, args):
            """Pays for `grown.append` or `grown.pop`, if the list may still grow."""
            self.nest(args)
            if id(grown) not in self.budget.lists:
                raise SecurityError("append and pop are for lists that began as [] and are part of no other value")
            self.spend(len(grown) // CHUNK)
            if append:
                size = sum(self.weigh(value) + 1 for value in args)
                self.budget.grown += size
                self.check_size(self.budget.grown)
                self.spend(size // CHUNK)

        def _parse(self, source, name, filename):
            tree = Growing().visit(super()._parse(source, name, filename))
            for loop in list(tree.find_all(nodes.For)):
                loop.iter = filtered(loop.iter, "metered")
            for text in list(tree.find_all(nodes.Concat)):
                text.nodes = [filtered(nodes.Concat(text.nodes, lineno=text.lineno), "part")]
            for literal in list(tree.find_all((nodes.List, nodes.Tuple))):
                if getattr(literal, "ctx", "load") == "load":
                    literal.items = [filtered(item, "part") if not isinstance(item, nodes.Const) else item for item in literal.items]
            for pair in list(tree.find_all(nodes.Pair)):
                pair.value = filtered(pair.value, "part")
            for assignment in list(tree.find_all(nodes.Assign)):
                if isinstance(assignment.target, nodes.NSRef):
                    assignment.node = filtered(assignment.node, "held")
            return tree

        def call(self, context, obj, /, *args, **kwargs):
            self.spend()
            given = (*args, *kwargs.values())
            for value in given:
                if isinstance(value, int):
                    self.check_size(abs(value))
            owner = getattr(obj, "__self__", None)
            if isinstance(owner, str):
                args = self.check_text(owner, obj.__name__, args)
            elif isinstance(owner, list) and obj.__name__ in ("append", "pop"):
                self.check_growth(owner, obj.__name__ == "append", given)
            elif obj is Namespace:
                for value in given:
                    self.held(value)
            elif not isinstance(obj, Macro):
                self.nest(given)
            elif obj.catch_varargs or obj.catch_kwargs:
                for value in given:
                    self.part(value)
                self.weigh(given)
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
        def paid(*args, **kwargs):
            environment.spend()
            environment.nest((*args[at + 1:], *kwargs.values()))
            value = environment.check_filter(name, args[at], args[at + 1:], kwargs)
            return environment.bounded(function(*args[:at], value, *args[at + 1:], **kwargs))

        return paid

    @jinja2.pass_context  # else it would be called once, when the template is compiled
    def growing(context, value):
        lists = environment.budget.lists
        if len(lists) < MAX_LISTS:
            lists[id(value)] = value
        return value

    def raise_exception(message):
        raise jinja2.TemplateError(str(message))

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    environment.filters |= {"tojson": _to_json}
    environment.filters = {name: guarded(name, function) for name, function in environment.filters.items()
                           if name not in _UNFIT}
    environment.filters |= {"metered": metered, "growing": growing, "part": environment.part, "held": environment.held}
    del environment.globals["lipsum"]
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": _strftime_now}
    return environment
