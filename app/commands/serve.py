"""The command `serve`: logs, the application, its server, and one line where any of them cannot
start."""

from app.commands import terminal
from app.errors import EaselError
from app.models.catalog import CatalogError


def serve() -> None:
    """Start the service. Environment variables configure it; README lists them."""
    from app.logs import configure
    from app.server import Server, create_app

    settings = terminal.settings()
    configure(settings.log_level)
    try:
        easel = create_app(settings)
    except EaselError as error:
        terminal.fail(error.detail)
    except CatalogError as error:
        terminal.fail(str(error))
    except OSError as error:
        terminal.fail(f"{error.filename} cannot be read: {error.strerror}")
    try:
        server = Server(easel, settings)
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0].lower()
        terminal.fail(f"cannot listen on {settings.host}:{settings.port}: {why} (HOST, PORT)")
    server.serve_on()
