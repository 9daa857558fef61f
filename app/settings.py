"""The environment variables by which Easel is configured. Settings holds the service's own, read
once into one frozen object and listed in README; place_named reads those that a family's model.toml
names. What belongs to the system (TMPDIR, LD_LIBRARY_PATH) or to the hub's client (HF_ENDPOINT) is
read where it is used.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Names = Annotated[tuple[str, ...], NoDecode]


class SettingsError(Exception):
    """One line that says which setting is wrong and why."""


_SECRETS = {
    "API_KEYS",
    "API_KEY_FILE",
    "DATABASE_URL",
    "GENERATION_AUTH_KEY",
    "HF_TOKEN",
    "HF_TOKEN_FILE",
    "HUGGING_FACE_HUB_TOKEN",
}


class Settings(BaseSettings):
    """One field per variable; the descriptions are the table in README.md. Times are in seconds."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    model: str = Field(
        default="demo",
        description="name or alias of the model to serve; a hub repository (`owner/name`) or a "
        "path will do as well",
    )
    device: str = Field(
        default="CPU",
        description="the device it runs on: `CPU`, `GPU`, `GPU.1`, `NPU`, `AUTO` or `AXERA`",
    )
    host: str = Field(default="127.0.0.1", description="the address to listen on")
    port: int = Field(
        default=8100, ge=0, le=65535, description="the port to listen on; 0: any free one"
    )
    data_dir: Path = Field(
        default=Path("data"),
        validation_alias=AliasChoices("DATA_DIR", "OUTPUT_DIR"),
        description="the folder for job records, pictures, installed models and compiled models",
    )
    models_path: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="more folders in which to look for family folders, separated by `:`"
    )
    model_aliases: Annotated[dict[str, str], NoDecode] = Field(
        default={},
        description="other names for models, as `OUTSIDE=MODEL` separated by commas",
    )
    queue_limit: int = Field(
        default=64, ge=1, description="how many jobs may wait; further ones are refused with 429"
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(),
        description="keys of which callers must send one, separated by commas; without any, "
        "everybody may call",
    )
    generation_auth_key: SecretStr | None = Field(
        default=None, description="one more API key, under the name that the former service used"
    )
    api_key_file: Path | None = Field(
        default=None,
        description="a file with more API keys, one per line; lines that begin with # are comments",
    )
    hf_token: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
        description="the token for the model hub, for models whose licence must be accepted there",
    )
    hf_token_file: Path | None = Field(
        default=None,
        description="a file with the token for the model hub, used where `HF_TOKEN` is not set",
    )
    convert_venv: Path = Field(
        default=Path(__file__).resolve().parent.parent / ".venv-convert",
        description="the Python environment that converts checkpoints; made when one is first "
        "needed",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO",
        description="`DEBUG`, `INFO`, `WARNING` or `ERROR`; prompts are logged at `DEBUG` only",
    )
    grace: float = Field(
        default=25,
        ge=0,
        description="seconds a running job gets to finish after SIGTERM before it goes back to the "
        "queue",
    )
    cancel_timeout: float = Field(
        default=60,
        gt=0,
        description="seconds a canceled job gets to stop before its worker is killed",
    )
    cancel_on_disconnect: bool = Field(
        default=True,
        description="whether a job is canceled when the client that waits for it disconnects",
    )
    retry_window: float = Field(
        default=5,
        ge=0,
        description="seconds in which an identical request to the OpenAI routes gets the same job "
        "instead of a new one",
    )
    stall_timeout: float = Field(
        default=900,
        gt=0,
        description="seconds without a step after which a worker is taken for hung and killed",
    )
    load_timeout: float = Field(
        default=1800,
        gt=0,
        description="seconds a pipeline gets to load before its worker is killed",
    )
    starvation: float = Field(
        default=30,
        ge=0,
        description="seconds a job may be passed over by later jobs whose model is loaded already",
    )
    threads: int = Field(
        default=0, ge=0, description="inference threads on the CPU; 0: the runtime decides"
    )
    machine_size: Literal["big", "medium", "little", "tiny"] | None = Field(
        default=None,
        description="`big`, `medium`, `little` or `tiny`: sets the memory budget, the weight "
        "format and how many pipelines stay loaded; by default chosen by the machine's memory",
    )
    idle_unload: float = Field(
        default=0,
        ge=0,
        description="seconds without a job after which a pipeline is unloaded until the next job "
        "needs it; 0: never",
    )
    memory_budget: int = Field(
        default=0,
        ge=0,
        description="MB of memory that loaded pipelines may take; 0: by `MACHINE_SIZE`",
    )
    min_free_disk: int = Field(
        default=100,
        ge=0,
        description="MB that must be free under `DATA_DIR` for a new job to be accepted",
    )
    database_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the database for job records; by default SQLite in "
        "`DATA_DIR`",
    )

    @field_validator("models_path", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("model_aliases", mode="before")
    @classmethod
    def _split_aliases(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.split("=") for part in value.split(",") if part.strip()]
        if any(len(pair) != 2 or not all(side.strip() for side in pair) for pair in pairs):
            raise ValueError("write OUTSIDE=MODEL, separated by commas")
        return {outside.strip(): model.strip() for outside, model in pairs}

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"(CPU|GPU|NPU|AXERA)(\.\d+)?|AUTO", value.upper()):
            raise ValueError("use CPU, GPU, GPU.1, NPU, AUTO or AXERA")
        return value.upper()

    @field_validator("models_path")
    @classmethod
    def _folders(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for path in value:
            if not path.is_dir():
                raise ValueError(f"{path} is not a folder")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper_level(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_secret_files(self) -> "Settings":
        """Refuses an empty file or variable of keys, so that a mistake does not open the service to
        everybody. Who wants a file without a key puts a comment into it."""
        for name in ("api_key_file", "hf_token_file"):
            path: Path | None = getattr(self, name)
            if path is None:
                continue
            try:
                empty = not path.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not text"
                raise ValueError(
                    f"{name.upper()} names {path}, which cannot be read: {why}"
                ) from None
            if empty:
                raise ValueError(f"{name.upper()} names {path}, which is empty")
        given = {"api_keys", "generation_auth_key"} & self.model_fields_set
        if given and not self.keys():
            raise ValueError(f"{' and '.join(sorted(given)).upper()}: there is no key in it")
        return self

    def keys(self) -> tuple[str, ...]:
        """Every API key that opens the service: from the variables and the file, which is read
        at each call. Empty: everybody may call."""
        keys = [key.get_secret_value() for key in self.api_keys]
        if self.generation_auth_key is not None:
            keys.append(self.generation_auth_key.get_secret_value().strip())
        if self.api_key_file is not None:
            keys += _secrets(self.api_key_file)
        return tuple(dict.fromkeys(key for key in keys if key))

    def token(self) -> str | None:
        """The hub's token, from the variable or the file; None without one."""
        if self.hf_token is not None:
            return self.hf_token.get_secret_value()
        return next(iter(_secrets(self.hf_token_file)), None) if self.hf_token_file else None


def _secrets(path: Path) -> list[str]:
    """The lines of a file without empty ones and those that begin with #."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def place_named(variable: str) -> Path | None:
    """The absolute path of the file or folder that a family's own variable names, such as
    TEXT_MODEL_DIR; None where the variable is not set or empty."""
    place = os.environ.get(variable)
    return Path(place).resolve() if place else None


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy of the environment without keys, tokens and the database's address, for child
    processes that need none of them."""
    return {name: value for name, value in environment.items() if name.upper() not in _SECRETS}


def read_settings() -> Settings:
    """The settings of this process; raises SettingsError with one line."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"]).upper()
        why = first["msg"].removeprefix("Value error, ")
        given = f", not {first['input']!r}" if isinstance(first["input"], str | int | float) else ""
        raise SettingsError(f"{name}: {why}{given}" if name else why) from None
