"""Grammars that an answer must match, compiled for a model's vocabulary by llguidance.

Source: github.com/guidance-ai/llguidance. It walks the vocabulary's trie by a lexer of regex
derivatives and an Earley parser, so that a mask takes microseconds and no table is built ahead.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from llguidance import (
    LLMatcher,
    LLParserLimits,
    LLTokenizer,
    TokenizerWrapper,
    regex_to_lark,
)
from llguidance.gbnf_to_lark import gbnf_to_lark

from axion.errors import InvalidRequestError
from axion.text.tokenizer import Tokenizer
from axion.types import Grammar

# One space, or a line break and its indentation: what writers of JSON use. Any white space at all
# would let a model go on with it until the answer is cut.
_WHITESPACE = r" |\n( {0,40}|\t{0,10})"
# The worst of these takes about 0.1 s of one thread at its first token (a regex of 250,000 states
# on paper), and some tens of megabytes.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=250_000,
    step_lexer_fuel=100_000,
    max_lexer_states=25_000,
    verbose_errors=False,
)
_MAX_COMPILED = 32
_MAX_COMPILED_CHARS = 2**19
_NUM_THREADS = 2
_SHOWN_CHARS = 300

_DATA_KEYWORDS = {"const", "default", "enum", "examples"}
_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)


class GrammarCompiler:
    """Compiles grammars for one model; the last ones stay compiled.

    It may be used from several threads. A matcher belongs to one sequence, and those of the same
    grammar share what its lexer has learned.

    Args:
        tokenizer: called when the first grammar comes, which takes up to a second longer.
        vocab_size: rows of the model's embedding; the tokenizer may have fewer tokens, or more.
        eos_token_ids: tokens that may end an answer where the grammar lets it end.
    """

    def __init__(
        self,
        tokenizer: Callable[[], Tokenizer],
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._vocabulary: LLTokenizer | None = None
        self._compiled: OrderedDict[bytes, tuple[LLMatcher, int]] = OrderedDict()
        self._num_chars = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammar")

    def submit(self, grammar: Grammar) -> Future[LLMatcher]:
        """`compile` in another thread."""
        return self._threads.submit(self.compile, grammar)

    def compile(self, grammar: Grammar) -> LLMatcher:
        """A matcher at the beginning of its grammar.

        Raises:
            ModelLoadError: the model's tokenizer cannot be read.
            InvalidRequestError: the grammar is wrong, has what cannot be enforced, matches
                nothing, or is too complex. The message says which part of it.
        """
        key = hashlib.blake2b(f"{grammar.kind} {grammar.text}".encode("utf-8", "surrogatepass"))
        digest = key.digest()
        with self._lock:
            if (entry := self._compiled.get(digest)) is not None:
                self._compiled.move_to_end(digest)
                return entry[0].deep_copy()
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(
                    self._tokenizer(), self._vocab_size, self._eos_token_ids
                )
        matcher = self._build(self._vocabulary, grammar)
        with self._lock:
            if digest not in self._compiled:
                self._compiled[digest] = matcher, len(grammar.text)
                self._num_chars += len(grammar.text)
            while len(self._compiled) > _MAX_COMPILED or self._num_chars > _MAX_COMPILED_CHARS:
                _, (_, num_chars) = self._compiled.popitem(last=False)
                self._num_chars -= num_chars
        return matcher.deep_copy()

    def _build(self, vocabulary: LLTokenizer, grammar: Grammar) -> LLMatcher:
        matcher = LLMatcher(vocabulary, source(grammar), limits=_LIMITS, log_level=0)
        if not matcher.is_error():
            bits = np.zeros((vocabulary.vocab_size + 31) // 32, np.uint32)
            matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
            for token_id in vocabulary.eos_tokens:
                bits[token_id // 32] &= ~np.uint32(1 << token_id % 32)
            if not bits.any():
                raise InvalidRequestError("no text matches it.")
        if matcher.is_error():
            raise InvalidRequestError(_explain(matcher.get_error()))
        return matcher


def json_grammar(schema: dict[str, Any], *, lenient: bool = False) -> dict[str, Any]:
    """`schema` with llguidance's own options in it, and none that a client put there.

    Args:
        lenient: leave to the model what cannot be enforced, instead of refusing it.
    """
    options = {"whitespace_pattern": _WHITESPACE, "lenient": lenient}
    return {**_narrowed(schema), "x-guidance": options}


def _narrowed(schema: Any) -> Any:
    """`schema` without the exclusive bounds that llguidance takes for inclusive ones.

    It does so where the bound is an integer and the other one is less than 1 away: then a bound
    that is closer by a millionth of the distance stands in for it.
    """
    if isinstance(schema, list):
        return [_narrowed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {
        key: value if key in _DATA_KEYWORDS else _narrowed(value) for key, value in schema.items()
    }
    for sign, end, other in ((1, "inimum", "aximum"), (-1, "aximum", "inimum")):
        bound = result.get(f"exclusiveM{end}")
        limits = [result.get(f"m{other}"), result.get(f"exclusiveM{other}")]
        numbers = [limit for limit in limits if isinstance(limit, int | float)]
        if isinstance(bound, int | float) and bound == round(bound) and numbers:
            distance = min(sign * (number - bound) for number in numbers)
            if 0 < distance < 1:
                del result[f"exclusiveM{end}"]
                closer = [bound + sign * distance * 1e-6, result.get(f"m{end}", bound)]
                result[f"m{end}"] = sign * max(sign * limit for limit in closer)
    return result


def source(grammar: Grammar) -> str:
    """The grammar in llguidance's own form.

    Raises:
        InvalidRequestError: it is not what its kind says.
    """
    text = grammar.text
    try:
        if grammar.kind == "llguidance":
            return text
        if grammar.kind == "regex":
            # Digits are 0 to 9, as for most who write \d.
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, 'd')}/")
        if grammar.kind == "choice":
            choices: list[str] = json.loads(text)
            return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices)))
        if grammar.kind == "grammar":
            is_gbnf = _GBNF_RULE.search(text) is not None
            return LLMatcher.grammar_from_lark(gbnf_to_lark(text) if is_gbnf else text)
        schema = json.loads(text)
        if not isinstance(schema, dict):
            raise InvalidRequestError("a schema is a JSON object.")
        return LLMatcher.grammar_from_json_schema(json_grammar(schema))
    except RecursionError:
        raise InvalidRequestError("it is nested too deeply.") from None
    except InvalidRequestError:
        raise
    except Exception as error:  # the GBNF converter raises whatever it stumbles over
        raise InvalidRequestError(_explain(str(error))) from None


_EXPLANATIONS = (
    (r"Unimplemented keys: \[(.*)\]", r"the keyword \1 is not supported."),
    (r"Unknown format: (.*)", r'the format "\1" is not supported.'),
    (r"oneOf constraints", "oneOf is supported only where its schemas exclude each other."),
    (r"Unsatisfiable schema: (.*)", r"no value can satisfy it: \1."),
    (r"Invalid type: (.*)", r'"\1" is not a type.'),
    (r"Resource '(.*)' is not present", r'"\1" is outside of the schema, and is not fetched.'),
    (r"Pointer '(.*)' does not exist", r'$ref points to "\1", which is not there.'),
    (r"regex parse error:[\s\S]*\nerror: (.*)", r"the pattern is wrong: \1."),
    (r"recursion limit|too deeply nested|recursion depth", "it is nested too deeply."),
    (r"NoExtension", "no text matches it."),
    (r"schema too large|too (big|many|complex)|fuel|TooComplex|Unable", "it is too complex."),
)


def _explain(error: str) -> str:
    """llguidance's message for the person who wrote the grammar."""
    for pattern, explanation in _EXPLANATIONS:
        if (match := re.search(pattern, error)) is not None:
            return match.expand(explanation)
    return error.strip().partition("\n")[0][:_SHOWN_CHARS].rstrip(".") + "."


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        self.tokens = [tokenizer.id_to_token_bytes(token_id) for token_id in range(vocab_size)]
        if not eos_token_ids:
            # llguidance needs one; this one has no column in the logits.
            self.tokens.append(b"<eos>")
            eos_token_ids = (vocab_size,)
        self.eos_token_id = eos_token_ids[0]
        self.special_token_ids = sorted(
            {i for i in tokenizer.special_token_ids if i < vocab_size} | {*eos_token_ids}
        )
        self._special = frozenset(self.special_token_ids)
        self._tokenizer = tokenizer
        self._ids: dict[bytes, int] = {}
        for token_id in range(vocab_size):
            if token_id not in self._special and self.tokens[token_id]:
                self._ids.setdefault(self.tokens[token_id], token_id)
        self._most_bytes = max(map(len, self._ids), default=0)

    def __call__(self, data: bytes) -> list[int]:
        """The tokens that a text is written with where the grammar leaves no choice."""
        ids = self._tokenizer.encode(data.decode(), add_special_tokens=False)
        if self._special.isdisjoint(ids) and b"".join(map(self._bytes, ids)) == data:
            return ids
        # Tokenizers that begin a text with a space of their own.
        ids, start = [], 0
        while start < len(data):
            end = min(start + self._most_bytes, len(data))
            while data[start:end] not in self._ids:
                end -= 1
                assert end > start, "the vocabulary has no token for a byte"
            ids.append(self._ids[data[start:end]])
            start = end
        return ids

    def _bytes(self, token_id: int) -> bytes:
        return self.tokens[token_id] if token_id < len(self.tokens) else b""


def _vocabulary(
    tokenizer: Tokenizer, vocab_size: int, eos_token_ids: tuple[int, ...]
) -> LLTokenizer:
    vocabulary = _Vocabulary(tokenizer, vocab_size, eos_token_ids)
    eos = list(eos_token_ids) or [vocabulary.eos_token_id]
    return LLTokenizer(TokenizerWrapper(vocabulary), eos_token=eos)
