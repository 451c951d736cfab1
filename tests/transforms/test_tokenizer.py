from __future__ import annotations

import base64
import hashlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from penstock import ConfigError, FormatError, ObjectMissing, Tokenizer
from penstock.transforms.tiktoken import BLOBS, ENCODINGS
from penstock.transforms.tokenizer_engine import flatten

END = "<|endoftext|>"


def gpt2_by_tiktoken(path: Path) -> tiktoken.Encoding:
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in path.read_bytes().splitlines()}
    pattern = openai_public.r50k_pat_str
    return tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: 50256})


def test_gpt2_gives_tiktokens_ids_on_a_book(gpt2_ranks, shakespeare):
    tokenizer = Tokenizer.from_pretrained(gpt2_ranks)
    want = gpt2_by_tiktoken(gpt2_ranks).encode_ordinary(shakespeare)
    ids, offsets = tokenizer.encode_flat(*flatten([shakespeare]))
    assert tokenizer.engine == "gigatoken"
    assert ids.dtype == np.uint32
    assert offsets.tolist() == [0, len(want)]
    assert ids.tolist() == want == tokenizer.encode(shakespeare)


def test_gpt2_gives_tiktokens_ids_on_nasty_text(gpt2_ranks, nasty, same_ids):
    tokenizer = Tokenizer.from_pretrained(gpt2_ranks)
    want = gpt2_by_tiktoken(gpt2_ranks).encode_ordinary_batch(nasty)
    assert tokenizer.encode_batch(nasty) == want
    same_ids(tokenizer, nasty)


def test_gpt2_has_50257_ids_and_its_end_of_text(gpt2_ranks):
    tokenizer = Tokenizer.from_pretrained(gpt2_ranks)
    assert tokenizer.vocab_size == tokenizer.get_vocab_size() == 50257
    assert tokenizer.eot_id == 50256
    assert tokenizer.decode([50256]) == END


def test_ranks_that_count_the_end_of_text_are_the_same_tokenizer(gpt2_ranks, tmp_path):
    longer = tmp_path / "other-name.tiktoken"
    longer.write_bytes(base64.b64encode(END.encode()) + b" 50256\n" + gpt2_ranks.read_bytes())
    tokenizer = Tokenizer.from_pretrained(longer)
    assert tokenizer.fingerprint == Tokenizer.from_pretrained(gpt2_ranks).fingerprint
    assert tokenizer.vocab_size == 50257
    assert tokenizer.encode(END) != [50256]


def test_the_published_encodings_are_defined_as_tiktoken_defines_them(monkeypatch):
    blobs = {}

    def no_ranks(address, expected_hash=None):
        blobs["seen"] = (address, expected_hash)
        return {}

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", no_ranks)
    for name, ours in ENCODINGS.items():
        if name == "gpt2":  # published as merges; its ids are r50k_base's
            assert ours == ENCODINGS["r50k_base"]
            continue
        theirs = openai_public.ENCODING_CONSTRUCTORS[name]()
        assert (ours.pattern, ours.special_tokens) == (theirs["pat_str"], theirs["special_tokens"])
        assert (BLOBS + ours.blob, ours.sha256) == blobs["seen"]
    assert ENCODINGS.keys() == openai_public.ENCODING_CONSTRUCTORS.keys()


def test_an_unknown_number_of_ranks_is_not_guessed(gpt2_ranks, tmp_path):
    short = tmp_path / "gpt2.tiktoken"
    short.write_bytes(b"".join(gpt2_ranks.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match=r"50255 ranks.*100256 \(cl100k_base\).*tokenizer\.json"):
        Tokenizer.from_pretrained(short)
    short.write_bytes(b"IQ== 0\nIg==\n")
    with pytest.raises(FormatError, match="line 2"):
        Tokenizer.from_pretrained(short)
    short.write_bytes(b"IQ== 0\nIg== 0\n")
    with pytest.raises(FormatError, match="one rank to two tokens"):
        Tokenizer.from_pretrained(short)


def test_a_rank_file_called_tokenizer_model_is_seen_as_one(gpt2_ranks, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(gpt2_ranks.read_bytes())
    assert Tokenizer.from_pretrained(tmp_path).vocab_size == 50257


def in_a_process_without_network(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    guard = """
import sys
def no_network(event, args):
    if event.startswith("socket.") and event != "socket.__new__":
        print("NETWORK", event, args)
        raise SystemExit(3)
sys.addaudithook(no_network)
"""
    return subprocess.run(
        [sys.executable, "-c", guard + script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "TMPDIR"])
def test_gpt2_without_a_cache_says_what_to_do_and_opens_no_connection(tmp_path, variable):
    script = """
import time
from penstock import ConfigError, Tokenizer
started = time.monotonic()
try:
    Tokenizer.from_pretrained("gpt2")
except ConfigError as error:
    print("took", time.monotonic() - started, error)
print("loaded", [m for m in ("tiktoken", "tokenizers", "requests") if m in sys.modules])
"""
    done = in_a_process_without_network(script, **{variable: str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NETWORK" not in done.stdout
    assert "not in tiktoken's cache" in done.stdout
    assert str(tmp_path) in done.stdout
    assert "openai-community/gpt2" in done.stdout
    assert "loaded []" in done.stdout  # compiled code that could have called out was not even there
    assert float(done.stdout.split()[1]) < 5


def test_the_network_guard_of_these_tests_fires(tmp_path):
    done = in_a_process_without_network(
        "import tiktoken; tiktoken.get_encoding('gpt2')", TIKTOKEN_CACHE_DIR=str(tmp_path)
    )
    assert "NETWORK" in done.stdout


def test_gpt2_comes_from_tiktokens_own_cache(gpt2_ranks, tmp_path, monkeypatch):
    content = gpt2_ranks.read_bytes()
    published = ENCODINGS["r50k_base"]
    if hashlib.sha256(content).hexdigest() != published.sha256:
        pytest.skip("the ranks at hand are not the published file, which tiktoken's cache would hold")
    cached = tmp_path / hashlib.sha1((BLOBS + published.blob).encode()).hexdigest()
    cached.write_bytes(content)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    by_name = Tokenizer.from_pretrained("gpt2")
    assert by_name.name == "gpt2"
    assert by_name.fingerprint == Tokenizer.from_pretrained(gpt2_ranks).fingerprint
    assert Tokenizer.from_pretrained("r50k_base").fingerprint == by_name.fingerprint
    cached.write_bytes(content[:-1])
    with pytest.raises(ConfigError, match="not in tiktoken's cache"):
        Tokenizer.from_pretrained("gpt2")


def test_a_name_means_the_same_in_every_folder(tmp_path, monkeypatch):
    (tmp_path / "bytes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Tokenizer.from_pretrained("bytes").vocab_size == 256
    with pytest.raises(ConfigError, match=r"holds no tokenizer.*found nothing"):
        Tokenizer.from_pretrained("./bytes")


@pytest.mark.parametrize("missing", ["nowhere/tokenizer.json", "./gpt3", "/no/such/folder", "vocab.model", "a/b/c"])
def test_a_path_that_does_not_exist_is_missing_and_never_looked_up_on_the_hub(missing, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(ObjectMissing, match="does not exist"):
        Tokenizer.from_pretrained(missing)
    assert time.monotonic() - started < 5


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"'gpt-5'.*owner/name.*gpt2.*bytes"):
        Tokenizer.from_pretrained("gpt-5")
    with pytest.raises(ConfigError, match="named by a path or a name, got 5"):
        Tokenizer.from_pretrained(5)
    (tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(ConfigError, match=r"must end in one of \.json, \.tiktoken, \.model"):
        Tokenizer.from_pretrained(tmp_path / "vocab.txt")
    with pytest.raises(ConfigError, match="engine must be one of 'auto', 'fast', 'reference'"):
        Tokenizer.from_pretrained("bytes", engine="slow")


def test_bytes_are_their_own_ids():
    tokenizer = Tokenizer.from_pretrained("bytes")
    assert (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.name) == (256, None, "bytes")
    ids, offsets = tokenizer.encode_flat(*flatten(["hé", "", END]))
    assert ids.tolist() == list(f"hé{END}".encode())
    assert offsets.tolist() == [0, 3, 3, 16]
    assert tokenizer.verify(*flatten(["hé"])) == 0


def test_a_call_gives_what_models_are_fed(gpt2_ranks):
    fed = Tokenizer.from_pretrained(gpt2_ranks)("Hello world")
    assert fed == {"input_ids": [15496, 995], "attention_mask": [1, 1], "token_type_ids": [0, 0]}


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_documents_may_be_any_part_of_the_buffer(gpt2_ranks, engine):
    tokenizer = Tokenizer.from_pretrained(gpt2_ranks, engine=engine)
    data = np.frombuffer(b"xxHello world, yes", np.uint8)
    assert not data.flags.writeable
    ids, offsets = tokenizer.encode_flat(data, np.array([2, 7, 7, 13]))
    assert ids.tolist() == [15496, 995]
    assert offsets.tolist() == [0, 1, 1, 2]
    for documents in ([], [""], ["", ""]):
        ids, offsets = tokenizer.encode_flat(*flatten(documents))
        assert (ids.dtype, ids.size, offsets.tolist()) == (np.uint32, 0, [0] * (len(documents) + 1))
    strided = np.repeat(data, 2)[::2]
    assert tokenizer.encode_flat(strided, np.array([2, 13]))[0].tolist() == [15496, 995]


def test_documents_longer_than_a_batch_of_the_reference_stay_whole(gpt2_ranks, monkeypatch, shakespeare):
    monkeypatch.setattr("penstock.transforms.tokenizer_engine.REFERENCE_BATCH_BYTES", 1000)
    tokenizer = Tokenizer.from_pretrained(gpt2_ranks, engine="reference")
    texts = [shakespeare[:2500], "", "é" * 600, *shakespeare[:900].split("\n"), ""]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_flat_buffers_of_the_wrong_form_are_refused():
    tokenizer = Tokenizer.from_pretrained("bytes")
    data = np.zeros(4, np.uint8)
    with pytest.raises(ConfigError, match="data must be a uint8 array of one dimension, got int64"):
        tokenizer.encode_flat(np.zeros(4, np.int64), np.array([0, 4]))
    with pytest.raises(ConfigError, match="offsets must be an int64 array"):
        tokenizer.encode_flat(data, np.array([0, 4], np.int32))
    for offsets in ([0, 5], [-1, 4], [0, 3, 2, 4]):
        with pytest.raises(ConfigError, match="offsets must rise"):
            tokenizer.encode_flat(data, np.array(offsets))
    with pytest.raises(ConfigError, match="num_threads must be an integer >= 1, got 0"):
        tokenizer.encode_flat(data, np.array([0, 4]), num_threads=0)


@pytest.mark.parametrize("name", ["bytes", "gpt2", "trained"])
def test_a_lone_surrogate_is_refused_by_every_kind(name, gpt2_ranks, trained_json):
    tokenizer = Tokenizer.from_pretrained({"bytes": "bytes", "gpt2": gpt2_ranks, "trained": trained_json}[name])
    with pytest.raises(FormatError, match=r"lone surrogate U\+D83D at character 2"):
        tokenizer.encode("ab\ud83d")
    with pytest.raises(FormatError, match=r"texts\[1\] has the lone surrogate"):
        tokenizer.encode_batch(["fine", "\udc00"])
    with pytest.raises(ConfigError, match="text must be a str, got None"):
        tokenizer.encode(None)
    with pytest.raises(ConfigError, match="got one string"):
        tokenizer.encode_batch("abc")


def test_the_reference_names_a_document_that_is_no_utf8(gpt2_ranks):
    tokenizer = Tokenizer.from_pretrained(gpt2_ranks, engine="reference")
    with pytest.raises(FormatError, match=r"document 1 is not valid UTF-8.*byte 1"):
        tokenizer.encode_flat(np.frombuffer(b"aab\xff", np.uint8), np.array([0, 2, 4]))


def test_an_id_outside_the_vocabulary_cannot_be_decoded(gpt2_ranks):
    with pytest.raises(ConfigError, match="id must be an integer from 0 to 50256, got 50257"):
        Tokenizer.from_pretrained(gpt2_ranks).decode([50257])
    with pytest.raises(ConfigError, match="from 0 to 255"):
        Tokenizer.from_pretrained("bytes").decode([-1])


@pytest.mark.parametrize("kind", [list, tuple, iter, np.array, torch.tensor, lambda ids: map(np.uint32, ids)])
def test_ids_are_decoded_whatever_holds_them(kind):
    assert Tokenizer.from_pretrained("bytes").decode(kind([104, 195, 169])) == "hé"


def test_several_texts_are_not_decoded_at_once_nor_numbers_that_are_no_ids():
    tokenizer = Tokenizer.from_pretrained("bytes")
    with pytest.raises(ConfigError, match="ids must be those of one text, got an array of 2 axes: decode its rows"):
        tokenizer.decode(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"id must be an integer from 0 to 255, got 1.0 \(float\)"):
        tokenizer.decode(np.ones(3))


def encode_elsewhere(tokenizer: Tokenizer, texts: list[str], results) -> None:
    results.put((tokenizer.fingerprint, tokenizer.engine, tokenizer.encode_batch(texts)))


def test_a_spawned_process_gets_the_tokenizer_after_its_file_has_gone(gpt2_ranks, tmp_path, nasty):
    path = tmp_path / "gpt2.tiktoken"
    path.write_bytes(gpt2_ranks.read_bytes())
    tokenizer = Tokenizer.from_pretrained(path)
    path.unlink()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=encode_elsewhere, args=(tokenizer, nasty[:50], results))
    process.start()
    got = results.get(timeout=100)
    process.join(100)
    assert got == (tokenizer.fingerprint, "gigatoken", tokenizer.encode_batch(nasty[:50]))


def test_pickling_keeps_the_choice_of_engine(trained_json):
    for engine in ("auto", "fast", "reference"):
        tokenizer = Tokenizer.from_pretrained(trained_json, engine=engine)
        again = pickle.loads(pickle.dumps(tokenizer))
        assert (again.engine, again.fingerprint, again.name) == (
            tokenizer.engine,
            tokenizer.fingerprint,
            tokenizer.name,
        )


def test_the_fingerprint_follows_the_content_and_not_the_place(trained_json, tmp_path):
    tokenizer = Tokenizer.from_pretrained(trained_json)
    spec = json.loads(trained_json.read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(dict(reversed(spec.items())), indent=4))
    assert Tokenizer.from_pretrained(tmp_path).fingerprint == tokenizer.fingerprint
    spec["model"]["merges"] = spec["model"]["merges"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert Tokenizer.from_pretrained(tmp_path).fingerprint != tokenizer.fingerprint
    assert len({tokenizer.fingerprint, Tokenizer.from_pretrained("bytes").fingerprint}) == 2


def test_verify_stops_a_fast_engine_that_belongs_to_another_vocabulary(gpt2_ranks, tmp_path):
    lines = gpt2_ranks.read_bytes().splitlines()
    world, other = lines[995].split()[0], lines[996].split()[0]
    lines[995], lines[996] = other + b" 995", world + b" 996"
    (tmp_path / "swapped.tiktoken").write_bytes(b"\n".join(lines))
    tokenizer = Tokenizer.from_pretrained(gpt2_ranks)
    documents = flatten(["no difference here", "", "Hello world", "world"])
    assert tokenizer.verify(*documents) == 4
    tokenizer._fast = Tokenizer.from_pretrained(tmp_path / "swapped.tiktoken")._fast
    with pytest.raises(FormatError) as caught:
        tokenizer.verify(*documents)
    for part in ("gigatoken and tiktoken", "document 2", "token 1", "[996]", "[995]", 'engine="reference"'):
        assert part in str(caught.value)
    assert Tokenizer.from_pretrained(gpt2_ranks, engine="reference").verify(*documents) == 0


@given(texts=st.lists(st.text(max_size=40), max_size=6))
def test_bytes_decode_to_the_text_they_encode(texts):
    tokenizer = Tokenizer.from_pretrained("bytes")
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


@given(data=st.data())
def test_byte_level_ids_decode_to_the_text_they_encode(gpt2_ranks, trained_json, data):
    text = data.draw(st.text(max_size=60))
    for path in (gpt2_ranks, trained_json):
        tokenizer = opened(path)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode_batch([text, text]) == [tokenizer.encode(text)] * 2


_OPENED: dict[Path, Tokenizer] = {}


def opened(path: Path) -> Tokenizer:
    if path not in _OPENED:
        _OPENED[path] = Tokenizer.from_pretrained(path)
    return _OPENED[path]
