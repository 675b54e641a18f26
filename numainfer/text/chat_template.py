"""Chat templates: Jinja programs that come with a model file, run in the sandbox of `sandbox.py`."""

import warnings
from functools import cached_property

from ..arguments import nearest
from ..errors import ChatTemplateWarning
from .sandbox import environment

ROLES = ("system", "user", "assistant", "tool")
MAX_SOURCE = 1 << 20  # characters of the source
MAX_TOKENS = 20_000  # of the source, as Jinja reads it: the longest of real models has 4,000, and each costs 40 us to compile
_ALWAYS = frozenset(("bos_token", "eos_token", "unk_token", "pad_token", "add_generation_prompt"))  # given to every template


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
            if len(source) > MAX_SOURCE or sum(1 for _ in zip(environment().lex(source), range(MAX_TOKENS + 1))) > MAX_TOKENS:
                raise ValueError(f"the chat template has {len(source)} characters and more than {MAX_TOKENS} pieces; a real one has some "
                                 "thousands")
            self._template = environment().from_string(source)
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
        sandbox = self._template.environment
        try:
            parts, size = [], 0
            with sandbox.rendering():
                for part in self._template.generate(messages=messages, tools=tools,
                                                    add_generation_prompt=add_generation_prompt, **variables):
                    parts.append(part)
                    size += len(part)
                    sandbox.check_size(size)
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
