"""The four ways from a piece of plain text to token ids, built from GGUF metadata.

An engine knows nothing of special tokens, BOS or EOS: `Tokenizer` cuts those out first.  Each has ``encode(text)``
-> list of int, and ``decode_token(text)`` -> the bytes that an ordinary token's text stands for.

Metadata strings that are no UTF-8 arrive with surrogate escapes (PEP 383).  No text can hold them, nor the empty
string, so the engines get a unique stand-in instead, which keeps the ids in step.
"""

import struct
from functools import cache

from ..errors import CorruptModel, UnsupportedModel
from .pretokenizers import pre_tokenizer

# Values of tokenizer.ggml.token_type, which are SentencePiece's piece types.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SPACE = "\u2581"  # SentencePiece's visible space
_LONG = 1 << 14  # characters


def is_utf8(text):
    """Whether `text` has a UTF-8 form, that is, holds no surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def raw_bytes(text):
    """UTF-8 bytes of `text`, undoing surrogate escapes."""
    return text.encode("utf-8", "surrogateescape")


def _encoded(tokenizer, text, with_tokens=False):
    """A text's Encoding. A long one is a batch, for which the library lets go of the GIL: seconds, while other threads answer."""
    if len(text) < _LONG:
        return tokenizer.encode(text, add_special_tokens=False)
    encode = tokenizer.encode_batch if with_tokens else tokenizer.encode_batch_fast
    return encode([text], add_special_tokens=False)[0]


@cache
def byte_alphabet():
    """GPT-2's alphabet: printable character -> byte value (dict of 256).

    Printable Latin-1 stands for itself; the other bytes take the characters from U+0100 on, in order.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in own}
    others = (b for b in range(256) if b not in set(own))
    table.update({chr(0x100 + i): b for i, b in enumerate(others)})
    return table


def unique_texts(tokens, path):
    """`tokens` as a list in which every text is encodable, none is empty and none occurs twice.

    Raises
    ------
    CorruptModel
        Two tokens have the same text: then text -> id has no answer.
    """
    tokens = list(tokens)
    if "" in tokens or not is_utf8("".join(tokens)):
        tokens = [t if t and is_utf8(t) else f"\uE000token {i}\uE001" for i, t in enumerate(tokens)]
    if len(set(tokens)) != len(tokens):
        seen = {}
        for i, text in enumerate(tokens):
            if text in seen:
                raise CorruptModel(path, f"tokenizer.ggml.tokens: {seen[text]} and {i} are both {text!r}")
            seen[text] = i
    return tokens


class BytePairEngine:
    """Byte-pair merges in rank order, on HF ``tokenizers``.  Source: arXiv:1508.07909.

    Parameters
    ----------
    tokens : sequence of str, length V
    merges : sequence of str
        ``"left right"``, best first.
    pre : PreTokenizer
    path : str
        For error messages.
    """

    def __init__(self, tokens, merges, pre, path):
        from tokenizers import Regex, Tokenizer, pre_tokenizers
        from tokenizers.models import BPE

        texts = unique_texts(tokens, path)
        vocab = dict(zip(texts, range(len(texts)), strict=True))
        pairs = [tuple(merge.split(" ")) for merge in merges]
        if not all(len(pair) == 2 and pair[0] for pair in pairs):  # a token may begin with a space, or hold one
            pairs = [_cut(merge) for merge in merges]
        if not all(left + right in vocab for left, right in pairs):  # the package would panic
            rank = next(r for r, (left, right) in enumerate(pairs) if left + right not in vocab)
            raise CorruptModel(path, f"tokenizer.ggml.merges[{rank}] = {merges[rank]!r} joins to no token")
        try:
            model = BPE(vocab, pairs, ignore_merges=pre.ignore_merges, byte_fallback=not pre.byte_level)
        except Exception as error:  # left or right is no token
            if type(error) is not Exception:  # the package raises that itself; another is some signal handler's
                raise
            raise CorruptModel(path, f"tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}") from error
        self._hf = Tokenizer(model)
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
        if pre.byte_level:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        self._hf.pre_tokenizer = pre_tokenizers.Sequence(steps)
        self._byte_level = pre.byte_level

    def encode(self, text):
        if not self._byte_level:
            text = text.replace(" ", SPACE)
        return _encoded(self._hf, text).ids

    def decode_token(self, text):
        if not self._byte_level:
            return raw_bytes(text.replace(SPACE, " "))
        table = byte_alphabet()
        # A character outside the alphabet is a converter's slip; it can only mean itself.
        return b"".join(bytes((table[c],)) if c in table else raw_bytes(c) for c in text)


class SentencePieceEngine:
    """SentencePiece's BPE: of all adjacent pairs that form a piece, join the best-scored, leftmost first.

    The pieces go to the ``sentencepiece`` package as a serialised ModelProto, written here field by field
    (sentencepiece_model.proto; wire format: protobuf.dev/programming-guides/encoding), so protobuf is not needed.

    Parameters
    ----------
    tokens : sequence of str, length V
    scores : array of float, (V,)
    types : array of int, (V,)
    unk_id : int
        Stands for characters without a piece where the vocabulary has no byte pieces.
    path : str
        For error messages.
    """

    def __init__(self, tokens, scores, types, unk_id, path):
        from sentencepiece import SentencePieceProcessor

        texts = unique_texts(tokens, path)
        self._n, self._unk_id = len(texts), unk_id
        n_bytes = sum(t == BYTE for t in types)
        if n_bytes not in (0, 256):
            raise CorruptModel(path, f"tokenizer.ggml.token_type names {n_bytes} byte tokens; wanted 0 or 256")
        self._sp = SentencePieceProcessor()
        try:
            self._sp.LoadFromSerializedProto(self._proto(texts, scores, types, byte_fallback=n_bytes == 256))
        except RuntimeError as error:
            raise CorruptModel(path, f"tokenizer.ggml.tokens make no SentencePiece vocabulary: {error}") from None

    @staticmethod
    def _proto(texts, scores, types, byte_fallback):
        import numpy as np

        # User-defined pieces were cut out of the raw text already; what is left of them may still arise from merges.
        kind = np.asarray(types, np.uint8)
        kind[(kind == 0) | (kind == USER_DEFINED)] = NORMAL
        kind[kind == UNKNOWN] = CONTROL
        tail = np.empty((len(texts), 7), np.uint8)  # field 2: float score; field 3: varint type
        tail[:, 0], tail[:, 5] = 0x15, 0x18
        tail[:, 1:5] = np.asarray(scores, "<f4").reshape(-1, 1).view(np.uint8)
        tail[:, 6] = kind
        tail = tail.tobytes()
        heads, parts = {}, []
        for i, text in enumerate(texts):
            piece = text.encode()
            n = len(piece)
            head = heads.get(n)
            if head is None:  # ModelProto.pieces, then SentencePiece.piece
                inner = b"\x0a" + _varint(n)
                head = heads[n] = b"\x0a" + _varint(len(inner) + n + 7) + inner
            parts += (head, piece, tail[7 * i:7 * i + 7])
        # SentencePiece wants exactly one UNKNOWN piece: ours is the one after the last.
        unknown = "\uE000unknown\uE001".encode()
        inner = b"\x0a" + _varint(len(unknown)) + unknown + b"\x15" + struct.pack("<f", 0) + b"\x18\x02"
        parts.append(b"\x0a" + _varint(len(inner)) + inner)
        trainer = b"\x18\x02" + (b"\x98\x02\x01" if byte_fallback else b"")  # 3: BPE; 35: byte_fallback
        normalizer = b"\x0a\x08identity" + b"\x18\x00\x20\x00\x28\x01"  # 3: no dummy prefix; 4: keep spaces; 5: escape
        for field, message in ((b"\x12", trainer), (b"\x1a", normalizer)):
            parts.append(field + _varint(len(message)) + message)
        return b"".join(parts)

    def encode(self, text):
        ids = self._sp.EncodeAsIds(text)
        if self._n in ids:
            ids = [self._unk_id if i == self._n else i for i in ids]
        return ids

    def decode_token(self, text):
        return raw_bytes(text.replace(SPACE, " "))


class WordPieceEngine:
    """BERT's WordPiece: in each word take the longest piece, again and again.  Source: arXiv:1810.04805.

    GGUF marks a piece that begins a word with ``▁`` and leaves out BERT's ``##``.
    """

    def __init__(self, tokens, types, unk_id, lowercase, strip_accents, path):
        from tokenizers import Tokenizer, normalizers, pre_tokenizers
        from tokenizers.models import WordPiece

        texts = unique_texts(tokens, path)
        vocab = {}
        for i, text in enumerate(texts):
            if types[i] == CONTROL or i == unk_id:
                vocab[text] = i
            else:
                vocab[text[1:] if text.startswith(SPACE) else "##" + text] = i
        self._hf = Tokenizer(WordPiece(vocab, unk_token=texts[unk_id], max_input_chars_per_word=100))
        self._hf.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
        self._hf.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def encode(self, text):
        return _encoded(self._hf, text).ids

    def decode_token(self, text):
        return raw_bytes(text.replace(SPACE, " "))


class PlamoEngine:
    """PLaMo 2's: of all ways to cut a text into pieces that with the best sum of scores (arXiv:1804.10959); of equally good ones that
    whose first piece is longer, then the second, and so on.  A character alone may also be its bytes, for a score of -1000.

    The package ``tokenizers`` sums scores from the beginning of a text and prefers long last pieces: so it gets texts and pieces backwards,
    and scores as whole numbers, in ten-thousandths, whose sums are exact.

    Parameters
    ----------
    tokens : sequence of str, length V
    scores : array of float, (V,)
    types : array of int, (V,)
    path : str
        For error messages.
    """

    _UNKNOWN = -10_000_000  # the score of a character that becomes its bytes

    def __init__(self, tokens, scores, types, path):
        import numpy as np
        from tokenizers import Tokenizer
        from tokenizers.models import Unigram

        texts = unique_texts(tokens, path)
        self._bytes = {text: i for i, (text, kind) in enumerate(zip(texts, types)) if kind == BYTE}
        if sorted(self._bytes) != [f"<0x{b:02X}>" for b in range(256)]:
            raise CorruptModel(path, f"tokenizer.ggml.tokens has {len(self._bytes)} byte tokens; wanted <0x00> to <0xFF>")
        self._bytes = [self._bytes[f"<0x{b:02X}>"] for b in range(256)]
        exact = np.asarray(scores, np.float64) * 1e4
        rounded = np.trunc(exact + np.copysign(0.5, exact))
        pieces = [i for i, kind in enumerate(types) if kind not in (UNKNOWN, CONTROL, UNUSED, BYTE) and rounded[i] >= self._UNKNOWN + 10]
        # The package takes 10 less than the worst piece's score for what is unknown: so that one is a character that stands for nothing.
        self._ids = [-1, *pieces]
        none = next(chr(0xFDD0 + i) for i in range(32) if chr(0xFDD0 + i) not in texts)
        scored = [(none, self._UNKNOWN + 10.0), *((texts[i][::-1], float(rounded[i])) for i in pieces)]
        self._hf = Tokenizer(Unigram(scored, 0, byte_fallback=False))

    def encode(self, text):
        found = _encoded(self._hf, text[::-1], with_tokens=True)
        ids = []
        for i, piece in zip(reversed(found.ids), reversed(found.tokens)):
            ids += [self._ids[i]] if i else [self._bytes[b] for b in piece[::-1].encode()]
        return ids

    def decode_token(self, text):
        return raw_bytes(text)


def _cut(merge):
    """The two tokens of a merge; the space between them is not the first character."""
    at = merge.find(" ", 1)
    return merge[:at], merge[at + 1:]


def _varint(value):
    """Protobuf's variable-length integer: 7 bits a byte, low bits first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def make_engine(vocab):
    """The engine that ``tokenizer.ggml.model`` names.

    Parameters
    ----------
    vocab : Vocabulary

    Raises
    ------
    UnsupportedModel
        Unknown ``tokenizer.ggml.model`` or ``.pre``, or an array that this kind of model cannot do without is missing.
    """
    get, path = vocab.metadata.get, vocab.path
    if vocab.model in ("gpt2", "gemma4"):
        merges = vocab.strings("merges")
        if merges is None:
            raise UnsupportedModel("tokenizer.ggml.merges", None, (), "A BPE vocabulary needs its merges")
        return BytePairEngine(vocab.tokens, merges, vocab.pre, path)
    if vocab.model in ("llama", "plamo2"):
        scores = get("tokenizer.ggml.scores")  # float32, or int32 from some converters
        if scores is None or len(scores) < vocab.n:
            raise CorruptModel(path, f"tokenizer.ggml.scores holds {len(scores) if scores is not None else 0} values "
                                     f"for {vocab.n} tokens")
        import numpy as np

        if np.isnan(np.asarray(scores, np.float32)).any():
            raise CorruptModel(path, "tokenizer.ggml.scores holds NaN; wanted numbers")
        if vocab.model == "plamo2":
            return PlamoEngine(vocab.tokens, scores[:vocab.n], vocab.types, path)
        return SentencePieceEngine(vocab.tokens, scores[:vocab.n], vocab.types, vocab.unk_id, path)
    if vocab.unk_id is None:
        raise CorruptModel(path, "tokenizer.ggml.unknown_token_id is missing; a WordPiece vocabulary needs it")
    lowercase = bool(get("tokenizer.ggml.normalizer.lowercase", True))
    strip_accents = bool(get("tokenizer.ggml.normalizer.strip_accents", lowercase))
    return WordPieceEngine(vocab.tokens, vocab.types, vocab.unk_id, lowercase, strip_accents, path)


MODELS = ("gpt2", "gemma4", "llama", "bert", "plamo2")


def _is_array(value, strings):
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        return False
    return not len(value) or isinstance(value[0], str) == strings


_WANTED = {  # what a key must hold: in words, and whether a value is so
    **dict.fromkeys(("tokens", "merges"), ("an array of strings", lambda v: _is_array(v, True))),
    **dict.fromkeys(("scores", "token_type"), ("an array of numbers", lambda v: _is_array(v, False))),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "cls_token_id", "unknown_token_id",
                     "seperator_token_id", "padding_token_id", "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"),
                    ("an integer", lambda v: hasattr(v, "__index__") and not hasattr(v, "__len__") and v is not True
                     and v is not False)),
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces",
                     "normalizer.lowercase", "normalizer.strip_accents"),
                    ("a bool", lambda v: not hasattr(v, "__len__") and v in (0, 1))),
}


def check_kinds(metadata, path):
    """Raise CorruptModel if a tokenizer key holds a value of another kind than the format says."""
    for name, (words, fits) in _WANTED.items():
        value = metadata.get(f"tokenizer.ggml.{name}")
        if value is not None and not fits(value):
            raise CorruptModel(path, f"tokenizer.ggml.{name} = {value!r:.100}; wanted {words}")
    for key, value in metadata.items():
        if (key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template.")) and not isinstance(value, str):
            raise CorruptModel(path, f"{key} = {value!r:.100}; wanted a string")


class Vocabulary:
    """What the metadata says of the tokens, checked.

    Attributes
    ----------
    metadata : mapping
    path : str
        The file, for error messages.
    model : str
        ``tokenizer.ggml.model``, one of `MODELS`.
    pre : PreTokenizer or None
        None unless the model is a BPE.
    tokens : sequence of str, length n
    types : list of int, length n
        NORMAL ... BYTE.
    bos_id, eos_id, unk_id, sep_id, pad_id : int or None
    """

    def __init__(self, metadata, path):
        self.metadata, self.path = metadata, path
        check_kinds(metadata, path)
        self.model = metadata.get("tokenizer.ggml.model")
        if not isinstance(self.model, str) or self.model not in MODELS:
            raise UnsupportedModel("tokenizer.ggml.model", self.model, MODELS)
        bpe = self.model in ("gpt2", "gemma4")
        pre = "gemma4" if self.model == "gemma4" else metadata.get("tokenizer.ggml.pre")
        self.pre = pre_tokenizer(pre) if bpe else None
        self.tokens = self.strings("tokens")
        if not self.tokens:
            raise CorruptModel(path, "tokenizer.ggml.tokens is missing or empty; wanted an array of strings")
        self.n = len(self.tokens)
        defaults = {"llama": (1, 2, 0, None), "plamo2": (1, 2, 0, None), "bert": (101, None, 100, 102)}.get(self.model, (None,) * 4)
        self.bos_id = self.id_of("bos", self.id_of("cls", defaults[0]) if self.model == "bert" else defaults[0])
        self.eos_id = self.id_of("eos", defaults[1])
        self.unk_id = self.id_of("unknown", defaults[2])
        self.sep_id = self.id_of("seperator", defaults[3])  # the format's own spelling
        self.pad_id = self.id_of("padding")
        self.types = self._types()

    def id_of(self, name, default=None):
        """``tokenizer.ggml.<name>_token_id``, checked against the vocabulary; `default` where the file has none."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.metadata.get(key)
        if value is None or value == 0xFFFFFFFF:  # some converters write -1 for "none"
            return default if default is not None and default < self.n else None
        if not 0 <= value < self.n:
            raise CorruptModel(self.path, f"{key} = {value}, but there are {self.n} tokens")
        return int(value)

    def strings(self, name):
        """The array ``tokenizer.ggml.<name>``, or None."""
        return self.metadata.get(f"tokenizer.ggml.{name}")

    def _types(self):
        types = self.metadata.get("tokenizer.ggml.token_type")
        if types is None:  # old converters: all that is known to be special are the ids named
            types = [NORMAL] * self.n
            for i in (self.bos_id, self.eos_id, self.unk_id, self.sep_id, self.pad_id):
                if i is not None:
                    types[i] = CONTROL
            return types
        if len(types) < self.n:
            raise CorruptModel(self.path, f"tokenizer.ggml.token_type holds {len(types)} values for {self.n} tokens")
        types = types[:self.n].tolist() if hasattr(types, "tolist") else list(types[:self.n])
        if not {*range(BYTE + 1)}.issuperset(types):
            odd = next(t for t in types if t not in range(BYTE + 1))
            raise CorruptModel(self.path, f"tokenizer.ggml.token_type holds {odd!r}; wanted 0 to {BYTE}")
        return types
