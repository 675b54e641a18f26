"""Chat templates: Jinja programs that come with a model file and must be trusted no more than the file.

They run in jinja2's immutable sandbox (no access to Python's internals, no change of the values passed in) with the
functions that templates on the model hubs expect, and with a budget: every turn of a loop and every call costs one,
and no value may grow beyond `MAX_SIZE`.  So a hostile template ends in an error instead of a hang.
"""

import json
from functools import cache

MAX_STEPS = 500_000  # loop turns and calls of one rendering; real conversations need some thousands
MAX_SIZE = 1 << 24  # characters, list items, or an integer argument


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
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template does not parse, line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise ValueError("the chat template nests too deeply") from None

    def render(self, messages, *, tools=None, add_generation_prompt=True, **variables):
        """The text of a conversation.

        Parameters
        ----------
        messages : list of dict
            Passed to the template as they are; each needs a ``role``.
        tools : list of dict, optional
        add_generation_prompt : bool
        **variables
            ``bos_token``, ``eos_token`` and what else the template may ask for.

        Returns
        -------
        str

        Raises
        ------
        TypeError
            `messages` is no list of dicts.
        ValueError
            The template refuses the messages (its own words), fails, or exceeds the budget.
        """
        import jinja2

        _check_messages(messages)
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
        except Exception as error:  # a template is a program; whatever it trips over is the file's fault, not ours
            raise ValueError(f"chat template: {type(error).__name__}: {error}") from error


def _check_messages(messages):
    if isinstance(messages, (str, bytes, dict)) or not hasattr(messages, "__iter__"):
        raise TypeError(f"messages is {type(messages).__name__}; wanted a list of dicts with role and content")
    for i, message in enumerate(messages):
        if not hasattr(message, "keys"):
            raise TypeError(f"messages[{i}] is {type(message).__name__}; wanted a dict with role and content")
        if "role" not in message:
            raise ValueError(f"messages[{i}] has no role; it has {sorted(map(str, message.keys()))}")


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

        def spend(self):
            self.budget.steps -= 1
            if self.budget.steps < 0:
                raise SecurityError(f"more than {MAX_STEPS} steps; does it loop for ever?")

        def check_size(self, size):
            if size > MAX_SIZE:
                raise SecurityError(f"a value of size {size}; at most {MAX_SIZE} is allowed")

        def _parse(self, source, name, filename):
            tree = super()._parse(source, name, filename)
            for loop in list(tree.find_all(nodes.For)):
                loop.iter = nodes.Filter(loop.iter, "metered", [], [], None, None, lineno=loop.lineno)
            for text in list(tree.find_all(nodes.Concat)):
                text.nodes = [nodes.Filter(nodes.Concat(text.nodes, lineno=text.lineno), "bounded", [], [], None, None,
                                           lineno=text.lineno)]
            return tree

        def call(self, context, obj, /, *args, **kwargs):
            self.spend()
            for value in (*args, *kwargs.values()):
                if isinstance(value, int):
                    self.check_size(abs(value))
            return super().call(context, obj, *args, **kwargs)

        def call_binop(self, context, operator, left, right):
            if operator == "%" and isinstance(left, str):
                raise SecurityError("the % operator on text; use format or ~")
            sizes = [len(v) if hasattr(v, "__len__") else None for v in (left, right)]
            if operator == "+" and None not in sizes:
                self.check_size(sum(sizes))
            elif operator == "*" and sizes != [None, None]:
                self.check_size((sizes[0] if sizes[0] is not None else max(0, left))
                                * (sizes[1] if sizes[1] is not None else max(0, right)))
            elif operator in ("*", "**"):
                self.check_size(abs(left))
                self.check_size(abs(right) * (64 if operator == "**" else 1))
            return super().call_binop(context, operator, left, right)

    def metered(values):
        for value in values:
            environment.spend()
            yield value

    def bounded(value):
        environment.check_size(len(value))
        return value

    def raise_exception(message):
        raise jinja2.TemplateError(str(message))

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    environment.filters |= {"tojson": _to_json, "metered": metered, "bounded": bounded}
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": _strftime_now}
    return environment
