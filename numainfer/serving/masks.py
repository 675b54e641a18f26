"""Which tokens may come next in an answer that has a form; computed by llguidance while the model runs.

llguidance walks the bytes of all tokens through a parser of the form and gives a bit for each. What it knows of a
tokenizer is made once (`_Language`), what it knows of one answer is a `Form`. Many tokens are chosen without the bits
(`Sampler.settle`); where they will be needed, another thread computes them as soon as the token before is chosen, without the GIL.
"""

import collections
import json
import queue
import re
import threading
import weakref

import numpy as np

from ..errors import NumaInferError
from .forms import form_of

_KEPT = 32  # compiled forms for each tokenizer: some KB each
_THREADS = 4
# White space between the parts of a JSON answer. Without a bound a small model may write line feeds until max_tokens.
_WHITE_SPACE = r"[ ]?|\n[ \t]{0,40}"
# Where only one text can follow, llguidance would allow only the tokens that a tokenizer makes of it; models know others, and a
# tokenizer that puts a space before a text makes wrong ones.
_ALL_SPELLINGS = '\n%llguidance {"no_forcing": true}\n'


def make_form(tokenizer, n_vocab, params, ends):
    """The form that parameters ask of an answer.

    Parameters
    ----------
    tokenizer : Tokenizer
    n_vocab : int
        Number of tokens that can be chosen, at most the tokenizer's.
    params : SamplingParams
    ends : iterable of int
        Tokens that end the answer: allowed exactly where the form may end. The model's own that are not among them are
        never allowed.

    Returns
    -------
    Form or None

    Raises
    ------
    ValueError
        The form cannot be compiled, or nothing has it; the message names the parameter.
    ImportError
        There is no llguidance.
    """
    asked = form_of(params)
    return None if asked is None else _language(tokenizer, n_vocab, asked[0]).form(*asked, ends)


class Form:
    """What may come next in one answer. Not for two threads at once.

    Attributes
    ----------
    complete : bool
        The answer has its form, and nothing can follow.
    """

    def __init__(self, name, matcher, mask, n_words, stops, ends, ahead):
        self.complete = False
        self._name, self._matcher, self._ahead = name, matcher, ahead
        self._mask, self._n_words, self._address = mask, n_words, mask.ctypes.data
        self._stops, self._ends = stops | ends, ends
        self._keep_bits, self._end_bits = ~_bits(self._stops, len(mask)), _bits(ends, len(mask))
        self._error, self._stale = None, False
        self._busy = threading.Lock()  # another thread is computing the mask
        self._allow_ends()

    def allows(self, token):
        """Whether a token may come next; cheaper than all bits. Waits where they are being computed."""
        with self._busy:
            pass
        if not self._stale and self._error is None:
            return bool(int(self._mask[token // 32]) >> token % 32 & 1)
        if token in self._stops:
            return token in self._ends and self._matcher.is_accepting()
        return self._matcher.validate_tokens([token]) == 1

    def mask(self):
        """The bits of the next token; waits where they are being computed.

        Returns
        -------
        uint32 array (ceil(n_vocab / 32),)
            Bit i % 32 of word i / 32: whether token i may come.

        Raises
        ------
        NumaInferError
            No token can continue the answer, or the form has become too costly to follow.
        """
        with self._busy:
            pass
        if self._stale:
            self.compute()
        if self._error is not None:
            raise self._error
        return self._mask[: self._n_words]

    def accept(self, token, ahead=True):
        """Takes in the token that was chosen.

        Parameters
        ----------
        token : int
        ahead : bool
            Begin to compute what may follow, in another thread.

        Raises
        ------
        NumaInferError
            It was not allowed.
        """
        with self._busy:
            pass
        if token in self._ends:
            return
        if not self._matcher.consume_token(token):
            raise self._failure(f"token {token} is not allowed here")
        self.complete = self._matcher.is_stopped() and self._matcher.is_accepting()
        self._stale = True
        if ahead and not self.complete:
            self._busy.acquire()
            self._ahead.put(self)

    def compute(self):
        """Computes the bits; what goes wrong is told by `mask`."""
        self._matcher.unsafe_compute_mask_ptr(self._address, self._mask.nbytes)  # without the GIL
        if self._matcher.is_error():
            self._error = self._failure("no token can continue this answer, and it may not end here")
        self._allow_ends()
        self._stale = False

    def compute_ahead(self):
        """The same, in a thread of the language's."""
        try:
            self.compute()
        except BaseException as e:
            self._error, self._stale = e, False
        finally:
            self._busy.release()

    def _allow_ends(self):
        self._mask &= self._keep_bits
        if self._matcher.is_accepting():
            self._mask |= self._end_bits

    def _failure(self, says):
        return NumaInferError(f"{self._name}: {says} ({_message(self._matcher)})")


class _Language:
    """A tokenizer's vocabulary as llguidance wants it, and the forms that were compiled for it.

    Parameters
    ----------
    llguidance : module
    tokenizer : Tokenizer
    n_vocab : int
    """

    def __init__(self, llguidance, tokenizer, n_vocab):
        self._llguidance, self._n_vocab = llguidance, n_vocab
        self._tokenizer = llguidance.LLTokenizer(_Vocabulary(tokenizer, n_vocab))
        self._stops = frozenset(i for i in tokenizer.stop_token_ids if i < n_vocab)
        self._compiled, self._lock = collections.OrderedDict(), threading.Lock()
        self._ahead = queue.SimpleQueue()
        threads = [threading.Thread(target=_work, args=(self._ahead,), name="numainfer-masks", daemon=True) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        weakref.finalize(self, _end, self._ahead, threads)

    def form(self, name, source, ends):
        """A Form at its beginning; parameters and errors as of `make_form`."""
        key = (name, source)
        with self._lock:
            found = self._compiled.get(key)
            if found is None:
                found = self._compiled[key] = self._compile(name, source)
            self._compiled.move_to_end(key)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            matcher, mask = found[0].deep_copy(), found[1].copy()
        return Form(name, matcher, mask, -(-self._n_vocab // 32), self._stops, frozenset(ends), self._ahead)

    def _compile(self, name, source):
        """A matcher at the beginning, and the mask of the first token."""
        matcher = self._llguidance.LLMatcher(self._tokenizer, self._lark(name, source), log_level=0)
        if matcher.is_error():
            raise ValueError(f"{name}: cannot be compiled: {_message(matcher)}")
        mask = np.zeros(self._n_vocab // 32 + 1, np.uint32)  # with a bit for the end
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error():
            raise ValueError(f"{name}: no text of this model's tokens has this form ({_message(matcher)})")
        return matcher, mask

    def _lark(self, name, source):
        """The form in llguidance's kind of Lark."""
        if name == "grammar":
            return source + _ALL_SPELLINGS
        if name == "json_schema":
            schema = json.loads(source)
            options = schema.get("x-guidance", {})
            if isinstance(options, dict) and not options.keys() & {"whitespace_pattern", "whitespace_flexible"}:
                schema["x-guidance"] = {"whitespace_pattern": _WHITE_SPACE, **options}
            return f"start: %json {json.dumps(schema, ensure_ascii=False)}{_ALL_SPELLINGS}"
        if name == "choice":
            source = "|".join("".join(map(_literal, text)) for text in source)
        return f"start: /{self._llguidance.regex_to_lark(source, use_ascii='')}/{_ALL_SPELLINGS}"


class _Vocabulary:
    """What `LLTokenizer` reads: one token more than there are, the end, whose bit it sets where an answer may end.

    Control tokens are no text: only a grammar that names them allows them. USER_DEFINED ones are text like any other.
    """

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer, n_vocab):
        self.tokens = [*map(tokenizer.token_bytes, range(n_vocab)), b"<end of the answer>"]
        self.eos_token_id, self.bos_token_id = n_vocab, None
        self.special_token_ids = [*(i for i in tokenizer.control_token_ids if i < n_vocab), n_vocab]

    def __call__(self, text):
        """Would make tokens of texts that must follow: not asked for, see `_ALL_SPELLINGS`."""
        raise NotImplementedError


_languages: "weakref.WeakKeyDictionary[object, _Language]" = weakref.WeakKeyDictionary()
_making = threading.Lock()


def _language(tokenizer, n_vocab, name):
    try:
        import llguidance
    except ImportError as e:
        raise ImportError(f"{name}: needs the package llguidance ({e}): pip install 'numainfer[grammar]'") from None
    with _making:
        found = _languages.get(tokenizer)
        if found is None:
            found = _languages[tokenizer] = _Language(llguidance, tokenizer, n_vocab)
        return found


def _work(forms):
    """What a thread does: computes masks until None comes."""
    while (form := forms.get()) is not None:
        form.compute_ahead()
        form = None  # an answer that has ended is not kept alive by an idle thread


def _end(forms, threads):
    """Ends the threads, before the interpreter does: where it takes a thread out of llguidance, the process dies."""
    for _ in threads:
        forms.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(1)


def _bits(ids, n_words):
    bits = np.zeros(n_words, np.uint32)
    for i in ids:
        bits[i // 32] |= np.uint32(1 << i % 32)
    return bits


def _literal(character):
    """A character as a regular expression that matches it alone."""
    return character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}"


def _message(matcher):
    """What llguidance says, without its parser's state, in one line."""
    text = matcher.get_error().partition("<state>")[0].replace(_ALL_SPELLINGS.strip(), "")
    text = " ".join(text.split()).removesuffix(" 2 |") or matcher.stop_reason()
    of_schema = re.search(r"failed to compile JSON schema: (.*?) 1 \| start: %json", text)
    text = of_schema[1] if of_schema else text  # the line would show the schema as we wrote it
    return text if len(text) <= 500 else f"{text[:300]} ... {text[-190:]}"
