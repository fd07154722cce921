"""A text's tokens by its words: what a BERT tokenizer made of a word once, it makes of it again.

* BERT's tokenizers cut a text at white space and around punctuation, and then each word for itself (Devlin et al.,
  2019; Schuster and Nakajima, "Japanese and Korean Voice Search", ICASSP 2012): so the tokens of a text are those of
  its words, in their order. The package ``tokenizers`` goes through all of it for every text, 2 us a word; what stands
  between two blanks and is known, punctuation and all, costs a look into a dict.
* A new word is cut here, too, as WordPiece says: the longest token that begins it, then the longest that goes on.
* Only what is sure goes this way: texts of printable ASCII, without a letter that a special token begins with, for
  definitions of just this kind. Everything else is the package's. A piece is judged when it is learnt: a text of known
  pieces needs no other look.
* What is remembered is bounded, in pieces and in letters a piece.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

#: Pieces that are remembered: with their tokens, about 3 MB.
_PIECES_CEILING = 16_384
_LETTERS_CEILING = 32
# The package's ASCII punctuation is every printable letter that is neither a letter, a digit nor a blank.
_PUNCTUATION = frozenset(string.punctuation)
_WORDS = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")


class WordPiece(NamedTuple):
    """How a word is cut into tokens.

    ``id_of`` gives the id of a token, or None; ``prefix`` marks one that goes on; a word of more than ``longest``
    letters, or with a rest that no token begins, is ``unknown`` as a whole.
    """

    id_of: Callable[[str], int | None]
    prefix: str
    unknown: int
    longest: int

    def cut(self, word: str) -> list[int]:
        """Return the tokens of a word."""
        if len(word) > self.longest:
            return [self.unknown]
        tokens: list[int] = []
        start, end = 0, len(word)
        while start < len(word):
            token = self.id_of(self.prefix + word[start:end] if start else word[:end])
            if token is not None:
                tokens.append(token)
                start, end = end, len(word)
            elif (end := end - 1) == start:
                return [self.unknown]
        return tokens


class KnownWords:
    """The tokens of words that were met before."""

    def __init__(self, word_piece: WordPiece, *, lowercase: bool, openers: frozenset[str]) -> None:
        self._cut = word_piece.cut
        self._lowercase = lowercase
        self._openers = tuple(openers)
        self._known: dict[str, list[int]] = {}

    @classmethod
    def of(cls, definition: bytes, id_of: Callable[[str], int | None]) -> KnownWords | None:
        """Return the words of a tokenizer, or None where its definition is of another kind.

        Args:
            definition: a ``tokenizer.json`` that the package has accepted.
            id_of: the id that the package has for a token.
        """
        try:
            said = json.loads(definition)
            normalizer, cutter, model = said["normalizer"], said["pre_tokenizer"], said["model"]
            is_bert = (normalizer["type"], cutter["type"], model["type"]) == (
                "BertNormalizer",
                "BertPreTokenizer",
                "WordPiece",
            )
            added = [token["content"] for token in said.get("added_tokens") or ()]
            openers = frozenset(content[0] for content in added)
            lowercase = bool(normalizer["lowercase"])
            prefix, longest = model["continuing_subword_prefix"], int(model["max_input_chars_per_word"])
            unknown = id_of(model["unk_token"])
            # Of an added token the package has one id for texts and may have another one for words.
            is_added = any(content.startswith(prefix) for content in added)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return None
        # An added token of letters could begin anywhere in a word, and one that begins with a blank lies in no piece.
        if not is_bert or not openers <= _PUNCTUATION:
            return None
        if unknown is None or is_added:
            return None
        return cls(WordPiece(id_of, prefix, unknown, longest), lowercase=lowercase, openers=openers)

    def ids(self, text: str) -> list[int] | None:
        """Return the tokens of a text, or None where the package has to say."""
        # At blanks alone: to the package other white space is none, or more than that.
        pieces = text.split(" ")
        try:
            return list(chain.from_iterable(map(self._known.__getitem__, pieces)))
        except KeyError:
            known = self._known.get
            # Nothing but a piece of no letters has no tokens.
            learnt = [known(piece) or self._learnt(piece) for piece in pieces] if self._is_sure(text) else None
            return None if learnt is None else list(chain.from_iterable(learnt))

    def _is_sure(self, text: str) -> bool:
        return text.isascii() and text.isprintable() and not any(opener in text for opener in self._openers)

    def _learnt(self, piece: str) -> list[int]:
        lowered = piece.lower() if self._lowercase else piece
        words = [lowered] if lowered.isalnum() else _WORDS.findall(lowered)
        if words == [piece]:
            tokens = self._cut(piece)
        else:
            known = self._known.get
            tokens = list(chain.from_iterable([known(word) or self._learnt(word) for word in words]))
        if len(piece) <= _LETTERS_CEILING:
            if len(self._known) >= _PIECES_CEILING:
                # Those that are met often come back at once.
                self._known.clear()
            self._known[piece] = tokens
        return tokens
