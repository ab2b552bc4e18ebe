"""Every setting once: environment variable, TOML key and command-line flag come from here."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from axion.errors import AxionError

DEMO_MODEL = "axion/demo"
CONFIG_VARIABLE = "AXION_CONFIG"
DEFAULT_CONFIG_FILE = "axion.toml"


class SettingsError(AxionError):
    """A setting has a value that cannot be used; the message names each one."""

    default_code = "invalid_settings"


class Settings(BaseSettings):
    """What a server runs with.

    Precedence: flag, environment variable, TOML file, default. The TOML file is the one named
    by `AXION_CONFIG` (or `--config`), else `axion.toml` in the working folder; its keys are
    the names below. A field's `description` is its help text and ends with its unit.
    """

    model_config = SettingsConfigDict(
        env_ignore_empty=True, extra="ignore", validate_default=True, case_sensitive=False
    )

    model_name: str = Field(
        "meta-llama/Llama-3.2-3B-Instruct",
        min_length=1,
        description="Hugging Face id, local folder, GGUF file, or axion/demo for the bundled model",
    )
    allow_pickle: bool = Field(
        False,
        description="whether the native engine loads pytorch_model.bin where there are no"
        " safetensors; of pickles it takes tensors only",
    )
    trust_remote_code: bool = Field(
        False,
        description="whether Python code that comes with a model (auto_map) is downloaded and run,"
        " with the server's rights, where neither Axion nor transformers has its architecture; vLLM"
        " gets --trust-remote-code",
    )
    allowed_model_folders: str = Field(
        "",
        description="folders that local models must lie in, with commas between; empty: anywhere",
    )
    served_model_name: str = Field(
        "", description="name that clients use for the model; empty: the value of MODEL_NAME"
    )
    max_seq_len: int = Field(
        4096, ge=1, description="prompt and output of one request together, in tokens"
    )
    server_host: str = Field("0.0.0.0", description="address to listen on")
    server_port: int = Field(3000, ge=0, le=65535, description="port to listen on; 0: a free one")
    allowed_origins: str = Field(
        "",
        description="web pages whose scripts may ask the server (CORS), such as"
        " https://chat.example.com, with commas between; *: any; empty: none",
    )
    max_connections: int = Field(
        100, ge=1, description="requests in flight before a new one gets 429, in requests"
    )
    max_queue: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="requests that wait for an engine before a new one gets 429; unset:"
        " MAX_CONNECTIONS, in requests",
    )
    max_upstream_requests: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="requests given at once to an engine that is not native, fewer while it is"
        " overloaded; unset: MAX_CONNECTIONS, in requests",
    )
    concurrent_requests: int = Field(
        10, ge=1, description="sequences computed at once, the others wait, in sequences"
    )
    max_batched_tokens: int = Field(
        2048, ge=1, description="budget of one engine step; longer prompts are chunked, in tokens"
    )
    target_itl_ms: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="pause between the tokens of a stream that the native engine keeps while it"
        " computes prompts beside it; unset: prompts take the whole budget, in milliseconds",
    )
    cache_capacity: int = Field(1000, ge=0, description="response cache, in answers; 0: off")
    cache_max_bytes: int = Field(
        64 * 2**20, ge=0, description="most memory that the cached answers take, in bytes"
    )
    cache_policy: Literal["all", "deterministic", "off"] = Field(
        "all",
        description="which whole chat answers are kept for the same request; all: sampled ones too,"
        " so that it gets the same answer again; deterministic: those with temperature 0 or a seed,"
        " others are drawn anew, as by vLLM; off: none",
    )
    axion_backends: str = Field(
        "max,vllm,native",
        description="engines that may serve the model, the one that is wanted most first; also"
        " sglang, tensorrt_llm, tgi, llama_cpp, remote",
    )
    standby: Literal["always", "start", "never"] = Field(
        "always",
        description="whether the last of these engines runs beside the first: always, only until"
        " that one has started, or not at all",
    )
    backend_weights: str = Field(
        "", description="share of the requests by engine, such as vllm=0.9,native=0.1; empty: off"
    )
    shadow: str = Field(
        "",
        description="engine that gets a copy of a share of the requests, for comparison, such as"
        " native=0.05; empty: off",
    )
    remote_url: str = Field(
        "", description="base of an OpenAI-compatible API for the engine remote, up to /v1"
    )
    remote_api_key: str = Field("", repr=False, description="key of that API; empty: none")
    remote_model: str = Field(
        "", description="the model's name there; empty: the value of MODEL_NAME"
    )
    embedding_model: str = Field(
        "BAAI/bge-small-en-v1.5",
        description="fastembed or Hugging Face id or folder, or several with commas; NAME=FOLDER"
        " names one",
    )
    rerank_model: str = Field(
        "BAAI/bge-reranker-base",
        description="fastembed id or ONNX folder, or several in the same way, for reranking",
    )
    max_pooling_models: int = Field(
        4, ge=1, description="embedding and rerank models loaded at once, in models"
    )
    batch_timeout_ms: int = Field(
        50,
        ge=0,
        description="longest that a request for embeddings is passed over for better batches, in"
        " milliseconds",
    )
    max_batch_size: int = Field(
        8, ge=1, description="most requests whose texts share an embedding or rerank batch"
    )
    max_request_bytes: int = Field(
        16 * 2**20, ge=1024, description="largest request body; above it 413, in bytes"
    )
    device: str = Field(
        "auto",
        description="auto, cpu, cuda or cuda:N; auto takes CUDA where there is one",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="number format of weights and KV cache; auto: the checkpoint's own, or float32"
        " where the device has no arithmetic in that",
    )
    quantization: Literal["none", "int8", "int4", "fp8"] = Field(
        "none",
        description="what the native engine quantizes a plain checkpoint's linear layers to while"
        " it loads them: int8, int4 or fp8; none: they stay as they are stored",
    )
    speculative: Literal["auto", "ngram", "off"] = Field(
        "auto",
        description="how the native engine guesses tokens that a step then checks together: auto,"
        " by DRAFT_MODEL where it is set; ngram, by what followed the same tokens before, in place"
        " of it; or off",
    )
    draft_model: str = Field(
        "",
        description="small model with the vocabulary of MODEL_NAME that guesses for it; empty:"
        " none",
    )
    deterministic: bool = Field(
        False,
        description="whether a request gets the same bits alone, in any batch, and with the prefix"
        " cache warm or cold; only the native engine, which is slower then",
    )
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        description="GPUs that share each of the model's layers; the native engine uses one",
    )
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = Field(
        None, description="KV cache; unset: measured from free memory, in GiB"
    )
    kv_cache_dtype: Literal["auto", "fp8", "int8"] = Field(
        "auto",
        description="how the native engine stores keys and values: fp8 or int8 take half the memory"
        " of 16-bit numbers; auto: as they are computed",
    )
    kv_offload_gib: float = Field(
        0.0,
        ge=0,
        description="host memory for what the native engine's KV cache gives up on a GPU, which is"
        " copied back instead of being computed again; 0: none, in GiB",
    )
    memory_fraction: float = Field(
        0.9, gt=0, le=1, description="share of the free memory that the KV cache may take, 0 to 1"
    )
    cpu_threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="threads on CPU of the native engine, vLLM, llama.cpp, and embedding and rerank"
        " models; unset: one a core, and in the native engine no more than a container may have the"
        " time of, in threads",
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        "auto",
        description="auto: on CUDA the native engine captures decode steps when it starts, which"
        " takes seconds and some memory, and replays them; off: it computes all steps eagerly",
    )
    async_scheduling: Literal["auto", "off"] = Field(
        "auto",
        description="auto: on CUDA the native engine prepares the next step while the GPU computes"
        " one; off: it waits for each",
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="time for running requests to finish at shutdown, in seconds"
    )
    tls_cert_file: Path | None = Field(None, description="certificate chain (PEM); turns HTTPS on")
    tls_key_file: Path | None = Field(None, description="private key (PEM) of the certificate")
    axion_log: str = Field(
        "info", description="log filter by component, such as axion=info,http=warning"
    )
    log_format: Literal["text", "json"] = Field("text", description="text, or one JSON a line")

    @field_validator("server_host")
    @classmethod
    def _host_is_not_empty(cls, host: str) -> str:
        if not host.strip():
            raise ValueError("must not be empty")
        return host

    @field_validator("allowed_origins")
    @classmethod
    def _origins_are_such(cls, origins: str) -> str:
        for origin in listed(origins) if origins else ():
            # Those of browsers' extensions and of desktop programs have schemes of their own.
            if origin != "*" and re.fullmatch(r"[\w+.-]+://[^/\s*]+", origin) is None:
                raise ValueError(
                    "must be * or such as https://chat.example.com, without a path or wildcards"
                )
        return origins.lower()

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        if re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is None:
            raise ValueError("must be auto, cpu, cuda or cuda:N")
        return device

    @field_validator("axion_backends")
    @classmethod
    def _backends_are_names(cls, names: str) -> str:
        listed(names)
        return names

    @field_validator("allowed_model_folders")
    @classmethod
    def _folders_are_paths(cls, folders: str) -> str:
        if folders and not all(map(is_folder, listed(folders))):
            raise ValueError("must be paths with commas between them, each absolute, ./x or ~/x")
        return folders

    @field_validator("backend_weights", "shadow")
    @classmethod
    def _shares_are_of_backends(cls, text: str, info: ValidationInfo) -> str:
        backends: str | None = info.data.get("axion_backends")  # None: its own fault is told
        for engine in shares(text):
            if backends is not None and engine not in listed(backends):
                raise ValueError(f"names {engine!r}, which AXION_BACKENDS does not")
        return text

    @field_validator("shadow")
    @classmethod
    def _shadow_is_one_share(cls, text: str) -> str:
        found = shares(text)
        if len(found) > 1 or any(share > 1 for share in found.values()):
            raise ValueError("must be one ENGINE=SHARE, with a share of at most 1")
        return text

    @field_validator("remote_url")
    @classmethod
    def _remote_is_http(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return url

    @field_validator("embedding_model", "rerank_model")
    @classmethod
    def _models_have_names(cls, models: str) -> str:
        named_models(models)
        return models

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_file())


def named_models(models: str) -> dict[str, str]:
    """Name and place of each model in `NAME=PLACE,PLACE,...`.

    A folder without a name goes by its last part, another model by its id.

    Raises:
        ValueError: a name or a model is empty, or a name is given twice.
    """
    named: dict[str, str] = {}
    for entry in models.split(","):
        name, _, place = (part.strip() for part in entry.rpartition("="))
        name = name or (Path(place).name if is_folder(place) else place)
        if not name or not place:
            raise ValueError("must be models with commas between them, each MODEL or NAME=MODEL")
        if name in named:
            raise ValueError(f"names two models {name}")
        named[name] = place
    return named


def listed(names: str) -> list[str]:
    """The entries of `A,B,...`.

    Raises:
        ValueError: there are none, or one is empty.
    """
    found = [name.strip() for name in names.split(",")]
    if not all(found):
        raise ValueError("must be names with commas between them")
    return found


def model_folders(settings: Settings) -> list[str]:
    """The folders that local models must lie in; none where they may lie anywhere."""
    folders = settings.allowed_model_folders
    return listed(folders) if folders else []


def shares(text: str) -> dict[str, float]:
    """The numbers of `NAME=NUMBER,...`; none where it is empty.

    Raises:
        ValueError: an entry has another form, or a number is below 0 or not finite.
    """
    found: dict[str, float] = {}
    for entry in text.split(",") if text else ():
        name, _, number = (part.strip() for part in entry.partition("="))
        try:
            found[name] = float(number)
        except ValueError:
            raise ValueError("must be ENGINE=NUMBER with commas between") from None
        if not name or not 0 <= found[name] < math.inf:
            raise ValueError("must be ENGINE=NUMBER with numbers from 0 on")
    return found


def is_folder(model: str) -> bool:
    """Whether a model's name is the path of a folder: absolute, `./x` or `~/x`."""
    return model.startswith(("/", "~")) or model.split("/")[0] == "."


def config_file() -> Path | None:
    """The TOML file in use, if there is one.

    Raises:
        SettingsError: `AXION_CONFIG` names a file that does not exist.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    path = Path(named or DEFAULT_CONFIG_FILE)
    if path.is_file():
        return path
    if named:
        raise SettingsError(
            f"The settings file {named}, named by --config or {CONFIG_VARIABLE}, does not exist."
        )
    return None


def load_settings(**flags: Any) -> Settings:
    """Settings from flags, environment and file.

    Raises:
        SettingsError: names every setting that is wrong, with what was expected; an unknown
            key of the TOML file is one.
    """
    import tomllib

    path = config_file()
    if path is not None:
        try:
            unknown = tomllib.loads(path.read_text()).keys() - Settings.model_fields.keys()
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} is not valid TOML: {error}") from None
        if unknown:
            raise SettingsError(
                f"{path} has unknown settings: {', '.join(sorted(unknown))}. "
                "`axion serve --help` lists all of them."
            )
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, fault['loc'])).upper()}: "
            f"{fault['msg'].removeprefix('Value error, ')} (got {fault['input']!r})"
            for fault in error.errors()
        ]
        raise SettingsError("Settings that cannot be used:\n  " + "\n  ".join(faults)) from None
