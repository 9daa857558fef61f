"""The command line: assembles the commands of app/commands. Knows their names, not what they do."""

import typer

from app.commands.devices import devices
from app.commands.generate import generate
from app.commands.models import models
from app.commands.serve import serve

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Easel turns words and pictures into pictures, on Intel and Axera hardware.",
)
app.command()(serve)
app.command()(generate)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def install(context: typer.Context) -> None:
    """Install a model: download it, convert it where needed, check it."""
    from app.installation.command import main  # with the hub's client, which nothing else needs

    main(context.args, "python -m app install")  # parses the options, --help included


app.command()(models)
app.command()(devices)

if __name__ == "__main__":
    app(prog_name="python -m app")
