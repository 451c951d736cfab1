"""What a Hugging Face tokenizer.json says, and what of it ordinary text may reach.

The library matches special tokens inside text: a document that mentions "<|endoftext|>" would end
there. In a corpus such text is text, so encoding goes through a *plain* form of the file in which
special tokens are unreachable while every id stays what it was; the whole file serves decoding and
the special tokens asked for. Added tokens that are not special still match, as their authors meant.

    tokenizer.json ──parse──▶ spec ──plain──▶ spec without special tokens ──▶ engines
"""

from __future__ import annotations

from typing import Any

import orjson

from penstock.errors import ConfigError, FormatError

Spec = dict[str, Any]

EOT_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
)
"""Special tokens that end a text, the end of a document before the end of a turn."""


def parse(content: bytes) -> Spec:
    """Read a tokenizer.json and drop what would shorten or pad texts.

    Raises:
        FormatError: it is no tokenizer.json.
        ConfigError: its BPE drops merges at random, so a text has no fixed ids.
    """
    try:
        spec = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise FormatError(f"the file is no tokenizer.json: {error}") from None
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise FormatError("the file is no tokenizer.json: it has no model with a vocabulary")
    if model.get("dropout"):
        raise ConfigError(
            f"the tokenizer's BPE drops merges at random (dropout {model['dropout']}), so a text has no fixed ids: "
            'set "dropout" to null in its model'
        )
    return {**spec, "truncation": None, "padding": None}


def canonical(spec: Spec) -> bytes:
    """Give one spelling of a spec, whatever its file's white space and order of keys."""
    return orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)


def added_tokens(spec: Spec, *, special: bool) -> list[dict[str, Any]]:
    """List the added tokens that are special, or those that are not."""
    return [token for token in spec.get("added_tokens") or [] if bool(token.get("special")) is special]


def vocab_size(spec: Spec) -> int:
    """One more than the largest id, added tokens included."""
    vocab = spec["model"]["vocab"]
    largest = max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
    return 1 + max([largest, *(token["id"] for token in spec.get("added_tokens") or [])])


def eot_id(spec: Spec, named: str | None) -> int | None:
    """Find the id that ends a text: the special token of a usual name, unless one is named.

    Args:
        spec: the tokenizer.
        named: the end token its configuration names, which may be any token.

    Raises:
        ConfigError: the token named is not in the vocabulary.
    """
    if named is None:
        special = {token["content"]: int(token["id"]) for token in added_tokens(spec, special=True)}
        return next((special[name] for name in EOT_NAMES if name in special), None)
    vocab = spec["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    ids = ids | {token["content"]: token["id"] for token in spec.get("added_tokens") or []}
    if named not in ids:
        raise ConfigError(f"tokenizer_config.json names {named!r} as eos_token, which tokenizer.json does not have")
    return int(ids[named])


def plain(spec: Spec) -> Spec:
    """Make special tokens unreachable from text and keep every id.

    Leaving them out of `added_tokens` alone would not do: ids of added tokens outside the model's
    vocabulary are counted, so those after a missing one would shift; and a model may spell a special
    token from its own pieces or merges.
    """
    model = spec["model"]
    kept = [{**token, "special": False} for token in added_tokens(spec, special=False)]
    hidden = {token["content"] for token in added_tokens(spec, special=True)}
    if model.get("merges") is not None:
        # One character is the alphabet that merges start from: without it, text would be lost.
        hidden = {token for token in hidden if len(token) > 1}
    if isinstance(model["vocab"], list):
        return {**spec, "added_tokens": kept, "model": {**model, "vocab": _plain_pieces(model["vocab"], kept, hidden)}}
    unknown = model.get("unk_token")
    vocab = {token: i for token, i in model["vocab"].items() if token not in hidden or token == unknown}
    vocab |= {token["content"]: token["id"] for token in kept}
    plain_model = {**model, "vocab": vocab}
    if model.get("merges"):
        plain_model["merges"] = without_merges(model["merges"], hidden | {unknown})
    return {**spec, "added_tokens": kept, "model": plain_model}


def without_merges(merges: list[Any], hidden: set[Any]) -> list[list[str]]:
    """Leave out the merges that make a hidden token or need one."""
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    return [pair for pair in pairs if hidden.isdisjoint((pair[0], pair[1], pair[0] + pair[1]))]


def _plain_pieces(vocab: list[Any], kept: list[dict[str, Any]], hidden: set[str]) -> list[Any]:
    # An empty piece holds its place and matches no text.
    pieces = [["" if piece in hidden else piece, score] for piece, score in vocab]
    size = max([len(pieces), *(1 + token["id"] for token in kept)])
    pieces += [["", 0.0] for _ in range(size - len(pieces))]
    for token in kept:
        pieces[token["id"]] = [token["content"], pieces[token["id"]][1]]
    return pieces


def from_vocab_and_merges(vocab: bytes, merges: bytes) -> bytes:
    """Build the tokenizer.json of a byte-level BPE from GPT-2's older pair of files.

    Entries that are no byte and that no merge makes can't come from text: they are the special tokens.

    Raises:
        FormatError: the files are not such a pair, or contradict each other.
    """
    try:
        entries = orjson.loads(vocab)
        lines = merges.decode().split("\n")
    except ValueError as error:
        raise FormatError(f"vocab.json or merges.txt cannot be read: {error}") from None
    pairs = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    if not isinstance(entries, dict) or any(len(pair) != 2 for pair in pairs):
        raise FormatError("vocab.json must be an object token → id, and each line of merges.txt two tokens")
    made = {left + right for left, right in pairs}
    missing = next((token for token in made if token not in entries), None)
    if missing is not None:
        raise FormatError(
            f"merges.txt makes {missing!r}, which vocab.json does not have: the files belong to different tokenizers"
        )
    bytes_missing = byte_alphabet() - entries.keys()
    if bytes_missing:
        raise FormatError(f"vocab.json lacks {len(bytes_missing)} of the 256 bytes: it is no byte-level BPE")
    special = [token for token in entries if token not in made and token not in byte_alphabet()]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec = {
        "version": "1.0",
        "added_tokens": [
            {"id": entries[token], "content": token, **flags} for token in sorted(special, key=entries.__getitem__)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "vocab": entries, "merges": pairs},
    }
    return orjson.dumps(spec)


def byte_alphabet() -> set[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary."""
    printable = {chr(b) for b in range(256) if chr(b).isprintable() and b != 32}
    return printable | {chr(256 + i) for i in range(256 - len(printable))}
