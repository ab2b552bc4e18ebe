"""Download a Hugging Face repository into the local cache: `python -m axion.hub.download`.

It runs as a child process (see `axion.hub.resolve`), because a download in a thread cannot be
ended: leaving the program in the middle of six gigabytes would wait for all of them. The
child writes one JSON message a line to stdout and is killed when nobody wants its result.

huggingface_hub does the work and reads its own environment: HF_HOME, HF_HUB_CACHE, HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE and the proxies'.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from huggingface_hub import (
    HfApi,
    constants,
    get_token,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils.tqdm import tqdm

from axion.errors import AxionError, ModelLoadError, ModelNotFoundError
from axion.hub.messages import Downloaded, Failed, FromCache, Message, Progress
from axion.hub.snapshot import (
    FORMATS,
    INDEX_FILE,
    PYTHON,
    SMALL_FILES,
    check_snapshot,
    choose_gguf,
    has_only_gguf,
    select_files,
    weights_by_index,
)

API_TIMEOUT_S = 10.0
REPORT_INTERVAL_S = 0.1
# A download that has not written for so long is dead.
STALE_AFTER_S = 3600.0

Report = Callable[[int, int], None]


class _Silent(tqdm):
    """A progress bar that shows nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]


def download(
    repo_id: str,
    revision: str,
    report: Report,
    warn: Callable[[str], None],
    *,
    tag: str = "",
    formats: Collection[str] = FORMATS,
) -> tuple[Path, str]:
    """A complete snapshot, downloaded where the cache lacks it: its folder, or the GGUF file that
    `tag` means; and its commit.

    Where the Hub cannot be asked, or denies it, a complete snapshot in the cache is taken, and
    `warn` called with the reason.

    Raises:
        ModelNotFoundError: no such repository or revision.
        ModelLoadError: no access, no network, no space, or no weights that Axion loads.
    """
    try:
        folder, files = _fetch(repo_id, revision, report, tag, formats)
    except AxionError:
        raise
    except Exception as error:  # httpx's or httpx2's, by the version of huggingface_hub
        cached = cached_snapshot(repo_id, revision, tag=tag, formats=formats)
        if cached is None:
            raise explain(error, repo_id, revision) from error
        if not constants.HF_HUB_OFFLINE:
            warn(_shortly(error))
        return cached
    if files[0].endswith(".gguf"):
        return folder / files[0], folder.name
    check_snapshot(folder, formats)
    return folder, folder.name


def _fetch(
    repo_id: str, revision: str, report: Report, tag: str, formats: Collection[str]
) -> tuple[Path, list[str]]:
    commit, sizes = needed_files(repo_id, revision, tag=tag, formats=formats)
    total = sum(
        size
        for name, size in sizes.items()
        if not isinstance(try_to_load_from_cache(repo_id, name, revision=commit), str)
    )
    _remove_stale(repo_id)
    _require_space(total)

    lock = threading.Lock()
    done = received = 0
    last_report = 0.0

    class Bar(_Silent):
        """Passes on what the bars that count bytes count."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> None:
            nonlocal done, last_report, received
            if not self.counts_bytes:
                return
            with lock:
                self.n += n or 0
                received += int(n or 0)
                # One bar counts bytes received, another bytes written.
                done = max(done, min(int(self.n), total))
                if done == total or time.monotonic() - last_report >= REPORT_INTERVAL_S:
                    last_report = time.monotonic()
                    report(done, total)

    while True:
        before = received
        try:
            # The branch may move: the files are those of the commit that they were chosen from.
            path = snapshot_download(
                repo_id, revision=commit, allow_patterns=list(sizes), tqdm_class=Bar
            )
        except Exception as error:
            # The library goes on after a connection that ended early, not after a reset one.
            if not _is_network_fault(error) or received == before:
                raise
            continue
        folder = Path(path)
        if revision != folder.name:
            _note_commit(folder, revision)
        return folder, list(sizes)


def needed_files(
    repo_id: str, revision: str, *, tag: str = "", formats: Collection[str] = FORMATS
) -> tuple[str | None, dict[str, int]]:
    """The revision's commit, and the files that serving needs, with their sizes in bytes.

    An index of the weights is downloaded for that: there may be others beside those that it names.

    Raises:
        ModelLoadError: as `select_files`, and where the index cannot be used.
        Exception: whatever huggingface_hub and its HTTP client raise.
    """
    info = HfApi().model_info(
        repo_id, revision=revision, files_metadata=True, timeout=API_TIMEOUT_S
    )
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    files = select_files(sizes, tag=tag, formats=formats)
    if INDEX_FILE in files:
        index = hf_hub_download(repo_id, INDEX_FILE, revision=info.sha, tqdm_class=_Silent)
        named = set(weights_by_index(Path(index).parent, sizes)) & sizes.keys()
        files = sorted({*named, *(name for name in files if not name.endswith(".safetensors"))})
    return info.sha, {name: sizes[name] for name in files}


def _note_commit(folder: Path, revision: str) -> None:
    """Have the cache know the commit of a branch or tag, by which it is found offline.

    The library does so only for what is downloaded by the branch's name
    (huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    ref = folder.parent.parent / "refs" / revision
    with contextlib.suppress(OSError):  # a cache that is complete may be read-only
        ref.parent.mkdir(parents=True, exist_ok=True)
        if not ref.is_file() or ref.read_text() != folder.name:
            new = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
            new.write_text(folder.name)
            new.replace(ref)


def _is_network_fault(error: BaseException) -> bool:
    # httpx's or httpx2's, by the version of huggingface_hub
    return any(base.__name__ == "TransportError" for base in type(error).__mro__)


def _remove_stale(repo_id: str) -> None:
    """Remove what downloads that were killed have left: the library begins such files anew."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")
    for file in folder.glob("blobs/*.incomplete"):
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > STALE_AFTER_S:
                file.unlink()


def cached_snapshot(
    repo_id: str, revision: str, *, tag: str = "", formats: Collection[str] = FORMATS
) -> tuple[Path, str] | None:
    """A complete snapshot in the cache, as `download` gives it, found without the network."""
    try:
        if "gguf" in formats and (path := _cached_gguf(repo_id, revision, tag)) is not None:
            return path
        code = ["*.py"] if PYTHON in formats else []
        folder = _cached_folder(repo_id, revision, [*SMALL_FILES, *code])
        check_snapshot(folder, formats)
    except (OSError, LocalEntryNotFoundError, IncompleteSnapshotError, ModelLoadError):
        return None
    return (folder, folder.name) if not tag else None


def _cached_gguf(repo_id: str, revision: str, tag: str) -> tuple[Path, str] | None:
    folder = _cached_folder(repo_id, revision, [])
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    if not tag and not has_only_gguf(names):
        return None
    chosen = choose_gguf(names, tag)
    return (folder / chosen[0], folder.name) if set(chosen) <= set(names) else None


def _cached_folder(repo_id: str, revision: str, needed: list[str]) -> Path:
    """The folder of a snapshot in the cache, which must have all files of the patterns."""
    return Path(
        snapshot_download(
            repo_id,
            revision=revision,
            local_files_only=True,
            allow_patterns=needed,
            ignore_patterns=["*/*"],
        )
    )


def _require_space(num_bytes: int) -> None:
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ModelLoadError(
            f"The download needs {num_bytes / 1e9:.1f} GB and the disk of the model cache has "
            f"{free / 1e9:.1f} GB free. Make room, or set HF_HOME to a folder on a larger disk."
        )


def _shortly(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"Hugging Face answered {error.response.status_code}."
    return f"Hugging Face cannot be reached ({type(error.__cause__ or error).__name__})."


def explain(error: BaseException, repo_id: str, revision: str) -> AxionError:
    """What went wrong, in a sentence, and the way out of it."""
    has_token = get_token() is not None
    if isinstance(error, GatedRepoError):
        return ModelLoadError(
            f"{repo_id} is gated: its authors give access on request. Accept the licence at "
            f"https://huggingface.co/{repo_id} and set HF_TOKEN"
            + (" to a token of the account that has access." if has_token else ".")
        )
    if isinstance(error, RepositoryNotFoundError):
        return ModelNotFoundError(
            f"Hugging Face has no model {repo_id}"
            + (
                ", or the account of HF_TOKEN may not see it."
                if has_token
                else ", or it is private and needs HF_TOKEN."
            )
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFoundError(f"{repo_id} has no revision {revision}.")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return ModelLoadError(
                f"Hugging Face refused the token for {repo_id}: HF_TOKEN is not valid. "
                "Make a new one at https://huggingface.co/settings/tokens."
                if has_token
                else f"{repo_id} needs a Hugging Face account. Set HF_TOKEN."
            )
        if status == 403:
            return ModelLoadError(
                f"The account of HF_TOKEN has no access to {repo_id}. Accept the licence at "
                f"https://huggingface.co/{repo_id} and set HF_TOKEN to a token that may read it."
            )
        return ModelLoadError(
            f"Hugging Face answered {status} for {repo_id}, which is not in the local cache. "
            "Try again later."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelLoadError(
            f"The disk of the model cache is full; {repo_id} was not downloaded. "
            "Make room, or set HF_HOME to a folder on a larger disk."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return ModelLoadError(
            "The folder of the model cache cannot be written. "
            "Set HF_HOME to a folder that this user may write."
        )
    if isinstance(error, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return ModelLoadError(
            f"{repo_id} is not in the local cache, and HF_HUB_OFFLINE forbids downloading it. "
            "Unset HF_HUB_OFFLINE, or copy the model to this machine and name its folder."
        )
    return ModelLoadError(
        f"{repo_id} is not in the local cache, and Hugging Face cannot be reached "
        f"({type(error.__cause__ or error).__name__}). Check the network and HF_ENDPOINT, or "
        "copy the model to this machine and name its folder."
    )


def main() -> None:
    """Arguments: repository id, revision, tag (or nothing), formats of weights with commas between
    (or nothing). Messages on stdout, warnings on stderr."""
    # Ctrl-C reaches the whole terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    repo_id, revision, *rest = sys.argv[1:]
    tag, formats = rest or ("", ",".join(FORMATS))
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        # Nothing but messages may reach the parent, whatever a library prints.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            path, commit = download(
                repo_id,
                revision,
                lambda *args: _send(out, Progress(*args)),
                lambda reason: _send(out, FromCache(reason)),
                tag=tag,
                formats=formats.split(","),
            )
            _send(out, Downloaded(str(path), commit))
        except AxionError as error:
            _send(out, Failed(error.message, isinstance(error, ModelNotFoundError)))


def _send(out: BinaryIO, message: Message) -> None:
    out.write(msgspec.json.encode(message) + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
