"""Text to token ids and back, built from a GGUF file's metadata.

The words are cut and merged by an engine (`tokenizer_engines`); here are the things around it: special tokens, BOS
and EOS, bytes back to text, streaming, stop tokens and the chat template.
"""

from __future__ import annotations

import codecs
import operator
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn, overload

from ..errors import ChatTemplateMissing, CorruptModel
from ..signatures import Conversation, TokenIds, Tools
from .messages import check_messages, plain_messages
from .engines import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Vocabulary, is_utf8, make_engine, raw_bytes

# Texts of tokens that end a turn or an answer in the families that people use.
_END_TEXTS = frozenset((
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>",
    "<end_of_turn>", "<turn|>", "<|tool_response>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>", "<eos>",
    "</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~[", "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|fim_pad|>", "<fim_pad>", "<fim-pad>", "<|repo_name|>", "<|fim_repo|>", "<reponame>", "<REPO>", "<|file_sep|>"))
# Keywords that transformers has and a template's variable is never called.
_NOT_HERE = {
    "return_tensors": "ids are a list of int; numpy.array(ids) or torch.tensor([ids]) makes an array of them",
    "return_dict": "ids are a plain list of int",
    "return_assistant_tokens_mask": "masks are for training",
    "tokenizer_kwargs": "encode(text, ...) takes its own",
    "padding": "sequences of a list need not be of equal length",
    "truncation": "cut the ids yourself, ids[-n:]",
    "max_length": "cut the ids yourself, ids[-n:]",
    "chat_template": "it is called template here",
    "conversation": "it is called messages here",
}
_END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")


class _SpecialFinder:
    """Finds special tokens in raw text: the leftmost, and of those that start there the longest."""

    def __init__(self, texts, rstrip=frozenset()):
        self._ids, self._rstrip = texts, rstrip
        lengths = {}  # two characters -> lengths of the tokens that begin with them, longest first
        for text in texts:
            lengths.setdefault(text[:2], set()).add(len(text))
        self._lengths = {start: sorted(sizes, reverse=True) for start, sizes in lengths.items()}
        starts = sorted(self._lengths, key=len, reverse=True)
        self._start = re.compile("|".join(map(re.escape, starts))) if starts else None

    def id_of(self, text):
        """The token that is just this text, or None."""
        return self._ids.get(text)

    def split(self, text):
        """Yields pieces of plain text (str, never empty) and ids of special tokens (int), in order."""
        begin = at = 0
        while self._start and (found := self._start.search(text, at)):
            at = found.start()
            token = self._longest(text, at)
            if token is None:
                at += 1
                continue
            if begin < at:
                yield text[begin:at]
            yield self._ids[token]
            at += len(token)
            if self._ids[token] in self._rstrip:
                while at < len(text) and text[at] in " \t\n\v\f\r":
                    at += 1
            begin = at
        if begin < len(text):
            yield text[begin:]

    def _longest(self, text, at):
        for start in (text[at:at + 2], text[at]):
            for n in self._lengths.get(start, ()):
                if text[at:at + n] in self._ids:
                    return text[at:at + n]
        return None


class Tokenizer:
    """A model's tokenizer.

    Parameters
    ----------
    metadata : mapping of str to value
        The file's key-value pairs; arrays as sequences, strings that are no UTF-8 with surrogate escapes.
    path : str
        Named in error messages.

    Attributes
    ----------
    n_vocab : int
    bos_token_id, eos_token_id, unk_token_id, pad_token_id : int or None
    add_bos, add_eos : bool
        Whether `encode` puts them around a text.
    stop_token_ids : frozenset of int
        Every token that ends generation.
    control_token_ids : frozenset of int
        Tokens that are no text: `decode` leaves them out.
    chat_templates : dict of str to str
        ``"default"`` and the file's named ones.

    Raises
    ------
    UnsupportedModel
        A kind of tokenizer or a pre-tokenizer that is not known; see `pretokenizers`.
    CorruptModel
        The metadata contradict each other.
    """

    n_vocab: int
    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
    pad_token_id: int | None
    add_bos: bool
    add_eos: bool
    stop_token_ids: frozenset[int]
    control_token_ids: frozenset[int]
    chat_templates: dict[str, str]

    def __init__(self, metadata: Mapping[str, Any], path: str | os.PathLike[str] = "tokenizer metadata") -> None:
        self._vocab = vocab = Vocabulary(metadata, str(path))
        self._engine = make_engine(vocab)
        self.n_vocab = vocab.n
        self.bos_token_id, self.eos_token_id = vocab.bos_id, vocab.eos_id
        self.unk_token_id, self.pad_token_id = vocab.unk_id, vocab.pad_id
        self._read_flags(metadata)
        self.chat_templates = {}
        for key, value in metadata.items():
            if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template."):
                self.chat_templates[key[len("tokenizer.chat_template."):] or "default"] = value
        self._find_specials(metadata)
        self._compiled = {}
        self._bytes = [None] * self.n_vocab

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a Tokenizer is not called: tokenizer.encode(text) gives token ids, a list of int")

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer of a GGUF file, whose ``path`` is given; it raises what the class does.

        Returns
        -------
        Tokenizer
        """
        from ..gguf.file import GGUFFile

        with GGUFFile(path) as file:
            return cls(file.metadata, path)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self._vocab.metadata), self._vocab.path)

    def __repr__(self) -> str:
        return f"<Tokenizer {self._vocab.model}, {self.n_vocab} tokens, stops at {sorted(self.stop_token_ids)}>"

    def _read_flags(self, metadata):
        vocab, spm = self._vocab, self._vocab.model == "llama"
        by_kind = vocab.pre.add_bos if vocab.pre else vocab.model != "plamo2"
        self.add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", by_kind and self.bos_token_id is not None))
        self.add_eos = bool(metadata.get("tokenizer.ggml.add_eos_token", False))
        if vocab.model == "gemma4":
            self.add_bos = True  # early files say false, which the model was not trained for
        self._tail = (self.eos_token_id,) if self.add_eos else ()
        if vocab.model == "bert":
            self.add_bos, self._tail = True, (vocab.sep_id,)
        for name, token in (("bos", self.bos_token_id if self.add_bos else 0), ("eos", (*self._tail, 0)[0])):
            if token is None:
                raise CorruptModel(vocab.path, f"tokenizer.ggml.add_{name}_token is true, but "
                                               f"tokenizer.ggml.{name}_token_id is missing")
        self._space_prefix = spm and bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        self._squeeze = spm and bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False))

    def _find_specials(self, metadata):
        vocab = self._vocab
        by_type = {kind: [] for kind in (UNKNOWN, CONTROL, USER_DEFINED)}
        for i, kind in enumerate(vocab.types):
            if kind in by_type:
                by_type[kind].append(i)
        control = by_type[CONTROL] + by_type[UNKNOWN]
        text_of = {i: vocab.tokens[i] for ids in by_type.values() for i in ids}
        self.control_token_ids = frozenset(control)
        self._special = frozenset(text_of)
        stop = {vocab.id_of(name) for name in _END_KEYS} | {vocab.eos_id}
        stop |= {i for i in by_type[CONTROL] if text_of[i] in _END_TEXTS}
        # Some converters type them USER_DEFINED, as they do ordinary mark-up: there the file's own template decides.
        templates = [template for template in self.chat_templates.values() if isinstance(template, str)]
        stop |= {i for i in by_type[USER_DEFINED] if text_of[i] in _END_TEXTS and any(text_of[i] in t for t in templates)}
        # In gpt-oss and Solar, <|end|> only closes one of several parts of an answer.
        names = {text_of.get(i) for i in stop}
        if {"<|return|>", "<|call|>"} <= names or {"<|flush|>", "<|calls|>"} <= names:
            stop -= {i for i in stop if text_of.get(i) == "<|end|>"}
        self.stop_token_ids = frozenset(stop - {None})
        rstrip = frozenset()
        if vocab.model == "llama" and metadata.get("general.architecture") == "phi3":
            # Phi-3's role tokens swallow the white space that follows; GGUF has no field for it.
            rstrip = frozenset(i for i, t in text_of.items() if t not in ("<unk>", "<s>", "<|endoftext|>"))
        user = {text_of[i]: i for i in by_type[USER_DEFINED] if text_of[i]}
        self._find_user = _SpecialFinder(user, rstrip)
        self._find_all = _SpecialFinder(user | {text_of[i]: i for i in control if text_of[i]}, rstrip)

    # Text to ids

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        Parameters
        ----------
        text : str
        add_special_tokens : bool
            Put BOS and EOS around it where the model wants them.
        parse_special : bool
            Read the text of a control token (``<|im_end|>``) as that token.  False for text from strangers: there it
            becomes ordinary tokens.

        Returns
        -------
        list of int

        Raises
        ------
        TypeError
            `text` is not a str.
        ValueError
            `text` holds a lone surrogate, which no UTF-8 has.
        """
        if not isinstance(text, str):
            raise TypeError(f"text is {type(text).__name__}; wanted str")
        if not is_utf8(text):
            at = next(i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff")
            raise ValueError(f"text holds the lone surrogate U+{ord(text[at]):04X} at index {at}; wanted valid Unicode")
        ids = [self.bos_token_id] if add_special_tokens and self.add_bos else []
        after_special = True
        for part in (self._find_all if parse_special else self._find_user).split(text):
            if isinstance(part, int):
                ids.append(part)
                after_special = True
                continue
            if self._squeeze:
                part = re.sub(" +", " ", part).strip(" ")
            if self._space_prefix and after_special:
                part = " " + part
            ids += self._engine.encode(part)
            after_special = False
        if add_special_tokens:
            ids += self._tail
        return ids

    def special_parts(self, text: str) -> list[int | str]:
        """A text cut at the control tokens in it, which `decode` leaves out; empty if there are none.

        Returns
        -------
        list of int and str
            Ids of the tokens and the texts between them.
        """
        parts = list(self._find_all.split(text))
        return parts if any(isinstance(part, int) and part in self.control_token_ids for part in parts) else []

    def control_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """Ids of the control tokens, which `decode` leaves out, among these texts.

        Returns
        -------
        frozenset of int
        """
        return frozenset(i for text in texts if (i := self._find_all.id_of(text)) in self.control_token_ids)

    # Ids to text

    def token_text(self, token_id: int) -> str:
        """The token ``token_id`` as the vocabulary spells it (``Ġthe``, ``▁the``, ``<0x0A>``).

        Returns
        -------
        str
        """
        return self._vocab.tokens[self._check(token_id)]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token ``token_id`` stands for; of special tokens, their text's.

        Returns
        -------
        bytes
        """
        i = self._check(token_id)
        known = self._bytes[i]
        if known is None:
            known = self._bytes[i] = self._decode_token(i)
        return known

    def _decode_token(self, i):
        text = self._vocab.tokens[i]
        if i in self._special:
            return raw_bytes(text)
        if self._vocab.types[i] == BYTE:
            if not re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text):
                raise CorruptModel(self._vocab.path, f"token {i} is a byte token with the text {text!r}; wanted <0xXX>")
            return bytes.fromhex(text[3:5])
        return self._engine.decode_token(text)

    def _check(self, token_id):
        try:
            i = operator.index(token_id)
        except TypeError:
            raise TypeError(f"token id {token_id!r} is {type(token_id).__name__}; wanted an integer") from None
        if not 0 <= i < self.n_vocab:
            raise ValueError(f"token id {i} is out of range; the vocabulary has ids 0 to {self.n_vocab - 1}")
        return i

    def decode(
        self, ids: Iterable[int] | TokenIds, *, skip_special_tokens: bool = True, after: int | None = None
    ) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD.

        Parameters
        ----------
        ids : iterable of int
        skip_special_tokens : bool
            Leave out control tokens.
        after : int, optional
            The id before the first.  It matters where `encode` puts a space before each text that begins a prompt or
            follows a special token: decoding takes that space away again, but not in the midst of a text.

        Raises
        ------
        ValueError, TypeError
            An id is out of range or no integer.
        """
        if not isinstance(ids, Iterable) or isinstance(ids, (str, bytes)):
            raise TypeError(f"ids: found {type(ids).__name__}, wanted a sequence of token ids, such as [5]")
        stream = self.stream(skip_special_tokens=skip_special_tokens, after=after)
        return "".join([*map(stream.put, ids), stream.flush()])

    def stream(
        self, *, skip_special_tokens: bool = True, after: int | None = None, exact: bool = False,
        keep: frozenset[int] = frozenset()
    ) -> TokenDecoder:
        """An incremental decoder; parameters as for `decode`, whose text its pieces add up to.

        Parameters
        ----------
        exact : bool
            Take no space away: the text is the tokens' own bytes.
        keep : frozenset of int
            Control tokens that it does not leave out.
        """
        return TokenDecoder(self, skip_special_tokens, after, exact, keep)

    # Chat

    @property
    def chat_template(self) -> str | None:
        """Source of the default chat template (Jinja), or None."""
        return self.chat_templates.get("default")

    @overload
    def apply_chat_template(
        self, messages: Conversation, *, tools: Tools | None = None, add_generation_prompt: bool = True,
        tokenize: Literal[False] = False, template: str | None = None, **kw: Any
    ) -> str: ...

    @overload
    def apply_chat_template(
        self, messages: Conversation, *, tools: Tools | None = None, add_generation_prompt: bool = True,
        tokenize: Literal[True], template: str | None = None, **kw: Any
    ) -> list[int]: ...

    def apply_chat_template(
        self, messages: Conversation, *, tools: Tools | None = None, add_generation_prompt: bool = True,
        tokenize: bool = False, template: str | None = None, **kw: Any
    ) -> str | list[int]:
        """The prompt for a conversation.

        Parameters
        ----------
        messages : list of dict
            With ``role`` and ``content`` (str, or a list of parts like ``{"type": "text", "text": ...}``).
        tools : list of dict, optional
            Their JSON schemas.  A template named ``tool_use`` is preferred with them.
        add_generation_prompt : bool
            End with the opening of the assistant's turn.
        tokenize : bool
            Return ids instead of text, with exactly one BOS if the model wants one.
        template : str, optional
            Name of one of `chat_templates`, or else a template's source.
        **kw
            Further variables of the template.

        Returns
        -------
        str or list of int

        Raises
        ------
        ChatTemplateMissing
            The file has none, or none of that name.
        TypeError
            A keyword that is transformers' and has no meaning here.
        ValueError
            The template is broken, makes no text, or refuses the messages; the message is the template's own.

        Warns
        -----
        ChatTemplateWarning
            Tools or a variable that the template does not use.
        """
        text, _ = self._rendered(messages, tools, add_generation_prompt, template, kw)
        return self._ids_of_chat(text) if tokenize else text

    def chat_prompt(
        self, messages: Conversation, *, tools: Tools | None = None, template: str | None = None, **kw: Any
    ) -> tuple[list[int], str, str]:
        """The prompt that is to be answered; parameters and errors as for `apply_chat_template`.

        Returns
        -------
        list of int, str, str
            Its ids, its text, and the source of the template that wrote it.
        """
        text, source = self._rendered(messages, tools, True, template, kw)
        return self._ids_of_chat(text), text, source

    def _rendered(self, messages, tools, add_generation_prompt, template, kw):
        for name in kw:
            if name in _NOT_HERE:
                raise TypeError(f"unknown parameter {name!r} of apply_chat_template: {_NOT_HERE[name]}")
        from .chat_template import ChatTemplate

        if template is None:
            template = "tool_use" if tools and "tool_use" in self.chat_templates else "default"
            if not self.chat_templates.get(template, "").strip():
                others = f" by default; it has {', '.join(sorted(self.chat_templates))}" if self.chat_templates else ""
                others = " but a blank one" if template in self.chat_templates else others
                raise ChatTemplateMissing(f"{self._vocab.path} has no chat template{others}. "
                                          "Format the prompt yourself or pass template=")
        elif template not in self.chat_templates and "{" not in template:
            known = ", ".join(sorted(self.chat_templates)) or "none"
            raise ChatTemplateMissing(f"{self._vocab.path} has no chat template named {template!r}; it has {known}")
        source = self.chat_templates.get(template, template)
        if source not in self._compiled:
            self._compiled[source] = ChatTemplate(source)
        names = {name: self._vocab.tokens[i] for name, i in (
            ("bos_token", self.bos_token_id), ("eos_token", self.eos_token_id), ("unk_token", self.unk_token_id),
            ("pad_token", self.pad_token_id)) if i is not None}
        compiled = self._compiled[source]
        plain = plain_messages(check_messages(messages, tools), compiled.reads_parts, thinking="message.thinking" in source)
        text = compiled.render(plain, tools=tools, add_generation_prompt=add_generation_prompt, **(names | kw))
        if not text:
            raise ValueError("the chat template makes no text of these messages: nothing for the model to answer")
        return text, source

    def _ids_of_chat(self, text):
        ids = self.encode(text, add_special_tokens=False)
        if self.add_bos and ids[:1] != [self.bos_token_id]:
            ids.insert(0, self.bos_token_id)
        return ids


class TokenDecoder:
    """Turns ids into text one by one, holding back bytes until they make a whole character."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, after: int | None, exact: bool = False,
                 keep: frozenset[int] = frozenset()) -> None:  # fmt: skip
        self._tokenizer, self._skip, self._keep = tokenizer, skip_special_tokens, keep
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strips = tokenizer._space_prefix and not exact
        self._at_start = after is None or tokenizer._check(after) in tokenizer._special

    def put(self, token_id: int) -> str:
        """Text that became complete with the token ``token_id``; often the empty string.

        Returns
        -------
        str
        """
        piece = self._tokenizer.token_bytes(token_id)
        if token_id in self._tokenizer._special:
            self._at_start = True
            if self._skip and token_id in self._tokenizer.control_token_ids and token_id not in self._keep:
                return ""
        elif piece:
            if self._at_start and self._strips:
                piece = piece.removeprefix(b" ")
            self._at_start = False
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """What is left: U+FFFD for a character that never became whole."""
        return self._utf8.decode(b"", final=True)
