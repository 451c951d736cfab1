from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from penstock import ConfigError, FormatError, Tokenizer
from penstock.transforms.tokenizer_json import byte_alphabet

END = "<|endoftext|>"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BY_SYMBOLS = {"type": "Split", "pattern": {"Regex": r"[\p{P}\p{S}]+"}, "behavior": "Isolated", "invert": False}
LLAMA3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + WORDS


def added(content: str, i: int, **flags: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": i, "content": content, **plain, **flags}


def write(folder: Path, spec: dict[str, Any]) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(spec))
    return path


@pytest.fixture
def spec(trained_json) -> dict[str, Any]:
    return json.loads(trained_json.read_bytes())


@pytest.fixture(scope="module")
def gemma(tmp_path_factory, shakespeare) -> Path:
    """A tokenizer of Gemma's shape and size: 262,144 entries, ids of four bytes, bytes where no piece fits."""
    random_ = random.Random(3)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    blanks = ["[multimodal]", "<unused1>", *("\n" * n for n in range(2, 8)), *("▁" * n for n in range(2, 8)), "<table>"]
    letters = sorted({char for char in shakespeare if char != " "} | {"▁"} | {chr(0x4E00 + i) for i in range(460)})
    vocab = [*special, *blanks, *(f"<0x{b:02X}>" for b in range(256)), *letters]
    common = sorted({word for word in shakespeare.split() if len(word) > 1})
    merges, known = [], set(vocab)
    for word in ["▁" + word for word in common]:
        for i in range(1, len(word)):
            if word[: i + 1] not in known:
                known.add(word[: i + 1])
                merges.append([word[:i], word[i]])
    pairs = [[a, b] for a in letters for b in letters if a + b not in known]
    random_.shuffle(pairs)
    merges += pairs[: 262_144 - len(vocab) - len(merges)]
    vocab += [left + right for left, right in merges]
    ids = {token: i for i, token in enumerate(vocab)}
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": ids,
        "merges": merges,
    }
    spec = {
        "version": "1.0",
        "added_tokens": [added(t, ids[t], special=True) for t in special] + [added(t, ids[t]) for t in blanks],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": model,
    }
    return write(tmp_path_factory.mktemp("gemma"), spec)


def test_a_vocabulary_of_262144_needs_four_bytes_an_id_and_is_exact(gemma, nasty, shakespeare, same_ids):
    tokenizer = Tokenizer.from_pretrained(gemma)
    assert tokenizer.vocab_size == 262_144
    assert tokenizer.engine == "gigatoken"
    assert tokenizer.eot_id == 1
    texts = [shakespeare[:50_000], "一丁七 三一", "a\n\n\nb [multimodal] <table> ▁▁▁", *nasty]
    ids = tokenizer.encode_batch(texts)
    assert max(map(max, filter(None, ids))) > 65_535
    same_ids(tokenizer, texts)
    library = tokenizers.Tokenizer.from_file(str(gemma))
    assert ids[0] == library.encode(texts[0], add_special_tokens=False).ids
    assert ids[2] == library.encode(texts[2], add_special_tokens=False).ids
    assert tokenizer.decode(ids[0]) == texts[0]


def test_special_tokens_come_on_request_only(gemma):
    tokenizer = Tokenizer.from_pretrained(gemma)
    plain = tokenizer.encode("hello")
    assert tokenizer.encode("hello", add_special_tokens=True) == [2, *plain]
    assert tokenizer("hello", add_special_tokens=True)["attention_mask"] == [1] * (len(plain) + 1)
    assert tokenizer.decode([2, *plain, 1]) == "<bos>hello<eos>"


def test_special_text_is_text_and_other_added_tokens_match(gemma, spec, tmp_path, same_ids):
    tokenizer = Tokenizer.from_pretrained(gemma)
    for literal in ("<eos>", "<bos>x", "a<end_of_turn>"):
        ids = tokenizer.encode(literal)
        assert min(ids) > 6
        assert tokenizer.decode(ids) == literal
    assert tokenizer.encode("<table>") == [21]
    size = len(spec["model"]["vocab"])
    spec["added_tokens"] += [added("<|x|>", size, special=True), added("<tool>", size + 1), added(END + "!", size + 2)]
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, spec))
    # The id of an added token does not move though a special one before it is out of reach.
    assert tokenizer.encode("<tool>") == [size + 1]
    assert tokenizer.encode(END + "!") == [size + 2]
    assert max(tokenizer.encode(f"<|x|>{END}")) < size
    assert tokenizer.decode([size, size + 1]) == "<|x|><tool>"
    same_ids(tokenizer, ["<tool>", f"a{END}<|x|>b", f"{END}!", "<|x|><tool> <tool>"])


def test_merges_that_spell_a_special_token_do_not_reach_it(spec, tmp_path, same_ids):
    model = spec["model"]
    size = len(model["vocab"])
    model["vocab"] |= {"zq": size, "zqz": size + 1, "zqzq": size + 2}
    model["merges"] += [["z", "q"], ["zq", "z"], ["zqz", "q"]]
    spec["added_tokens"].append(added("zqz", size + 1, special=True))
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, spec))
    assert tokenizer.encode("zq") == [size]
    assert tokenizer.encode("zqz") == [size, *tokenizer.encode("z")]
    assert tokenizer.encode("zqzq") == [size, size]
    same_ids(tokenizer, ["zqz", "zqzq", "x zqz y"])


@pytest.mark.parametrize("shape", ["trained", "llama3", "llama3 by words", "tiktoken converted"])
def test_byte_level_shapes_are_fast_and_exact(shape, spec, tmp_path, nasty, docstrings, same_ids):
    def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}

    unsplit = {**BYTE_LEVEL, "use_regex": False}
    if shape != "trained":
        splits = [split(LLAMA3_WORDS, "Removed", True) if "converted" in shape else split(LLAMA3_WORDS)]
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*splits, unsplit]}
    spec["model"]["ignore_merges"] = shape == "llama3 by words"
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, spec))
    assert tokenizer.engine == "gigatoken"
    same_ids(tokenizer, [*nasty, *docstrings[-3:]])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": {"type": "NFC"}}, "normalises"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}}, "normalises"),
        ({"pre_tokenizer": {**BYTE_LEVEL, "use_regex": False}}, "split into words"),
        ({"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}}, "split into words"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
                }
            },
            "split into words",
        ),
        ({"added_tokens": [added("<tool>", 1000, single_word=True)]}, "depends on the text around"),
        ({"added_tokens": [added("<tool>", 1000, lstrip=True)]}, "depends on the text around"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BY_SYMBOLS, {**BYTE_LEVEL, "use_regex": False}]}},
            "letters",
        ),
    ],
)
def test_what_the_fast_engine_gets_wrong_goes_to_the_reference(change, reason, spec, tmp_path, nasty, same_ids):
    path = write(tmp_path, spec | change)
    tokenizer = Tokenizer.from_pretrained(path)
    assert tokenizer.engine == "tokenizers"
    same_ids(tokenizer, nasty[:500])
    with pytest.raises(ConfigError, match=f'no fast engine.*{reason}.*engine="auto"'):
        Tokenizer.from_pretrained(path, engine="fast")


def test_truncation_and_padding_in_the_file_never_cut_a_document(spec, tmp_path):
    spec["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    spec["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": END}
    spec["padding"]["pad_to_multiple_of"] = None
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, spec))
    text = "import the module and call it twice"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch([text, "x"]) == [tokenizer.encode(text), tokenizer.encode("x")]


def test_random_merges_are_refused(spec, tmp_path):
    spec["model"]["dropout"] = 0.1
    with pytest.raises(ConfigError, match=r"drops merges at random \(dropout 0\.1\)"):
        Tokenizer.from_pretrained(write(tmp_path, spec))


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"model": {"vocab": 3}}', "not json", '{"model": {"vocab": {"a": 0}}}']
)
def test_a_file_that_is_no_tokenizer_is_named(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(FormatError) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert "tokenizer.json" in str(caught.value)


def test_an_added_token_that_contradicts_the_model_is_refused(spec, tmp_path):
    spec["model"]["type"] = "Unigram"
    spec["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    spec["added_tokens"] = [added("a", 0)]
    with pytest.raises(FormatError, match="gives 'a' the id 0 and, in its model, 1"):
        Tokenizer.from_pretrained(write(tmp_path, spec))


def test_bert_puts_cls_and_sep_on_request_and_reads_them_as_text(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "[", "]", "cl", "##s"]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    spec = {
        "version": "1.0",
        "added_tokens": [added(word, i, special=True) for word, i in list(vocab.items())[:5]],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": vocab},
    }
    spec["model"]["max_input_chars_per_word"] = 100
    spec["normalizer"]["strip_accents"] = None
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, spec))
    assert tokenizer.engine == "tokenizers"
    assert tokenizer.encode("Hello worlds") == [5, 6, 7]
    assert tokenizer.encode("Hello worlds", add_special_tokens=True) == [2, 5, 6, 7, 3]
    # Split at white space only, the model would find "[MASK]" in its own vocabulary.
    assert tokenizer.encode("[mask] [MASK] [SEP]") == [1, 1, 1]
    assert tokenizer.decode([2, 5, 3]) == "[CLS] hello [SEP]"
    assert tokenizer.eot_id is None


def test_a_unigram_model_does_not_find_special_pieces_in_text(tmp_path, same_ids):
    vocab = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁", -2.0], ["a", -2.5], ["</", -3.0], ["s>", -3.0]]
    spec = {
        "version": "1.0",
        "added_tokens": [added(t, i, special=True) for i, t in enumerate(["<pad>", "</s>", "<unk>"])]
        + [added("<x>", 9)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": False},
    }
    spec["added_tokens"].insert(3, added("<y>", 8, special=True))
    spec["added_tokens"].insert(3, added("<z>", 7, special=True))
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, spec))
    assert tokenizer.vocab_size == 10
    assert tokenizer.eot_id == 1
    assert tokenizer.encode("a</s>") == [3, 4, 5, 6]
    assert tokenizer.encode("a<x>") == [3, 4, 9]
    assert 8 not in tokenizer.encode("<y>")
    assert tokenizer.decode([3, 4, 1]) == "a</s>"
    same_ids(tokenizer, ["a</s>a", "<x><y>", ""])


def write_pair(folder: Path, spec: dict[str, Any]) -> None:
    (folder / "vocab.json").write_text(json.dumps(spec["model"]["vocab"]))
    merges = "".join(f"{left} {right}\n" for left, right in spec["model"]["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges)


def test_vocab_and_merges_are_the_tokenizer_they_were_written_from(trained_json, spec, tmp_path, nasty, same_ids):
    write_pair(tmp_path, spec)
    pair, original = Tokenizer.from_pretrained(tmp_path), Tokenizer.from_pretrained(trained_json)
    assert (pair.engine, pair.name, pair.vocab_size) == ("gigatoken", tmp_path.name, original.vocab_size)
    assert pair.eot_id == original.eot_id == 0
    assert pair.encode_batch(nasty) == original.encode_batch(nasty)
    same_ids(pair, nasty)


def test_a_pair_that_does_not_fit_is_refused(spec, tmp_path):
    write_pair(tmp_path, spec)
    with (tmp_path / "merges.txt").open("a") as file:
        file.write("qq qq\n")
    with pytest.raises(FormatError, match=r"makes 'qqqq', which vocab\.json does not have"):
        Tokenizer.from_pretrained(tmp_path)
    del spec["model"]["vocab"][min(byte_alphabet())]
    write_pair(tmp_path, {"model": {**spec["model"], "merges": []}})
    with pytest.raises(FormatError, match="lacks 1 of the 256 bytes"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(FormatError, match=r"each line of merges\.txt two tokens"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "added_tokens.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"added_tokens\.json"):
        Tokenizer.from_pretrained(tmp_path)


def test_the_end_of_text_is_the_one_the_folder_names(spec, tmp_path):
    size = len(spec["model"]["vocab"])
    spec["added_tokens"] += [added("</s>", size, special=True), added("<|im_end|>", size + 1, special=True)]
    write(tmp_path, spec)
    config = tmp_path / "tokenizer_config.json"
    assert Tokenizer.from_pretrained(tmp_path).eot_id == 0
    for named, eot in (("<|im_end|>", size + 1), ({"content": "</s>"}, size), (None, 0)):
        config.write_text(json.dumps({"eos_token": named}))
        assert Tokenizer.from_pretrained(tmp_path).eot_id == eot
    config.write_text(json.dumps({"eos_token": "<end>"}))
    with pytest.raises(ConfigError, match="names '<end>' as eos_token"):
        Tokenizer.from_pretrained(tmp_path)


class Hub(BaseHTTPRequestHandler):
    """Serves one repository's tokenizer.json the way the Hub does."""

    content = b""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        found = self.path == "/someone/tiny/resolve/main/tokenizer.json"
        content = self.content if found else b"not found"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (
            {"ETag": '"1"', "X-Repo-Commit": "0" * 40}.items() if found else {"X-Error-Code": "RepoNotFound"}.items()
        ):
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


HUB_SCRIPT = """
import sys
from penstock import ConfigError, Tokenizer
try:
    tokenizer = Tokenizer.from_pretrained(sys.argv[1])
    print(tokenizer.name, tokenizer.vocab_size, tokenizer.encode_batch(["hello hub"]))
except ConfigError as error:
    print("ConfigError", error)
"""


def ask_hub(name: str, endpoint: str, home: Path) -> str:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", HUB_SCRIPT, name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True).stdout


def test_a_hub_name_is_fetched_from_the_endpoint(trained_json, tmp_path):
    Hub.content = trained_json.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        want = Tokenizer.from_pretrained(trained_json)
        got = ask_hub("someone/tiny", endpoint, tmp_path)
        assert got == f"someone/tiny {want.vocab_size} {want.encode_batch(['hello hub'])}\n"
        assert "'someone/else' is no path here, and the Hub did not give" in ask_hub("someone/else", endpoint, tmp_path)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_named(tmp_path):
    refused = ask_hub("someone/other", "http://127.0.0.1:9", tmp_path)  # the library tries again for a while
    assert refused.startswith("ConfigError 'someone/other'")
    assert "HF_ENDPOINT" in refused
