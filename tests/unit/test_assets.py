"""External assets: the lock, where files are found, what a wrong digest or a missing network says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from selfdistill.assets import Assets, add_local, check, fetch, write_lock
from selfdistill.assets.folders import folder_digest
from selfdistill.estimate.dimensions import PUBLISHED, dimensions_of
from selfdistill.schema.assets import LOCAL_FILE, LOCK_FILE, AssetEntry, AssetLock, read_assets
from selfdistill.schema.common import AssetPin
from selfdistill.schema.errors import UserError

PROJECT = Path(__file__).parents[2]
CONTENT = b"question,answer\n1+1,2\n"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "5c" * 20
FILE = "data/math/evaluation/aime24.csv"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test may reach a hub, and none sees the machine's own data or model cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("SELFDISTILL_TEST_DATA", raising=False)


def entry(**changes) -> AssetEntry:
    settings = {
        "kind": "dataset",
        "source": "hub",
        "repo": "someone/something",
        "revision": COMMIT,
        "files": {FILE: DIGEST},
        "licence": "apache-2.0",
    }
    return AssetEntry(**(settings | changes))


def project(root: Path, entries: dict[str, AssetEntry], local: dict | None = None) -> Assets:
    write_lock(root, entries)
    (root / "config/config.yaml").touch()
    if local:
        (root / LOCAL_FILE).write_text(yaml.safe_dump(local), encoding="utf-8")
    return Assets.here(root)


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def model(folder: Path) -> Path:
    put(folder / "config.json", b"{}")
    put(folder / "model.safetensors", b"weights")
    return folder


# --- the lock -------------------------------------------------------------------------------------------------------


def test_the_shipped_lock_loads_and_is_what_the_writer_writes(tmp_path):
    shipped = read_assets(PROJECT).assets
    write_lock(tmp_path, shipped)
    assert (tmp_path / LOCK_FILE).read_text() == (PROJECT / LOCK_FILE).read_text()
    assert [name for name, asset in shipped.items() if not asset.is_resolved] == ["livecodebench"]


def test_every_resolved_asset_of_the_shipped_lock_has_a_pin_and_is_found_back():
    lock = AssetLock(assets=read_assets(PROJECT).assets)
    for name, asset in lock.assets.items():
        if not asset.is_resolved:
            continue
        is_hub_model = asset.kind == "model" and asset.source == "hub"
        for pin in [lock.pin(name)] if is_hub_model else [lock.pin(name, file) for file in asset.files]:
            assert lock.name_of(pin) == name
            assert (pin.sha256 is None) == is_hub_model


def test_an_unresolved_asset_names_the_command_that_resolves_it():
    with pytest.raises(UserError, match="no pinned revision.*refs/pr/6.*`selfdistill assets fetch livecodebench`"):
        read_assets(PROJECT).pin("livecodebench")


def test_a_pin_of_one_file_is_found_by_the_end_of_its_path():
    lock = AssetLock(assets={"math": entry(files={FILE: DIGEST, "data/other.csv": "0" * 64})})
    assert lock.pin("math", "evaluation/aime24.csv") == AssetPin(
        repo="someone/something", revision=COMMIT, file=FILE, sha256=DIGEST
    )
    with pytest.raises(UserError, match="Did you mean `aime24.csv`"):
        lock.pin("math", "aime25.csv")
    with pytest.raises(UserError, match="is not a file of asset `math`"):
        lock.pin("math", "24.csv")
    with pytest.raises(UserError, match="several files; name one"):
        lock.pin("math")
    with pytest.raises(UserError, match="unknown asset `maths`. Did you mean `math`"):
        lock.pin("maths")


def test_a_data_set_without_digests_is_not_pinned():
    with pytest.raises(UserError, match="lists no files.*`selfdistill assets fetch math`"):
        AssetLock(assets={"math": entry(files={})}).pin("math")


def test_recording_digests_of_a_model_leaves_its_pin_as_it_was():
    bare = entry(kind="model", files={})
    recorded = entry(kind="model", files={"config.json": DIGEST})
    assert AssetLock(assets={"m": bare}).pin("m") == AssetLock(assets={"m": recorded}).pin("m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"revision": "main"}, "revision"),
        ({"revision": None}, "needs revision"),
        ({"revision": "unresolved"}, "reason belongs to"),
        ({"reason": "why"}, "reason belongs to"),
        ({"source": "git"}, "needs url"),
        ({"source": "package", "version": "1.0"}, "has no revision"),
        ({"source": "package", "revision": None}, "needs version"),
        ({"files": {"a": "short"}}, "files.a"),
        ({"licenses": "mit"}, "unknown key `.*licenses`. Did you mean `licence`"),
    ],
)
def test_an_entry_that_does_not_fit_is_one_error_with_file_and_field(tmp_path, changes, message):
    raw = entry().model_dump(exclude_none=True) | changes
    put(tmp_path / LOCK_FILE, yaml.safe_dump({"math": raw}).encode())
    with pytest.raises(UserError, match=message) as error:
        read_assets(tmp_path)
    assert str(LOCK_FILE) in str(error.value)
    assert "math" in str(error.value)


@pytest.mark.parametrize("text", ["a: [", "- a", "1: {}"])
def test_an_asset_file_that_is_no_mapping_is_an_error(tmp_path, text):
    put(tmp_path / LOCAL_FILE, text.encode())
    with pytest.raises(UserError, match="assets.local.yaml"):
        read_assets(tmp_path)


# --- finding files --------------------------------------------------------------------------------------------------


def test_the_local_file_comes_first_then_resources_then_test_data(tmp_path, monkeypatch):
    data = put(tmp_path / "data/math/evaluation/aime24.csv").parents[2]
    monkeypatch.setenv("SELFDISTILL_TEST_DATA", str(data))
    assets = project(tmp_path, {"math": entry()})
    pin = assets.lock.pin("math")
    assert assets.file(pin) == data / "math/evaluation/aime24.csv"
    brought = put(tmp_path / "resources/assets/anywhere/aime24.csv")
    assert assets.file(pin) == brought
    home = put(tmp_path / "resources/assets/math" / FILE)
    assert assets.file(pin) == home
    own = put(tmp_path / "own/a.csv")
    assert project(tmp_path, {"math": entry()}, {"math": str(own)}).file(pin) == own
    folder = put(tmp_path / "own/deep/aime24.csv").parents[1]
    assert project(tmp_path, {"math": entry()}, {"math": {"path": str(folder)}}).file(pin) == folder / "deep/aime24.csv"


def test_files_are_recognised_by_their_digest_whatever_their_folder(tmp_path, monkeypatch):
    data = tmp_path / "data"
    put(data / "physics/aime24.csv", b"another file of that name")
    put(data / "chemistry/aime24.csv")
    monkeypatch.setenv("SELFDISTILL_TEST_DATA", str(data))
    assets = project(tmp_path, {"math": entry()})
    assert assets.file(assets.lock.pin("math")) == data / "chemistry/aime24.csv"


@pytest.mark.parametrize(
    "place", ["resources/assets/math/" + FILE, "data/math/evaluation/aime24.csv", "own/aime24.csv"]
)
def test_a_changed_file_stops(tmp_path, monkeypatch, place):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SELFDISTILL_TEST_DATA", str(tmp_path / "data"))
    changed = put(tmp_path / place, b"changed")
    assets = project(tmp_path, {"math": entry()}, {"math": str(changed)} if place.startswith("own") else None)
    with pytest.raises(UserError, match="changed or cut short") as error:
        assets.file(assets.lock.pin("math"))
    assert str(changed) in str(error.value)
    assert "changed or cut short" in check(assets, "math")[FILE]


def test_without_a_network_the_error_says_which_file_to_copy_where(tmp_path):
    assets = project(tmp_path, {"math": entry()})
    with pytest.raises(UserError) as error:
        assets.file(assets.lock.pin("math"))
    message = str(error.value)
    assert all(part in message for part in (FILE, DIGEST, COMMIT, f"resources/assets/math/{FILE}", str(LOCAL_FILE)))
    assert not (tmp_path / "resources").exists()
    assert check(assets, "math") == {FILE: f"missing: copy it to resources/assets/math/{FILE}"}


def test_a_pin_that_no_entry_knows_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no asset of this project is someone/else"):
        project(tmp_path, {"math": entry()}).file(AssetPin(repo="someone/else", file="x", sha256=DIGEST))


def test_a_wrong_test_data_variable_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFDISTILL_TEST_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="SELFDISTILL_TEST_DATA=.*nowhere is not a folder"):
        Assets.here(tmp_path)


def test_a_local_path_that_is_not_there_is_an_error(tmp_path):
    assets = project(tmp_path, {"math": entry()}, {"math": "/nowhere/at/all"})
    with pytest.raises(UserError, match="assets.local.yaml: `math`: /nowhere/at/all does not exist"):
        assets.file(assets.lock.pin("math"))


# --- downloads ------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path) -> tuple[str, str]:
    """A git repository with FILE in its first commit and other content in its second: url, first commit."""
    folder = tmp_path / "repository"
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]

    def run(*arguments: str) -> str:
        return subprocess.run([*git, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    put(folder / FILE)
    run("init", "--quiet")
    run("config", "uploadpack.allowAnySHA1InWant", "true")
    run("add", ".")
    run("commit", "--quiet", "-m", "first")
    first = run("rev-parse", "HEAD")
    put(folder / FILE, b"later")
    run("commit", "--quiet", "-am", "second")
    return folder.as_uri(), first


def test_git_files_come_from_the_pinned_commit(tmp_path, repository):
    url, first = repository
    assets = project(tmp_path, {"math": entry(source="git", url=url, revision=first)})
    (path,) = fetch(assets, "math")
    assert path == tmp_path / "resources/assets/math" / FILE
    assert path.read_bytes() == CONTENT
    assert [p.name for p in (tmp_path / "resources/assets/math").iterdir()] == ["data"]
    assert check(assets, "math") == {FILE: "ok"}


def test_a_download_with_another_digest_is_not_kept(tmp_path, repository):
    url, first = repository
    assets = project(tmp_path, {"math": entry(source="git", url=url, revision=first, files={FILE: "0" * 64})})
    with pytest.raises(UserError, match="It was not kept"):
        fetch(assets, "math")
    assert not (tmp_path / "resources").exists()


def test_fetch_records_commit_and_digest_of_what_was_unresolved(tmp_path, repository):
    url, _ = repository
    unresolved = entry(source="git", url=url, revision="unresolved", reason="nobody looked", ref="HEAD", files={})
    assets = project(tmp_path, {"math": unresolved})
    with pytest.raises(UserError, match="give the files to download"):
        fetch(assets, "math")
    fetch(Assets.here(tmp_path), "math", [FILE])
    recorded = read_assets(tmp_path).entry("math")
    head = subprocess.run(["git", "ls-remote", url, "HEAD"], check=True, capture_output=True, text=True).stdout.split()[
        0
    ]
    assert recorded.revision == head
    assert recorded.reason is None
    assert recorded.files == {FILE: hashlib.sha256(b"later").hexdigest()}
    assert read_assets(tmp_path).pin("math").revision == head


def test_an_unresolved_asset_that_cannot_be_looked_up_stays_unresolved(tmp_path):
    unresolved = entry(source="git", url="file:///nowhere", revision="unresolved", reason="why", files={})
    assets = project(tmp_path, {"math": unresolved})
    with pytest.raises(UserError, match="machine with a network"):
        fetch(assets, "math")
    assert not read_assets(tmp_path).entry("math").is_resolved


@pytest.fixture
def wheel(tmp_path) -> Path:
    path = tmp_path / "wheels/tiny_data-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(FILE, CONTENT)
        archive.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        archive.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
    return path


PACKAGE = {"source": "package", "repo": "tiny-data", "version": "1.0", "revision": None}


def test_a_file_is_taken_out_of_a_wheel_without_installing_it(tmp_path, wheel, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assets = project(tmp_path, {"tiny": entry(**PACKAGE)})
    assert fetch(assets, "tiny") == [tmp_path / "resources/assets/tiny" / FILE]
    assert "tiny_data" not in sys.modules


def test_a_wheel_that_was_brought_by_hand_will_do(tmp_path, wheel):
    assets = project(tmp_path, {"tiny": entry(**PACKAGE)})
    put(tmp_path / "resources/assets/tiny" / wheel.name, wheel.read_bytes())
    assert assets.file(assets.lock.pin("tiny")).read_bytes() == CONTENT


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """A cache of the hub with one data set and one model at the pinned commit, as the hub's library lays it out."""
    cache = tmp_path / "cache"
    put(cache / f"datasets--someone--something/snapshots/{COMMIT}" / FILE)
    model(cache / f"models--someone--something/snapshots/{COMMIT}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def test_the_cache_of_the_hub_will_do_without_a_network(tmp_path, hub_cache):
    assets = project(tmp_path, {"math": entry(), "m": entry(kind="model", files={"model.safetensors": "0" * 64})})
    assert fetch(assets, "math")[0].read_bytes() == CONTENT
    assert (hub_cache / f"datasets--someone--something/snapshots/{COMMIT}" / FILE).is_file()
    with pytest.raises(UserError, match="changed or cut short"):
        assets.model_folder(assets.lock.pin("m"))
    assert "differs" in check(assets, "m")["model.safetensors"]
    assets = project(tmp_path, {"m": entry(kind="model", files={})})
    assert assets.model_folder(assets.lock.pin("m")).name == COMMIT


def test_another_commit_in_the_cache_is_not_taken(tmp_path, hub_cache):
    assets = project(tmp_path, {"math": entry(revision="ab" * 20)})
    with pytest.raises(UserError, match="cannot be downloaded"):
        fetch(assets, "math")


# --- models ---------------------------------------------------------------------------------------------------------


def test_a_model_folder_is_digested_over_its_sorted_files_without_hidden_ones(tmp_path):
    folder = model(tmp_path / "m")
    lines = "".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n"
        for name, content in (("config.json", b"{}"), ("model.safetensors", b"weights"))
    )
    assert folder_digest(folder) == hashlib.sha256(lines.encode()).hexdigest()
    put(folder / ".cache/x", b"x")
    assert folder_digest(folder) == hashlib.sha256(lines.encode()).hexdigest()


def test_a_hub_model_that_was_brought_is_used_and_its_recorded_files_are_checked(tmp_path):
    digests = {"config.json": hashlib.sha256(b"{}").hexdigest()}
    assets = project(tmp_path, {"m": entry(kind="model", files=digests)})
    pin = assets.lock.pin("m")
    with pytest.raises(UserError, match="Copy its folder.*resources/models/m"):
        assets.model_folder(pin)
    folder = model(tmp_path / "resources/models/m")
    assert assets.model_folder(pin) == folder
    assert check(assets, "m") == {"config.json": "ok"}
    elsewhere = model(tmp_path / "elsewhere")
    assert project(tmp_path, assets.lock.assets, {"m": str(elsewhere)}).model_folder(pin) == elsewhere
    put(elsewhere / "config.json", b"{1}")
    with pytest.raises(UserError, match="changed or cut short"):
        Assets.here(tmp_path).model_folder(pin)


HIDDEN, LAYERS, VOCABULARY = 8, 2, 20
SIZES = {"model_type": "qwen3", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
WEIGHTS = 2 * VOCABULARY * HIDDEN + LAYERS * HIDDEN * HIDDEN


def weights(folder: Path, *, tied: bool = False, shards: bool = False) -> Path:
    """A model folder with safetensors of these sizes."""
    put(folder / "config.json", json.dumps(SIZES | {"tie_word_embeddings": tied}).encode())
    head = {name: np.zeros((VOCABULARY, HIDDEN)) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    body = {f"model.layers.{n}.q_proj.weight": np.zeros((HIDDEN, HIDDEN)) for n in range(LAYERS)}
    if not shards:
        save_file(head | body, folder / "model.safetensors")
        return folder
    named = {"model-1-of-2.safetensors": head, "model-2-of-2.safetensors": body}
    for name, tensors in named.items():
        save_file(tensors, folder / name)
    save_file({"x": np.zeros(9)}, folder / "other.safetensors")  # Not in the index: the library does not read it.
    index = {"weight_map": {tensor: name for name, tensors in named.items() for tensor in tensors}}
    put(folder / "model.safetensors.index.json", json.dumps(index).encode())
    return folder


def known(root: Path, **changes) -> Assets:
    stated = {"kind": "model", "files": {}, "config": SIZES, "parameters": WEIGHTS}
    return project(root, {"m": entry(**(stated | changes))})


def test_the_lock_says_what_the_shipped_models_look_like():
    shipped = {e.repo: e for e in read_assets(PROJECT).assets.values() if e.kind == "model" and e.source == "hub"}
    assert len(shipped) == 4
    for repo, asset in shipped.items():
        # The lock says nothing of the type of the weights, and of windows.
        sizes = dataclasses.replace(PUBLISHED[repo], window=None, window_layers=0, is_bfloat16=False)
        assert asset.parameters == sizes.parameters
        assert dimensions_of(asset.config | {"tie_word_embeddings": sizes.is_tied}, repo) == sizes


@pytest.mark.parametrize("shards", [False, True])
def test_a_model_with_the_sizes_in_the_lock_is_used(tmp_path, shards):
    assets = known(tmp_path)
    folder = weights(tmp_path / "resources/models/m", shards=shards)
    assert assets.model_folder(assets.lock.pin("m")) == folder


def test_the_copy_of_a_tied_embedding_is_not_counted(tmp_path):
    assets = known(tmp_path, parameters=WEIGHTS - VOCABULARY * HIDDEN)
    weights(tmp_path / "resources/models/m", tied=True)
    assert assets.model_folder(assets.lock.pin("m"))


def test_another_model_in_the_folder_of_a_hub_model_is_refused_in_one_line(tmp_path):
    lock = read_assets(PROJECT).assets
    assets = project(tmp_path, {"qwen3_8b": lock["qwen3_8b"]})
    folder = weights(tmp_path / "resources/models/qwen3_8b")
    with pytest.raises(UserError, match="vocab_size is 20, but 151936 in .*Qwen/Qwen3-8B.*another model") as refused:
        assets.model_folder(assets.lock.pin("qwen3_8b"))
    assert "\n" not in str(refused.value)
    put(folder / "config.json", json.dumps(lock["qwen3_8b"].config).encode())
    with pytest.raises(UserError, match="safetensors hold 448 weights, but 8,190,735,360"):
        assets.model_folder(assets.lock.pin("qwen3_8b"))
    with pytest.raises(UserError, match="another model"):
        fetch(assets, "qwen3_8b")
    assert not read_assets(tmp_path).entry("qwen3_8b").files


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"weights"),
            "is damaged, or not a safetensors file",
        ),
        (lambda folder: os.truncate(folder / "model.safetensors", 1000), "it was cut short"),
        (lambda folder: (folder / "model.safetensors").unlink(), "hold 0 weights"),
        (lambda folder: (folder / "config.json").write_text("[" * 10**6), "is not JSON"),
    ],
)
def test_damaged_weights_are_one_line(tmp_path, damage, message):
    assets = known(tmp_path)
    damage(weights(tmp_path / "resources/models/m"))
    with pytest.raises(UserError, match=message):
        assets.model_folder(assets.lock.pin("m"))


def test_every_recorded_digest_is_compared_and_what_has_none_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("selfdistill.assets.places._SMALL_BYTES", 10)
    folder = weights(tmp_path / "resources/models/m")
    recorded = {"model.safetensors": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()}
    assets = known(tmp_path, files=recorded)
    pin = assets.lock.pin("m")
    assert assets.check_model_files(pin, assets.model_folder(pin)) == ["config.json"]
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    put(folder / "model.safetensors", bytes(content))
    with pytest.raises(UserError, match="changed or cut short"):
        assets.check_model_files(pin, assets.model_folder(pin))


def test_the_first_fetch_of_a_model_records_its_digests(tmp_path):
    assets = project(tmp_path, {"m": entry(kind="model", files={})})
    model(tmp_path / "resources/models/m")
    fetch(assets, "m")
    assert read_assets(tmp_path).entry("m").files == {
        "config.json": hashlib.sha256(b"{}").hexdigest(),
        "model.safetensors": hashlib.sha256(b"weights").hexdigest(),
    }


def test_files_and_folders_of_ones_own_are_identified_by_content(tmp_path):
    assets = project(tmp_path, {"math": entry()}, {"mine": str(put(tmp_path / "mine.csv"))})
    with pytest.raises(UserError, match="`selfdistill assets add mine"):
        assets.lock.pin("mine")
    add_local(assets, "mine", tmp_path / "mine.csv")
    add_local(Assets.here(tmp_path), "model", model(tmp_path / "m"))
    assets = Assets.here(tmp_path)
    assert assets.lock.pin("mine") == AssetPin(file="mine.csv", sha256=DIGEST)
    assert assets.file(assets.lock.pin("mine")) == tmp_path / "mine.csv"
    assert assets.model_folder(assets.lock.pin("model")) == tmp_path / "m"
    assert (check(assets, "mine"), check(assets, "model")) == ({"mine.csv": "ok"}, {"m": "ok"})
    put(tmp_path / "m/config.json", b"{1}")
    with pytest.raises(UserError, match="changed or cut short"):
        assets.model_folder(assets.lock.pin("model"))
    assert "changed or cut short" in check(assets, "model")["m"]
    with pytest.raises(UserError, match="choose another name"):
        add_local(assets, "math", tmp_path / "mine.csv")


def test_a_gguf_file_becomes_an_ordinary_model_folder_once(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = tiny_gguf(tmp_path / "tiny.gguf")
    assets = project(tmp_path, {})
    add_local(assets, "tiny", gguf)
    assets = Assets.here(tmp_path)
    pin = assets.lock.pin("tiny")
    folder = assets.model_folder(pin)
    assert folder == tmp_path / "resources/models/tiny"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "<s>ab"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.hidden_size == 32
    note = json.loads((tmp_path / "resources/models/tiny.import.json").read_text())
    assert note["sha256"] == pin.sha256
    assert note["folder_sha256"] == folder_digest(folder)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert assets.model_folder(pin) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    put(folder / "config.json", b"{}")
    with pytest.raises(UserError, match="changed since its import"):
        assets.model_folder(pin)
    put(gguf, b"not a model")
    with pytest.raises(UserError, match="changed or cut short"):
        assets.model_folder(pin)


def tiny_gguf(path: Path) -> Path:
    """A Llama of random weights with a byte-level tokenizer of a few tokens, written by the gguf library."""
    import gguf
    import numpy as np

    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "Ġ"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for message in messages %}<s>{{ message['content'] }}{% endfor %}")
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(tokens), 32), "output_norm.weight": (32,), "blk.0.attn_norm.weight": (32,),
        "blk.0.ffn_norm.weight": (32,), "blk.0.attn_q.weight": (32, 32), "blk.0.attn_k.weight": (16, 32),
        "blk.0.attn_v.weight": (16, 32), "blk.0.attn_output.weight": (32, 32), "blk.0.ffn_gate.weight": (64, 32),
        "blk.0.ffn_up.weight": (64, 32), "blk.0.ffn_down.weight": (32, 64),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.normal(0, 0.02, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- folders of data, offline, the command line ---------------------------------------------------------------------


def rows_of(assets: Assets, name: str) -> list[str]:
    from selfdistill.schema.sources import FileSource
    from selfdistill.sources import load_problems

    problems, _ = load_problems(FileSource(pin=assets.lock.pin(name)), assets.file)
    return [problem["question"] for problem in problems]


def test_a_folder_of_shards_is_one_data_set_identified_by_its_content(tmp_path):
    put(tmp_path / "shards/part-0.jsonl", b'{"question": "a", "answer": 1}\n{"question": "b", "answer": 2}\n')
    put(tmp_path / "shards/part-1.csv", b"question,answer\nc,3\n")
    put(tmp_path / "shards/README.md", b"about")
    add_local(project(tmp_path, {}), "mine", tmp_path / "shards")
    assets = Assets.here(tmp_path)
    assert assets.lock.local["mine"].kind == "dataset"
    assert rows_of(assets, "mine") == ["a", "b", "c"]
    assert check(assets, "mine") == {"shards": "ok"}
    put(tmp_path / "shards/part-1.csv", b"question,answer\nchanged,3\n")
    with pytest.raises(UserError, match="changed or cut short"):
        rows_of(assets, "mine")
    assert "changed or cut short" in check(assets, "mine")["shards"]


def test_a_data_set_saved_by_the_datasets_library_is_read(tmp_path):
    from datasets import Dataset, DatasetDict

    one = Dataset.from_list([{"question": "a", "answer": "1"}])
    one.save_to_disk(tmp_path / "one")
    DatasetDict(train=one, test=Dataset.from_list([{"question": "b", "answer": "2"}])).save_to_disk(tmp_path / "two")
    for name in ("one", "two"):
        add_local(Assets.here(tmp_path), name, tmp_path / name)
    assert rows_of(Assets.here(tmp_path), "one") == ["a"]
    with pytest.raises(UserError, match="holds several splits: train, test"):
        rows_of(Assets.here(tmp_path), "two")


@pytest.mark.parametrize("switch", ["SELFDISTILL_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked_of_any_remote_side_and_the_file_is_named(tmp_path, repository, monkeypatch, switch):
    url, first = repository
    sources = {
        "git": entry(source="git", url=url, revision=first),
        "package": entry(**PACKAGE),
        "hub": entry(),
        "new": entry(source="git", url=url, revision="unresolved", reason="nobody looked", files={}),
    }
    assets = project(tmp_path, sources)
    monkeypatch.setenv(switch, "1")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a command was started"))
    for name in ("git", "package", "hub"):
        with pytest.raises(UserError, match=f"offline: {switch} is set.*{DIGEST} to resources/assets/{name}/{FILE}"):
            fetch(assets, name)
    with pytest.raises(UserError, match=f"cannot be looked up from here .offline: {switch}"):
        fetch(assets, "new")


def command(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "selfdistill.cli", "assets", *arguments],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "src"), "HF_HUB_OFFLINE": "1", **environment},
    )


def test_the_command_line_adds_fetches_and_checks(tmp_path, repository):
    url, first = repository
    project(tmp_path, {})
    own = put(tmp_path / "own.csv")
    done = command(tmp_path, "add", "mine", "own.csv")
    assert (done.returncode, DIGEST in done.stdout) == (0, True), done.stderr
    done = command(tmp_path, "add", "math", "--git", url, "--revision", first, "--licence", "mit")
    assert done.returncode == 0, done.stderr
    assert read_assets(tmp_path).entry("math").licence == "mit"
    assert "no digests yet" in command(tmp_path, "check").stdout
    done = command(tmp_path, "fetch", "math", FILE, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert read_assets(tmp_path).entry("math").files == {FILE: DIGEST}
    done = command(tmp_path, "check")
    assert done.returncode == 0
    assert [line.split()[-1] for line in done.stdout.splitlines()[1:]] == ["ok", "ok"]
    put(own, b"changed")
    done = command(tmp_path, "check", "mine")
    assert (done.returncode, "changed or cut short" in done.stdout) == (1, True)
    (tmp_path / "resources/assets/math" / FILE).unlink()
    done = command(tmp_path, "check", "math")
    assert (done.returncode, f"missing: copy it to resources/assets/math/{FILE}" in done.stdout) == (0, True)


def test_a_repository_without_a_commit_is_recorded_as_unresolved(tmp_path):
    project(tmp_path, {})
    assert command(tmp_path, "add", "new", "--hub", "someone/new", "--kind", "model").returncode == 0
    added = read_assets(tmp_path).entry("new")
    assert (added.kind, added.source, added.is_resolved) == ("model", "hub", False)
    done = command(tmp_path, "check")
    assert (done.returncode, "unresolved: added without a commit" in done.stdout) == (0, True)
    done = command(tmp_path, "fetch", "new")
    assert done.returncode == 2
    assert "offline: HF_HUB_OFFLINE is set" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "x"], "give exactly one of: a path, --hub"),
        (["add", "x", "a", "--hub", "b/c"], "give exactly one of"),
        (["add", "x", "--hub", "b/c", "--revision", "main"], "assets add x: `revision`"),
        (["add", "x", "nowhere.csv"], "nowhere.csv does not exist"),
        (["add", "math", "--hub", "b/c"], "`math` is an asset already"),
        (["fetch", "maths"], "unknown asset `maths`. Did you mean `math`"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(tmp_path, arguments, message):
    project(tmp_path, {"math": entry()})
    done = command(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
