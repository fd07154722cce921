"""A text's tokens by its words: what a BERT tokenizer made of a word once, it makes of it again.

* BERT's tokenizers cut a text at white space and around punctuation, and then each word for itself (Devlin et al.,
  2019; Schuster and Nakajima, "Japanese and Korean Voice Search", ICASSP 2012): so the tokens of a text are those of
  its words, in their order. The package ``tokenizers`` goes through all of it for every text, 2 us a word; what stands
  between two blanks and is known, punctuation and all, costs a look into a dict.
* Only what is sure goes this way: texts of printable ASCII, without a letter that a special token begins with, for
  definitions of just this kind. Everything else is the package's, and so is every word that is new. It is judged when
  it is learnt: a text of known pieces needs no other look.
* What is remembered is bounded, in pieces and in letters a piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import chain

#: Pieces that are remembered: with their tokens, about 3 MB.
_PIECES_CEILING = 16_384
_LETTERS_CEILING = 32
# The package's ASCII punctuation is every printable letter that is neither a letter, a digit nor a blank.
_WORDS = re.compile(r"[A-Za-z0-9]+|[!-/:-@\[-`{-~]")


class KnownWords:
    """The tokens of words that were met before."""

    def __init__(self, cut: Callable[[str], list[int]], *, lowercase: bool, openers: frozenset[str]) -> None:
        self._cut = cut
        self._lowercase = lowercase
        # One search for all of them; a class of no letters is nothing that a pattern can say.
        self._special = re.compile(f"[{re.escape(''.join(sorted(openers)))}]") if openers else None
        self._known: dict[str, list[int]] = {}

    @classmethod
    def of(cls, definition: bytes, cut: Callable[[str], list[int]]) -> KnownWords | None:
        """Return the words of a tokenizer, or None where its definition is of another kind.

        Args:
            definition: a ``tokenizer.json`` that the package has accepted.
            cut: what the package makes of a text, without special tokens.
        """
        try:
            said = json.loads(definition)
            normalizer, cutter, model = said["normalizer"], said["pre_tokenizer"], said["model"]
            is_bert = (normalizer["type"], cutter["type"], model["type"]) == (
                "BertNormalizer",
                "BertPreTokenizer",
                "WordPiece",
            )
            openers = frozenset(token["content"][0] for token in said.get("added_tokens") or ())
            lowercase = bool(normalizer["lowercase"])
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return None
        # A special token of letters could begin anywhere in a word.
        if not is_bert or any(not opener.isascii() or opener.isalnum() for opener in openers):
            return None
        return cls(cut, lowercase=lowercase, openers=openers)

    def ids(self, text: str) -> list[int] | None:
        """Return the tokens of a text, or None where the package has to say."""
        # At blanks alone: to the package other white space is none, or more than that.
        pieces = text.split(" ")
        try:
            return list(chain.from_iterable(map(self._known.__getitem__, pieces)))
        except KeyError:
            return list(chain.from_iterable(map(self._learnt, pieces))) if self._is_sure(text) else None

    def _is_sure(self, text: str) -> bool:
        return text.isascii() and text.isprintable() and (self._special is None or not self._special.search(text))

    def _learnt(self, piece: str) -> list[int]:
        tokens = self._known.get(piece)
        if tokens is not None:
            return tokens
        words = _WORDS.findall(piece.lower() if self._lowercase else piece)
        tokens = list(chain.from_iterable(map(self._learnt, words))) if words != [piece] else self._cut(piece)
        if len(piece) <= _LETTERS_CEILING:
            if len(self._known) >= _PIECES_CEILING:
                # Those that are met often come back at once.
                self._known.clear()
            self._known[piece] = tokens
        return tokens
