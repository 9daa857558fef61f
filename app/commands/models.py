"""The command `models`: a table of the catalog."""

from app.commands import terminal


def models() -> None:
    """List the models, how large the installed ones are, and where they run."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Column, Table

    from app.models.manifest import size

    name = Column("name", no_wrap=True)
    table = Table(name, "installed", "devices", "licence", box=None)
    for model in terminal.catalog(terminal.settings()):
        table.add_row(
            model.name + "".join(f"\n  {alias}" for alias in model.aliases),
            decimal(size(model)) if model.installed else "no",
            " ".join(model.devices),
            model.licence,
        )
    Console().print(table)
