from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import msgspec
import psutil
import pytest
import uvloop

from axion.errors import AxionError, ModelLoadError, ModelNotFoundError
from axion.hub.resolve import resolve
from axion.hub.snapshot import FORMATS, FORMATS_WITH_PICKLE, fingerprint, native_formats

from .conftest import COMMIT, Hub, Repo

ID = "acme/tiny-llama"


def find(folder: Path, name: str) -> list[Path]:
    return list(folder.rglob(name))


async def refused(name: str) -> AxionError:
    """The error, which in every case shows a way out."""
    with pytest.raises((ModelNotFoundError, ModelLoadError)) as caught:
        await resolve(name)
    assert "MODEL_NAME=axion/demo" in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value


async def test_repository_is_downloaded_with_progress(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files)
    progress: list[tuple[int, int]] = []
    snapshot = await resolve(ID, on_progress=lambda *args: progress.append(args))

    assert (snapshot.name, snapshot.revision, snapshot.source) == (ID, COMMIT, "hub")
    got = {str(p.relative_to(snapshot.path)) for p in snapshot.path.rglob("*") if p.is_file()}
    wanted = {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
        "model.safetensors",
    }
    assert got == wanted
    for name in wanted:
        assert (snapshot.path / name).read_bytes() == files[name]
    total = sum(len(files[name]) for name in wanted)
    assert progress[-1] == (total, total)
    assert progress == sorted(progress)


def test_download_works_on_the_event_loop_of_the_server(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(resolve(ID)).revision == COMMIT


async def test_second_call_downloads_nothing(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files)
    first = await resolve(ID)
    hub.requests.clear()
    assert await resolve(f"{ID}@main") == msgspec.structs.replace(first, name=f"{ID}@main")
    assert hub.downloads() == []


async def test_interrupted_download_fetches_only_what_is_missing(
    hub: Hub, files: dict[str, bytes]
) -> None:
    hub.repos[ID] = Repo(files)
    snapshot = await resolve(ID)
    (snapshot.path / "model.safetensors").resolve().unlink()
    (snapshot.path / "model.safetensors").unlink()
    hub.requests.clear()
    await resolve(ID)
    assert hub.downloads() == ["model.safetensors"]


async def test_cancelled_download_ends_at_once_and_leaves_no_process(
    hub: Hub, files: dict[str, bytes]
) -> None:
    hub.repos[ID] = Repo(files)
    hub.block_downloads = threading.Event()
    task = asyncio.create_task(resolve(ID))
    await asyncio.to_thread(hub.download_began.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [
        child
        for child in psutil.Process().children()
        if "axion.hub.download" in " ".join(child.cmdline())
    ]


async def test_download_that_breaks_off_goes_on_where_it_was(
    hub: Hub, files: dict[str, bytes]
) -> None:
    files["model.safetensors"] = weights = os.urandom(2**20) * 24
    hub.repos[ID] = Repo(files)
    hub.cuts["model.safetensors"] = [len(weights) - 1]
    snapshot = await resolve(ID)
    assert (snapshot.path / "model.safetensors").read_bytes() == weights
    # The library writes in pieces of 10 MiB.
    assert hub.ranges == [f"bytes={20 * 2**20}-"]


async def test_download_whose_connection_is_reset_keeps_the_files_that_are_complete(
    hub: Hub, files: dict[str, bytes]
) -> None:
    hub.repos[ID] = Repo(files)
    hub.cuts["model.safetensors"] = [60_000]
    hub.resets = True
    snapshot = await resolve(ID)
    assert (snapshot.path / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert hub.downloads().count("config.json") == 1


async def test_branch_that_moves_during_the_download_gives_the_commit_that_was_chosen(
    hub: Hub, files: dict[str, bytes]
) -> None:
    hub.repos[ID] = Repo(files)
    hub.pushed = ["f" * 40]
    assert (await resolve(ID)).revision == COMMIT
    assert not [request for request in hub.requests if "/resolve/main/" in request]
    assert (await resolve(ID)).revision == hub.commits[-1] == "f" * 40


async def test_what_a_killed_download_has_left_is_removed(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repos[ID] = Repo(files)
    blobs = tmp_path / "hf" / "hub" / "models--acme--tiny-llama" / "blobs"
    blobs.mkdir(parents=True)
    dead, alive = blobs / "x.1.incomplete", blobs / "y.2.incomplete"
    dead.write_bytes(b"dead")
    alive.write_bytes(b"another process writes this")
    os.utime(dead, (0, 0))
    await resolve(ID)
    assert [file.name for file in blobs.glob("*.incomplete")] == [alive.name]


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no network", "server error", "no access"])
async def test_complete_cached_snapshot_needs_no_network(
    hub: Hub,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    hub.repos[ID] = Repo(files)
    first = await resolve(ID)
    hub.requests.clear()
    match how:
        case "HF_HUB_OFFLINE":
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        case "no network":
            monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        case "server error":
            hub.fail_with = 500
        case "no access":
            monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    assert await resolve(ID) == first
    assert hub.downloads() == []
    said = {
        "HF_HUB_OFFLINE": "",
        "no network": "cannot be reached (ConnectError)",
        "server error": "answered 500",
        "no access": "answered 401",
    }[how]
    assert (f"{ID} is served from the local cache: Hugging Face {said}" in caplog.text) == bool(
        said
    )


async def test_cached_snapshot_that_lacks_a_file_is_not_taken_offline(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[ID] = Repo(files)
    snapshot = await resolve(ID)
    (snapshot.path / "model.safetensors").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not in the local cache" in (await refused(ID)).message


async def test_offline_without_a_cache_says_how_to_get_the_model(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = await refused(ID)
    assert isinstance(error, ModelLoadError)
    assert "HF_HUB_OFFLINE forbids" in error.message
    assert hub.requests == []


async def test_unreachable_hub_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert "cannot be reached (ConnectError)" in (await refused(ID)).message


async def test_hub_that_fails_is_told_by_its_status(hub: Hub) -> None:
    hub.fail_with = 503
    assert "answered 503" in (await refused(ID)).message


@pytest.mark.parametrize("token", [None, "hf_good"])
async def test_unknown_repository_is_not_found(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    hub.valid_tokens = {"hf_good"}
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    error = await refused(ID)
    assert isinstance(error, ModelNotFoundError)
    assert f"no model {ID}" in error.message
    assert "HF_TOKEN" in error.message


async def test_unknown_revision_is_not_found(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files)
    error = await refused(f"{ID}@v9")
    assert isinstance(error, ModelNotFoundError)
    assert f"{ID} has no revision v9" in error.message


@pytest.mark.parametrize("token", [None, "hf_good"])
async def test_gated_repository_shows_where_to_accept_the_licence(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    hub.repos[ID] = Repo(files, gated=True)
    hub.valid_tokens = {"hf_good"}
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    error = await refused(ID)
    assert isinstance(error, ModelLoadError)
    assert f"https://huggingface.co/{ID} and set HF_TOKEN" in error.message
    assert "hf_good" not in error.message


async def test_token_with_access_opens_a_gated_repository(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[ID] = Repo(files, gated=True)
    hub.valid_tokens = hub.tokens_with_access = {"hf_good"}
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert (await resolve(ID)).source == "hub"


async def test_invalid_token_is_told_apart_from_a_missing_model(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[ID] = Repo(files)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    assert "HF_TOKEN is not valid" in (await refused(ID)).message


@pytest.mark.parametrize(
    ("name", "said"),
    [("pytorch_model.bin", "pickle"), ("README.md", "no safetensors")],
)
async def test_repository_without_safetensors_is_refused_before_any_download(
    hub: Hub, name: str, said: str
) -> None:
    hub.repos[ID] = Repo({"config.json": b"{}", name: b"x"})
    error = await refused(ID)
    assert error.message.startswith(f"{ID} cannot be served.")
    assert said in error.message
    assert hub.downloads() == []


async def test_path_traversal_in_the_file_list_is_refused(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.repos[ID] = Repo(files | {"../../../../evil.json": b"{}"})
    assert "unsafe file name" in (await refused(ID)).message
    assert hub.downloads() == []
    assert find(tmp_path, "evil.json") == []


async def test_download_larger_than_the_disk_does_not_begin(
    hub: Hub, files: dict[str, bytes]
) -> None:
    hub.repos[ID] = Repo(files, sizes={"model.safetensors": 10**18})
    error = await refused(ID)
    assert "needs 1000000000.0 GB" in error.message
    assert "HF_HOME" in error.message
    assert hub.downloads() == []


async def test_of_the_weights_beside_an_index_those_that_it_names_are_downloaded(
    hub: Hub, files: dict[str, bytes]
) -> None:
    shards = {f"part-0000{i}-of-00002.safetensors": b"s" * i for i in (1, 2)}
    others = {"model.fp16.safetensors": b"f", "adapter.safetensors": b"a"}
    names = {f"t{i}": name for i, name in enumerate(shards)}
    index = {"model.safetensors.index.json": msgspec.json.encode({"weight_map": names})}
    del files["model.safetensors"]
    hub.repos[ID] = Repo(files | shards | others | index)
    snapshot = await resolve(ID)
    assert {file.name for file in snapshot.path.glob("*.safetensors")} == shards.keys()
    assert hub.downloads().count("model.safetensors.index.json") == 1


PICKLED = {
    "config.json": b"{}",
    "pytorch_model.bin.index.json": b'{"weight_map": {"x": "pytorch_model-00001-of-00001.bin"}}',
    "pytorch_model-00001-of-00001.bin": b"p",
    "training_args.bin": b"t",
}


async def test_pickle_is_downloaded_only_where_it_is_allowed(hub: Hub) -> None:
    hub.repos[ID] = Repo(PICKLED)
    error = await refused(ID)
    assert "set ALLOW_PICKLE=true" in error.message
    assert hub.downloads() == []
    snapshot = await resolve(ID, formats=FORMATS_WITH_PICKLE)
    got = {file.name for file in snapshot.path.iterdir()}
    assert got == PICKLED.keys() - {"training_args.bin"}


async def test_the_repository_s_python_is_downloaded_only_where_it_is_asked_for(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[ID] = Repo(files | {"modeling_own.py": b"raise SystemExit"})
    without = await resolve(ID)
    assert not list(without.path.glob("*.py"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    formats = native_formats(allow_pickle=False, trust_remote_code=True)
    with pytest.raises(ModelLoadError, match="not in the local cache"):
        await resolve(ID, formats=formats)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.requests.clear()
    hub.pushed.append("f" * 40)
    found = await resolve(ID, formats=formats)
    assert hub.downloads() == ["modeling_own.py"]
    assert found.revision == without.revision == found.path.name
    assert (found.path / "modeling_own.py").read_bytes() == b"raise SystemExit"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert (await resolve(ID, formats=formats)).path == found.path


async def test_safetensors_come_before_pickle(hub: Hub, files: dict[str, bytes]) -> None:
    hub.repos[ID] = Repo(files)
    snapshot = await resolve(ID, formats=FORMATS_WITH_PICKLE)
    assert not (snapshot.path / "pytorch_model.bin").exists()


class TestAllowedFolders:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "models" / "tiny"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")
        return folder

    async def test_a_model_within_is_served(self, folder: Path) -> None:
        allowed = ["/nowhere", str(folder.parent)]
        assert (await resolve(str(folder), folders=allowed)).path == folder
        assert (await resolve(str(folder), folders=[str(folder)])).path == folder

    @pytest.mark.parametrize("name", ["models/tiny", "models-too/link", "missing"])
    async def test_a_path_elsewhere_is_not_found_whatever_is_there(
        self, folder: Path, tmp_path: Path, name: str
    ) -> None:
        allowed = tmp_path / "models-too"
        allowed.mkdir()
        (allowed / "link").symlink_to(folder)
        with pytest.raises(ModelNotFoundError, match="ALLOWED_MODEL_FOLDERS"):
            await resolve(str(tmp_path / name), folders=[str(allowed)])

    async def test_other_models_are_not_concerned(self, hub: Hub, files: dict[str, bytes]) -> None:
        hub.repos[ID] = Repo(files)
        assert (await resolve(ID, folders=["/nowhere"])).source == "hub"
        assert (await resolve("axion/demo", folders=["/nowhere"])).source == "demo"


@pytest.mark.parametrize(
    "name",
    [
        "../..",
        "..",
        "a/../b",
        "./../../etc",
        "/etc/../etc",
        "~/../x",
        "%2e%2e/%2e%2e",
        "org/%2e%2e",
        "org/name\x00",
        "org/na\nme",
        "/tmp/\x1b[31m",
        "org\\name",
        "C:\\models",
        "file:///etc",
        "https://huggingface.co/org/name",
        "org/name/extra",
        "org/..name",
        "-org/name",
        "--help",
        "org/name@../../x",
        "org/name@",
        "org/name@a b",
        "org/na me",
        "name",
        "",
        "a" * 5000,
        "o/" + "n" * 200,
        "/" + "a" * 1000,
        "~no-such-user/x",
    ],
)
async def test_hostile_name_is_refused_without_network(hub: Hub, name: str) -> None:
    error = await refused(name)
    assert error.message.isprintable()
    assert len(error.message) < 1500
    assert hub.requests == []


async def test_folder_is_served_from_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(folder), "./models/tiny", "~/models/tiny"):
        snapshot = await resolve(name)
        assert (snapshot.path, snapshot.source, snapshot.revision) == (folder, "local", None)


async def test_bare_folder_name_is_an_id_and_the_error_shows_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "./tiny" in (await refused("tiny")).message


@pytest.mark.parametrize(
    ("present", "said"),
    [
        (None, "does not exist"),
        ([], "no safetensors"),
        (["config.json", "pytorch_model.bin"], "pickle"),
        (["model.safetensors"], "no config.json"),
    ],
)
async def test_unusable_folder_says_what_is_missing(
    tmp_path: Path, present: list[str] | None, said: str
) -> None:
    folder = tmp_path / "model"
    if present is not None:
        folder.mkdir()
        for name in present:
            (folder / name).write_bytes(b"")
    assert said in (await refused(str(folder))).message


GGUF_REPO = {
    "config.json": b"{}",
    "README.md": b"#",
    "tiny-Q4_K_M.gguf": b"4" * 400,
    "tiny-IQ4_K_M-x.gguf": b"i" * 400,
    "tiny.Q8_0.gguf": b"8" * 800,
    "mmproj-F16.gguf": b"m" * 100,
    "BF16/tiny-BF16-00001-of-00002.gguf": b"b" * 900,
    "BF16/tiny-BF16-00002-of-00002.gguf": b"c" * 900,
}


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (ID, ["tiny-Q4_K_M.gguf"]),
        (f"{ID}:Q4_K_M", ["tiny-Q4_K_M.gguf"]),
        (f"{ID}:q8_0", ["tiny.Q8_0.gguf"]),
        (f"{ID}@main:Q8_0", ["tiny.Q8_0.gguf"]),
        (f"{ID}:tiny.Q8_0.gguf", ["tiny.Q8_0.gguf"]),
        (
            f"{ID}:BF16",
            ["BF16/tiny-BF16-00001-of-00002.gguf", "BF16/tiny-BF16-00002-of-00002.gguf"],
        ),
    ],
)
async def test_of_a_repository_of_gguf_files_one_is_downloaded(
    hub: Hub, name: str, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[ID] = Repo(GGUF_REPO)
    snapshot = await resolve(name)
    assert (str(snapshot.path).endswith(files[0]), snapshot.revision) == (True, COMMIT)
    assert sorted(hub.downloads()) == [name.rpartition("/")[2] for name in files]
    # What it resolves to is a name too, as engines get it.
    assert (await resolve(str(snapshot.path))).path == snapshot.path
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert (await resolve(name)).path == snapshot.path


async def test_beside_safetensors_a_gguf_file_is_taken_where_it_is_named(
    hub: Hub, files: dict[str, bytes]
) -> None:
    hub.repos[ID] = Repo(files)
    assert (await resolve(f"{ID}:Q4_K_M")).path.name == "model.Q4_K_M.gguf"
    assert (await resolve(ID)).path.is_dir()


@pytest.mark.parametrize(
    ("name", "formats", "said"),
    [
        (f"{ID}:Q2_K", FORMATS, "no GGUF files that 'Q2_K' could mean"),
        (f"{ID}:Q8_0", {"safetensors"}, "none of the engines in use loads"),
        (ID, {"safetensors"}, "none of the engines in use loads"),
        (f"{ID}:", FORMATS, "names no GGUF file"),
        (f"{ID}:../x", FORMATS, "names no GGUF file|holds '..'"),
    ],
)
async def test_gguf_file_that_is_not_there_or_of_no_use_is_refused(
    hub: Hub, name: str, formats: set[str], said: str
) -> None:
    hub.repos[ID] = Repo(GGUF_REPO)
    with pytest.raises((ModelLoadError, ModelNotFoundError), match=said):
        await resolve(name, formats=formats)
    assert hub.downloads() == []


async def test_folder_with_one_gguf_model_is_that_model(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"m-0000{part}-of-00002.gguf").write_bytes(b"GGUF")
    first = tmp_path / "m-00001-of-00002.gguf"
    assert (await resolve(str(tmp_path))).path == first
    assert (await resolve(str(tmp_path / "m-00002-of-00002.gguf"))).path == first
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    assert "several GGUF files" in (await refused(str(tmp_path))).message


async def test_gguf_file_is_for_those_who_load_it(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert (await resolve(str(file), formats={"gguf"})).path == file
    with pytest.raises(ModelLoadError, match="none of the engines in use loads"):
        await resolve(str(file), formats={"safetensors"})
    before = fingerprint(file)
    file.write_bytes(b"GGUF2")
    assert fingerprint(file) != before


async def test_name_without_a_path_is_told_of_the_gguf_file_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    for name in ("tiny.gguf", "models/tiny.gguf"):
        Path(name).touch()
        assert f"The file here is ./{name}." in (await refused(name)).message
    assert "The model file ./other.gguf does not exist." in (await refused("./other.gguf")).message
