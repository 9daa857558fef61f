"""What all commands share: settings and catalog, and how an error ends the process: one line on
standard error, exit code 1. Knows no command."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import NoReturn

from app.errors import EaselError
from app.models.catalog import Catalog, CatalogError
from app.settings import Settings, SettingsError, read_settings


def fail(message: str) -> NoReturn:
    print(f"easel: {message}", file=sys.stderr)
    raise SystemExit(1)


@contextmanager
def errors_in_one_line() -> Generator[None]:
    """Ends the process by `fail` on EaselError, OSError and Ctrl-C inside the block."""
    try:
        yield
    except EaselError as error:
        fail(error.detail)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        fail("stopped")


def settings() -> Settings:
    try:
        return read_settings()
    except SettingsError as error:
        fail(str(error))


def catalog(settings: Settings) -> Catalog:
    from app.models.source import open_catalog

    try:
        return open_catalog(settings)
    except CatalogError as error:
        fail(str(error))
