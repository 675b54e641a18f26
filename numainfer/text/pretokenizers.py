r"""``tokenizer.ggml.pre`` -> how the words of a byte-level BPE vocabulary are cut.

A model was trained on text cut into words by fixed regular expressions; other cuts give other tokens and worse answers.
So every name has the expressions of the model's own ``tokenizer.json`` (or of its tokenizer script), the synonyms are
those that GGUF converters write, and a name that is not listed here raises `UnsupportedModel`: there is no fallback.

Each expression splits every piece left by the one before it; what it matches and what lies between the matches
become pieces of their own.  Syntax: Oniguruma, as HF ``tokenizers`` uses it.
"""

from dataclasses import dataclass

from ..errors import UnsupportedModel


@dataclass(frozen=True)
class PreTokenizer:
    """The way from text to words.

    Attributes
    ----------
    patterns : tuple of str
        Regular expressions, applied in this order.
    ignore_merges : bool
        A word that is a token as a whole becomes that token, whatever the merges say.
    add_bos : bool
        Whether BOS precedes a text when the file does not say.
    byte_level : bool
        True: words are mapped to GPT-2's byte alphabet.  False: they stay UTF-8 with ``▁`` for a space, and
        bytes outside the vocabulary become ``<0xXX>`` tokens.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    byte_level: bool = True


# Parts that several families share.
_S = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
_SPACE = r"\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCT = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_1 = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+"
_CASED_2 = r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*"
_ASCII_PUNCT = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_THREES_FROM_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACE
_LLAMA3 = rf"{_S}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCT}|\s*[\r\n]+|{_SPACE}"
_QWEN2 = rf"{_S}|{_WORD}|\p{{N}}|{_PUNCT}|\s*[\r\n]+|{_SPACE}"
_QWEN35 = (rf"{_S}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
           rf"|\s*[\r\n]+|{_SPACE}")
_TEKKEN = rf"{_CASED_1}|{_CASED_2}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACE}"
_GPT4O = rf"{_CASED_1}{_S}?|{_CASED_2}{_S}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACE}"
_YOUTU = rf"{_CASED_1}{_S}?|{_CASED_2}{_S}?|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACE}"
_DEEPSEEK3 = (rf"{_ASCII_PUNCT}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*"
              rf"|\s*[\r\n]+|{_SPACE}")
_SPARK = (rf"{_ASCII_PUNCT}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+|[\r\n]"
          rf"|{_SPACE}")
_JAIS2 = (rf"{_S}|{_WORD}|\p{{N}}{{1,3}}|{_PUNCT}|\s*[\r\n]+|"
          + "|".join(rf"\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2")) + r"|\s{1}")
_BAILING = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|" + _SPACE)
_SEED = rf"{_S}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|{_SPACE}"
_EXAONE_MOE = (rf"{_S}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
               rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACE}")
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uFF0C\u3001\u0964\u06D4\u060C)]+"
# Chinese characters are cut first; the cased-word branches of the GPT-4o expression then exclude them.
_NO_HAN = r"&&[^\p{Han}]]"
_KIMI_1 = r"[^\r\n\p{L}\p{N}]?" + _UPPER[:-1] + _NO_HAN + "*" + _LOWER[:-1] + _NO_HAN + "+" + _S + "?"
_KIMI_2 = r"[^\r\n\p{L}\p{N}]?" + _UPPER[:-1] + _NO_HAN + "+" + _LOWER[:-1] + _NO_HAN + "*" + _S + "?"
_KIMI = rf"[\p{{Han}}]+|{_KIMI_1}|{_KIMI_2}|\p{{N}}{{1,3}}|{_PUNCT}|\s*[\r\n]+|{_SPACE}"
# Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee and other cased letters, as DeepSeek's tokenizer lists them.
_CASED_LETTERS = (
    "A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293\u0295-\u02AF\u0370-\u0373\u0376"
    "\u0377\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C\u038E-\u03A1\u03A3-\u03F5\u03F7-\u0481\u048A-\u052F\u0531-"
    "\u0556\u10A0-\u10C5\u13A0-\u13F5\u13F8-\u13FD\u1C90-\u1CBA\u1CBD-\u1CBF\u1D00-\u1D2B\u1D6B-\u1D77\u1D79-\u1D9A"
    "\u1E00-\u1F15\u1F18-\u1F1D\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59\u1F5B\u1F5D\u1F5F-\u1F7D\u1F80-\u1FB4"
    "\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB\u1FE0-\u1FEC\u1FF2-\u1FF4\u1FF6-\u1FFC"
    "\u2102\u2107\u210A-\u2113\u2115\u2119-\u211D\u2124\u2126\u2128\u212A-\u212D\u212F-\u2134\u2139\u213C-\u213F"
    "\u2145-\u2149\u214E\u2183\u2184\u2C00-\u2C7B\u2C7E-\u2CE4\u2CEB-\u2CEE\u2CF2\u2CF3\uA640-\uA66D\uA680-\uA69B"
    "\uA722-\uA76F\uA771-\uA787\uA78B-\uA78E\uAB70-\uABBF\uFB00-\uFB06\uFB13-\uFB17\uFF21-\uFF3A\uFF41-\uFF5A"
    "\U00010400-\U0001044F\U000104B0-\U000104D3\U000104D8-\U000104FB\U00010C80-\U00010CB2\U00010CC0-\U00010CF2"
    "\U000118A0-\U000118DF\U0001E900-\U0001E943")
_DEEPSEEK_PUNCT = "[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3000-\u3002]+"
_DEEPSEEK_CJK = "[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+"  # as it stands there
_AFMOE_ASIAN = (
    "[\u4E00-\u9FFF\u3400-\u4DBF\u8C48-\uFAFF\u3040-\u309F\u30A0-\u30FF\uFF65-\uFF9F\u2F00-\u2FDF\u0E40-\u0E7F\u0E80-"
    "\u0EFF\u1780-\u17FF\u1000-\u109F\uAA60-\uAA7F\uA9E0-\uA9FF\uAC00-\uD7AF\u1100-\u11FF]+")
_CJK_KANA = "[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+"
_YOUTU_ASIAN = (
    "[\uAC00-\uD7A3\u3131-\u318E]+|[\uFF01\u2026\u201C\u201D\u2018\u2019\u2014\uFF1A\uFF1B\uFF0C\u3001-\u303F\uFE30-"
    "\uFE4F]+|[\u3105-\u312F]+|[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+")

_TABLE = (
    # names (the first is the converter's own, the others share its tokenizer), definition
    (("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code", "roberta-bpe",
      "gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4", "mpt", "olmo", "jais", "trillion",
      "granite-docling"), PreTokenizer((_GPT2,))),
    (("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
     PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)),
    (("dbrx", "smaug-bpe", "chatglm-bpe"), PreTokenizer((_LLAMA3,))),
    (("glm4", "glm5"), PreTokenizer((_LLAMA3,), ignore_merges=True)),
    (("minicpm5",), PreTokenizer((r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")), ignore_merges=True)),
    (("jais-2",), PreTokenizer((_JAIS2,))),
    (("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
     PreTokenizer((_QWEN2,))),
    (("ufakzeka",), PreTokenizer((_QWEN2.removeprefix(_S + "|"),))),
    (("laguna",), PreTokenizer((r"[^\n]+|[\n]+", _QWEN2))),
    (("qwen35",), PreTokenizer((_QWEN35,))),
    (("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"),
     PreTokenizer((r"\p{N}", _GPT2))),
    (("falcon",), PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    (("deepseek-llm",), PreTokenizer(("[\r\n]", rf"\s?[{_CASED_LETTERS}]+", r"\s?" + _DEEPSEEK_PUNCT, r"\s+$",
                                      _DEEPSEEK_CJK, r"\p{N}+"))),
    (("deepseek-coder",), PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}"))),
    (("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
     PreTokenizer((r"\p{N}{1,3}", _CJK_KANA, _DEEPSEEK3))),
    (("spark2_5",), PreTokenizer((r"\p{N}{1,3}", _CJK_KANA, _SPARK, r"\p{N}"))),
    (("afmoe",), PreTokenizer((_THREES_FROM_RIGHT, _AFMOE_ASIAN, _DEEPSEEK3))),
    (("youtu",), PreTokenizer((_YOUTU_ASIAN, _YOUTU),
                              ignore_merges=True)),
    (("bloom", "poro-chat", "gpt3-finnish"), PreTokenizer((_BLOOM,))),
    (("viking",), PreTokenizer((_BLOOM, r"\p{N}"))),
    (("tekken",), PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True)),
    (("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), PreTokenizer((_GPT4O,))),
    (("granite-embed-multi-97m",), PreTokenizer((_GPT4O,), ignore_merges=True)),
    (("tiny_aya", "cohere2moe"), PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O))),
    (("kimi-k2",), PreTokenizer((_KIMI,))),
    (("superbpe",), PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))"))),
    (("bailingmoe", "bailingmoe2", "llada-moe"), PreTokenizer((_BAILING,))),
    (("seed-coder",), PreTokenizer((_SEED,))),
    (("exaone-moe",), PreTokenizer((_EXAONE_MOE,))),
    (("gemma4", "sarvam-moe", "granite-embed-multi-311m"), PreTokenizer((r"[^\n]+|[\n]+",), byte_level=False)),
    # What converters wrote before they told models apart, as llama.cpp defines it.
    (("default",), PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
)

PRE_TOKENIZERS = {name: definition for names, definition in _TABLE for name in names}


def pre_tokenizer(name):
    """The `PreTokenizer` that ``tokenizer.ggml.pre = name`` asks for.

    Raises
    ------
    UnsupportedModel
        `name` is None (the file does not say) or not in the table.
    """
    try:
        return PRE_TOKENIZERS[name]
    except (KeyError, TypeError):
        detail = "Without it the text cannot be cut the way the model was trained" if name is None else ""
        raise UnsupportedModel("tokenizer.ggml.pre", name, sorted(PRE_TOKENIZERS), detail) from None
