"""Which tokenizers the fast engine computes exactly.

gigatoken loads more than it gets right: it passes over parts of a tokenizer.json it does not know.
So only shapes whose ids were compared with the reference over every Unicode character and many
random texts go to it; the first documents of each run are compared besides.
"""

from __future__ import annotations

from typing import Any

from penstock.transforms.tokenizer_json import Spec, byte_alphabet

BYTE_PIECES = frozenset(f"<0x{b:02X}>" for b in range(256))
SPACE_TO_BLOCK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
PREPEND_BLOCK = {"type": "Prepend", "prepend": "▁"}
KEEPS_ALL = (("Isolated", False), ("Removed", True))
"""Ways to split, as (behavior, invert), that lose no text if the expression matches any text."""
# Splitting at spaces after all spaces are gone, as Gemma's files do, does nothing.
SPLIT_AT_SPACE = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def why_not_fast(spec: Spec) -> str | None:
    """Say what in a plain tokenizer.json keeps it from the fast engine; None if nothing does."""
    model = spec["model"]
    if model.get("type", "BPE") != "BPE":
        return f"its model is {model.get('type')}, not BPE"
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "its BPE marks the start or end of words"
    for token in spec["added_tokens"]:
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip"):
            return f"its added token {token['content']!r} depends on the text around it"
    return _why_not_pieces(spec) if model.get("byte_fallback") else _why_not_byte_level(spec)


def _why_not_byte_level(spec: Spec) -> str | None:
    if byte_alphabet() - spec["model"]["vocab"].keys():
        return "its vocabulary lacks some of the 256 bytes"
    if spec.get("normalizer") is not None:
        # Not even NFC: the engines compose and reorder marks by tables of different Unicode versions.
        return "it normalises text"
    steps = _flat(spec.get("pre_tokenizer"), "pretokenizers")
    splits, last = steps[:-1], steps[-1] if steps else {}
    if (
        last.get("type") != "ByteLevel"
        or last.get("add_prefix_space", True)
        or last.get("use_regex", True) is bool(splits)
    ):
        return "its pre-tokenizer is not a split into words followed by bytes"
    if not all(_is_split(step) for step in splits):
        return "its pre-tokenizer has steps other than splits into letters, marks and digits by a regular expression"
    return None


def _why_not_pieces(spec: Spec) -> str | None:
    if BYTE_PIECES - spec["model"]["vocab"].keys():
        return "its vocabulary lacks some of the 256 bytes"
    if spec["model"].get("ignore_merges"):
        return "its BPE looks words up before merging"
    normalizers = _flat(spec.get("normalizer"), "normalizers")
    if normalizers not in ([SPACE_TO_BLOCK], [PREPEND_BLOCK, SPACE_TO_BLOCK]):
        return "its normaliser is not the exchange of spaces for ▁"
    if _flat(spec.get("pre_tokenizer"), "pretokenizers") not in ([], [SPLIT_AT_SPACE]):
        return "it has a pre-tokenizer"
    return None


def _is_split(step: dict[str, Any]) -> bool:
    if step.get("type") != "Split" or (step.get("behavior"), step.get("invert")) not in KEEPS_ALL:
        return False
    pattern = step.get("pattern", {}).get("Regex")
    # The list of characters on which the engines differ is complete for letters, marks and digits,
    # not for punctuation and symbols.
    return pattern is not None and r"\p{P" not in pattern and r"\p{S" not in pattern


def _flat(step: dict[str, Any] | None, children: str) -> list[dict[str, Any]]:
    """Give the steps of a normaliser or pre-tokenizer, sequences resolved."""
    if step is None:
        return []
    if step.get("type") == "Sequence":
        return [inner for child in step.get(children, []) for inner in _flat(child, children)]
    return [step]
